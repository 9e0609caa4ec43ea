"""Clients that keep books: transactions of every kind, and what each of them must have left behind, value by value.

A client works on rows of its own, one transaction after the other. Each first moves the client's row in ``progress``
on, so that a client notices when an earlier transaction of its own is gone, and stops: its books are evidence then.
"""

from __future__ import annotations

import asyncio
import hashlib
import random
from contextlib import suppress
from dataclasses import dataclass, field

import psycopg
from psycopg import sql

from holdfast.drill.client import Client, Connection, Pace, Setting, outcome_of
from holdfast.drill.history import Outcome
from holdfast.model.rows import Row

PROGRESS, ENTRIES, MOVES = "progress", "ledger entries", "moves"
INTERVAL_MS = 50.0
"""Between two transactions of one client."""
UNDECIDED_MS = 250.0
"""How long a prepared transaction waits for its decision at most."""
KINDS = ("insert", "update", "delete", "parts", "large", "tables", "two phases")
_LARGE_CHARACTERS = 9000
"""Of digits that do not compress: they go to a TOAST table."""
_TABLES = (
    "CREATE TABLE {progress} (client int PRIMARY KEY, sequence bigint NOT NULL)",
    "CREATE TABLE {entries} (id bigint PRIMARY KEY, client int NOT NULL, amount numeric(12,2) NOT NULL, note text, "
    "tags text[], doc jsonb, raw bytea, twice numeric GENERATED ALWAYS AS (amount * 2) STORED)",
    "CREATE TABLE {moves} (client int, id bigint, kind text, PRIMARY KEY (client, id)) PARTITION BY HASH (client)",
    "CREATE TABLE {even} PARTITION OF {moves} FOR VALUES WITH (MODULUS 2, REMAINDER 0)",
    "CREATE TABLE {odd} PARTITION OF {moves} FOR VALUES WITH (MODULUS 2, REMAINDER 1)",
)


def statements(setting: Setting, clients: int) -> list[sql.Composable]:
    """What makes the tables, for as many clients."""
    names = {"progress": PROGRESS, "entries": ENTRIES, "moves": MOVES, "even": "moves even", "odd": "moves odd"}
    tables = {key: setting.table(name) for key, name in names.items()}
    fill = sql.SQL("INSERT INTO {progress} SELECT i, 0 FROM generate_series(0, {last}) i")
    return [
        *(sql.SQL(text).format(**tables) for text in _TABLES),
        fill.format(progress=tables["progress"], last=sql.Literal(clients - 1)),
    ]


@dataclass(frozen=True, slots=True)
class Expected:
    """One row that a transaction changed, as it was and as it became; every value as PostgreSQL prints it."""

    table: str
    before: Row | None
    after: Row | None


@dataclass(slots=True)
class BookedTransaction:
    """One transaction, as its client knows it; ``kind`` is one of KINDS.

    ``xid`` alone is no name: after a failover the new primary uses those again that the old one had given away.
    ``gid`` if it was prepared, and ``prepared`` if that was acknowledged.
    """

    client: int
    sequence: int
    kind: str = ""
    timeline: int = 0
    xid: int = 0
    outcome: Outcome = Outcome.ERROR
    gid: str | None = None
    prepared: bool = False
    changes: list[Expected] = field(default_factory=list)

    @property
    def key(self) -> tuple[int, int]:
        """Timeline and transaction id."""
        return self.timeline, self.xid

    @property
    def is_known(self) -> bool:
        """Whether its client was told that it is there, committed or prepared."""
        return self.outcome is Outcome.ACKNOWLEDGED or self.prepared


