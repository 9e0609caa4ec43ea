"""The files of the project, for tests that read them."""

from __future__ import annotations

import fnmatch
import os
import subprocess
from collections.abc import Iterator
from pathlib import Path

ROOT = Path(__file__).resolve().parents[2]
CODE_DIRS = ("src", "tests", "tools", "bench")


def project_files() -> list[Path]:
    """Every file of the project: what git tracks, or, where there is no git, what .gitignore does not name."""
    if (ROOT / ".git").exists():
        try:
            listed = subprocess.run(["git", "ls-files", "-z"], cwd=ROOT, capture_output=True, check=True).stdout
        except (OSError, subprocess.CalledProcessError):
            return sorted(_walk())
        return sorted(path for name in listed.decode().split("\0") if name and (path := ROOT / name).is_file())
    return sorted(_walk())


def python_files() -> list[Path]:
    """Every Python file, also those that git does not know yet, and the launcher."""
    found = [path for top in CODE_DIRS for path in (ROOT / top).rglob("*.py")]
    return [*sorted(found), ROOT / "holdfast"]


def relative(path: Path) -> str:
    """A file's name as people write it."""
    return path.relative_to(ROOT).as_posix()


def _walk() -> Iterator[Path]:
    ignored = [line.strip("/") for line in (ROOT / ".gitignore").read_text().split() if not line.startswith("#")]
    for top, dirs, names in os.walk(ROOT):
        kept = [d for d in dirs if d != ".git" and not any(fnmatch.fnmatch(d, pattern) for pattern in ignored)]
        dirs[:] = kept
        for name in names:
            if not any(fnmatch.fnmatch(name, pattern) for pattern in ignored):
                yield Path(top, name)
