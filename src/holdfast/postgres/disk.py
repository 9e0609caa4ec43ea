"""Touches the server's directories on threads of their own: a file system that hangs holds up only those.

The agent's own loop must go on when the storage stalls, to say so and to fence. The default executor of a loop will not
do: a few hanging calls take all its threads, and everything else that uses them (name resolution) hangs with them.
"""

from __future__ import annotations

import asyncio
import contextlib
import os
import threading
from collections.abc import Callable
from pathlib import Path
from typing import TypeVar

import psutil

from holdfast.model.errors import HoldfastError, PostgresError
from holdfast.model.vitals import Pressure, Space
from holdfast.postgres.files import sync_directory

T = TypeVar("T")
_PROBE_FILE = "storage-probe"
_PROBE_BYTES = 4096
_COMPLETED = (4, 15)
"""Fields of a device's ``stat``: writes completed, and flushes (since Linux 5.5)."""
_BOOT_ID = Path("/proc/sys/kernel/random/boot_id")


class DiskSilent(PostgresError):
    """The file system did not answer in time; what was asked may still happen."""


class Disk:
    """At most one call for each purpose at a time: while one hangs, others for the same purpose fail at once."""

    def __init__(self) -> None:
        self._under_way: dict[str, asyncio.Future[object]] = {}

    async def call(self, purpose: str, work: Callable[[], T], deadline_ms: int | None) -> T:
        """Run ``work`` on a thread; raises DiskSilent, or what ``work`` raises. None waits for as long as it takes."""
        if purpose in self._under_way:
            raise DiskSilent(f"the file system has not answered an earlier call yet ({purpose})")
        loop = asyncio.get_running_loop()
        done: asyncio.Future[T] = loop.create_future()
        self._under_way[purpose] = done  # type: ignore[assignment]
        done.add_done_callback(lambda _: self._under_way.pop(purpose, None))

        def tell(result: T | None, error: Exception | None) -> None:
            if done.cancelled():
                return
            if error is not None:
                done.set_exception(error)
            else:
                done.set_result(result)  # type: ignore[arg-type]

        def run() -> None:
            result: T | None = None
            error: Exception | None = RuntimeError(f"a bug below ({purpose}): the thread's own words are in the log")
            try:
                result, error = work(), None
            except (OSError, ValueError, HoldfastError, psutil.Error) as expected:
                error = expected
            finally:
                with contextlib.suppress(RuntimeError):  # the loop has ended meanwhile
                    loop.call_soon_threadsafe(tell, result, error)

        threading.Thread(target=run, name=f"disk-{purpose}", daemon=True).start()
        try:
            finished, _ = await asyncio.wait({done}, timeout=None if deadline_ms is None else deadline_ms / 1000)
        except asyncio.CancelledError:
            done.add_done_callback(_forget)
            raise
        if not finished:
            done.add_done_callback(_forget)
            raise DiskSilent(f"the file system did not answer within {deadline_ms} ms ({purpose})")
        return done.result()


def _forget(done: asyncio.Future[T]) -> None:
    """Nobody waits for it any more."""
    if not done.cancelled():
        done.exception()


def write_probe(side_dir: Path) -> None:
    """A small write brought to the disk, beside the data directory; what it takes is what the storage takes."""
    descriptor = os.open(side_dir / _PROBE_FILE, os.O_WRONLY | os.O_CREAT | os.O_NOFOLLOW, 0o600)
    try:
        os.pwrite(descriptor, b"\0" * _PROBE_BYTES, 0)
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


def remove_probe(side_dir: Path) -> None:
    """Take the file of the small write away."""
    (side_dir / _PROBE_FILE).unlink(missing_ok=True)
    sync_directory(side_dir)


def space_of(directory: Path) -> Space | None:
    """Room on the file system of a directory; None if there is no such directory."""
    try:
        found, device = os.statvfs(directory), os.stat(directory).st_dev
        boot_id = _BOOT_ID.read_text().strip()
    except OSError:
        return None
    free, total = found.f_bavail * found.f_frsize, found.f_blocks * found.f_frsize
    return Space(free, total, f"{boot_id}:{device}")


def writes_completed(device: int) -> int | None:
    """How many writes and flushes a block device has completed; None for what is none (network, overlay, btrfs...).

    The kernel tells from memory (Documentation/admin-guide/iostats.rst), also while the device does not answer.
    """
    try:
        counts = Path(f"/sys/dev/block/{os.major(device)}:{os.minor(device)}/stat").read_text().split()
        return sum(int(counts[field]) for field in _COMPLETED if field < len(counts))
    except (OSError, ValueError):
        return None


def pressure() -> Pressure | None:
    """Waits for resources on this machine; None where the kernel does not tell (before 4.20, or without PSI)."""
    try:
        shares = [_some(Path("/proc/pressure", what).read_text()) for what in ("cpu", "io", "memory")]
    except (OSError, ValueError, IndexError):
        return None
    return Pressure(*shares)


def _some(text: str) -> float:
    """The ten-second average of "some" (Documentation/accounting/psi.rst)."""
    return float(text.split("avg10=", 1)[1].split()[0])
