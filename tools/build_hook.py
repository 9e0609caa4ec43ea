"""Building a wheel: the proxy is compiled into it where Cython, a C compiler and Python's headers are there."""

from __future__ import annotations

import sys
from importlib.util import find_spec
from pathlib import Path
from typing import Any

from hatchling.builders.hooks.plugin.interface import BuildHookInterface

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

from tools.compile import CannotCompile, compile_modules


class CompileHook(BuildHookInterface):  # type: ignore[misc]
    """Run by hatchling; `pip install --no-build-isolation .` builds with the Cython of the environment."""

    PLUGIN_NAME = "custom"

    def initialize(self, version: str, build_data: dict[str, Any]) -> None:
        """Before the wheel is put together."""
        if version == "editable" or find_spec("Cython") is None:
            return
        root = Path(self.root, "src")
        try:
            made = compile_modules(root)
        except CannotCompile as reason:
            self.app.display_warning(f"the proxy is not compiled: {reason}")
            return
        build_data["pure_python"] = False
        build_data["infer_tag"] = True
        build_data["artifacts"] += [str(path.relative_to(self.root)) for path in made]
