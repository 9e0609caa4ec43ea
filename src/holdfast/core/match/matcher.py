"""Goes through a ledger, entry by entry, and keeps no more of it than what belongs to lost rows. Pure."""

from __future__ import annotations

from collections import Counter, defaultdict
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from typing import NamedTuple

from holdfast.core.match.rules import Image, Key, LostChange, Values, Verdict, judge_entry, judge_lost, verdict_of
from holdfast.core.match.values import canonical
from holdfast.model.rows import Row


class Pair(NamedTuple):
    """A column of the table, and that of the ledger which it is held against."""

    column: str
    ledger_column: str


@dataclass(frozen=True, slots=True)
class Terms:
    """What is held against what. ``types`` are those of the table's columns."""

    keys: tuple[Pair, ...]
    compared: tuple[Pair, ...]
    types: Mapping[str, str]

    def key_of_entry(self, entry: Row) -> Key | str:
        """The key of a ledger entry, or the rule that says why it has none."""
        return self._key({pair.column: entry[pair.ledger_column] for pair in self.keys})

    def key_of_row(self, row: Row) -> Key | str:
        """The key of a row of the table, or the rule that says why it has none."""
        if any(pair.column not in row for pair in self.keys):
            return "look.unread"
        return self._key(row)

    def values_of_entry(self, entry: Row) -> Values:
        """What is compared; a value that cannot be read stands for itself."""
        return tuple(self._value(pair.column, entry[pair.ledger_column]) for pair in self.compared)

    def values_of_row(self, row: Row) -> Values:
        """What is compared; a column that the row does not have is NULL."""
        return tuple(self._value(pair.column, row.get(pair.column)) for pair in self.compared)

    def _value(self, column: str, value: str | None) -> str | None:
        read = None if value is None else canonical(value, self.types[column])
        return value if read is None else read

    def _key(self, row: Row) -> Key | str:
        values = [row[pair.column] for pair in self.keys]
        if None in values:
            return "look.no-key"
        read = [canonical(value or "", self.types[pair.column]) for value, pair in zip(values, self.keys, strict=True)]
        return "look.unreadable" if None in read else tuple(value or "" for value in read)


class Entry(NamedTuple):
    """One entry of the ledger; ``position`` says where it stands, for people (``line 7``)."""

    position: str
    values: Row


class Asked(NamedTuple):
    """An entry whose key nobody has lost: the database decides."""

    entry: Entry
    key: Key
    values: Values


@dataclass(frozen=True, slots=True)
class LostRow:
    """A row of the table that was lost. ``key``: or the rule that says why it cannot be matched."""

    change: LostChange
    key: Key | str


class Judged(NamedTuple):
    """What became of one entry, or of one lost row (by its place in what was given)."""

    rule: str
    key: Key | None
    entry: Entry | None
    lost: int | None


@dataclass(slots=True)
class _OfKey:
    """What is known of the key of a lost row."""

    lost: list[int] = field(default_factory=list)
    entries: list[tuple[Entry, Values]] = field(default_factory=list)


class Matcher:
    """Use: `take` every entry; those that it returns go through `decide` with what the database has; then `finish`."""

    def __init__(self, terms: Terms, lost: Sequence[LostRow], *, is_unique: bool, is_whole: bool) -> None:
        self._terms = terms
        self._lost = lost
        self._is_unique = is_unique
        self._is_whole = is_whole
        self._keys: dict[Key, _OfKey] = defaultdict(_OfKey)
        self._unmatched: list[Judged] = []
        for number, row in enumerate(lost):
            if isinstance(row.key, str):
                self._unmatched.append(Judged(row.key, None, None, number))
            else:
                self._keys[row.key].lost.append(number)

    @property
    def lost_keys(self) -> tuple[Key, ...]:
        """The keys that `finish` must be given the rows of."""
        return tuple(self._keys)

    @property
    def twice_lost(self) -> tuple[Key, ...]:
        """Keys under which more than one lost row was inserted, and not the same one again after it was deleted."""
        return tuple(key for key, known in self._keys.items() if self._is_twice([self._lost[n] for n in known.lost]))

    def take(self, entry: Entry, key: Key | str) -> Asked | Judged | None:
        """Look at an entry with its key: the database must be asked, or it is judged, or it waits for `finish`."""
        if isinstance(key, str):
            return Judged(key, None, entry, None)
        values = self._terms.values_of_entry(entry.values)
        if key not in self._keys:
            return Asked(entry, key, values)
        self._keys[key].entries.append((entry, values))
        return None

    def decide(self, asked: Asked, there: Sequence[Image]) -> Judged:
        """Judge an entry whose key nobody has lost."""
        return Judged(self._judge(asked.values, (), there), asked.key, asked.entry, None)

    def finish(self, there: Mapping[Key, Sequence[Image]]) -> Iterator[Judged]:
        """Judge what is lost, and the entries of it; ``there`` is what the database has under their keys."""
        yield from self._unmatched
        for key, known in self._keys.items():
            lost, here = [self._lost[n].change for n in known.lost], there.get(key, ())
            for entry, values in known.entries:
                yield Judged(self._judge(values, lost, here), key, entry, None)
            told = judge_lost({values for _, values in known.entries}, lost, here, is_unique=self._is_unique)
            for rule, number in zip(told, known.lost, strict=True):
                yield Judged(rule, key, None, number)

    def _judge(self, values: Values, lost: Sequence[LostChange], there: Sequence[Image]) -> str:
        return judge_entry(values, lost, there, is_unique=self._is_unique, is_whole=self._is_whole)

    def _is_twice(self, lost: Sequence[LostRow]) -> bool:
        made = sum(row.change.before is None for row in lost)
        return made - sum(row.change.after is None for row in lost) > 1


def counted(rules: Mapping[str, int]) -> dict[Verdict, int]:
    """How many fall under each verdict, given how many fall under each rule."""
    counts: Counter[Verdict] = Counter()
    for rule, count in rules.items():
        counts[verdict_of(rule)] += count
    return {verdict: counts[verdict] for verdict in Verdict}
