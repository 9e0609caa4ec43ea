"""The whole of it: read what was lost, go through the ledger, ask the primary, and say what is to be done."""

from __future__ import annotations

import itertools
from collections import Counter, defaultdict
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import Protocol

from holdfast.core.losses import gaps
from holdfast.core.match.matcher import Asked, Entry, Judged, LostRow, Matcher, Pair, Terms
from holdfast.core.match.rules import IS_LEFT, Image, Key, Verdict, verdict_of
from holdfast.core.match.selection import Needs, Selection, select
from holdfast.core.match.values import is_known
from holdfast.local.cluster import LocalCluster
from holdfast.local.lost import read_lost, without_doubles
from holdfast.local.match.files import Progress
from holdfast.local.match.lost_rows import LostRows, Where, digest_of, image_of
from holdfast.local.match.seen import Seen
from holdfast.model.errors import ConfigurationError, HoldfastError
from holdfast.postgres.keyed_rows import KeyedTable, databases

ASKED_AT_ONCE = 1000
LISTED_MAX = 1000
"""So many of each rule are kept to be shown; `Told` hears of all of them."""
_COLUMNS_SHOWN = 40


class Ledger(Protocol):
    """Where the entries come from."""

    @property
    def name(self) -> str:
        """For people."""

    def entries(self, columns: Sequence[str], optional: Sequence[str], progress: Progress) -> Iterator[Entry]:
        """All of them, with these columns; raises ConfigurationError."""


@dataclass(frozen=True, slots=True)
class Request:
    """What to match. ``table`` None: the only one of which rows were lost."""

    ledger: Ledger
    table: str | None
    keys: tuple[Pair, ...]
    compared: tuple[Pair, ...]


@dataclass(frozen=True, slots=True)
class Found:
    """One entry, or one lost row, and what became of it. ``change`` is what was done to the row."""

    rule: str
    key: Key | None
    entry: Entry | None = None
    transaction: int | None = None
    change: str | None = None


Told = Callable[[Found], None]
Tell = Callable[[int, float | None], None]
"""Told how many entries were read, and which share of the ledger."""


@dataclass(slots=True)
class Matched:
    """The result. ``twice_*`` name keys (up to `LISTED_MAX`), and ``transactions`` those that `Found` counts."""

    table: str
    is_unique: bool
    gaps: list[str]
    silent: list[str]
    transactions: list[Where]
    entries: Counter[str] = field(default_factory=Counter)
    rows: Counter[str] = field(default_factory=Counter)
    listed: dict[str, list[Found]] = field(default_factory=lambda: defaultdict(list))
    twice_in_ledger: dict[Key, None] = field(default_factory=dict)
    twice_in_ledger_count: int = 0
    twice_lost: tuple[Key, ...] = ()
    selection: Selection = field(default_factory=lambda: Selection(frozenset()))

    @property
    def left(self) -> int:
        """How many entries and rows somebody must do something about."""
        counts = self.entries + self.rows
        return sum(n for rule, n in counts.items() if verdict_of(rule) in IS_LEFT)


async def match(cluster: LocalCluster, request: Request, told: Told, tell: Tell) -> Matched:
    """Raises ConfigurationError for what cannot be matched, HoldfastError if no primary serves, EnvironmentFault."""
    register = await cluster.register()
    if register is None or register.leader is None:
        raise HoldfastError("no primary serves, and what the database has is not known: `holdfast status` says why")
    accounts, silent = await read_lost(cluster)
    missing = gaps(await cluster.events(), accounts, silent, register.epoch)
    lost = LostRows(without_doubles(accounts))
    table = request.table or _only(lost.tables)
    node = register.leader.node
    there = await databases(cluster.superuser_dsn(node, "postgres"))
    database = next((d for d in there if table.startswith(f"{d}.") and table.count(".") >= 2), None)
    if database is None:
        raise ConfigurationError(
            f"--table {table}: it is named DATABASE.SCHEMA.TABLE; databases are {', '.join(there)}"
        )
    async with KeyedTable.open(cluster.superuser_dsn(node, database), table.removeprefix(f"{database}.")) as keyed:
        terms = _terms(request, table, keyed)
        is_unique = await keyed.is_unique([pair.column for pair in request.keys])
        found = Matched(table, is_unique, missing, silent, lost.transactions)
        columns = lost.columns(table, list(keyed.types))
        rows, kinds = lost.of_table(table, terms, columns)
        work = _Work(keyed, terms, columns, rows, kinds, found, told)
        await work.run(request.ledger, tell)
    found.selection = _with_needs(work.selected(), lost, work.restored())
    return found


def _only(tables: Sequence[str]) -> str:
    if len(tables) == 1:
        return tables[0]
    what = f"rows of several tables were lost ({', '.join(tables)})" if tables else "no rows were lost"
    raise ConfigurationError(f"--table: say which one the ledger is of, as DATABASE.SCHEMA.TABLE; {what}")