class LedgerClient(Client):
    """Keeps its books until the workload stops, or until something is missing or uncertain."""

    def __init__(self, dsn: str, number: int, setting: Setting) -> None:
        super().__init__(dsn, f"ledger{number}", setting)
        self._number = number
        self._rng = random.Random(f"{setting.seed}/ledger/{number}")
        self._pace = Pace(INTERVAL_MS, self._rng)
        self._entries: dict[int, Row] = {}
        self._next_id = number * 1_000_000 + 1
        self.booked: list[BookedTransaction] = []

    async def run(self) -> None:
        """Work until the workload stops, or the client can no longer say what is there."""
        sequence = 0
        while (connection := await self._connected()) is not None:
            booked = BookedTransaction(self._number, sequence + 1)
            self.booked.append(booked)  # before it begins: what was sent is never left out of the evidence
            going_on = await self._transact(connection, booked)
            if booked.outcome is Outcome.ACKNOWLEDGED:
                sequence += 1
                self._take_over(booked)
            if not await self._discard_if_lost() and booked.outcome is not Outcome.ACKNOWLEDGED:
                with suppress(psycopg.Error):
                    await connection.execute("ROLLBACK")
            if not going_on:
                return
            await self._pause(self._pace.pause_ms(self._setting.now_ms()))

    async def _transact(self, connection: Connection, booked: BookedTransaction) -> bool:
        """One transaction; whether there can be another one."""
        sent = False
        try:
            async with asyncio.timeout(self._setting.timeouts.statement_s):
                await connection.execute("BEGIN")
                if not await self._move_on(connection, booked):
                    return False
                await self._work(connection, booked)
                sent = True
                await self._end(connection, booked)
        except TimeoutError:
            await self.close()
            return False
        except psycopg.Error as error:
            if sent:
                booked.outcome = outcome_of(error)
            return not sent
        booked.outcome = Outcome.ACKNOWLEDGED
        return True

    async def _end(self, connection: Connection, booked: BookedTransaction) -> None:
        booked.outcome = Outcome.UNKNOWN
        if booked.gid is None:
            await connection.execute("COMMIT")
            return
        await connection.execute(sql.SQL("PREPARE TRANSACTION {}").format(sql.Literal(booked.gid)))
        booked.prepared, booked.outcome = True, Outcome.ERROR
        await self._pause(self._rng.uniform(0, UNDECIDED_MS))
        booked.outcome = Outcome.UNKNOWN
        await connection.execute(sql.SQL("COMMIT PREPARED {}").format(sql.Literal(booked.gid)))

    async def _move_on(self, connection: Connection, booked: BookedTransaction) -> bool:
        """Whether the transaction before is still there."""
        query = sql.SQL(
            "UPDATE {} SET sequence = %s WHERE client = %s AND sequence = %s "
            "RETURNING pg_current_xact_id()::text, left(pg_walfile_name(pg_current_wal_insert_lsn()), 8)"
        ).format(self._setting.table(PROGRESS))
        values = (booked.sequence, self._number, booked.sequence - 1)
        row = await (await connection.execute(query, values)).fetchone()
        if row is None:
            return False
        booked.xid, booked.timeline = int(str(row[0])), int(str(row[1]), 16)
        before, after = ({"client": str(self._number), "sequence": str(booked.sequence - n)} for n in (1, 0))
        booked.changes.append(Expected(PROGRESS, before, after))
        return True

    # -- kinds of work -----------------------------------------------------------------------------------------------

    async def _work(self, connection: Connection, booked: BookedTransaction) -> None:
        rng, booked.gid = self._rng, None
        kind = booked.kind = rng.choice(KINDS)
        mine = [key for key in self._entries if rng.random() < 0.5][:2]
        if kind in ("update", "two phases", "tables") and mine:
            await self._update(connection, booked, mine[0])
        if kind == "delete":
            for key in mine:
                await self._delete(connection, booked, key)
        if kind in ("insert", "two phases", "tables") or not mine:
            await self._insert(connection, booked, self._entry(large=False))
        if kind == "large":
            await self._insert(connection, booked, self._entry(large=True))
        if kind == "tables":
            await self._move(connection, booked)
        if kind == "parts":
            await self._in_parts(connection, booked, mine)
        if kind == "two phases":
            booked.gid = f"{self._setting.schema}/{self._number}/{booked.sequence}"

    async def _in_parts(self, connection: Connection, booked: BookedTransaction, mine: list[int]) -> None:
        """Subtransactions: one that is kept, one in it that is kept, and one that is taken back."""
        await connection.execute("SAVEPOINT kept")
        await self._insert(connection, booked, self._entry(large=False))
        await connection.execute("SAVEPOINT inner_one")
        if mine:
            await self._update(connection, booked, mine[0])
        await connection.execute("RELEASE inner_one")
        await connection.execute("SAVEPOINT taken_back")
        nothing = BookedTransaction(self._number, booked.sequence)
        await self._insert(connection, nothing, self._entry(large=False))
        for key in mine[1:]:
            await self._delete(connection, nothing, key)
        await connection.execute("ROLLBACK TO taken_back")
        await self._move(connection, booked)

    def _entry(self, *, large: bool) -> dict[str, str | None]:
        number, rng = self._next_id, self._rng
        self._next_id += 1
        note: str | None = rng.choice((None, "", 'it\'s\ta "note" \\ ü', "-- no comment\nsecond line"))
        if large:
            note = _digits(f"{self._setting.seed}/{self._number}/{number}")
        cents = rng.randrange(1, 1_000_000)
        return {
            "id": str(number),
            "client": str(self._number),
            "amount": _money(cents),
            "note": note,
            "tags": rng.choice((None, "{}", '{plain,"with space",NULL,"quo\\"te"}')),
            "doc": rng.choice((None, '{"a": [1, 2], "b": "it\'s"}')),
            "raw": rng.choice((None, "\\x00ff27", "\\x")),
            "twice": _money(2 * cents),
        }

    async def _insert(self, connection: Connection, booked: BookedTransaction, row: dict[str, str | None]) -> None:
        written = {name: value for name, value in row.items() if name != "twice"}
        await connection.execute(
            sql.SQL("INSERT INTO {} ({}) VALUES ({})").format(
                self._setting.table(ENTRIES), _names(written), _values(written)
            )
        )
        booked.changes.append(Expected(ENTRIES, None, row))

    async def _update(self, connection: Connection, booked: BookedTransaction, key: int) -> None:
        before, cents = self._entries[key], self._rng.randrange(1, 1_000_000)
        after = {**before, "amount": _money(cents), "twice": _money(2 * cents), "tags": "{changed}"}
        changed = {name: after[name] for name in ("amount", "tags")}
        await connection.execute(
            sql.SQL("UPDATE {} SET ({}) = ROW ({}) WHERE id = {}").format(
                self._setting.table(ENTRIES), _names(changed), _values(changed), sql.Literal(key)
            )
        )
        booked.changes.append(Expected(ENTRIES, before, after))

    async def _delete(self, connection: Connection, booked: BookedTransaction, key: int) -> None:
        query = sql.SQL("DELETE FROM {} WHERE id = {}").format(self._setting.table(ENTRIES), sql.Literal(key))
        await connection.execute(query)
        booked.changes.append(Expected(ENTRIES, self._entries[key], None))

    async def _move(self, connection: Connection, booked: BookedTransaction) -> None:
        row: Row = {"client": str(self._number), "id": str(booked.sequence), "kind": "moved"}
        await connection.execute(
            sql.SQL("INSERT INTO {} ({}) VALUES ({})").format(self._setting.table(MOVES), _names(row), _values(row))
        )
        booked.changes.append(Expected(MOVES, None, row))

    def _take_over(self, booked: BookedTransaction) -> None:
        for change in booked.changes:
            if change.table == ENTRIES:
                row = change.after or change.before
                assert row is not None
                self._entries.pop(int(str(row["id"])), None)
                if change.after is not None:
                    self._entries[int(str(row["id"]))] = change.after


def _names(row: Row) -> sql.Composable:
    return sql.SQL(", ").join(sql.Identifier(name) for name in row)


def _values(row: Row) -> sql.Composable:
    """As strings, whatever their types: the server reads them."""
    return sql.SQL(", ").join(sql.Literal(value) for value in row.values())


def _money(cents: int) -> str:
    return f"{cents // 100}.{cents % 100:02}"


def _digits(text: str) -> str:
    """So many hexadecimal digits that follow from a text."""
    blocks = (hashlib.blake2b(f"{text}/{i}".encode()).hexdigest() for i in range(_LARGE_CHARACTERS // 128 + 1))
    return "".join(blocks)[:_LARGE_CHARACTERS]
