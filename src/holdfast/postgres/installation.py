"""Finds the PostgreSQL programs to use, and the user to run them as."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path


@dataclass(frozen=True, slots=True)
class Installation:
    """One set of PostgreSQL programs. ``source`` says where it was found: setting, environment, system or wheel."""

    bin_dir: Path
    version: tuple[int, int]
    source: str


def find_installation(explicit: Path | None, private_copy_dir: Path | None = None) -> Installation:
    """The PostgreSQL to use; raises EnvironmentFault or ConfigurationError that names the setting and the fix."""
    raise NotImplementedError
