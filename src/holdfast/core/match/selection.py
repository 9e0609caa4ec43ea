"""Which lost transactions are to be brought back, and what each of them builds upon that is not. Pure."""

from __future__ import annotations

from collections import Counter, defaultdict
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field

from holdfast.core.match.rules import Verdict, verdict_of


@dataclass(frozen=True, slots=True)
class Selection:
    """The transactions to bring back, by their number. A transaction comes back whole, or not at all.

    ``mixed``: what else they hold of the table, by verdict. ``needs``: lost transactions that are not to be brought
    back, and whose rows one of these changed further: its statements will not find them.
    """

    transactions: frozenset[int]
    mixed: Mapping[int, Mapping[Verdict, int]] = field(default_factory=dict)
    needs: Mapping[int, tuple[int, ...]] = field(default_factory=dict)


def select(rules: Iterable[tuple[int, str]]) -> Selection:
    """Every transaction of which a row is to be re-applied; ``rules`` has the transaction and the rule of each row."""
    told: dict[int, Counter[Verdict]] = defaultdict(Counter)
    for transaction, rule in rules:
        told[transaction][verdict_of(rule)] += 1
    chosen = {t: counts for t, counts in told.items() if counts[Verdict.REAPPLY]}
    others: dict[int, Mapping[Verdict, int]] = {}
    for transaction, counts in sorted(chosen.items()):
        del counts[Verdict.REAPPLY]
        if counts:
            others[transaction] = dict(counts)
    return Selection(frozenset(chosen), others)


@dataclass(slots=True)
class Needs:
    """Finds who changed further what somebody else had lost. Show it the rows in the order of their commits."""

    selected: frozenset[int]
    _left: dict[bytes, int] = field(default_factory=dict)
    _found: dict[int, set[int]] = field(default_factory=lambda: defaultdict(set))

    def see(self, transaction: int, before: bytes | None, after: bytes | None) -> None:
        """One changed row of any table: digests of table and row as it was and as it became."""
        writer = None if before is None else self._left.pop(before, None)
        if writer is not None and writer != transaction:
            self._found[transaction].add(writer)
        if after is not None:
            self._left[after] = transaction

    @property
    def found(self) -> dict[int, tuple[int, ...]]:
        """What each selected transaction needs that is not selected, directly or by way of others."""
        return {t: needed for t in sorted(self.selected) if (needed := self._of(t))}

    def _of(self, transaction: int) -> tuple[int, ...]:
        known: set[int] = set()
        pending = [transaction]
        while pending:
            new = self._found.get(pending.pop(), set()) - known
            known |= new
            pending += new
        return tuple(sorted(known - self.selected - {transaction}))
