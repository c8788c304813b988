"""Checkpoints: tensors as safetensors, everything else as JSON in the same file's header.

One file, replaced atomically, so that tensors and settings can never belong to different moments.
"""

from __future__ import annotations

import errno
import json
import os
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError, safe_open
from safetensors.torch import save as as_bytes
from torch import Tensor

from aqa_shared.errors import StoreError, UsageError
from aqa_shared.files import replace_text, replacing

FORMAT = 1
_KEY = "aqa"


def _full(e: Exception) -> bool:
    return isinstance(e, OSError) and e.errno in (errno.ENOSPC, errno.EDQUOT)


@contextmanager
def writing(place: Path, fix: str = "name another --out: nothing can be written there") -> Iterator[None]:
    """What the system refuses while writing in `place` is a `StoreError` with its reason, and this fix."""
    try:
        yield
    except OSError as e:
        fix = "free space, or name another --out" if _full(e) else fix
        raise StoreError(f"cannot write {e.filename or place}: {e.strerror or e}", fix=fix) from e


def write_json(path: Path, value: Any) -> None:
    """Atomically, and never with NaN."""
    with writing(path):
        path.parent.mkdir(parents=True, exist_ok=True)
        replace_text(path, as_json(value))


def as_json(value: Any) -> str:
    """As all files of a run are written. Raises ValueError for NaN."""
    return json.dumps(value, indent=1, allow_nan=False, ensure_ascii=True)


def read_json(path: Path, fix: str) -> Any:
    """What `write_json` wrote. Raises UsageError with this fix for a file that is absent, damaged or cut off."""
    try:
        return json.loads(path.read_text(encoding="utf-8"))
    except OSError as e:
        raise UsageError(f"{path} cannot be read: {e.strerror or e}", fix=fix) from None
    except ValueError as e:
        raise UsageError(f"{path} is damaged: {e}", fix=fix) from None


def save(path: Path, tensors: dict[str, Tensor], meta: dict[str, Any]) -> None:
    """Write beside, sync, then replace: an interrupted or failed write leaves the previous file whole."""
    with writing(path.parent):
        path.parent.mkdir(parents=True, exist_ok=True)
    held = {k: v.detach().cpu().contiguous().clone() for k, v in tensors.items()}
    header = json.dumps({"format": FORMAT, **meta}, allow_nan=False)
    try:
        # Not save_file: what it writes is for the owner alone, whatever the umask says.
        with replacing(path) as partial, partial.open("wb") as file:
            file.write(as_bytes(held, metadata={_KEY: header}))
            file.flush()
            os.fsync(file.fileno())
    except (OSError, SafetensorError) as e:
        raise StoreError(
            f"{path} could not be written ({e}); what was saved there before is whole",
            fix=f"{'free space there' if _full(e) else f'let {path.parent} be written'}, then resume",
        ) from None


def load(path: Path, kind: str) -> tuple[dict[str, Tensor], dict[str, Any]]:
    """Tensors and settings of a checkpoint of this kind (`model` or `state`)."""
    try:
        with safe_open(path, framework="pt") as file:
            header = (file.metadata() or {}).get(_KEY)
            tensors = {k: file.get_tensor(k) for k in file.keys()}  # noqa: SIM118 (not a dict)
    except FileNotFoundError:
        raise UsageError(f"{path} does not exist", fix="name a run folder or a .safetensors file in it") from None
    except (SafetensorError, OSError) as e:
        raise UsageError(
            f"{path} is not a whole safetensors file ({e})", fix="copy it again, or train again with aqa-train"
        ) from None
    if header is None:
        raise UsageError(f"{path} was not written by aqa-train", fix="name a checkpoint of a run folder")
    meta = json.loads(header)
    if meta.get("format", 0) > FORMAT:
        raise UsageError(f"{path} has format {meta['format']}, this version reads {FORMAT}", fix="update aqa")
    if meta.get("kind") != kind:
        raise UsageError(f"{path} holds a {meta.get('kind')}, not a {kind}", fix="name last.safetensors of a run")
    return tensors, meta


def optimiser_tensors(optimiser: torch.optim.Optimizer) -> dict[str, Tensor]:
    """The optimiser's state by `<parameter index>.<name>`."""
    state = optimiser.state_dict()["state"]
    return {f"{i}.{k}": v for i, s in state.items() for k, v in s.items() if isinstance(v, Tensor)}


def restore_optimiser(optimiser: torch.optim.Optimizer, tensors: dict[str, Tensor]) -> None:
    """Put `optimiser_tensors` back."""
    state: dict[int, dict[str, Tensor]] = {}
    for key, value in tensors.items():
        index, _, name = key.partition(".")
        state.setdefault(int(index), {})[name] = value
    optimiser.load_state_dict({**optimiser.state_dict(), "state": state})


def part(tensors: dict[str, Tensor], prefix: str) -> dict[str, Tensor]:
    """The tensors under `prefix.`, without it."""
    return {k.removeprefix(prefix + "."): v for k, v in tensors.items() if k.startswith(prefix + ".")}


def under(prefix: str, tensors: dict[str, Tensor]) -> dict[str, Tensor]:
    """The opposite of `part`."""
    return {f"{prefix}.{k}": v for k, v in tensors.items()}
