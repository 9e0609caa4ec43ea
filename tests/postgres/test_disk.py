"""A file system that hangs holds up only the thread that touches it."""

from __future__ import annotations

import asyncio
import os
from pathlib import Path

import pytest

from holdfast.postgres.disk import Disk, DiskSilent, pressure, space_of, write_probe, writes_completed


@pytest.fixture
def hanging(tmp_path: Path) -> Path:
    """A directory whose probe file hangs: a FIFO that nobody reads cannot be opened for writing."""
    os.mkfifo(tmp_path / "storage-probe")
    return tmp_path


async def test_a_call_that_hangs_fails_in_time_and_others_go_on(hanging: Path) -> None:
    disk = Disk()
    with pytest.raises(DiskSilent, match="did not answer within 50 ms"):
        await disk.call("probe", lambda: write_probe(hanging), 50)
    with pytest.raises(DiskSilent, match="has not answered an earlier call yet"):
        await disk.call("probe", lambda: write_probe(hanging), 50)
    assert await disk.call("other", lambda: 7, 5000) == 7
    released = os.open(hanging / "storage-probe", os.O_RDONLY | os.O_NONBLOCK)  # now the thread goes on, and ends
    os.close(released)


async def test_what_is_raised_on_the_thread_is_raised_where_it_was_asked_for() -> None:
    def fail() -> None:
        raise FileNotFoundError("no such file")

    disk = Disk()
    for _ in range(2):
        with pytest.raises(FileNotFoundError, match="no such file"):
            await disk.call("fails", fail, 5000)


async def test_a_cancelled_caller_leaves_nothing_that_is_raised_later(hanging: Path) -> None:
    disk = Disk()
    asking = asyncio.create_task(disk.call("probe", lambda: write_probe(hanging), None))
    await asyncio.sleep(0)
    asking.cancel()
    with pytest.raises(asyncio.CancelledError):
        await asking
    released = os.open(hanging / "storage-probe", os.O_RDONLY | os.O_NONBLOCK)
    os.close(released)


def test_room_and_pressure_of_this_machine(tmp_path: Path) -> None:
    space = space_of(tmp_path)
    assert space is not None
    assert 0 < space.free_bytes <= space.total_bytes
    assert space_of(tmp_path / "missing") is None
    waits = pressure()
    assert waits is None or 0 <= waits.cpu <= 100


def test_a_device_tells_what_it_has_completed_and_what_is_none_tells_nothing(tmp_path: Path) -> None:
    assert writes_completed(os.makedev(0, 5)) is None  # memory, a network, layers
    device = os.stat(tmp_path).st_dev
    before = writes_completed(device)
    write_probe(tmp_path)
    after = writes_completed(device)
    assert (before is None) == (after is None)
    assert before is None or after is None or after > before
