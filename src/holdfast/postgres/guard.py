"""The guard: a process of its own that kills a server whose lease has run out, whatever became of its agent.

It touches no file, so that storage that hangs cannot stop it: it is reached at an abstract Unix socket (unix(7)), takes
orders from its own user and root only, and keeps nothing but one deadline on CLOCK_BOOTTIME, which goes on while the
machine sleeps. An agent that is started again finds the guard of the former one.
"""

from __future__ import annotations

import asyncio
import contextlib
import hashlib
import json
import os
import select
import signal
import socket
import struct
import subprocess
import sys
import time
from dataclasses import asdict, dataclass
from pathlib import Path

import psutil

from holdfast.model.errors import PostgresError

_POLL_S = 0.02
_CREDENTIALS = struct.Struct("3i")
_FIRST_WORD_S = 10.0
_LARGEST = 4096
_RELEASE = b"release"
_WHAT = b"what"


@dataclass(frozen=True, slots=True)
class Hold:
    """Kill the postmaster ``pid``, born at ``started`` (seconds since 1970), at ``deadline_ms`` on CLOCK_BOOTTIME.

    ``about`` is the agent's own word for whose lease it is.
    """

    pid: int
    started: float
    deadline_ms: int
    about: str

    @classmethod
    def parse(cls, raw: bytes) -> Hold | None:
        """Read what travels between agent and guard; None for anything else."""
        try:
            said = json.loads(raw)
            return cls(int(said["pid"]), float(said["started"]), int(said["deadline_ms"]), str(said["about"]))
        except (ValueError, KeyError, TypeError):
            return None

    def to_json(self) -> bytes:
        """The form that travels."""
        return json.dumps(asdict(self)).encode()


class Guard:
    """An agent's way to the guard of its data directory."""

    def __init__(self, data_dir: Path) -> None:
        self._name = "holdfast-guard-" + hashlib.sha256(bytes(data_dir)).hexdigest()[:24]
        self._process: subprocess.Popen[bytes] | None = None

    async def hold(self, pid: int, deadline_ms: int, about: str, answer_ms: int) -> None:
        """Set the deadline (CLOCK_BOOTTIME); starts a guard if there is none. Raises PostgresError without a guard."""
        try:
            order = Hold(pid, psutil.Process(pid).create_time(), deadline_ms, about).to_json()
        except psutil.NoSuchProcess as error:
            raise PostgresError("there is no server to guard") from error
        try:
            async with asyncio.timeout(answer_ms / 1000):
                while await self._ask(order) is None:
                    self._spawn()
                    await asyncio.sleep(_POLL_S)
        except TimeoutError as error:
            raise PostgresError(f"the guard of the lease did not answer within {answer_ms} ms") from error

    async def release(self, answer_ms: int) -> None:
        """Let the guard go, if there is one."""
        with contextlib.suppress(TimeoutError):
            async with asyncio.timeout(answer_ms / 1000):
                await self._ask(_RELEASE)
        if self._process is not None:
            self._process.poll()

    async def held(self, pid: int, answer_ms: int) -> Hold | None:
        """What a guard, also a former agent's, holds against this server; None if there is none."""
        with contextlib.suppress(TimeoutError):
            async with asyncio.timeout(answer_ms / 1000):
                answer = await self._ask(_WHAT)
                hold = None if answer is None else Hold.parse(answer)
                return hold if hold is not None and hold.pid == pid else None
        return None

    async def _ask(self, order: bytes) -> bytes | None:
        """What the guard answers; None if there is no guard."""
        loop = asyncio.get_running_loop()
        with socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM) as sock:
            sock.setblocking(False)
            sock.bind("")
            try:
                sock.connect(f"\0{self._name}")
                sock.send(order)
                return await loop.sock_recv(sock, _LARGEST)
            except (ConnectionRefusedError, ConnectionResetError, BlockingIOError):
                return None

    def _spawn(self) -> None:
        if self._process is None or self._process.poll() is not None:
            self._process = subprocess.Popen(
                [sys.executable, "-m", "holdfast.postgres.guard", self._name],
                stdin=subprocess.DEVNULL,
                start_new_session=True,
            )


def main() -> int:
    """Be the guard of the name given as the only argument; ends with the server, when released, or after the kill."""
    with socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM) as sock:
        sock.setsockopt(socket.SOL_SOCKET, socket.SO_PASSCRED, 1)
        try:
            sock.bind(f"\0{sys.argv[1]}")
        except OSError:
            return 0  # there is one already
        for number in (signal.SIGINT, signal.SIGTERM, signal.SIGHUP):
            signal.signal(number, signal.SIG_IGN)
        return _watch(sock)


def _watch(sock: socket.socket) -> int:
    hold: Hold | None = None
    alone_until = time.monotonic() + _FIRST_WORD_S
    while True:
        readable, _, _ = select.select([sock], [], [], _patience_s(hold))
        if readable:
            order = _answer(sock, hold)
            if order == _RELEASE:
                return 0
            hold = Hold.parse(order) or hold
        server = None if hold is None else _server(hold)
        if hold is not None and server is None:
            return 0
        if hold is None and time.monotonic() > alone_until:
            return 0
        if server is not None and hold is not None and _boot_ms() >= hold.deadline_ms:
            _kill(server)
            print(json.dumps({"event": "lease.ended", "killed": hold.pid, "level": "warning"}), file=sys.stderr)
            return 0


def _patience_s(hold: Hold | None) -> float:
    """At most a moment, to see that the server has ended by itself."""
    return 0.25 if hold is None else min(0.25, max(0.0, (hold.deadline_ms - _boot_ms()) / 1000))


def _answer(sock: socket.socket, hold: Hold | None) -> bytes:
    """Take one order and answer it; nothing from strangers."""
    message, ancillary, _, sender = sock.recvmsg(_LARGEST, socket.CMSG_SPACE(_CREDENTIALS.size))
    users = {
        _CREDENTIALS.unpack(data[: _CREDENTIALS.size])[1]
        for level, kind, data in ancillary
        if (level, kind) == (socket.SOL_SOCKET, socket.SCM_CREDENTIALS)
    }
    if not users or not users <= {0, os.getuid()}:
        return b""
    with contextlib.suppress(OSError):
        sock.sendto(hold.to_json() if message == _WHAT and hold is not None else b"ok", sender)
    return message


def _server(hold: Hold) -> psutil.Process | None:
    try:
        process = psutil.Process(hold.pid)
        same = process.create_time() == hold.started and process.status() != psutil.STATUS_ZOMBIE
    except psutil.NoSuchProcess:
        return None
    return process if same else None


def _kill(postmaster: psutil.Process) -> None:
    """SIGKILL the postmaster, stopped first so that it makes no new backend, and every process of it."""
    with contextlib.suppress(psutil.NoSuchProcess):
        postmaster.suspend()
        children = postmaster.children(recursive=True)
        for process in (*children, postmaster):
            with contextlib.suppress(psutil.NoSuchProcess):
                process.kill()


def _boot_ms() -> int:
    return time.clock_gettime_ns(time.CLOCK_BOOTTIME) // 1_000_000


if __name__ == "__main__":
    sys.exit(main())
