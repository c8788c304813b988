"""Published datasets: one file each, which says what the dataset is (`ABOUT`) and reads it as it lies (`read`).

    files as published ──read──▶ Published ──prepare──▶ manifest.csv for aqa-extract, splits/*.csv for aqa-train
                                     └──────check────▶ what is missing or wrong

An adapter knows no method, and scores stay in the dataset's units. A dataset that is one CSV needs no adapter.
"""

from __future__ import annotations

import pkgutil
from pathlib import Path

from aqa_shared.datasets.published import About, Published
from aqa_shared.errors import UsageError, did_you_mean

DATASETS = {
    "mtl-aqa": "aqa_shared.datasets.mtl_aqa",
    "aqa-7": "aqa_shared.datasets.aqa_7",
    "jigsaws": "aqa_shared.datasets.jigsaws",
    "rhythmic-gymnastics": "aqa_shared.datasets.rhythmic_gymnastics",
    "finediving": "aqa_shared.datasets.finediving",
    "finefs": "aqa_shared.datasets.finefs",
    "fis-v": "aqa_shared.datasets.fis_v",
    "mit-skate": "aqa_shared.datasets.mit_skate",
    "logo": "aqa_shared.datasets.logo",
    "ui-prmd": "aqa_shared.datasets.ui_prmd",
    "epic-skills": "aqa_shared.datasets.epic_skills",
}


def about(name: str) -> About:
    """What the dataset `name` is. Raises UsageError for a name that is not in the table."""
    found: About = pkgutil.resolve_name(f"{_module(name)}:ABOUT")
    return found


def read(name: str, root: Path) -> Published:
    """The dataset as it lies in `root`. Raises UsageError or NoInputError that name the file, the row and the fix."""
    published: Published = pkgutil.resolve_name(f"{_module(name)}:read")(root)
    return published


def _module(name: str) -> str:
    if name not in DATASETS:
        raise UsageError(
            f"{name!r} is not a dataset that is known here",
            fix=f"{did_you_mean(name, DATASETS)} choose one of {', '.join(DATASETS)}; a dataset of your own is a "
            "table, which aqa-extract takes as it is".lstrip(),
        )
    return DATASETS[name]
