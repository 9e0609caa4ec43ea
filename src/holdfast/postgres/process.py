"""The postmaster as a process: started so that it outlives us, adopted, watched, stopped, killed with its children."""

from __future__ import annotations

import asyncio
import contextlib
import os
import signal
import subprocess
import time
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Literal

import psutil
import structlog

from holdfast.model.errors import EnvironmentFault, PostgresError
from holdfast.postgres.account import OsUser
from holdfast.postgres.disk import Disk, DiskSilent
from holdfast.postgres.programs import environment, identity

_log = structlog.get_logger(__name__)

StopMode = Literal["fast", "immediate"]
_SIGNALS = {"fast": signal.SIGINT, "immediate": signal.SIGQUIT}
_POLL_S = 0.002
_POLL_WITHOUT_PIDFD_S = 0.05


@dataclass(frozen=True, slots=True)
class PidFile:
    """What ``postmaster.pid`` says; ``status`` is empty until the postmaster has opened its sockets."""

    pid: int
    status: str

    @classmethod
    def read(cls, data_dir: Path) -> PidFile | None:
        """The file of ``data_dir``; None if there is none, it is not complete, or a single-user server wrote it."""
        try:
            lines = (data_dir / "postmaster.pid").read_text().splitlines()
            pid, status = int(lines[0]), lines[7].strip() if len(lines) > 7 else ""
        except (OSError, ValueError, IndexError):
            return None
        return cls(pid, status) if pid > 0 else None


class Postmaster:
    """One running postmaster. ``exited`` is set as soon as it has ended."""

    def __init__(self, process: psutil.Process, child: subprocess.Popen[bytes] | None, exited: asyncio.Event) -> None:
        self.process = process
        self.exited = exited
        self._child = child
        self._pidfd: int | None = None
        self._poller: asyncio.Task[None] | None = None
        self._watch()

    @property
    def pid(self) -> int:
        """Its process id."""
        return self.process.pid

    @classmethod
    def spawn(
        cls, arguments: Sequence[str], log_file: Path, user: OsUser | None, working_dir: Path, exited: asyncio.Event
    ) -> Postmaster:
        """Start a postmaster in a session of its own, its output in ``log_file``; raises EnvironmentFault."""
        try:
            descriptor = os.open(log_file, os.O_WRONLY | os.O_CREAT | os.O_APPEND | os.O_NOFOLLOW, 0o600)
            try:
                child = subprocess.Popen(
                    arguments,
                    stdin=subprocess.DEVNULL,
                    stdout=descriptor,
                    stderr=descriptor,
                    cwd=working_dir,
                    env=environment(),
                    start_new_session=True,
                    **identity(user),
                )
            finally:
                os.close(descriptor)
        except OSError as error:
            raise EnvironmentFault(f"cannot start {arguments[0]}: {error}") from error
        return cls(psutil.Process(child.pid), child, exited)

    @classmethod
    def find(cls, data_dir: Path, exited: asyncio.Event) -> Postmaster | None:
        """The postmaster that runs on ``data_dir``, whoever started it; None if its pid file is stale or absent."""
        recorded = PidFile.read(data_dir)
        if recorded is None:
            return None
        try:
            process = psutil.Process(recorded.pid)
            if not _is_postmaster_of(process, data_dir):
                return None
            found = cls(process, None, exited)
        except (psutil.NoSuchProcess, psutil.AccessDenied, ProcessLookupError):
            return None
        if not process.is_running():  # the pid changed hands between the look and the watch
            found.release()
            return None
        return found

    @property
    def ended_well(self) -> bool:
        """Whether it is known to have ended by itself and in good order, which it does as the last of its processes."""
        return self._child is not None and self._child.returncode == 0

    def alive(self) -> bool:
        """Whether it still runs (a zombie does not)."""
        if self.exited.is_set():
            return False
        if self._child is not None:
            return self._child.poll() is None
        return _alive(self.process)

    def signal(self, number: signal.Signals) -> None:
        """Send a signal, unless the process is gone."""
        if not self.exited.is_set():
            with contextlib.suppress(psutil.NoSuchProcess):
                self.process.send_signal(number)

    async def stop(self, mode: StopMode, deadline_ms: int) -> bool:
        """Ask for a shutdown; returns whether it has ended by the deadline."""
        self.signal(_SIGNALS[mode])
        return await self.wait(deadline_ms)

    async def wait(self, deadline_ms: int) -> bool:
        """Wait for the end; returns whether it came by the deadline."""
        with contextlib.suppress(TimeoutError):
            await asyncio.wait_for(self.exited.wait(), deadline_ms / 1000)
        return self.exited.is_set()

    def children(self) -> list[psutil.Process]:
        """Its direct and indirect children; they have sessions of their own, so the process group is not enough."""
        try:
            return self.process.children(recursive=True)
        except psutil.NoSuchProcess:
            return []

    def release(self) -> None:
        """Stop watching; the postmaster goes on."""
        if self._pidfd is not None:
            asyncio.get_running_loop().remove_reader(self._pidfd)
            os.close(self._pidfd)
            self._pidfd = None
        if self._poller is not None:
            self._poller.cancel()
            self._poller = None

    def _watch(self) -> None:
        loop = asyncio.get_running_loop()
        self.exited.clear()
        try:
            self._pidfd = os.pidfd_open(self.pid)
        except ProcessLookupError:
            self._ended()
        except (OSError, AttributeError):  # an old kernel, or a sandbox that forbids it
            self._poller = loop.create_task(self._poll())
        else:
            loop.add_reader(self._pidfd, self._ended)

    def _ended(self) -> None:
        self.release()
        if self._child is not None:
            try:
                self._child.wait(timeout=1)  # reap
            except subprocess.TimeoutExpired:
                _log.warning("postmaster ended but cannot be reaped yet", pid=self.pid)
        _log.info("postmaster ended", pid=self.pid, status=self._child.returncode if self._child else None)
        self.exited.set()

    async def _poll(self) -> None:
        while self.alive():  # noqa: ASYNC110 - there is no event where pidfd is missing
            await asyncio.sleep(_POLL_WITHOUT_PIDFD_S)
        self._poller = None
        self._ended()


