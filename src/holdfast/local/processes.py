"""Processes that are not ours to wait for: told apart by more than a number, signalled without a race.

A process number is reused; a number together with the boot and the tick at which the process started is not.
"""

from __future__ import annotations

import os
import select
import signal
import time
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

_BOOT_ID = Path("/proc/sys/kernel/random/boot_id")


def _boot_id() -> str:
    try:
        return _BOOT_ID.read_text().strip()
    except OSError:
        return ""


def _start_ticks(pid: int) -> int | None:
    """When the process started, in clock ticks since the boot; None if it is gone or a zombie (proc(5), "stat")."""
    try:
        stat = Path(f"/proc/{pid}/stat").read_text()
    except OSError:
        return None
    fields = stat[stat.rindex(")") + 2 :].split()
    return None if fields[0] in "ZX" else int(fields[19])


@dataclass(frozen=True, slots=True)
class Process:
    """One process, for ever: the number, the tick at which it started, and the boot in which it did."""

    pid: int
    start_ticks: int
    boot_id: str

    @classmethod
    def of(cls, pid: int) -> Process | None:
        """The process that has this number now, or None."""
        ticks = _start_ticks(pid)
        return None if ticks is None else cls(pid, ticks, _boot_id())

    @classmethod
    def from_dict(cls, value: Any) -> Process | None:
        """Read what `to_dict` wrote; None if it is not that."""
        try:
            return cls(int(value["pid"]), int(value["start_ticks"]), str(value["boot_id"]))
        except (TypeError, KeyError, ValueError):
            return None

    def to_dict(self) -> dict[str, Any]:
        """A form for JSON."""
        return asdict(self)

    def is_alive(self) -> bool:
        """Whether this very process still runs."""
        return _start_ticks(self.pid) == self.start_ticks and _boot_id() == self.boot_id

    def age_s(self) -> float:
        """How long ago it started."""
        return time.clock_gettime(time.CLOCK_BOOTTIME) - self.start_ticks / os.sysconf("SC_CLK_TCK")

    def open(self) -> int | None:
        """A descriptor that becomes readable when the process ends (pidfd_open(2)); None if it has ended.

        Raises OSError where Linux is older than 5.3.
        """
        try:
            descriptor = os.pidfd_open(self.pid)
        except ProcessLookupError:
            return None
        if self.is_alive():
            return descriptor
        os.close(descriptor)
        return None

    def send(self, number: signal.Signals) -> bool:
        """Send a signal; False if the process has ended."""
        descriptor = self.open()
        if descriptor is None:
            return False
        try:
            signal.pidfd_send_signal(descriptor, number)
        except ProcessLookupError:
            return False
        finally:
            os.close(descriptor)
        return True

    def wait(self, timeout_s: float) -> bool:
        """Wait until it has ended; False if it still runs after ``timeout_s``."""
        descriptor = self.open()
        if descriptor is None:
            return True
        try:
            poller = select.poll()
            poller.register(descriptor, select.POLLIN)
            return bool(poller.poll(timeout_s * 1000))
        finally:
            os.close(descriptor)


def descendants_of(*pids: int) -> tuple[int, ...]:
    """Children, their children and so on, from ``/proc`` (every PostgreSQL backend is a child of the postmaster)."""
    children: dict[int, list[int]] = {}
    for entry in os.listdir("/proc"):
        if entry.isdigit():
            try:
                stat = Path(f"/proc/{entry}/stat").read_text()
            except OSError:
                continue
            children.setdefault(int(stat[stat.rindex(")") + 2 :].split()[1]), []).append(int(entry))
    found: list[int] = []
    waiting = list(pids)
    while waiting:
        own = children.get(waiting.pop(), [])
        found += own
        waiting += own
    return tuple(found)


def postmaster_of(data_dir: Path) -> Process | None:
    """The postmaster that serves ``data_dir`` now, or None. A stale or recycled number is not believed."""
    try:
        lines = (data_dir / "postmaster.pid").read_text().splitlines()
        process = Process.of(int(lines[0]))
        if process is None:
            return None
        return process if os.path.samefile(os.readlink(f"/proc/{process.pid}/cwd"), data_dir) else None
    except (OSError, ValueError, IndexError):
        return None


class HeldPostgres:
    """All processes of a PostgreSQL, each held by a descriptor, so that they can be killed in one go."""

    def __init__(self, descriptors: list[int]) -> None:
        self._descriptors = descriptors

    def kill(self) -> int:
        """SIGKILL all of them, the postmaster first; returns how many that were."""
        killed = 0
        for descriptor in self._descriptors:
            try:
                signal.pidfd_send_signal(descriptor, signal.SIGKILL)
                killed += 1
            except ProcessLookupError:
                continue
            finally:
                os.close(descriptor)
        self._descriptors = []
        return killed


def hold_postgres(data_dir: Path) -> HeldPostgres | None:
    """Take hold of the postmaster of ``data_dir`` and all of its children, to be killed at once; None if there is none.

    The postmaster is stopped first, so that it neither forks nor cleans up meanwhile; its children go on working.
    Reads all of ``/proc``, which takes some tens of milliseconds: not for an event loop.
    """
    postmaster = postmaster_of(data_dir)
    if postmaster is None or not postmaster.send(signal.SIGSTOP):
        return None
    children = [c for c in map(Process.of, descendants_of(postmaster.pid)) if c is not None]
    return HeldPostgres([d for process in (postmaster, *children) if (d := process.open()) is not None])


def kill_postgres(data_dir: Path) -> int:
    """SIGKILL the postmaster of ``data_dir`` and all of its children; returns how many processes that were."""
    held = hold_postgres(data_dir)
    return 0 if held is None else held.kill()
