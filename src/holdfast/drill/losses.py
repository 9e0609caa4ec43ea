"""Holds the list of lost transactions, and their rows, against what the clients know; then brings them back."""

from __future__ import annotations

from collections import Counter, defaultdict
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import psycopg
from psycopg import sql

from holdfast.drill.checker import Id
from holdfast.drill.history import History, Outcome
from holdfast.drill.ledger import ENTRIES, MOVES, PROGRESS, BookedTransaction, Expected
from holdfast.drill.result import LostTransactions
from holdfast.drill.workload import Workload, read_rows
from holdfast.local.cluster import LocalCluster
from holdfast.local.lost import SalvagedRow, read_lost, rows_of, script_of, without_doubles
from holdfast.model.lost import UNDECIDED, LostLog
from holdfast.model.rows import Row

WRITES = "writes"
_UNDECIDED = f"ROLLBACK; {UNDECIDED}"
_KEYS = {PROGRESS: ("client",), ENTRIES: ("id",), MOVES: ("client", "id")}
_KEPT_MAX = 20
"""Differences that are told one by one."""
Connection = psycopg.AsyncConnection[tuple[Any, ...]]
Key = tuple[int, int]
"""Of a transaction: timeline and transaction id."""


@dataclass(slots=True)
class Comparison:
    """What the lists say and what the clients say. ``differences`` tells of wrong rows, in words."""

    listed: int = 0
    matched: int = 0
    strangers: int = 0
    rows: int = 0
    wrong: int = 0
    unlisted: list[str] = field(default_factory=list)
    differences: list[str] = field(default_factory=list)

    def differ(self, words: str, count: int = 1) -> None:
        """Note wrong rows."""
        self.wrong += count
        if len(self.differences) < _KEPT_MAX:
            self.differences.append(words)


def compare(
    schema: str,
    rows: Mapping[Key, Sequence[SalvagedRow]],
    listed: Iterable[Key],
    attempts: Mapping[Id, str],
    known: Iterable[Id],
    booked: Mapping[Key, BookedTransaction],
    known_booked: Iterable[Key],
) -> Comparison:
    """Compare by timeline and transaction id. Pure.

    ``rows`` and ``listed`` are what was salvaged and listed. ``attempts`` has the payload of every plain write,
    ``known`` those that are lost; ``booked`` has the transactions of the clients that keep books, ``known_booked``
    the lost ones.
    """
    found = Comparison()
    seen: set[Id] = set()
    transactions = set(listed)
    for key in sorted(transactions):
        mine = [row for row in rows.get(key, ()) if row.table.split(".")[1] == schema]
        found.listed += 1
        found.rows += len(mine)
        if key in booked:
            _compare_booked(found, booked[key], mine)
            continue
        plain = _plain_id(mine)
        if plain is None or plain not in attempts:
            found.strangers += 1
            found.differ(f"transaction {key} is nobody's: {[(r.table, r.change) for r in mine]}", max(1, len(mine)))
            continue
        seen.add(plain)
        after = mine[0].after or {}
        if len(mine) != 1 or after.get("payload") != attempts[plain]:
            found.differ(f"transaction {key}: the write {plain} has {len(mine)} rows, payload {after.get('payload')}")
    wanted, wanted_booked = set(known), set(known_booked)
    found.matched = len(wanted & seen) + len(wanted_booked & transactions)
    found.unlisted += [f"write {key}" for key in sorted(wanted - seen)]
    found.unlisted += [f"transaction {key}" for key in sorted(wanted_booked - transactions)]
    return found


def _plain_id(rows: Sequence[SalvagedRow]) -> Id | None:
    after = rows[0].after if rows else None
    if after is None or not {"writer", "sequence"} <= after.keys():
        return None
    return int(str(after["writer"])), int(str(after["sequence"]))


