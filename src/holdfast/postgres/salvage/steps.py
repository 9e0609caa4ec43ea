"""What each lost transaction changed in the end, and between which positions of the log that can be read. Pure.

Before a step's transactions are replayed, the rows that they replaced or deleted are there; when they are replayed,
what they wrote is. Transactions share a step unless a later one replaced what an earlier one wrote.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass, field

from holdfast.model.lost import LostTransaction
from holdfast.model.lsn import Lsn
from holdfast.postgres.rowwrites import ANYWHERE, Place, RowWrite

STEP_CHANGES_MAX = 5000
"""Rows that are held in memory at a time."""


@dataclass(slots=True)
class Change:
    """A row that a transaction changed: inserted (no ``before``), deleted (no ``after``), or updated.

    ``is_vague``: the log does not tell whether the transaction itself had inserted the row that it replaced.
    """

    xid: int
    before: Place | None
    after: Place | None
    is_vague: bool = False


@dataclass(frozen=True, slots=True)
class Changes:
    """What one transaction changed, in order."""

    transaction: LostTransaction
    changes: tuple[Change, ...]

    @property
    def writes_catalog(self) -> bool:
        """Whether the meaning of tables may differ afterwards."""
        return any(p is not None and p.is_catalog for c in self.changes for p in (c.before, c.after))


@dataclass(slots=True)
class Step:
    """Transactions that are read together; the log is shown up to ``limit``."""

    limit: Lsn
    transactions: list[Changes] = field(default_factory=list)
    has_before: bool = True
    """Whether the copy can be stopped before them."""

    @property
    def last_commit(self) -> Lsn:
        """The commit record of the last of them."""
        return self.transactions[-1].transaction.lsn


def net_changes(transaction: LostTransaction, writes: Iterable[RowWrite]) -> Changes:
    """What is left of a transaction's writes: a row that it inserted and updated was inserted."""
    made: dict[Place, Change] = {}
    somewhere: set[tuple[str, int]] = set()
    changes: list[Change] = []
    for write in writes:
        if write.old is None:
            change = Change(write.xid, None, write.new)
            changes.append(change)
        else:
            known = made.pop(write.old, None)
            change = known or Change(write.xid, write.old, None)
            if known is None:
                change.is_vague = (write.old.relation, write.old.block) in somewhere
                changes.append(change)
            change.xid, change.after = write.xid, write.new
        if write.new is not None and write.new.offset == ANYWHERE:
            somewhere.add((write.new.relation, write.new.block))
        elif write.new is not None:
            made[write.new] = change
    return Changes(transaction, tuple(c for c in changes if c.before is not None or c.after is not None))


def steps_of(lost: Iterable[Changes], next_record: Mapping[Lsn, Lsn], first: Lsn, end: Lsn) -> Iterator[Step]:
    """Steps for committed transactions, given in the order of their commits; no more of them are taken than one needs.

    The copy can be stopped at ``first`` at the earliest; the log ends at ``end``.
    """
    step: Step | None = None
    made: set[Place] = set()
    count, is_alone = 0, False
    for each in lost:
        limit = next_record.get(each.transaction.lsn, end)
        has_before = limit > first
        olds = [c.before for c in each.changes if c.before is not None]
        clashes = any(old in made or old._replace(offset=ANYWHERE) in made for old in olds)
        full = count + len(each.changes) > STEP_CHANGES_MAX
        parts = has_before and (clashes or is_alone or each.writes_catalog)
        if step is None or full or parts or step.has_before is not has_before:
            if step is not None:
                yield step
            step = Step(limit, has_before=has_before)
            made, count = set(), 0
        step.transactions.append(each)
        step.limit = max(limit, first)
        made.update(c.after for c in each.changes if c.after is not None)
        count += len(each.changes)
        is_alone = each.writes_catalog
    if step is not None:
        yield step
