"""Compile the proxy's hot modules with Cython, beside their sources; they are used wherever they lie.

    python tools/compile.py [--root DIR] [--remove]

Needs a C compiler, the headers of Python and Cython (all in the group `dev` but the first two). The sources stay what
they are: without the compiled modules the same proxy runs, and costs more CPU time. ``holdfast version`` says which.
"""

from __future__ import annotations

import argparse
import os
import shlex
import subprocess
import sys
import sysconfig
import tempfile
from concurrent.futures import ThreadPoolExecutor
from functools import partial
from pathlib import Path

MODULES = (
    "holdfast/core/admission/gate",
    "holdfast/wire/flight",
    "holdfast/wire/held",
    "holdfast/wire/owed",
    "holdfast/wire/parameters",
    "holdfast/wire/replies",
    "holdfast/wire/requests",
    "holdfast/wire/sharing",
    "holdfast/proxy/door",
    "holdfast/proxy/fast",
    "holdfast/proxy/footing",
    "holdfast/proxy/link",
    "holdfast/proxy/pool",
    "holdfast/proxy/reactor",
    "holdfast/proxy/sharing",
)
DIRECTIVES = {
    "language_level": "3",
    "annotation_typing": "False",  # types are in the .pxd files; annotations are for people and mypy
    "boundscheck": "False",
    "embedsignature": "False",
}


class CannotCompile(Exception):
    """Something that is needed is not there, or failed; says what."""


def compiler() -> list[str]:
    """The command of the C compiler that Python was made for, with its options."""
    names = ("CC", "CFLAGS", "CCSHARED")
    words = [word for name in names for word in shlex.split(sysconfig.get_config_var(name) or "")]
    return [*words, "-O2", "-g0", "-shared", f"-I{sysconfig.get_path('include')}"]


def compiled_name(module: str) -> str:
    """Where the interpreter looks for a compiled module, from the root of the sources."""
    return module + str(sysconfig.get_config_var("EXT_SUFFIX"))


def compile_modules(root: Path) -> list[Path]:
    """Compile all of them below ``root``, or none: they rely on each other. Raises CannotCompile."""
    try:
        with tempfile.TemporaryDirectory() as scratch, ThreadPoolExecutor(os.cpu_count()) as workers:
            return list(workers.map(partial(_compile, root, Path(scratch)), MODULES))
    except CannotCompile:
        remove_modules(root)
        raise


def _compile(root: Path, scratch: Path, module: str) -> Path:
    options = [word for name, value in DIRECTIVES.items() for word in ("-X", f"{name}={value}")]
    code, target = scratch / (module.replace("/", ".") + ".c"), root / compiled_name(module)
    _run([sys.executable, "-m", "cython", *options, f"{module}.py", "-o", str(code)], root, "Cython")
    _run([*compiler(), str(code), "-o", str(target.absolute())], root, "a C compiler and the headers of Python")
    return target


def remove_modules(root: Path) -> None:
    """Leave the sources alone there."""
    for module in MODULES:
        (root / compiled_name(module)).unlink(missing_ok=True)


def _run(command: list[str], root: Path, needs: str) -> None:
    try:
        done = subprocess.run(command, cwd=root, capture_output=True, text=True, check=False)
    except OSError as error:
        raise CannotCompile(f"{needs} needed: {error}") from error
    if done.returncode != 0:
        raise CannotCompile(f"{needs} needed, and this failed: {shlex.join(command)}\n{done.stderr.strip()}")


def main() -> None:
    """Parse, compile, say what was made."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--root", type=Path, default=Path(__file__).resolve().parents[1] / "src")
    parser.add_argument("--remove", action="store_true", help="take the compiled modules away again")
    arguments = parser.parse_args()
    remove_modules(arguments.root)
    if arguments.remove:
        return
    try:
        for path in compile_modules(arguments.root):
            print(path)
    except CannotCompile as reason:
        sys.exit(f"cannot compile: {reason}")


if __name__ == "__main__":
    main()
