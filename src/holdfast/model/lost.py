"""What a log beyond the fork held: the transactions that did not make it into the new timeline."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field

from pydantic import TypeAdapter, ValidationError

from holdfast.model.errors import RegisterError
from holdfast.model.lsn import Lsn
from holdfast.model.owner import Owner
from holdfast.model.register import Member

SCRIPT = "lost.sql"
"""The script that brings the rows back, in the directory of the evidence."""
UNDECIDED = "-- COMMIT if the transaction was to be committed"
"""How a transaction ends in the script that was prepared, and that nobody had decided."""
OWN_SCHEMA = "postgres.holdfast."
"""Relations of Holdfast's own: its heartbeats are lost with every fork, and nobody misses them."""


@dataclass(frozen=True, slots=True)
class Tuples:
    """How many tuples of one relation a transaction wrote."""

    inserted: int = 0
    updated: int = 0
    deleted: int = 0


@dataclass(frozen=True, slots=True)
class LostTransaction:
    """One commit (or PREPARE, which can no longer be committed) whose record lies beyond the fork.

    ``open_as``: it was prepared under that name before the fork, so that the new primary may hold it, undecided.
    ``is_partial``: it may have written more, before what was read of the log.
    ``owner``: whose it was, if its commit was guarded. ``tokens`` are those that its application gave it.
    ``committed_at`` is UTC as PostgreSQL wrote it. ``relations`` counts what it wrote, its subtransactions included, by
    name (database, schema and relation), or by ``tablespace/database/filenode`` where nobody knew a name.
    """

    xid: int
    lsn: Lsn
    committed_at: str
    subxids: tuple[int, ...] = ()
    prepared_as: str | None = None
    relations: Mapping[str, Tuples] = field(default_factory=dict)
    open_as: str | None = None
    is_partial: bool = False
    owner: Owner | None = None
    tokens: tuple[str, ...] = ()

    @property
    def is_own(self) -> bool:
        """Whether it is nothing but Holdfast's own bookkeeping, or wrote no tuple at all."""
        if not self.relations:
            return not self.is_partial
        return all(name.startswith(OWN_SCHEMA) for name in self.relations)


@dataclass(frozen=True, slots=True)
class Salvage:
    """What became of the rows. ``files`` holds the file of each table, below ``evidence_dir``, beside ``SCRIPT``.

    ``is_whole``: every row that the log speaks of was read, as it was before and after; else ``notes`` say what is
    missing, why, and what to do. ``rows`` counts the changes that were read.
    """

    is_whole: bool
    rows: int = 0
    files: Mapping[str, str] = field(default_factory=dict)
    notes: tuple[str, ...] = ()
    took_ms: int = 0


@dataclass(frozen=True, slots=True)
class LostLog:
    """The account of one divergent log. ``evidence_dir`` holds a copy of it; ``left_out`` says what is missing there.

    A transaction that was never acknowledged is in the list like any other: whether its client was told is not in the
    log.
    """

    member: Member
    epoch: int
    timeline: int
    fork_lsn: Lsn
    end_lsn: Lsn
    evidence_dir: str
    transactions: tuple[LostTransaction, ...]
    left_out: tuple[str, ...] = ()
    unread: str = ""
    """Why the log could not be listed up to its end, if it could not."""
    salvage: Salvage | None = None
    """None: no transaction of a client is lost, or the setting says that rows are not to be read."""
    next_xid: int | None = None
    """The log shows that ids below this one (32 bits) were given away; None: it does not tell of any."""

    @property
    def lost_bytes(self) -> int:
        """How much log lies beyond the fork."""
        return max(0, self.end_lsn - self.fork_lsn)

    @property
    def replaced_by(self) -> range:
        """The epochs that the log is not in."""
        return range(self.timeline + 1, self.epoch + 1)

    @property
    def of_clients(self) -> tuple[LostTransaction, ...]:
        """Without Holdfast's own."""
        return tuple(t for t in self.transactions if not t.is_own)

    def to_json(self) -> bytes:
        """The stored form."""
        return _LOST.dump_json(self, indent=1)

    @classmethod
    def from_json(cls, raw: bytes) -> LostLog:
        """Read the stored form; raises RegisterError."""
        try:
            return _LOST.validate_json(raw)
        except ValidationError as error:
            raise RegisterError(
                f"an account of lost transactions cannot be read: {error.errors()[0]['msg']}"
            ) from error


@dataclass(frozen=True, slots=True)
class Unaccounted:
    """A divergent log that could not be listed, and why."""

    reason: str


_LOST = TypeAdapter(LostLog)
