"""Sends captures away from the node: over ssh, or to S3-compatible storage. The node's own disk may be the fault.

The manifest goes last: where it is, the capture is whole. What has arrived is noted beside the capture, so that an
attempt goes on where the one before it ended, also after a restart of the agent.
"""

from __future__ import annotations

import asyncio
import contextlib
import hashlib
import os
import signal
from collections.abc import AsyncGenerator, AsyncIterator, Callable, Sequence
from pathlib import Path, PurePosixPath
from typing import Protocol
from urllib.parse import urlsplit

from holdfast.model.capture import Capture
from holdfast.model.errors import ConfigurationError, EnvironmentFault
from holdfast.model.settings import CaptureSettings
from holdfast.node.s3 import Bucket, Credentials, new_session
from holdfast.postgres.capture.keep import FILES, MANIFEST, base_of, note_sent, read_captures, sent_of

_SSH_OPTIONS = ("BatchMode=yes", "ConnectTimeout=10", "ServerAliveInterval=10", "ServerAliveCountMax=3")
_SAID_BYTES_MAX = 4096
Progress = Callable[[str, float | None], None]


class Destination(Protocol):
    """Where captures are sent. ``words`` names it, without secrets."""

    words: str

    def send(self, directory: Path, files: Sequence[tuple[str, str]]) -> AsyncGenerator[str]:
        """Send files of a capture, given with their digests, in this order; yields each that has arrived.

        Raises EnvironmentFault.
        """


class Sender:
    """Sends what was taken of one node."""

    def __init__(self, destination: Destination, base: Path, node: str) -> None:
        self._destination = destination
        self._base = base
        self._node = node
        self.words = destination.words

    async def send(self, capture: Capture, progress: Progress) -> int:
        """Send what has not arrived yet; returns how many files that were. Raises EnvironmentFault."""
        directory = Path(capture.directory)
        wanted = [(f"{FILES}/{file.stored}", file.sha256) for file in capture.files]
        try:
            manifest = await asyncio.to_thread((directory / MANIFEST).read_bytes)
            wanted.append((MANIFEST, hashlib.sha256(manifest).hexdigest()))
            arrived = await asyncio.to_thread(sent_of, directory, self.words)
            missing = [each for each in wanted if each[0] not in arrived]
            done = 0
            async with contextlib.aclosing(self._destination.send(directory, missing)) as sent:
                async for name in sent:
                    await asyncio.to_thread(note_sent, directory, self.words, name)
                    done += 1
                    progress("sending the capture", done / len(missing))
        except OSError as error:
            raise EnvironmentFault(f"{directory} cannot be read: {error.strerror or error}") from error
        return len(missing)

    async def unsent(self) -> list[Capture]:
        """What was taken and has not arrived, oldest first."""
        captures = await asyncio.to_thread(read_captures, self._base, self._node)
        return [c for c in captures if c.is_ended and c.sent_to != self.words]


def sender_for(settings: CaptureSettings, state_dir: Path, node: str) -> Sender | None:
    """As the settings say; None: captures stay where they are. Raises ConfigurationError."""
    if settings.send_to is None:
        return None
    base, parts = base_of(settings, state_dir), urlsplit(settings.send_to)
    if parts.scheme == "ssh":
        return Sender(Sftp(settings), base, node)
    if settings.s3_endpoint is None or settings.s3_key_file is None:
        raise ConfigurationError(
            "capture.send_to names a bucket: capture.s3_endpoint and capture.s3_key_file must say where it is, and "
            "who may write there"
        )
    return Sender(Storage(settings, settings.s3_endpoint, settings.s3_key_file), base, node)


class Storage:
    """A bucket, and a prefix in it."""

    def __init__(self, settings: CaptureSettings, endpoint: str, key_file: Path) -> None:
        parts = urlsplit(str(settings.send_to))
        self.words = str(settings.send_to).rstrip("/")
        self._prefix = parts.path.strip("/")
        self._bucket = Bucket(
            endpoint, parts.netloc, settings.s3_region, Credentials.read(key_file), settings.s3_ca_file
        )

    async def send(self, directory: Path, files: Sequence[tuple[str, str]]) -> AsyncGenerator[str]:
        """See `Destination.send`."""
        async with new_session() as session:
            for name, sha256 in files:
                key = "/".join(part for part in (self._prefix, directory.name, name) if part)
                await self._bucket.put(session, key, directory / name, sha256)
                yield name


