"""The table of backbones: networks that read clips. To add one: its file, and its line here."""

from __future__ import annotations

import pkgutil

from aqa_extract.backbones.record import DEFAULT, Backbone, Canvas, Input, Modality, Output

__all__ = ["BACKBONES", "DEFAULT", "Backbone", "Canvas", "Input", "Modality", "Output"]

_FILES = ("aqa_extract.backbones.i3d:I3D",)

BACKBONES: dict[str, Backbone] = {found.name: found for found in map(pkgutil.resolve_name, _FILES)}
