"""Takes one file: by sharing its blocks, else bit by bit, brought to the disk, behind everybody else's reads."""

from __future__ import annotations

import contextlib
import fcntl
import hashlib
import os
import stat
import threading
from dataclasses import dataclass, replace
from pathlib import Path

import psutil

from holdfast.core.capture import Item
from holdfast.model.capture import CapturedFile, Kind, Reason
from holdfast.model.errors import HoldfastError
from holdfast.postgres.capture.redaction import redacted_configuration
from holdfast.postgres.capture.sealing import SUFFIX, Sealer

_FICLONE = 0x40049409
"""ioctl_ficlone(2)."""
CHUNK_BYTES = 1024 * 1024
_SYNC_BYTES = 8 * CHUNK_BYTES
"""Written at most before it is brought to the disk: else one flush at the end would hold up everybody's."""
_REDACTED_BYTES_MAX = 16 * CHUNK_BYTES
LOWEST = 7
"""Of the best-effort class (ioprio_set(2)): the idle class could wait for ever on a busy disk."""


class NotTaken(HoldfastError):
    """A file that could not be taken, and why."""

    def __init__(self, reason: Reason, detail: str = "") -> None:
        super().__init__(f"{reason}: {detail}")
        self.reason = reason
        self.detail = detail


class GivenUp(HoldfastError):
    """Nobody wants it any more."""


class TargetFailed(HoldfastError):
    """The directory of captures does not take what is written; ``cause`` says why."""

    def __init__(self, cause: OSError) -> None:
        super().__init__(str(cause))
        self.cause = cause


@dataclass(frozen=True, slots=True)
class Place:
    """Where files go. ``given_up`` is looked at between any two chunks."""

    files_dir: Path
    sealer: Sealer | None
    given_up: threading.Event


def yield_disk() -> None:
    """Let everybody else on the disk go first; of the calling thread alone.

    Not on the processor: beside four busy processes a thread of nice 19 gets a fiftieth of its time, and the node's
    return waits for it.
    """
    with contextlib.suppress(OSError, psutil.Error):
        psutil.Process(threading.get_native_id()).ionice(psutil.IOPRIO_CLASS_BE, LOWEST)


def make_private(directory: Path) -> None:
    """Make a directory, and the missing ones above it, that only we can enter."""
    if not directory.is_dir():
        make_private(directory.parent)
        directory.mkdir(mode=0o700, exist_ok=True)


def take(source: Path | bytes, item: Item, place: Place, *, redact: bool = False) -> CapturedFile:
    """Take a file, or what was made for it; durable when this returns. Raises NotTaken, TargetFailed, GivenUp."""
    stored = item.path + (SUFFIX if place.sealer is not None else "")
    target = place.files_dir / stored
    try:
        make_private(target.parent)
        target.unlink(missing_ok=True)
    except OSError as error:
        raise TargetFailed(error) from error
    try:
        if isinstance(source, bytes):
            return _written(source, item, stored, target, place)
        return _copied(source, item, stored, target, place, redact=redact)
    except BaseException:
        with contextlib.suppress(OSError):
            target.unlink(missing_ok=True)
        raise


def _written(content: bytes, item: Item, stored: str, target: Path, place: Place, how: str = "written") -> CapturedFile:
    with _Writer(target, place) as writer:
        plain = hashlib.sha256(content).hexdigest()
        reader = _Bytes(content)
        _pour(reader, writer, place)
    sealed = plain if place.sealer is not None else None
    return CapturedFile(
        item.path, item.kind, stored, len(content), writer.size_bytes, writer.digest, how, plain_sha256=sealed
    )


def _copied(source: Path, item: Item, stored: str, target: Path, place: Place, *, redact: bool) -> CapturedFile:
    with _Reader(source, item, place.given_up) as reader:
        if redact:
            if reader.found.st_size > _REDACTED_BYTES_MAX:
                raise NotTaken(Reason.SECRET, "too long to look for passwords in it")
            text = redacted_configuration(reader.whole().decode(errors="surrogateescape"))
            content = text.encode(errors="surrogateescape")
            taken = _written(content, item, stored, target, place, "redacted")
            return _dated(taken, reader.found)
        with _Writer(target, place) as writer:
            shared = place.sealer is None and reader.is_whole and writer.shares(reader.descriptor)
            if shared:
                writer.hash_what_is_there()
            else:
                _pour(reader, writer, place)
        size_bytes = writer.size_bytes if shared else reader.read_bytes
        reader.require_unchanged(size_bytes)
    plain = reader.digest if place.sealer is not None else None
    how = "shared" if shared else "copied"
    taken = CapturedFile(
        item.path, item.kind, stored, size_bytes, writer.size_bytes, writer.digest, how,
        offset=item.offset, plain_sha256=plain,
    )  # fmt: skip
    return _dated(taken, reader.found)


