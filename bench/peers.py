"""Where PgBouncer and HAProxy come from: found on PATH, or fetched as packages into a directory of the bench's own."""

from __future__ import annotations

import os
import shutil
import subprocess
from dataclasses import dataclass, field
from pathlib import Path

PROGRAMS = ("pgbouncer", "haproxy")
PACKAGES = (
    *PROGRAMS,
    "libc-ares2",
    "libevent-2.1-7",
    "liblua5.3-0",
    "libopentracing-c-wrapper0",
    "libopentracing1",
)
"""Of Debian: the programs, and those libraries that a small installation lacks."""
SYSTEM = Path("/")
_PLACES = ("usr/local/sbin", "usr/sbin", "usr/bin", "sbin")


@dataclass(frozen=True, slots=True)
class Program:
    """One that can be run, and with what in its environment."""

    path: Path
    environment: dict[str, str] = field(default_factory=dict)

    def version(self) -> str:
        """What it says of itself, first line."""
        done = subprocess.run([self.path, "-v" if self.path.name == "haproxy" else "--version"], capture_output=True,
                              text=True, env={**os.environ, **self.environment})  # fmt: skip
        return (done.stdout or done.stderr).splitlines()[0]


def cache_directory() -> Path:
    """Where `fetch` puts packages unless told otherwise."""
    return Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache") / "holdfast-bench"


def fetch(cache: Path) -> None:
    """Download and unpack the packages, without installing them; nothing is done twice.

    Raises SystemExit if apt-get or dpkg is not there or fails.
    """
    root = cache / "root"
    if all(_in(root, name) is not None for name in PROGRAMS):
        return
    cache.mkdir(parents=True, exist_ok=True)
    _run(["apt-get", "download", *PACKAGES], cache)
    for package in sorted(cache.glob("*.deb")):
        _run(["dpkg", "-x", str(package), str(root)], cache)


def find(name: str, cache: Path) -> Program | None:
    """A program of `PROGRAMS`: what was fetched, else what is on PATH."""
    root = cache / "root"
    fetched = _in(root, name)
    if fetched is not None:
        libraries = sorted({str(path.parent) for path in (root / "usr/lib").rglob("lib*.so.*")})
        return Program(fetched, {"LD_LIBRARY_PATH": os.pathsep.join(libraries)})
    # What is in sbin may not be on an ordinary user's PATH.
    found = shutil.which(name) or shutil.which(name, path=os.pathsep.join(str(SYSTEM / place) for place in _PLACES))
    return Program(Path(found)) if found else None


def missing(name: str) -> str:
    """What to do about a program that is not there."""
    return f"without {name}: it is not on PATH; install the package {name}, or run with --fetch (Debian)"


def _in(root: Path, name: str) -> Path | None:
    return next((path for place in _PLACES if (path := root / place / name).exists()), None)


def _run(command: list[str], directory: Path) -> None:
    try:
        done = subprocess.run(command, cwd=directory, capture_output=True, text=True)
    except OSError as error:
        raise SystemExit(f"--fetch needs {command[0]}: {error}; install pgbouncer and haproxy instead") from error
    if done.returncode != 0:
        raise SystemExit(f"--fetch: {' '.join(command)} failed:\n{done.stderr.strip()}")