def _compare_booked(found: Comparison, booked: BookedTransaction, rows: Sequence[SalvagedRow]) -> None:
    def frozen(table: str, before: Row | None, after: Row | None) -> tuple[object, ...]:
        images = (None if image is None else tuple(sorted(image.items())) for image in (before, after))
        return (table, *images)

    expected = Counter(frozen(c.table, c.before, c.after) for c in net(booked.changes))
    actual = Counter(frozen(row.table.split(".", 2)[2], row.before, row.after) for row in rows)
    if expected != actual:
        missing, extra = expected - actual, actual - expected
        words = f"transaction {booked.key}: not there {_shortened(missing)}, there instead {_shortened(extra)}"
        found.differ(words, max(missing.total(), extra.total()))


def _shortened(rows: Counter[tuple[object, ...]]) -> str:
    return str(list(rows))[:600]


def net(changes: Iterable[Expected]) -> list[Expected]:
    """What is left of a transaction's changes when it ends, row by row."""
    last: dict[tuple[object, ...], Expected] = {}
    for change in changes:
        row = change.after or change.before or {}
        key = (change.table, *(row[name] for name in _KEYS[change.table]))
        before = last[key].before if key in last else change.before
        last[key] = Expected(change.table, before, change.after)
    return [c for c in last.values() if c.before is not None or c.after is not None]


def books(transactions: Iterable[BookedTransaction]) -> dict[str, dict[tuple[str | None, ...], Row]]:
    """What the tables hold after these transactions, in the order of each client: by table and key."""
    content: dict[str, dict[tuple[str | None, ...], Row]] = {table: {} for table in _KEYS}
    for each in transactions:
        for change in each.changes:
            row = change.after or change.before or {}
            key = tuple(row[name] for name in _KEYS[change.table])
            content[change.table].pop(key, None)
            if change.after is not None:
                content[change.table][key] = change.after
    return content