class Sftp:
    """A directory on another host, by the system's own `sftp`, its keys and its known hosts."""

    def __init__(self, settings: CaptureSettings) -> None:
        parts = urlsplit(str(settings.send_to))
        self.words = str(settings.send_to).rstrip("/")
        self._directory = parts.path.rstrip("/") or "/"
        self._command = ["sftp", "-b", "-"]
        if settings.ssh_key_file is not None:
            self._command += ["-i", str(settings.ssh_key_file)]
        for option in (*settings.ssh_options, *_SSH_OPTIONS):  # the first that is given counts
            self._command += ["-o", option]
        if parts.port is not None:
            self._command += ["-P", str(parts.port)]
        host = f"[{parts.hostname}]" if ":" in (parts.hostname or "") else str(parts.hostname)
        self._command.append(f"{parts.username}@{host}" if parts.username else host)

    async def send(self, directory: Path, files: Sequence[tuple[str, str]]) -> AsyncGenerator[str]:
        """See `Destination.send`. `sftp` prints each command before it does it, and ends with the first that fails."""
        target = f"{self._directory.rstrip('/')}/{directory.name}"
        needed = _directories(target, [name for name, _ in files])
        lines = [f"-mkdir {_quoted(made)}" for made in needed]
        puts = [f"put {_quoted(str(directory / name))} {_quoted(f'{target}/{name}')}" for name, _ in files]
        process = await self._start()
        feeding = asyncio.create_task(_feed(process, "\n".join((*lines, *puts, "bye")) + "\n"))
        said: list[str] = []
        try:
            begun = 0
            async for line in _lines(process):
                if line.startswith("sftp> put ") or line == "sftp> bye":
                    if begun:
                        yield files[begun - 1][0]
                    begun += 1
                elif not line.startswith("sftp> "):
                    said = [*said, line][-3:]
            if await process.wait() != 0:
                words = "; ".join(said) or "sftp does not say why"
                raise EnvironmentFault(f"{self.words} does not take the capture: {words}")
        finally:
            feeding.cancel()
            with contextlib.suppress(ProcessLookupError, PermissionError):
                os.killpg(process.pid, signal.SIGKILL)
            await asyncio.gather(process.wait(), feeding, return_exceptions=True)

    async def _start(self) -> asyncio.subprocess.Process:
        try:
            return await asyncio.create_subprocess_exec(
                *self._command, stdin=asyncio.subprocess.PIPE, stdout=asyncio.subprocess.PIPE,
                stderr=asyncio.subprocess.STDOUT, start_new_session=True,
            )  # fmt: skip
        except OSError as error:
            raise EnvironmentFault(f"sftp cannot be run ({error.strerror}): install the client of OpenSSH") from error


async def _feed(process: asyncio.subprocess.Process, text: str) -> None:
    assert process.stdin is not None
    with contextlib.suppress(ConnectionError):
        process.stdin.write(text.encode(errors="surrogateescape"))
        await process.stdin.drain()
        process.stdin.close()


async def _lines(process: asyncio.subprocess.Process) -> AsyncIterator[str]:
    assert process.stdout is not None
    while raw := await process.stdout.readline():
        yield raw.decode(errors="surrogateescape").strip()[:_SAID_BYTES_MAX]


def _directories(target: str, names: Sequence[str]) -> list[str]:
    """Those that must be there, the outer ones first."""
    found = {str(above): None for above in reversed(PurePosixPath(target).parents) if str(above) != "/"}
    found[target] = None
    for name in names:
        parts = name.split("/")[:-1]
        for count in range(1, len(parts) + 1):
            found[f"{target}/{'/'.join(parts[:count])}"] = None
    return list(found)


def _quoted(path: str) -> str:
    """As one word of a batch of `sftp`, which takes no pattern for one within quotes."""
    if any(c in path for c in "\n\r\\"):
        raise EnvironmentFault(f"{path!r} cannot be sent over ssh: its name has a line break or a backslash in it")
    return '"' + path.replace('"', '\\"') + '"'