async def kill_everything(data_dir: Path, postmaster: Postmaster | None, deadline_ms: int, disk: Disk) -> None:
    """End every process of the server for certain: freeze the postmaster so that it forks no more, then SIGKILL all.

    Raises PostgresError if a process does not go (uninterruptible sleep: the storage hangs).
    """
    deadline = time.monotonic() + deadline_ms / 1000
    while True:
        found: set[psutil.Process] = set()
        if postmaster is not None and postmaster.alive():
            postmaster.signal(signal.SIGSTOP)
            found = {postmaster.process, *postmaster.children()}
            _kill(found)  # before anything is asked of the file system, which may hang
        try:
            left = await disk.call("processes", partial(processes_in, data_dir), deadline_ms)
        except DiskSilent:
            _log.warning("processes left behind cannot be looked for: the file system is silent")
            left = []
        found.update(left)
        found = {p for p in found if _alive(p)}
        if not found:
            break
        _kill(found)
        await _wait_until_gone(found, deadline, postmaster)
    if postmaster is not None:
        await postmaster.exited.wait()


def _kill(processes: Iterable[psutil.Process]) -> None:
    for process in processes:
        with contextlib.suppress(psutil.NoSuchProcess):
            process.kill()


async def _wait_until_gone(processes: Iterable[psutil.Process], deadline: float, postmaster: Postmaster | None) -> None:
    waiting = list(processes)
    while waiting := [p for p in waiting if _alive(p)]:
        if postmaster is not None:
            postmaster.alive()  # reaps it
        if time.monotonic() > deadline:
            pids = ", ".join(str(p.pid) for p in waiting)
            raise PostgresError(f"processes {pids} do not end although killed: the storage below them may hang")
        await asyncio.sleep(_POLL_S)


def processes_in(data_dir: Path) -> list[psutil.Process]:
    """Every server process whose working directory is ``data_dir``: also those a dead postmaster left behind."""
    try:
        directory = os.stat(data_dir)
    except OSError:
        return []
    found = []
    for name in os.listdir("/proc"):
        if name.isdigit() and int(name) != os.getpid() and _works_in(int(name), directory):
            with contextlib.suppress(psutil.NoSuchProcess):
                process = psutil.Process(int(name))
                if process.name().startswith("postgres"):
                    found.append(process)
    return found


def child_titles(pid: int) -> dict[int, str]:
    """Process id and title of each direct child; an empty title is one that has not introduced itself yet.

    A recruit waits for it, so that those of other users are passed over: what ``/proc/PID/stat`` costs adds up. A child
    has the owner of its parent there, for it has its parent's user and may be looked at as much. The kernel's own list
    of children (``/proc/PID/task/TID/children``) may miss some while others end (proc(5)).
    """
    own = _command_line(pid)
    titles: dict[int, str] = {}
    try:
        owner = os.stat(f"/proc/{pid}").st_uid
    except OSError:
        return titles
    with os.scandir("/proc") as entries:
        for entry in entries:
            if not entry.name.isdigit() or not _is_child(entry, owner, pid):
                continue
            title = _command_line(int(entry.name))
            titles[int(entry.name)] = "" if title == own else title
    return titles


def _is_child(entry: os.DirEntry[str], owner: int, parent: int) -> bool:
    """Whether a process, given by its entry of ``/proc``, lives and is a child."""
    try:
        if entry.stat().st_uid != owner:
            return False
        with open(f"{entry.path}/stat", "rb", buffering=0) as file:
            stat = file.read(1024)
    except OSError:
        return False
    state, found = stat[stat.rindex(b")") + 2 :].split(maxsplit=2)[:2]
    return int(found) == parent and state != b"Z"


def _command_line(pid: int) -> str:
    try:
        return Path(f"/proc/{pid}/cmdline").read_bytes().replace(b"\0", b" ").decode(errors="replace").strip()
    except OSError:
        return ""


def _is_postmaster_of(process: psutil.Process, data_dir: Path) -> bool:
    """Whether a process that a pid file names is that postmaster, and not one that was given its pid later."""
    if not _alive(process) or not process.name().startswith("postgres"):
        return False
    directory = os.stat(data_dir)
    if not _works_in(process.pid, directory):
        return False
    parent = process.ppid()
    if parent and _works_in(parent, directory) and psutil.Process(parent).name().startswith("postgres"):
        return False  # a backend
    written = (data_dir / "postmaster.pid").stat().st_mtime
    return process.create_time() <= written + 5  # a clock that was set back by more is no reason to adopt


def _works_in(pid: int, directory: os.stat_result) -> bool:
    try:
        found = os.stat(f"/proc/{pid}/cwd")
    except OSError:
        return False
    return (found.st_dev, found.st_ino) == (directory.st_dev, directory.st_ino)


def _alive(process: psutil.Process) -> bool:
    try:
        return process.is_running() and process.status() != psutil.STATUS_ZOMBIE
    except psutil.NoSuchProcess:
        return False
