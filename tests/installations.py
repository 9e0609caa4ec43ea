"""The oldest and the newest PostgreSQL that this machine has: the system's and the wheel's, usually."""

from __future__ import annotations

from pathlib import Path

from holdfast.postgres.installation import OLDEST_MAJOR, Installation, find_installation, wheel_bin_dir


def oldest_and_newest() -> list[Installation]:
    """One or two installations; none is no excuse: the wheel brings one."""
    directories = [*Path("/usr/lib/postgresql").glob("*/bin"), *Path("/usr").glob("pgsql-*/bin")]
    if wheel := wheel_bin_dir():
        directories.append(wheel)
    found = [find_installation(d) for d in directories if (d / "postgres").exists() and (d / "pg_rewind").exists()]
    usable = sorted((i for i in found if i.major >= OLDEST_MAJOR), key=lambda i: i.version)
    return list(dict.fromkeys([usable[0], usable[-1]])) if usable else []


def version_id(installation: Installation) -> str:
    """What a test's name says of the version."""
    return f"pg{installation.version[0]}.{installation.version[1]}"
