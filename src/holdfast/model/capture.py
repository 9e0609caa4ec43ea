"""What was taken of a failed node before anything touched it: the manifest of one capture."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from enum import StrEnum

from pydantic import JsonValue, TypeAdapter, ValidationError

from holdfast.model.errors import RegisterError
from holdfast.model.lsn import History, Lsn, Position

CAPTURE_FORMAT = 1


class Kind(StrEnum):
    """What a file tells; in the order of value in which they are taken."""

    MOMENT = "moment"
    """Sessions, locks, processes and pressure, taken when the trouble was noticed and once more now."""
    CONTROL = "control"
    """The control file and what else says which directory this is and how it was run."""
    CONFIGURATION = "configuration"
    HISTORY = "history"
    """The histories of timelines."""
    SERVER_LOG = "server-log"
    """What the server said, the newest first."""
    DIVERGENT_LOG = "divergent-log"
    """The write-ahead log beyond the fork, from the fork on."""
    STATE = "state"
    """Prepared transactions, slots, commit status, statistics."""
    EARLIER_LOG = "earlier-log"
    """The write-ahead log before the fork, the newest first."""
    DATA = "data"
    """Tables and indexes."""


class Reason(StrEnum):
    """Why something is not in a capture."""

    NOT_ASKED = "not-asked"
    SECRET = "secret"  # noqa: S105
    BYTES = "bytes"
    ROOM = "room"
    TIME = "time"
    VANISHED = "vanished"
    UNREADABLE = "unreadable"
    CHANGED = "changed"

    @property
    def explained(self) -> str:
        """In words, with what to change."""
        return _EXPLAINED[self]

    @property
    def is_lack(self) -> bool:
        """Whether it was wanted: a capture that lacks it is not whole."""
        return self not in (Reason.NOT_ASKED, Reason.SECRET)


_EXPLAINED = {
    Reason.NOT_ASKED: "not asked for (capture.data_files, capture.log_before_bytes, capture.server_log_bytes)",
    Reason.SECRET: "never taken, it may hold a key or a password",
    Reason.BYTES: "more than one capture may have (capture.bytes_max)",
    Reason.ROOM: "too little room in the directory (capture.directory)",
    Reason.TIME: "no time was left (policy capture_wait_s)",
    Reason.VANISHED: "it was gone when its turn came",
    Reason.UNREADABLE: "it could not be read",
    Reason.CHANGED: "it changed while it was read",
}


class Occasion(StrEnum):
    """What was about to touch the directory."""

    REWIND = "rewind"
    CLONE = "clone"
    START = "start"


class State(StrEnum):
    """How far a capture has come."""

    UNDERWAY = "underway"
    INTERRUPTED = "interrupted"
    """Nobody is at work on it any more, and it was not ended: what it has is listed all the same."""
    PARTIAL = "partial"
    """Ended, and something that was wanted is missing."""
    COMPLETE = "complete"


@dataclass(frozen=True, slots=True)
class CapturedFile:
    """One file of a capture. ``stored`` is its name below ``files/``, which ends in ``.age`` if it is encrypted.

    ``size_bytes`` were taken from ``offset`` of the original. ``sha256`` is of what is stored, so that it can be
    verified without the key; ``plain_sha256`` of what was read, where the two differ.
    """

    path: str
    kind: Kind
    stored: str
    size_bytes: int
    stored_bytes: int
    sha256: str
    how: str
    """``shared`` blocks, ``copied``, ``redacted`` or ``written`` by the agent."""
    modified_at_ms: int = 0
    offset: int = 0
    plain_sha256: str | None = None


@dataclass(frozen=True, slots=True)
class LeftOut:
    """What is not in a capture: a file, or so many of a kind."""

    what: str
    kind: Kind
    reason: Reason
    files: int = 1
    size_bytes: int = 0
    detail: str = ""


@dataclass(frozen=True, slots=True)
class Snapshot:
    """What became of the command that makes a snapshot of the volume; ``words`` are for people."""

    ok: bool
    words: str
    took_ms: int


@dataclass(frozen=True, slots=True)
class Capture:
    """The manifest. ``identity`` is a digest of the control file: it says that nobody touched the directory since.

    ``begun_at_ms`` and ``ended_at_ms`` are Unix time. ``attempts`` counts from one; more mean that it was resumed.
    ``tools`` are the versions of what took it. ``encrypted_to`` lists the recipients, public keys of age.
    """

    node: str
    incarnation: str
    epoch: int
    identity: str
    occasion: Occasion
    state: State
    begun_at_ms: int
    directory: str
    ended_at_ms: int | None = None
    attempts: int = 1
    end: Position | None = None
    fork_lsn: Lsn | None = None
    files: tuple[CapturedFile, ...] = ()
    left_out: tuple[LeftOut, ...] = ()
    tools: Mapping[str, str] = field(default_factory=dict)
    encrypted_to: tuple[str, ...] = ()
    snapshot: Snapshot | None = None
    notes: tuple[str, ...] = ()
    sent_to: str | None = None
    """Where all of it has arrived; kept beside the manifest, not in it."""
    format: int = CAPTURE_FORMAT

    @property
    def size_bytes(self) -> int:
        """How much was read."""
        return sum(f.size_bytes for f in self.files)

    @property
    def lacking(self) -> tuple[LeftOut, ...]:
        """What was wanted and is missing."""
        return tuple(item for item in self.left_out if item.reason.is_lack)

    @property
    def is_ended(self) -> bool:
        """Whether nothing more will be added."""
        return self.state in (State.COMPLETE, State.PARTIAL)

    def to_json(self) -> bytes:
        """The stored form."""
        return _CAPTURE.dump_json(self, indent=1)

    @classmethod
    def from_json(cls, raw: bytes) -> Capture:
        """Read the stored form; raises RegisterError."""
        try:
            return _CAPTURE.validate_json(raw)
        except ValidationError as error:
            raise RegisterError(f"the manifest of a capture cannot be read: {error.errors()[0]['msg']}") from error


@dataclass(frozen=True, slots=True)
class CaptureOrder:
    """What an agent asks its server to take. ``leading``: timeline and history of the log that replaced the own one.

    ``seconds`` is what is left of the time that the node's return may wait. ``essentials``: a promotion waits for
    this node, so nothing but the small files is to be taken.
    """

    epoch: int
    occasion: Occasion
    end: Position | None
    leading: tuple[int, History] | None
    seconds: float
    essentials: bool = False
    snapshot: Snapshot | None = None


def file_to_json(file: CapturedFile) -> bytes:
    """One line of the list that grows while a capture is made."""
    return _FILE.dump_json(file)


def file_from_json(raw: bytes) -> CapturedFile | None:
    """Read such a line; None for one that was cut off."""
    try:
        return _FILE.validate_json(raw)
    except ValidationError:
        return None


Moment = Mapping[str, JsonValue]
"""Volatile evidence, as it is written down."""
_CAPTURE = TypeAdapter(Capture)
_FILE = TypeAdapter(CapturedFile)
