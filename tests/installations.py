"""The oldest and the newest PostgreSQL that this machine has: the system's and the wheel's, usually."""

from __future__ import annotations

import atexit
import shutil
import tempfile
from functools import cache
from pathlib import Path

from holdfast.postgres.account import run_as
from holdfast.postgres.installation import OLDEST_MAJOR, Installation, look_at, readable_for, wheel_bin_dir


def oldest_and_newest() -> list[Installation]:
    """One or two installations; none is no excuse: the wheel brings one."""
    directories = [*Path("/usr/lib/postgresql").glob("*/bin"), *Path("/usr").glob("pgsql-*/bin")]
    if wheel := wheel_bin_dir():
        directories.append(wheel)
    found = [i for i in (look_at(d, "test") for d in directories) if isinstance(i, Installation)]
    usable = sorted((i for i in found if i.major >= OLDEST_MAJOR), key=lambda i: i.version)
    return list(dict.fromkeys([usable[0], usable[-1]])) if usable else []


@cache
def readable(installation: Installation) -> Installation:
    """The same, or a copy that the servers' user can read: a wheel may lie below a closed home."""
    copies = Path(tempfile.mkdtemp(prefix="holdfast-programs-"))
    copies.chmod(0o711)
    atexit.register(shutil.rmtree, copies, ignore_errors=True)
    return readable_for(run_as(None), installation, copies)


def any_bin_dir() -> Path | None:
    """The programs for tests that try one version only."""
    found = oldest_and_newest()
    return readable(found[0]).bin_dir if found else None


def version_id(installation: Installation) -> str:
    """What a test's name says of the version."""
    return f"pg{installation.version[0]}.{installation.version[1]}"
