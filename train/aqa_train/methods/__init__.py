"""The methods by name. A method is `cls(channels, segments, config)` with `forward` and `losses`."""

from __future__ import annotations

import pkgutil
from dataclasses import dataclass, field
from typing import Any


@dataclass(frozen=True)
class Method:
    """One row of the table."""

    target: str
    """`module:class`, opened when it is used, because torch loads with it."""
    fixed: dict[str, Any] = field(default_factory=dict)
    """Settings that make this method what it is; they cannot be changed."""
    summary: str = ""

    def load(self) -> Any:
        """The class; its `Config` is the frozen dataclass of its settings."""
        return pkgutil.resolve_name(self.target)


_S4AQA = "aqa_train.methods.s4aqa:S4AQA"

DEFAULT, WITHOUT_UNLABELLED = "s4aqa", "aa"
"""What is trained where no method is named: where there are unlabelled videos, and where there are none."""

METHODS: dict[str, Method] = {
    "s4aqa": Method(_S4AQA, summary="S4AQA: scores, segment recovery, adversarial alignment"),
    "aa": Method(
        _S4AQA, {"recovery_weight": 0.0, "adversarial_weight": 0.0}, "S4AQA's encoder on labelled videos only"
    ),
    "aa+rda": Method(_S4AQA, {"recovery_weight": 0.0}, "S4AQA without recovery"),
    "aa+msfr": Method(_S4AQA, {"adversarial_weight": 0.0}, "S4AQA without alignment"),
}
