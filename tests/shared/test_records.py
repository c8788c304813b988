"""What no record lets in."""

from __future__ import annotations

import json
import math

import pytest
from pydantic import ValidationError

from aqa_shared.records import ExtractSettings, Video

NUMBERS = ["sampling.fps", "flow.bound", "actor.min_score", "actor.min_coverage", "actor.enlarge", "bn_eps"]
"""Every setting that is a float."""


def test_the_list_of_float_settings_is_whole() -> None:
    assert json.dumps(ExtractSettings.model_json_schema()).count('"number"') == len(NUMBERS)


@pytest.mark.parametrize("value", [math.inf, -math.inf, math.nan], ids=str)
@pytest.mark.parametrize("place", NUMBERS)
def test_no_setting_is_infinite_or_nan(place: str, value: float) -> None:
    *group, name = place.split(".")
    given = {group[0]: {name: value}} if group else {name: value}
    with pytest.raises(ValidationError, match="finite number"):
        ExtractSettings.model_validate(given)


@pytest.mark.parametrize("name", ["start_time", "end_time", "score", "difficulty"])
def test_no_part_and_no_label_is_infinite_or_nan(name: str) -> None:
    for value in (math.inf, math.nan):
        with pytest.raises(ValidationError, match="finite number"):
            Video.model_validate({"id": "a", "path": "/a", name: value})
