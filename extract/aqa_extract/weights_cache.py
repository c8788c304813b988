"""The folder where converted weights are kept: whole or absent, and checked at every read.

    $AQA_HOME/weights/NAME.safetensors   the tensors
    $AQA_HOME/weights/NAME.json          their sha256 and origin; written last, so without it nothing is cached
    $AQA_HOME/weights/default-KIND       the name that `default` means on this machine

Both are written beside their place and moved there, so two processes that fetch the same weights at once leave the
same two whole files, whoever is last.
"""

from __future__ import annotations

import hashlib
import json
import os
import secrets
from collections.abc import Collection
from pathlib import Path
from typing import Any

from aqa_shared.errors import EnvironmentFault

FORMAT = 1
"""Grows when a converter's output changes, so that what an older version cached is converted again."""


class DamagedWeights(Exception):
    """The cache has these weights, but not as they were written; the message says how."""


def weights_folder() -> Path:
    """`weights/` under AQA_HOME, else under the user's cache folder; it need not exist."""
    import platformdirs

    try:
        home = Path(os.environ.get("AQA_HOME") or platformdirs.user_cache_dir("aqa")).expanduser()
    except RuntimeError as e:
        raise EnvironmentFault("there is no home folder to keep weights in", fix="set AQA_HOME to a folder") from e
    return home.absolute() / "weights"


def tensors_file(name: str) -> Path:
    return weights_folder() / f"{name}.safetensors"


def record_file(name: str) -> Path:
    return weights_folder() / f"{name}.json"


def is_cached(name: str) -> bool:
    # os.path, as pathlib raises where a folder may not be entered.
    return os.path.isfile(record_file(name)) and os.path.isfile(tensors_file(name))


def read(name: str, origins: Collection[str]) -> tuple[bytes, dict[str, Any]] | None:
    """The safetensors bytes and their record, or None where nothing is cached.

    `origins` are the identities of the sources that the registry accepts. Raises Damaged.
    """
    try:
        record = json.loads(record_file(name).read_text())
        data = tensors_file(name).read_bytes()
        kept = record.pop("cache")
        wanted, current = record["sha256"], kept["format"] == FORMAT and kept["origin"] in origins
    except FileNotFoundError:
        return None
    except PermissionError as e:
        raise DamagedWeights(f"{e.filename} cannot be read") from e
    except (OSError, ValueError, TypeError, AttributeError, KeyError) as e:
        raise DamagedWeights(f"{record_file(name)} is not a record of ours ({type(e).__name__})") from e
    if not current:
        raise DamagedWeights(f"{tensors_file(name)} was made by another version, or from another file")
    if hashlib.sha256(data).hexdigest() != wanted:
        raise DamagedWeights(f"{tensors_file(name)} is damaged: its sha256 is not {wanted[:16]}…")
    return data, record


def write(name: str, data: bytes, record: dict[str, Any], origin: str) -> None:
    """Keep safetensors bytes and their record; `origin` is the identity of their source. Raises OSError."""
    weights_folder().mkdir(parents=True, exist_ok=True)
    kept = {**record, "cache": {"format": FORMAT, "origin": origin}}
    _replace(tensors_file(name), data)
    _replace(record_file(name), json.dumps(kept, indent=2).encode())


def settled(kind: str) -> str | None:
    """The name that `default` was settled on, None where it was not yet."""
    try:
        return (weights_folder() / f"default-{kind}").read_text("utf-8").strip()
    except (OSError, ValueError):
        return None


def settle(kind: str, name: str) -> None:
    """Let `default` mean `name` from now on. Raises OSError."""
    weights_folder().mkdir(parents=True, exist_ok=True)
    _replace(weights_folder() / f"default-{kind}", f"{name}\n".encode())


def _replace(path: Path, data: bytes) -> None:
    """Write a file whole or not at all."""
    # Not tempfile: its files are private, and a cache may be shared within a group.
    beside = path.with_name(f".{path.name}.{os.getpid()}-{secrets.token_hex(4)}")
    try:
        with beside.open("xb") as file:
            file.write(data)
            file.flush()
            os.fsync(file.fileno())
        beside.replace(path)
    except BaseException:
        beside.unlink(missing_ok=True)
        raise
