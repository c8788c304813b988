"""Files and tables for the tests of manifests, and what is refused of them."""

from __future__ import annotations

from pathlib import Path

import pytest

from aqa_shared.errors import AqaError
from aqa_shared.manifest import find_videos


def files(root: Path, *names: str) -> Path:
    """Empty files: the manifest opens none of them."""
    for name in names:
        (root / name).parent.mkdir(parents=True, exist_ok=True)
        (root / name).touch()
    return root


def ids(source: object, **options: object) -> list[str]:
    return [v.id for v in find_videos(source, **options).videos]  # type: ignore[arg-type]


def refused(kind: type[AqaError], source: object, **options: object) -> AqaError:
    with pytest.raises(kind) as caught:
        find_videos(source, **options)  # type: ignore[arg-type]
    assert caught.value.fix
    return caught.value


def table(tmp_path: Path, text: str | bytes, name: str = "manifest.csv") -> Path:
    path = tmp_path / name
    path.write_bytes(text if isinstance(text, bytes) else text.encode())
    return path
