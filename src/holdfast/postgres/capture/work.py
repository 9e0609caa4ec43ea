"""One capture, on a thread: plan, take file after file, say at the end what is missing. It can be killed at any time.

What is taken is listed at once, so that a capture that was killed half-way is resumed by the next one, as long as
nobody has touched the directory meanwhile; the digest of the control file tells.
"""

from __future__ import annotations

import contextlib
import errno
import fcntl
import hashlib
import os
import threading
import time
from collections.abc import Callable
from dataclasses import dataclass, replace
from pathlib import Path

import structlog

from holdfast.core.capture import Bounds, Candidate, Item, fits_in_time, gathered, plan
from holdfast.model.capture import (
    Capture,
    CapturedFile,
    CaptureOrder,
    Kind,
    LeftOut,
    Reason,
    Snapshot,
    State,
    file_to_json,
)
from holdfast.model.errors import PostgresError
from holdfast.model.settings import CaptureSettings
from holdfast.postgres.capture.collect import Found, LogRange, collect
from holdfast.postgres.capture.copying import GivenUp, NotTaken, Place, TargetFailed, take, yield_disk
from holdfast.postgres.capture.keep import (
    FILES,
    MANIFEST,
    PROGRESS,
    end_capture,
    moments_of,
    read_captures,
    remove_old,
    taken_so_far,
)
from holdfast.postgres.capture.sealing import SUFFIX, Sealer
from holdfast.postgres.files import make_directory, write_durably
from holdfast.postgres.layout import Layout, free_bytes
from holdfast.postgres.salvage.trees import can_share_blocks

_log = structlog.get_logger(__name__)
ROOM_LEFT_BYTES = 256 * 1024 * 1024
"""What a capture leaves on its file system: the node wants to come back."""
_FULL = (errno.ENOSPC, errno.EDQUOT, errno.EFBIG)
_SYNC_INTERVAL_S = 1.0
_DIGEST_CHARACTERS = 16

Progress = Callable[[str, float | None], None]


@dataclass(frozen=True, slots=True)
class Task:
    """Everything that one capture needs to know."""

    node: str
    incarnation: str
    identity: str
    order: CaptureOrder
    layout: Layout
    base: Path
    settings: CaptureSettings
    sealer: Sealer | None
    log: LogRange | None
    moment: bytes
    tools: dict[str, str]
    snapshot: Snapshot | None = None
    room_left_bytes: int = ROOM_LEFT_BYTES


def identity_of(data_dir: Path, incarnation: str) -> str:
    """What changes whenever somebody starts, rewinds or replaces a directory."""
    try:
        raw = (data_dir / "global" / "pg_control").read_bytes()
    except OSError:
        raw = f"no control file, {incarnation}".encode()
    return hashlib.sha256(raw).hexdigest()[:_DIGEST_CHARACTERS]


def former_capture(base: Path, node: str, identity: str) -> Capture | None:
    """What was taken of the directory as it is now, or is half taken."""
    same = [c for c in read_captures(base, node) if c.identity == identity]
    return same[-1] if same else None


