"""What became of a transaction: the answer, and the words of what it was decided by."""

from __future__ import annotations

from dataclasses import dataclass
from enum import StrEnum

from pydantic import TypeAdapter, ValidationError

from holdfast.model.errors import ConfigurationError, RegisterError
from holdfast.model.lsn import Lsn

XID_BITS = 32
"""Of an xid in the log; one of 64 bits (``xid8``) also counts how often those were used up (PostgreSQL manual,
"Transactions and Identifiers")."""
FIRST_NORMAL_XID = 3
"""0 is no transaction; 1 and 2 are PostgreSQL's own. Of 64 bits, none whose lower 32 are below this is given away."""
_XID_MAX = (1 << 64) - 1
_EPOCH_MAX = (1 << 31) - 1


class Outcome(StrEnum):
    """What became of a transaction."""

    COMMITTED = "committed"
    """What it did is in the database, and confirmed by as many members as a commit needs."""
    ABORTED = "aborted"
    """It was committed nowhere."""
    LOST = "lost"
    """An old primary had committed (or prepared) it, and the primary that came after it does not have it."""
    IN_PROGRESS = "in progress"
    """Not decided yet: it runs, it waits for its confirmations, or it is prepared."""
    UNKNOWN = "unknown"


class XactStatus(StrEnum):
    """What ``pg_xact_status`` says (PostgreSQL manual, "Transaction ID and Snapshot Information Functions")."""

    COMMITTED = "committed"
    ABORTED = "aborted"
    IN_PROGRESS = "in progress"
    FORGOTTEN = "forgotten"
    """NULL: so old that the server does not keep it any more."""
    UNREADABLE = "unreadable"
    """An error: the server should know, and cannot read it."""
    FUTURE = "future"
    """The server has not given this id away yet."""


@dataclass(frozen=True, slots=True)
class EpochStart:
    """The record that a primary writes when it is promoted: where its timeline begins, and the next xid there."""

    epoch: int
    fork_lsn: Lsn
    next_xid: int


@dataclass(frozen=True, slots=True)
class OwnQuestion:
    """What became of the transaction to which its application has given ``token``.

    ``epoch``: in which that was written. ``lsn``: what the server said of where. Both None if not known.
    """

    token: str
    epoch: int | None = None
    lsn: Lsn | None = None


@dataclass(frozen=True, slots=True)
class OutcomeAnswer:
    """What became of transaction ``xid``, which a client wrote in ``epoch`` (None: that could not be told).

    If it was asked for by the application's own ``token``, ``xid`` is None where no transaction is known to have it.

    ``rule`` is the id of the rule that decided it. ``is_there``: whether what it did is in the database now; None if
    that is not known either. ``epochs``: those to choose from, if the id was given away more than once.
    """

    xid: int | None
    epoch: int | None
    outcome: Outcome
    rule: str
    why: str
    is_there: bool | None = None
    evidence: tuple[str, ...] = ()
    epochs: tuple[int, ...] = ()
    token: str | None = None

    def to_json(self) -> bytes:
        """The form in which an agent tells it."""
        return _ANSWER.dump_json(self)

    @classmethod
    def from_json(cls, raw: bytes) -> OutcomeAnswer:
        """Read that form; raises RegisterError."""
        try:
            return _ANSWER.validate_json(raw)
        except ValidationError as error:
            raise RegisterError(f"an outcome cannot be read: {error.errors()[0]['msg']}") from error


def parse_xid(text: str) -> int:
    """A transaction id as ``pg_current_xact_id()`` prints it; raises ConfigurationError, which names the fix."""
    if not (text.isascii() and text.isdigit()):
        raise ConfigurationError(
            f"XID {text!r} is no transaction id: give the whole number that pg_current_xact_id() printed"
        )
    if len(text) > 20 or int(text) > _XID_MAX:
        raise ConfigurationError(f"XID {text} has more than 64 bits: give the number that pg_current_xact_id() printed")
    xid = int(text)
    if xid % (1 << XID_BITS) < FIRST_NORMAL_XID:
        raise ConfigurationError(
            f"XID {text} is never given to a transaction: give the number that pg_current_xact_id() printed"
        )
    return xid


def parse_epoch(text: str) -> int:
    """An epoch, which is also the timeline of its primary; raises ConfigurationError, which names the fix."""
    if not (text.isascii() and text.isdigit()) or len(text) > 10 or not 1 <= int(text) <= _EPOCH_MAX:
        raise ConfigurationError(
            f"epoch {text!r} is none: give the number of an epoch from `holdfast incident list`, 1 or more"
        )
    return int(text)


def parse_position(text: str | None) -> Lsn | None:
    """A position in the log, if one is given; raises ConfigurationError, which names the fix."""
    try:
        return None if text is None else Lsn.parse(text)
    except ValueError:
        raise ConfigurationError(
            f"LSN {text!r} is no position in the log: give what pg_logical_emit_message returned, such as 0/5FFC8A0"
        ) from None


def widened(xid: int, near: int) -> int:
    """The 64 bits of an xid of 32 bits that was given away within 2^31 transactions of ``near`` (64 bits)."""
    size = 1 << XID_BITS
    found = near - near % size + xid
    return min((c for c in (found - size, found, found + size) if c >= 0), key=lambda c: abs(c - near))


_ANSWER = TypeAdapter(OutcomeAnswer)
