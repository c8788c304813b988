"""Compiles TV-L1 while the package is built or installed, with extract/aqa_extract/flow/build.py."""

from __future__ import annotations

import importlib.util
import sysconfig
from pathlib import Path
from types import ModuleType
from typing import Any

from hatchling.builders.hooks.plugin.interface import BuildHookInterface

FOLDER = "extract/aqa_extract/flow"


class CustomBuildHook(BuildHookInterface):
    """Adds the compiled libraries to the wheel, or to the working tree for an editable installation."""

    def _build(self) -> ModuleType:
        spec = importlib.util.spec_from_file_location("tvl1_build", Path(self.root) / FOLDER / "build.py")
        assert spec is not None
        assert spec.loader is not None
        module = importlib.util.module_from_spec(spec)
        spec.loader.exec_module(module)
        return module

    def dependencies(self) -> list[str]:
        """A compiler from the package index, where the machine has none."""
        return [] if self._build().compiler() else ["ziglang>=0.13,<0.18"]

    def initialize(self, version: str, build_data: dict[str, Any]) -> None:
        """Compile; without success the wheel is pure, and extraction says what that costs."""
        build = self._build()
        try:
            command = build.compiler()
            if command is None:
                raise RuntimeError("no C compiler")
            made = build.build(command)
        except RuntimeError as e:
            self.app.display_warning(f"TV-L1 was not compiled, and flow will take ten times as long: {e}")
            return
        build_data["artifacts"] += [f"/{FOLDER}/{path.name}" for path in made]
        build_data["pure_python"] = False
        build_data["tag"] = f"py3-none-{sysconfig.get_platform().replace('-', '_').replace('.', '_')}"
