from __future__ import annotations

import shutil
import tempfile
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.installations import any_bin_dir


@pytest.fixture
def server_home() -> Iterator[Path]:
    """A directory that the servers' user may enter (pytest's own is closed to others)."""
    home = Path(tempfile.mkdtemp(prefix="holdfast-drill-"))
    home.chmod(0o755)
    yield home
    shutil.rmtree(home)


@pytest.fixture
def bin_dir() -> Path:
    found = any_bin_dir()
    if found is None:
        pytest.fail("no PostgreSQL on this machine and no wheel of it: these tests need a real one")
    return found
