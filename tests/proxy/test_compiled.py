"""The compiled modules pass what their sources pass."""

from __future__ import annotations

import importlib.util
import os
import shutil
import subprocess
import sys
import sysconfig
from pathlib import Path

import pytest

from tools.compile import MODULES, CannotCompile, compile_modules, compiled_name, compiler

ROOT = Path(__file__).resolve().parents[2]
TESTS = ("tests/wire", "tests/proxy/test_fast.py", "tests/proxy/test_streams.py")

needs_compiler = pytest.mark.skipif(
    importlib.util.find_spec("Cython") is None
    or shutil.which(compiler()[0]) is None
    or not Path(sysconfig.get_path("include"), "Python.h").exists(),
    reason="no Cython, no C compiler or no Python.h here",
)


def _run(sources: Path, *arguments: str) -> None:
    environ = {**os.environ, "PYTHONPATH": os.pathsep.join([str(sources), *sys.path])}
    done = subprocess.run([sys.executable, *arguments], cwd=ROOT, capture_output=True, text=True, env=environ)
    assert done.returncode == 0, done.stdout + done.stderr


@pytest.mark.timeout(1500)  # it compiles, and runs the longest tests once more
@needs_compiler
def test_compiled_modules_pass_what_their_sources_pass(tmp_path: Path) -> None:
    sources = tmp_path / "src"
    shutil.copytree(ROOT / "src", sources, ignore=shutil.ignore_patterns("*.so", "__pycache__"))
    compile_modules(sources)
    names = ", ".join(module.replace("/", ".") for module in MODULES)
    _run(
        sources,
        "-c",
        f"import sys, {names}; assert not any(sys.modules[n].__file__.endswith('.py') for n in '{names}'.split(', '))",
    )
    paths = f"pythonpath={sources} {ROOT}"
    _run(sources, "-m", "pytest", "-q", "-n0", "-p", "no:cacheprovider", "-o", paths, *TESTS)


def test_what_is_missing_is_named(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(sys, "executable", str(tmp_path / "python"))
    with pytest.raises(CannotCompile, match="Cython needed"):
        compile_modules(tmp_path)


def test_modules_that_were_compiled_here_are_not_older_than_their_sources() -> None:
    old = []
    for module in MODULES:
        made = ROOT / "src" / compiled_name(module)
        sources = [ROOT / "src" / f"{module}.py", ROOT / "src" / f"{module}.pxd"]
        if made.exists() and any(source.stat().st_mtime > made.stat().st_mtime for source in sources):
            old.append(made.name)
    assert not old, "run tools/compile.py again, or with --remove"
