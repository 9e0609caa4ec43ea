"""Laboratories for the oldest and the newest PostgreSQL that this machine has."""

from __future__ import annotations

import asyncio
import shutil
import tempfile
from collections.abc import AsyncIterator, Iterator
from pathlib import Path

import pytest

from holdfast.postgres.account import run_as
from holdfast.postgres.installation import OLDEST_MAJOR, Installation, find_installation, readable_for, wheel_bin_dir
from tests.postgres.lab import Lab


def _installations() -> list[Installation]:
    directories = [*Path("/usr/lib/postgresql").glob("*/bin"), *Path("/usr").glob("pgsql-*/bin")]
    if wheel := wheel_bin_dir():
        directories.append(wheel)
    found = [find_installation(d) for d in directories if (d / "postgres").exists() and (d / "pg_rewind").exists()]
    usable = sorted((i for i in found if i.major >= OLDEST_MAJOR), key=lambda i: i.version)
    return list(dict.fromkeys([usable[0], usable[-1]])) if usable else []


_FOUND = _installations()


@pytest.fixture(scope="session", params=_FOUND, ids=[f"pg{i.version[0]}.{i.version[1]}" for i in _FOUND])
def installation(request: pytest.FixtureRequest) -> Iterator[Installation]:
    copies = Path(tempfile.mkdtemp(prefix="holdfast-programs-"))
    copies.chmod(0o711)
    yield readable_for(run_as(None), request.param, copies)
    shutil.rmtree(copies)


@pytest.fixture(scope="session")
def template(installation: Installation) -> Iterator[Path]:
    """A data directory, made once for each version."""
    lab = Lab(installation)

    async def make() -> None:
        await lab.server("template").initialize()

    asyncio.run(make())
    yield lab.data_dir("template")
    shutil.rmtree(lab.root)


@pytest.fixture
async def lab(installation: Installation, template: Path) -> AsyncIterator[Lab]:
    laboratory = Lab(installation, template)
    try:
        yield laboratory
    finally:
        await laboratory.close()
