"""Writes datasets in their published layouts, and reads what adapters say of them."""

from __future__ import annotations

import csv
import pickle
from pathlib import Path

from aqa_shared.datasets import read
from aqa_shared.datasets.check import findings


def dump(path: Path, value: object) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_bytes(pickle.dumps(value))
    return path


def write(path: Path, text: str = "") -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(text, encoding="utf-8")
    return path


def pictures(folder: Path, numbers: range) -> None:
    """Only names count here: nothing decodes them."""
    folder.mkdir(parents=True)
    for i in numbers:
        (folder / f"{i:05d}.jpg").touch()


def said(name: str, root: Path) -> list[str]:
    return [str(finding) for finding in findings(read(name, root))]


def problems(name: str, root: Path) -> list[str]:
    return [str(finding) for finding in findings(read(name, root)) if not finding.known]


def table(path: Path) -> list[dict[str, str]]:
    with path.open(newline="", encoding="utf-8") as file:
        return list(csv.DictReader(file))
