"""Which PostgreSQL is used."""

from __future__ import annotations

import shutil
import tempfile
from collections.abc import Iterator
from pathlib import Path

import pytest

from holdfast.model.errors import ConfigurationError, EnvironmentFault
from holdfast.postgres.account import run_as
from holdfast.postgres.installation import (
    ENVIRONMENT_VARIABLE,
    PROGRAMS,
    Installation,
    find_installation,
    readable_for,
)


def fake(directory: Path, version: str) -> Path:
    directory.mkdir()
    for program in PROGRAMS:
        path = directory / program
        path.write_text(f"#!/bin/sh\necho 'postgres (PostgreSQL) {version}'\n")
        path.chmod(0o755)
    return directory


@pytest.fixture
def open_path() -> Iterator[Path]:
    """A directory that every user may enter (pytest's own is closed to others)."""
    path = Path(tempfile.mkdtemp(prefix="holdfast-fakes-"))
    path.chmod(0o755)
    yield path
    shutil.rmtree(path)


def test_what_was_named_and_cannot_be_run_by_the_servers_user_is_told(tmp_path: Path) -> None:
    if run_as(None) is None:
        pytest.skip("only root runs PostgreSQL as somebody else")
    tmp_path.chmod(0o700)
    with pytest.raises(EnvironmentFault, match=r"cannot read .*make the directories above it searchable"):
        find_installation(fake(tmp_path / "a", "16.2"))


def test_the_setting_wins_over_the_environment(open_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    explicit, named = fake(open_path / "a", "16.2 (Distribution 1)"), fake(open_path / "b", "17beta1")
    monkeypatch.setenv(ENVIRONMENT_VARIABLE, str(named))
    assert find_installation(explicit) == Installation(explicit, (16, 2), "setting")
    assert find_installation(None) == Installation(named, (17, 0), "environment")


def test_an_old_or_incomplete_one_is_refused(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    old = fake(tmp_path / "old", "13.9")
    with pytest.raises(ConfigurationError, match=r"postgres\.bin_dir = .* 13 is too old; set postgres\.bin_dir or"):
        find_installation(old)
    (old / "pg_rewind").unlink()
    monkeypatch.setenv(ENVIRONMENT_VARIABLE, str(old))
    with pytest.raises(ConfigurationError, match=f"{ENVIRONMENT_VARIABLE} = .*pg_rewind cannot be executed"):
        find_installation(None)


def test_a_copy_is_made_for_a_user_who_cannot_read(tmp_path: Path) -> None:
    user = run_as(None)
    if user is None:
        pytest.skip("only root runs PostgreSQL as somebody else")
    hidden = tmp_path / "hidden"
    hidden.mkdir(mode=0o700)
    installation = Installation(fake(hidden / "bin", "17.1"), (17, 1), "wheel")
    with pytest.raises(EnvironmentFault, match=r"cannot read .*postgres\.bin_dir"):
        readable_for(user, installation, None)
    copies = Path(tempfile.mkdtemp(prefix="holdfast-copies-"))
    try:
        copies.chmod(0o711)
        first = readable_for(user, installation, copies)
        assert first.bin_dir.is_relative_to(copies)
        made = first.bin_dir.stat().st_mtime_ns
        assert readable_for(user, installation, copies) == first
        assert first.bin_dir.stat().st_mtime_ns == made
    finally:
        shutil.rmtree(copies)


def test_a_user_that_does_not_exist_is_named() -> None:
    if run_as(None) is None:
        pytest.skip("only root runs PostgreSQL as somebody else")
    with pytest.raises(ConfigurationError, match=r"postgres\.os_user = 'nosuchuser'"):
        run_as("nosuchuser")
    with pytest.raises(ConfigurationError, match="is root"):
        run_as("root")