def _terms(request: Request, table: str, keyed: KeyedTable) -> Terms:
    for option, pairs in (("--key", request.keys), ("--compare", request.compared)):
        for pair in pairs:
            if pair.column not in keyed.types:
                shown = ", ".join(list(keyed.types)[:_COLUMNS_SHOWN])
                raise ConfigurationError(f"{option} {pair.column}: {table} has no such column; it has {shown}")
    return Terms(request.keys, request.compared, keyed.types)


def _with_needs(selection: Selection, lost: LostRows, restored: frozenset[int]) -> Selection:
    if not selection.transactions:
        return selection
    needs = Needs(selection.transactions)
    for number, row in lost.rows():
        images = (None if i is None else digest_of(row.table, list(i.values())) for i in (row.before, row.after))
        needs.see(number, *images)
    found = {t: tuple(n for n in needed if n not in restored) for t, needed in needs.found.items()}
    return replace(selection, needs={t: needed for t, needed in found.items() if needed})


@dataclass(slots=True)
class _Work:
    keyed: KeyedTable
    terms: Terms
    columns: tuple[str, ...]
    lost: list[LostRow]
    kinds: list[str]
    found: Matched
    told: Told
    rules: list[str] = field(init=False)

    def __post_init__(self) -> None:
        self.rules = [""] * len(self.lost)

    async def run(self, ledger: Ledger, tell: Tell) -> None:
        matcher = Matcher(self.terms, self.lost, is_unique=self.found.is_unique, is_whole=not self.found.gaps)
        needed = list(dict.fromkeys(pair.ledger_column for pair in self.terms.keys))
        more = [p.ledger_column for p in self.terms.compared if p.ledger_column not in needed]
        share: float | None = 0.0

        def progress(done: float | None) -> None:
            nonlocal share
            share = done

        count = 0
        with Seen() as seen:
            entries = ledger.entries(needed, list(dict.fromkeys(more)), progress)
            while batch := list(itertools.islice(entries, ASKED_AT_ONCE)):
                await self._take(matcher, batch, seen)
                count += len(batch)
                tell(count, share)
        there: dict[Key, list[Image]] = {}
        keys = matcher.lost_keys
        for at in range(0, len(keys), ASKED_AT_ONCE):
            there |= await self._there(keys[at : at + ASKED_AT_ONCE])
        for judged in matcher.finish(there):
            self._note(judged)
        self.found.twice_lost = matcher.twice_lost

    async def _take(self, matcher: Matcher, batch: Sequence[Entry], seen: Seen) -> None:
        asked: list[Asked] = []
        for entry in batch:
            key = self.terms.key_of_entry(entry.values)
            if not isinstance(key, str) and seen.again(key):
                self.found.twice_in_ledger_count += 1
                if len(self.found.twice_in_ledger) < LISTED_MAX:
                    self.found.twice_in_ledger[key] = None
            taken = matcher.take(entry, key)
            if isinstance(taken, Asked):
                asked.append(taken)
            elif taken is not None:
                self._note(taken)
        there = await self._there([each.key for each in asked])
        for each in asked:
            self._note(matcher.decide(each, there.get(each.key, ())))

    async def _there(self, keys: Sequence[Key]) -> dict[Key, list[Image]]:
        found: dict[Key, list[Image]] = defaultdict(list)
        wanted = list(dict.fromkeys(keys))
        if not wanted:
            return found
        columns = [pair.column for pair in self.terms.keys]
        for row in await self.keyed.rows(columns, wanted, is_known):
            key = self.terms.key_of_row(row)
            if not isinstance(key, str):
                found[key].append(image_of(row, self.terms, self.columns))
        return found

    def _note(self, judged: Judged) -> None:
        rule, number = judged.rule, judged.lost
        if number is None:
            self.found.entries[rule] += 1
            found = Found(rule, judged.key, entry=judged.entry)
        else:
            self.found.rows[rule] += 1
            self.rules[number] = rule
            transaction = self.lost[number].change.transaction
            found = Found(rule, judged.key, transaction=transaction, change=self.kinds[number])
        if verdict_of(rule) is not Verdict.NOTHING:
            if len(self.found.listed[rule]) < LISTED_MAX:
                self.found.listed[rule].append(found)
            self.told(found)

    def _of_transactions(self) -> Iterator[tuple[int, str]]:
        return ((row.change.transaction, rule) for row, rule in zip(self.lost, self.rules, strict=True))

    def selected(self) -> Selection:
        """What is to be brought back."""
        return select(self._of_transactions())

    def restored(self) -> frozenset[int]:
        """Transactions of which the table has everything again."""
        told: Mapping[int, set[str]] = defaultdict(set)
        for transaction, rule in self._of_transactions():
            told[transaction].add(rule)
        return frozenset(t for t, rules in told.items() if rules == {"nothing.again"})
