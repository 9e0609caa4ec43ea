"""Laboratories for the oldest and the newest PostgreSQL that this machine has."""

from __future__ import annotations

import asyncio
import shutil
from collections.abc import AsyncIterator, Iterator
from pathlib import Path

import pytest

from holdfast.postgres.installation import Installation
from tests.installations import oldest_and_newest, readable, version_id
from tests.postgres.lab import Lab


@pytest.fixture(scope="session", params=oldest_and_newest(), ids=version_id)
def installation(request: pytest.FixtureRequest) -> Installation:
    return readable(request.param)


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