def _dated(taken: CapturedFile, found: os.stat_result) -> CapturedFile:
    return replace(taken, modified_at_ms=found.st_mtime_ns // 1_000_000)


def _pour(reader: _Reader | _Bytes, writer: _Writer, place: Place) -> None:
    if place.sealer is None:
        while chunk := reader.read(CHUNK_BYTES):
            writer.write(chunk)
        return
    try:
        place.sealer.seal(reader, writer)
    except Exception:
        # The library tells of ours in its own words.
        if (failed := reader.failed or writer.failed) is not None:
            raise failed from None
        raise


class _Bytes:
    """What was made by the agent, read like a file."""

    failed: HoldfastError | None = None

    def __init__(self, content: bytes) -> None:
        self._rest = memoryview(content)

    def read(self, size: int = -1, /) -> bytes:
        taken = bytes(self._rest[:size] if size >= 0 else self._rest)
        self._rest = self._rest[len(taken) :]
        return taken


class _Reader:
    """The part of a file that is taken, with its digest."""

    def __init__(self, source: Path, item: Item, given_up: threading.Event) -> None:
        self._source = source
        self._item = item
        self._given_up = given_up
        self._hash = hashlib.sha256()
        self.read_bytes = 0
        self.failed: HoldfastError | None = None

    def __enter__(self) -> _Reader:
        try:
            self.descriptor = os.open(self._source, os.O_RDONLY | os.O_NOFOLLOW | os.O_NONBLOCK | os.O_CLOEXEC)
        except FileNotFoundError as error:
            raise NotTaken(Reason.VANISHED) from error
        except OSError as error:
            raise NotTaken(Reason.UNREADABLE, error.strerror or str(error)) from error
        self.found = os.fstat(self.descriptor)
        if not stat.S_ISREG(self.found.st_mode):
            os.close(self.descriptor)
            raise NotTaken(Reason.UNREADABLE, "it is no file")
        return self

    def __exit__(self, *_: object) -> None:
        os.close(self.descriptor)

    @property
    def is_whole(self) -> bool:
        """Whether all of the file is wanted."""
        return self._item.offset == 0 and self._item.size_bytes == self.found.st_size

    @property
    def digest(self) -> str:
        return self._hash.hexdigest()

    def whole(self) -> bytes:
        return b"".join(iter(lambda: self.read(CHUNK_BYTES), b""))

    def read(self, size: int = -1, /) -> bytes:
        wanted = self._item.size_bytes - self.read_bytes
        size = wanted if size < 0 else min(size, wanted)
        try:
            if self._given_up.is_set():
                raise GivenUp("the capture was given up")
            chunk = os.pread(self.descriptor, size, self._item.offset + self.read_bytes) if size else b""
        except OSError as error:
            self.failed = NotTaken(Reason.UNREADABLE, error.strerror or str(error))
            raise self.failed from error
        except GivenUp as error:
            self.failed = error
            raise
        self._hash.update(chunk)
        self.read_bytes += len(chunk)
        return chunk

    def require_unchanged(self, taken_bytes: int) -> None:
        """Nobody runs in the directory; a server's log alone may have grown."""
        now = os.fstat(self.descriptor)
        same = (now.st_size, now.st_mtime_ns) == (self.found.st_size, self.found.st_mtime_ns)
        if taken_bytes != self._item.size_bytes or not (same or self._item.kind is Kind.SERVER_LOG):
            raise NotTaken(Reason.CHANGED)


class _Writer:
    """A new file that only its owner can read, with the digest of what is in it."""

    def __init__(self, target: Path, place: Place) -> None:
        self._target = target
        self._given_up = place.given_up
        self._hash = hashlib.sha256()
        self._unsynced_bytes = 0
        self.size_bytes = 0
        self.failed: HoldfastError | None = None

    def __enter__(self) -> _Writer:
        try:
            flags = os.O_RDWR | os.O_CREAT | os.O_EXCL | os.O_NOFOLLOW | os.O_CLOEXEC
            self._descriptor = os.open(self._target, flags, 0o600)
        except OSError as error:
            raise TargetFailed(error) from error
        return self

    def __exit__(self, kind: object, *_: object) -> None:
        try:
            if kind is None:
                self._sync()
        finally:
            os.close(self._descriptor)

    @property
    def digest(self) -> str:
        return self._hash.hexdigest()

    def shares(self, original: int) -> bool:
        """Whether the file system gave the new file the blocks of the original."""
        try:
            fcntl.ioctl(self._descriptor, _FICLONE, original)
        except OSError:
            return False
        return True

    def hash_what_is_there(self) -> None:
        try:
            while chunk := os.pread(self._descriptor, CHUNK_BYTES, self.size_bytes):
                if self._given_up.is_set():
                    raise GivenUp("the capture was given up")
                self._hash.update(chunk)
                self.size_bytes += len(chunk)
        except OSError as error:
            raise NotTaken(Reason.UNREADABLE, error.strerror or str(error)) from error

    def write(self, data: bytes, /) -> int:
        try:
            rest = memoryview(data)
            while rest:
                rest = rest[os.write(self._descriptor, rest) :]
            self._unsynced_bytes += len(data)
            if self._unsynced_bytes >= _SYNC_BYTES:
                self._sync()
        except (OSError, TargetFailed) as error:
            self.failed = error if isinstance(error, TargetFailed) else TargetFailed(error)
            raise self.failed from error
        self._hash.update(data)
        self.size_bytes += len(data)
        return len(data)

    def flush(self) -> None:
        """Nothing is held back here; for the encryption, which asks."""

    def _sync(self) -> None:
        try:
            os.fdatasync(self._descriptor)
        except OSError as error:
            raise TargetFailed(error) from error
        self._unsynced_bytes = 0
        with contextlib.suppress(OSError):  # nobody reads it soon: the page cache is the server's
            os.posix_fadvise(self._descriptor, 0, 0, os.POSIX_FADV_DONTNEED)