class Losses:
    """Examines one run on the cluster that it was run on; may write to it."""

    def __init__(self, cluster: LocalCluster, workload: Workload, primary: str) -> None:
        self._cluster = cluster
        self._workload = workload
        self._primary = primary
        self.problems: list[str] = []
        self.seen: list[str] = []

    async def examine(self, lost: Sequence[Id]) -> LostTransactions:
        """Compare, then bring everything back and look again; raises psycopg.Error, HoldfastError."""
        accounts, silent = await read_lost(self._cluster)
        if silent:
            self.problems.append(f"no answer from {', '.join(silent)} to the question what was lost")
        for account in accounts:
            self.seen.append(f"{account.member.node} lists {len(account.of_clients)} lost transactions")
            if account.of_clients and (account.salvage is None or not account.salvage.is_whole):
                notes = "it was not tried" if account.salvage is None else "; ".join(account.salvage.notes)
                self.problems.append(f"not every lost row of {account.member.node} was read: {notes}")
        rows: dict[Key, list[SalvagedRow]] = defaultdict(list)
        for account in without_doubles(accounts):
            for row in rows_of(account):
                rows[account.timeline, row.xid].append(row)
        history, booked = self._workload.history, self._booked()
        dsn = await self._cluster.direct_dsn(self._primary)
        async with await psycopg.AsyncConnection.connect(dsn, autocommit=True) as connection:
            await self._decide_prepared(connection)
            gone = await self._gone(connection)
            known = [t.key for t in gone if t.is_known]
            listed = {(account.timeline, t.xid) for account in accounts for t in account.of_clients}
            found = compare(self._workload.schema, rows, listed, self._attempts(history), lost, booked, known)
            self._add_problems(found, len(lost) + len(known))
            left = await self._bring_back(connection, accounts, listed, gone, lost)
        return LostTransactions(
            known=len(lost) + len(known),
            listed=found.listed,
            matched=found.matched,
            salvaged_rows=found.rows,
            wrong_rows=found.wrong,
            strangers=found.strangers,
            not_brought_back=left,
            kinds=dict(sorted(Counter(t.kind for t in gone if t.key in listed).items())),
        )

    def _add_problems(self, found: Comparison, known: int) -> None:
        if found.matched != known:
            self.problems.append(
                f"{known - found.matched} lost transactions are not listed: {found.unlisted[:_KEPT_MAX]}"
            )
        if found.wrong:
            self.problems.append(f"{found.wrong} salvaged rows are wrong: " + "; ".join(found.differences))

    def _booked(self) -> dict[Key, BookedTransaction]:
        return {t.key: t for client in self._workload.ledgers for t in client.booked if t.xid}

    def _attempts(self, history: History) -> dict[Id, str]:
        ids = ((a.writer, a.sequence) for a in history if a.outcome is not Outcome.ERROR)
        return {key: self._workload.payload_of(*key) for key in ids}

    async def _decide_prepared(self, connection: Connection) -> None:
        """Commit what was prepared and has survived so."""
        query = "SELECT gid FROM pg_prepared_xacts WHERE starts_with(gid, %s)"
        for (gid,) in await (await connection.execute(query, (self._workload.schema,))).fetchall():
            await connection.execute(sql.SQL("COMMIT PREPARED {}").format(sql.Literal(gid)))

    async def _gone(self, connection: Connection) -> list[BookedTransaction]:
        """The transactions of bookkeepers that were sent and are not there: all after the last one that is."""
        table = sql.Identifier(self._workload.schema, PROGRESS)
        if not self._workload.ledgers:
            return []
        cursor = await connection.execute(sql.SQL("SELECT client, sequence FROM {}").format(table))
        there: dict[int, int] = dict(await cursor.fetchall())
        return [t for c in self._workload.ledgers for t in c.booked if t.sequence > there[t.client] and t.xid]

    async def _bring_back(
        self,
        connection: Connection,
        accounts: Sequence[LostLog],
        listed: set[Key],
        gone: Sequence[BookedTransaction],
        lost: Sequence[Id],
    ) -> int:
        """Run the scripts, as the person who has read them; returns how many rows are still missing or different."""
        for account in without_doubles(list(accounts)):
            if account.salvage is not None:
                await self._run(script_of(account))
        await connection.execute("SET search_path = pg_catalog")
        copies = Counter((r.writer, r.sequence, r.payload) for r in await read_rows(connection, self._workload.schema))
        left = sum(copies[(*key, self._workload.payload_of(*key))] != 1 for key in lost)
        never = {id(t) for t in gone if t.key not in listed}
        there = [
            t for client in self._workload.ledgers for t in client.booked
            if id(t) not in never and (t.key in listed or t.outcome is not Outcome.ERROR or t.prepared)
        ]  # fmt: skip
        for table, expected in books(there).items() if self._workload.ledgers else ():
            actual = await self._content(connection, table)
            untouched = {key for key, row in actual.items() if table == PROGRESS and row["sequence"] == "0"}
            wrong = [key for key in {*expected, *actual} - untouched if expected.get(key) != actual.get(key)]
            left += len(wrong)
            if wrong:
                self.problems.append(f"{len(wrong)} rows of {table} differ after the script: {sorted(wrong)[:5]}")
        if left:
            self.problems.append(f"{left} rows were not brought back by the script")
        return left

    async def _run(self, text: str) -> None:
        database, part = "", list[str]()
        for line in [*text.splitlines(keepends=True), "\\connect end\n"]:
            if not line.startswith("\\connect "):
                part.append(line)
                continue
            if database:
                dsn = self._cluster.superuser_dsn(self._primary, database)
                async with await psycopg.AsyncConnection.connect(dsn, autocommit=True) as connection:
                    await connection.execute("".join(part).replace(_UNDECIDED, "COMMIT;").encode())
            database, part = line.split(None, 1)[1].strip().strip('"'), []

    async def _content(self, connection: Connection, table: str) -> dict[tuple[str | None, ...], Row]:
        query = sql.SQL("SELECT * FROM {}").format(sql.Identifier(self._workload.schema, table))
        cursor = await connection.execute(query)
        result, names = cursor.pgresult, [column.name for column in cursor.description or ()]
        assert result is not None
        content: dict[tuple[str | None, ...], Row] = {}
        for number in range(result.ntuples):
            values = (result.get_value(number, i) for i in range(result.nfields))
            row = {n: None if v is None else v.decode() for n, v in zip(names, values, strict=True)}
            content[tuple(row[name] for name in _KEYS[table])] = row
        return content
