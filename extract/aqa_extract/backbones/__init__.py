"""The table of backbones: networks that read clips. To add one: its file, and its line here."""

from __future__ import annotations

import pkgutil

from aqa_extract.backbones.record import DEFAULT, Backbone, Canvas, Input, Modality, Output

__all__ = ["BACKBONES", "DEFAULT", "Backbone", "Canvas", "Input", "Modality", "Output"]

_FILES = (
    "aqa_extract.backbones.i3d:I3D",
    "aqa_extract.backbones.swin3d:SWIN3D_T",
    "aqa_extract.backbones.swin3d:SWIN3D_S",
    "aqa_extract.backbones.swin3d:SWIN3D_B",
    "aqa_extract.backbones.mvit_v2_s:MVIT_V2_S",
    "aqa_extract.backbones.s3d:S3D",
    "aqa_extract.backbones.r2plus1d_18:R2PLUS1D_18",
)

BACKBONES: dict[str, Backbone] = {found.name: found for found in map(pkgutil.resolve_name, _FILES)}
