"""Values as TOML, which Python reads and does not write."""

from __future__ import annotations

import json
import math
from typing import Any


def as_key(key: str) -> str:
    """`key` as it stands before a `=`, quoted where it must be."""
    return key if key.replace("_", "").replace("-", "").isalnum() and key.isascii() else as_value(key)


def as_value(value: Any) -> str:
    """A string, path, number, boolean or list as it stands behind a `=`."""
    if isinstance(value, bool):
        return str(value).lower()
    if isinstance(value, list | tuple):
        return "[" + ", ".join(as_value(v) for v in value) + "]"
    if isinstance(value, int) or (isinstance(value, float) and math.isfinite(value)):
        return repr(value)
    # JSON's escapes are a subset of TOML's basic strings, except DEL.
    return json.dumps(str(value)).replace("\x7f", "\\u007f")
