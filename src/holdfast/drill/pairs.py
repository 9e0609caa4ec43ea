"""Write-then-read pairs: whether anybody is shown less than what he has written, and who answered.

Each client has a row of its own, writes the next number into it and reads it: in the same session, or in another one
that says which position it has to see. Who answered is taken from the standbys' own statistics, not from the proxy.
"""

from __future__ import annotations

import asyncio
import random
from collections.abc import Iterable
from contextlib import suppress
from dataclasses import dataclass, field
from typing import Any, Final

import psycopg
from psycopg import sql

Connection = psycopg.AsyncConnection[tuple[Any, ...]]

ROUTED: Final = "-c holdfast.route=auto"
STATISTICS_S: Final = 15.0
"""For servers to have put the last reads of sessions that have ended into their statistics."""
PATIENCE_S: Final = 45.0
"""For one statement: longer than a proxy holds it."""


@dataclass(slots=True)
class Count:
    """Of pairs of one kind."""

    pairs: int = 0
    stale: int = 0
    errors: int = 0
    examples: list[str] = field(default_factory=list)


class Pairs:
    """So many clients; each makes pairs until `stop`, or until ``limit`` of them are made together.

    ``read_dsn``, if given, is where the reads of ``session`` go, in place of the session that wrote: for comparison.
    """

    def __init__(
        self,
        write_dsns: tuple[str, ...],
        *,
        clients: int,
        schema: str,
        think_ms: float = 20.0,
        limit: int | None = None,
        seed: int = 1,
        read_dsn: str | None = None,
    ) -> None:
        self.session = Count()
        self.token = Count()
        self._dsns = write_dsns
        self._read_dsn = read_dsn
        self._clients = clients
        self._table = sql.Identifier(schema, "pairs")
        self._schema = schema
        self._think_s = think_ms / 1000
        self._limit = limit
        self._rng = random.Random(seed)
        self._stopping = asyncio.Event()
        self._tasks: list[asyncio.Task[None]] = []

    @property
    def made(self) -> int:
        """Pairs so far, of both kinds."""
        return self.session.pairs + self.token.pairs

    async def setup(self) -> None:
        """Make the table; the schema may be there."""
        async with await _connect(self._dsns[0]) as connection:
            await connection.execute(sql.SQL("CREATE SCHEMA IF NOT EXISTS {}").format(sql.Identifier(self._schema)))
            await connection.execute(sql.SQL("DROP TABLE IF EXISTS {}").format(self._table))
            make = sql.SQL("CREATE TABLE {} AS SELECT id, 0::bigint AS n FROM generate_series(0, {}) AS made(id)")
            await connection.execute(make.format(self._table, sql.Literal(self._clients - 1)))
            await connection.execute(sql.SQL("ALTER TABLE {} ADD PRIMARY KEY (id)").format(self._table))

    def start(self) -> None:
        """Begin."""
        self._tasks = [asyncio.create_task(self._client(number)) for number in range(self._clients)]

    async def wait(self) -> None:
        """Until the limit is reached."""
        await asyncio.gather(*self._tasks)

    async def stop(self) -> None:
        """Let each finish its pair."""
        self._stopping.set()
        await self.wait()

    async def close(self) -> None:
        """End at once."""
        for task in self._tasks:
            task.cancel()
        await asyncio.gather(*self._tasks, return_exceptions=True)

    @property
    def _is_over(self) -> bool:
        return self._stopping.is_set() or (self._limit is not None and self.made >= self._limit)

    async def _client(self, number: int) -> None:
        dsn = self._dsns[number % len(self._dsns)]
        there = self._read_dsn or self._dsns[(number + 1) % len(self._dsns)]
        written = 0
        while not self._is_over:
            with suppress(psycopg.Error, TimeoutError):  # counted where it happened; the session is made anew
                async with await _connect(dsn) as own, await _connect(there) as other:
                    while not self._is_over:
                        by_token = self._read_dsn is None and self._rng.random() < 0.5
                        count = self.token if by_token else self.session
                        written += 1
                        try:
                            async with asyncio.timeout(PATIENCE_S):
                                shown = await self._pair(number, written, own, other, by_token=by_token)
                        except (psycopg.Error, TimeoutError) as error:
                            count.errors += 1
                            _keep(count, f"client {number}, pair {written}: {type(error).__name__}: {error}")
                            raise
                        count.pairs += 1
                        if shown < written:
                            count.stale += 1
                            _keep(count, f"client {number} wrote {written} and was shown {shown}")
            await asyncio.sleep(0.02)

    async def _pair(self, number: int, value: int, own: Connection, other: Connection, *, by_token: bool) -> int:
        write = sql.SQL("UPDATE {} SET n = %s WHERE id = %s").format(self._table)
        read = sql.SQL("SELECT n FROM {} WHERE id = %s").format(self._table)
        await own.execute(write, (value, number))
        reader = own if self._read_dsn is None else other
        if by_token:
            cursor = await own.execute("SHOW holdfast.lsn")
            row = await cursor.fetchone()
            assert row is not None
            await other.execute(sql.SQL("SET holdfast.wait_for = {}").format(sql.Literal(row[0])))
            reader = other
        await asyncio.sleep(self._rng.random() * self._think_s)
        cursor = await reader.execute(read, (number,))
        row = await cursor.fetchone()
        assert row is not None
        return int(row[0])

    async def read_on(self, standby_dsns: Iterable[str]) -> int:
        """How many of the reads these servers answered, by their own statistics, once sessions there have ended."""
        return sum(await asyncio.gather(*(self._scans(dsn) for dsn in standby_dsns)))

    async def _scans(self, dsn: str) -> int:
        query = sql.SQL(
            "SELECT coalesce(sum(seq_scan + coalesce(idx_scan, 0)), 0)::bigint FROM pg_stat_user_tables "
            "WHERE schemaname = {} AND relname = 'pairs'"
        ).format(sql.Literal(self._schema))
        found, same = 0, 0
        with suppress(TimeoutError):
            async with asyncio.timeout(STATISTICS_S):
                while same < 4:
                    with suppress(psycopg.OperationalError):  # what is replayed may be in conflict with the question
                        now = await _number(dsn, query)
                        found, same = now, same + 1 if now == found else 0
                    await asyncio.sleep(0.5)
        return found


async def _number(dsn: str, query: sql.Composed) -> int:
    async with await _connect(dsn, options="") as connection:
        row = await (await connection.execute(query)).fetchone()
    return int(row[0]) if row is not None else 0


def _keep(count: Count, words: str) -> None:
    if len(count.examples) < 5:
        count.examples.append(words.strip())


async def _connect(dsn: str, options: str = ROUTED) -> Connection:
    return await psycopg.AsyncConnection.connect(
        dsn, autocommit=True, options=options, application_name="holdfast_pairs", connect_timeout=40
    )