class Work:
    """Takes one capture; `run` on a thread of its own."""

    def __init__(self, task: Task, given_up: threading.Event, progress: Progress) -> None:
        self._task = task
        self._given_up = given_up
        self._progress = progress
        self._began_s = time.monotonic()
        self._taken: list[CapturedFile] = []
        self._left_out: list[LeftOut] = []
        self._read_bytes = 0

    def run(self) -> Capture:
        """Returns the manifest, ended. Raises TargetFailed, GivenUp; PostgresError if somebody else is at work."""
        yield_disk()
        task = self._task
        try:
            make_directory(task.base, None)
            former = former_capture(task.base, task.node, task.identity)
            if former is not None and former.is_ended:
                return former
            directory = Path(former.directory) if former is not None else self._new_directory()
            with (directory / PROGRESS).open("ab") as list_file:
                self._lock(list_file.fileno())
                capture = self._begin(directory, former)
                self._begin_list(list_file.fileno())
                self._take_all(directory, list_file.fileno())
                capture = self._ended(capture)
                self._sweep(directory / FILES)
                end_capture(directory, capture)
            self._tidy()
        except OSError as error:
            raise TargetFailed(error) from error
        return capture

    def _new_directory(self) -> Path:
        task = self._task
        directory = task.base / f"epoch-{task.order.epoch}-{task.node}-{task.identity}"
        make_directory(directory, None)
        make_directory(directory / FILES, None)
        return directory

    def _lock(self, descriptor: int) -> None:
        try:
            fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError as error:
            raise PostgresError("a former attempt at this capture has not ended yet") from error

    def _begin(self, directory: Path, former: Capture | None) -> Capture:
        task, order = self._task, self._task.order
        capture = former or Capture(
            node=task.node,
            incarnation=task.incarnation,
            epoch=order.epoch,
            identity=task.identity,
            occasion=order.occasion,
            state=State.UNDERWAY,
            begun_at_ms=round(time.time() * 1000),
            directory=str(directory),
            end=order.end,
            fork_lsn=None if task.log is None else task.log.fork,
            encrypted_to=() if task.sealer is None else task.sealer.recipients,
        )
        if former is not None:
            self._taken = list(taken_so_far(directory))
            note = f"resumed after {len(self._taken)} files"
            capture = replace(capture, attempts=former.attempts + 1, notes=(*former.notes, note), files=())
        capture = replace(capture, state=State.UNDERWAY, tools=task.tools, snapshot=task.snapshot or capture.snapshot)
        write_durably(directory / MANIFEST, capture.to_json(), None)
        return capture

    def _begin_list(self, list_file: int) -> None:
        """Anew: its last line may have been cut off."""
        os.ftruncate(list_file, 0)
        for file in self._taken:
            os.write(list_file, file_to_json(file) + b"\n")

    def _take_all(self, directory: Path, list_file: int) -> None:
        task = self._task
        found = {f.candidate.path: f for f in (*self._moments(), *collect(task.layout, task.settings, task.log))}
        self._taken = [f for f in self._taken if f.path in found or f.kind is Kind.MOMENT]
        known = {file.path for file in self._taken}
        planned = plan(
            (f.candidate for path, f in found.items() if path not in known),
            self._bounds(directory),
            essentials=task.order.essentials,
        )
        self._left_out += planned.left_out
        place = Place(directory / FILES, task.sealer, self._given_up)
        synced_s = time.monotonic()
        for item in planned.items:
            self._progress("capturing", min(1.0, self._read_bytes / max(1, planned.size_bytes)))
            if self._take(item, found[item.path], place, list_file) and time.monotonic() - synced_s > _SYNC_INTERVAL_S:
                os.fsync(list_file)
                synced_s = time.monotonic()

    def _take(self, item: Item, found: Found, place: Place, list_file: int) -> bool:
        elapsed_s = time.monotonic() - self._began_s
        if not fits_in_time(item, elapsed_s, self._read_bytes, self._task.order.seconds):
            self._leave_out(item, Reason.TIME)
            return False
        if item.kind is Kind.MOMENT and item.path.endswith(SUFFIX):
            place = replace(place, sealer=None)  # it was encrypted when it was written
        try:
            file = take(found.source, item, place, redact=found.redact)
        except NotTaken as refusal:
            self._leave_out(item, refusal.reason, refusal.detail)
            return False
        except TargetFailed as failure:
            if failure.cause.errno not in _FULL:
                raise
            self._leave_out(item, Reason.ROOM, failure.cause.strerror or "")
            return False
        if self._given_up.is_set():
            raise GivenUp("the capture was given up")
        os.write(list_file, file_to_json(file) + b"\n")
        self._taken.append(file)
        self._read_bytes += file.size_bytes
        return True

    def _leave_out(self, item: Item, reason: Reason, detail: str = "") -> None:
        self._left_out.append(LeftOut(item.path, item.kind, reason, 1, item.size_bytes, detail))

    def _moments(self) -> list[Found]:
        """What was noted when the trouble began, and now."""
        task = self._task
        stamp = time.strftime("%Y%m%dT%H%M%SZ", time.gmtime())
        now = Candidate(f"moments/{task.node}-{stamp}-capture.json", Kind.MOMENT, len(task.moment), place=0)
        found = [Found(now, task.moment)] if task.moment else []
        for path in moments_of(task.base, task.node):
            with contextlib.suppress(OSError):
                size_bytes = path.stat().st_size
                found.append(Found(Candidate(f"moments/{path.name}", Kind.MOMENT, size_bytes, place=1), path))
        return found

    def _bounds(self, directory: Path) -> Bounds:
        """What is left of them: some may be there already."""
        task, settings = self._task, self._task.settings
        had_bytes = sum(file.size_bytes for file in self._taken)
        had_log_bytes = sum(file.size_bytes for file in self._taken if file.kind is Kind.SERVER_LOG)
        control = task.layout.data_dir / "global" / "pg_control"
        shares = task.sealer is None and can_share_blocks(control, directory / "probe")
        room_bytes = max(0, free_bytes(directory) - task.room_left_bytes)
        return Bounds(settings.bytes_max - had_bytes, room_bytes, settings.server_log_bytes - had_log_bytes, shares)

    def _ended(self, capture: Capture) -> Capture:
        left_out = gathered(self._left_out)
        whole = not any(one.reason.is_lack for one in left_out)
        return replace(
            capture,
            state=State.COMPLETE if whole else State.PARTIAL,
            ended_at_ms=round(time.time() * 1000),
            files=tuple(self._taken),
            left_out=left_out,
        )

    def _sweep(self, files_dir: Path) -> None:
        """Take away what a former attempt had begun and this one did not end."""
        stored = {file.stored for file in self._taken}
        for path in files_dir.rglob("*"):
            if path.is_file() and str(path.relative_to(files_dir)) not in stored:
                path.unlink(missing_ok=True)

    def _tidy(self) -> None:
        """The moments are in the capture now; old captures go."""
        task = self._task
        kept = {Path(file.path).name for file in self._taken if file.kind is Kind.MOMENT}
        for path in moments_of(task.base, task.node):
            if path.name in kept:
                path.unlink(missing_ok=True)
        removed = remove_old(task.base, task.node, task.settings.keep, task.settings.keep_bytes)
        if removed:
            _log.info("old captures removed", node=task.node, captures=removed)
