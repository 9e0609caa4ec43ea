"""Whether clients are told the truth about their commits: what each was told of a row, against the final data."""

from __future__ import annotations

import asyncio
import itertools
from collections import Counter
from collections.abc import Iterator
from contextlib import suppress
from dataclasses import dataclass, field
from enum import StrEnum

import psycopg

from holdfast.drill.client import Connection, connect
from holdfast.model.timeouts import DrillTimeouts

COMMITTED_UNANSWERED = "VC001"
TABLE = "holdfast_truths"


class Way(StrEnum):
    """How a client writes a row."""

    BLOCK = "block"
    """BEGIN, INSERT, COMMIT by the simple protocol."""
    DRIVER = "driver"
    """The same by the extended one."""
    ROW = "row"
    """An INSERT with parameters that returns a row, outside of a block."""
    PLAIN = "plain"
    """An INSERT without parameters, outside of a block."""


class Told(StrEnum):
    """What a client was told of its row."""

    COMMITTED = "committed"
    COMMITTED_UNANSWERED = "committed, without the answer"
    ROLLED_BACK = "rolled back, safe to retry"
    NOT_EXECUTED = "not executed, or undone before it was to be committed"
    UNKNOWN = "unknown"
    BROKEN = "nothing: the connection broke"

    @property
    def is_there(self) -> bool | None:
        """Whether the row has to be there; None: nobody said."""
        if self in (Told.UNKNOWN, Told.BROKEN):
            return None
        return self in (Told.COMMITTED, Told.COMMITTED_UNANSWERED)


@dataclass(frozen=True, slots=True)
class Verdict:
    """``lies``: rows of which the opposite was told; ``told`` counts all."""

    lies: tuple[str, ...]
    told: Counter[Told]
    by_way: dict[Way, Counter[Told]]

    @property
    def unknown(self) -> int:
        """Clients that nobody could tell."""
        return self.told[Told.UNKNOWN] + self.told[Told.BROKEN]


@dataclass(slots=True)
class Truths:
    """Writers through the proxy, each with one connection, as fast as they are answered."""

    dsn: str
    writers: int
    told: dict[int, tuple[Way, Told]] = field(default_factory=dict)
    _numbers: Iterator[int] = field(default_factory=lambda: itertools.count(1))
    _tasks: list[asyncio.Task[None]] = field(default_factory=list)
    _stopping: asyncio.Event = field(default_factory=asyncio.Event)

    async def start(self) -> None:
        """Make the table, and let them write. Raises psycopg.Error."""
        async with await connect(self.dsn, "holdfast_truths", DrillTimeouts()) as connection:
            await connection.execute(f"DROP TABLE IF EXISTS {TABLE}".encode())
            await connection.execute(f"CREATE TABLE {TABLE} (id bigint PRIMARY KEY)".encode())
        ways = itertools.cycle(Way)
        self._tasks = [asyncio.create_task(self._write(next(ways), n)) for n in range(self.writers)]

    async def stop(self) -> None:
        """Wait for what is under way."""
        self._stopping.set()
        await asyncio.gather(*self._tasks)

    async def verdict(self) -> Verdict:
        """Compare what was told with what is there. Raises psycopg.Error."""
        async with await connect(self.dsn, "holdfast_truths", DrillTimeouts()) as connection:
            cursor = await connection.execute(f"SELECT id FROM {TABLE}".encode())
            there = {int(str(row[0])) for row in await cursor.fetchall()}
        lies = [
            f"row {number} ({way}): told {told.value!r}, and it is {'' if number in there else 'not '}there"
            for number, (way, told) in self.told.items()
            if told.is_there not in (None, number in there)
        ]
        lies += [f"row {number} is there, and nobody wrote it" for number in there - self.told.keys()]
        by_way: dict[Way, Counter[Told]] = {way: Counter() for way in Way}
        for way, told in self.told.values():
            by_way[way][told] += 1
        return Verdict(tuple(lies), sum(by_way.values(), Counter()), by_way)

    async def _write(self, way: Way, number: int) -> None:
        connection: Connection | None = None
        while not self._stopping.is_set():
            if connection is None or connection.closed:
                try:
                    connection = await connect(self.dsn, f"holdfast_truths_{way}{number}", DrillTimeouts())
                except psycopg.Error:
                    await asyncio.sleep(0.1)
                    continue
            row = next(self._numbers)
            self.told[row] = way, Told.BROKEN
            self.told[row] = way, await _write_row(connection, way, row)
        if connection is not None:
            await connection.close()


async def _write_row(connection: Connection, way: Way, row: int) -> Told:
    committing = way in (Way.ROW, Way.PLAIN)
    try:
        if committing:
            await _insert(connection, way, row)
            return Told.COMMITTED
        await connection.execute("BEGIN")
        await _insert(connection, way, row)
        committing = True
        status = (await connection.execute("COMMIT", prepare=way is Way.DRIVER)).statusmessage
        return Told.COMMITTED if status == "COMMIT" else Told.ROLLED_BACK
    except psycopg.Error as error:
        if not connection.closed and not committing:
            with suppress(psycopg.Error):
                await connection.execute("ROLLBACK")
        return _told(error, closed=connection.closed, committing=committing)


async def _insert(connection: Connection, way: Way, row: int) -> None:
    if way is Way.BLOCK or way is Way.PLAIN:
        await connection.execute(f"INSERT INTO {TABLE} VALUES ({row})".encode())
        return
    cursor = await connection.execute(f"INSERT INTO {TABLE} VALUES (%s) RETURNING id".encode(), (row,))
    assert await cursor.fetchone() == (row,)


def _told(error: psycopg.Error, *, closed: bool, committing: bool) -> Told:
    match error.sqlstate:
        case "40001":
            return Told.ROLLED_BACK
        case "08007":
            return Told.UNKNOWN
        case "VC001":
            return Told.COMMITTED_UNANSWERED
        case "57P01" | "57P03" | "53300" | "53400" | "25P02" if not closed:
            return Told.NOT_EXECUTED
        case _:
            return Told.NOT_EXECUTED if not committing else Told.BROKEN
