"""The load of a drill: writers, readers and idle sessions through the proxy, and the table they work on.

Use: ``await setup()``, ``await start()``, later ``await stop()``, and always ``await close()``.
"""

from __future__ import annotations

import asyncio
import time
from collections.abc import Callable
from dataclasses import dataclass

import psycopg
from psycopg import sql

from holdfast.drill import ledger
from holdfast.drill.client import (
    Client,
    Connection,
    FreshReader,
    IdleSession,
    LongWriter,
    Reader,
    Setting,
    Tally,
    Writer,
    connect,
    payload_of,
)
from holdfast.drill.history import History, Row
from holdfast.drill.ledger import LedgerClient
from holdfast.model.errors import HoldfastError
from holdfast.model.timeouts import DrillTimeouts

RATE_PER_S = 400.0
"""Writes a second of all writers together. Eight clients make about 15,000 on two cores against one server, which
leaves no time for anything else; 400 show a gap to 2.5 ms and cost the clients 5 % of a core (measured)."""

READS_PER_S = 25.0
"""Reads a second of each reader."""

IDLE_OPENED_AT_ONCE = 8
"""Idle sessions that connect at the same time: each costs both sides a password derivation."""


def steady_clock() -> Callable[[], float]:
    """A clock in Unix milliseconds that never jumps: read once, then advanced by the monotonic clock."""
    offset_s = time.time() - time.monotonic()
    return lambda: (time.monotonic() + offset_s) * 1000


@dataclass(frozen=True, slots=True)
class Counters:
    """Where the workload stands; for the display."""

    at_ms: float
    acknowledged: int
    errors: int
    unknown: int
    reads: int
    read_errors: int
    dropped: int


class Workload:
    """Clients on both ports of a cluster.

    ``rate_per_s`` is the target of all writers together; 0 writes without a pause. ``run_id`` names the schema
    ``drill_<run_id>`` and must be new in this database. ``fresh_readers`` read on the writable port; ``long_writers``
    keep each transaction open for ``long_ms``. Of two ``write_dsn`` every other client uses the second.
    """

    def __init__(
        self,
        write_dsn: str | tuple[str, ...],
        read_dsn: str,
        *,
        run_id: str,
        writers: int = 8,
        readers: int = 2,
        idle: int = 100,
        fresh_readers: int = 0,
        long_writers: int = 0,
        long_ms: float = 700.0,
        ledgers: int = 0,
        seed: int = 1,
        rate_per_s: float = RATE_PER_S,
        now_ms: Callable[[], float] | None = None,
        timeouts: DrillTimeouts | None = None,
    ) -> None:
        ways = (write_dsn,) if isinstance(write_dsn, str) else write_dsn
        self._write_dsn = ways[0]
        self._read_dsn = read_dsn
        self._timeouts = timeouts or DrillTimeouts()
        self.history = History()
        self.tally = Tally()
        self.now_ms = now_ms or steady_clock()
        self.schema = f"drill_{run_id}"
        self.seed = seed
        self.stopped_at_ms: float | None = None
        self._stopping = asyncio.Event()
        self._setting = Setting(
            self.schema, seed, self.history, self.tally, self.now_ms, self._timeouts, self._stopping
        )
        interval_ms = 1000 * writers / rate_per_s if rate_per_s > 0 else 0.0
        self._writers: list[Client] = [
            Writer(ways[n % len(ways)], n, interval_ms, self._setting) for n in range(writers)
        ]
        self._writers += [
            LongWriter(ways[n % len(ways)], n, long_ms, self._setting) for n in range(writers, writers + long_writers)
        ]
        self.ledgers = [LedgerClient(ways[n % len(ways)], n, self._setting) for n in range(ledgers)]
        each_ms = 1000 / READS_PER_S
        self._readers = [Reader(read_dsn, n, writers, each_ms, self._setting) for n in range(readers)]
        self._fresh = [
            FreshReader(ways[n % len(ways)], n, writers, each_ms, self._setting) for n in range(fresh_readers)
        ]
        self._idle = [IdleSession(ways[n % len(ways)], n, self._setting) for n in range(idle)]
        self._tasks: list[asyncio.Task[None]] = []

    async def setup(self) -> None:
        """Make the schema and the table, and wait until the read-only port shows them.

        No unique constraint: it would hide a duplicate. Raises HoldfastError.
        """
        statements = (
            sql.SQL("CREATE SCHEMA {}").format(sql.Identifier(self.schema)),
            sql.SQL(
                "CREATE TABLE {} (writer int NOT NULL, sequence bigint NOT NULL, "
                "sent_at timestamptz NOT NULL, payload text NOT NULL)"
            ).format(self._setting.table("writes")),
            sql.SQL("CREATE INDEX ON {} (writer, sequence)").format(self._setting.table("writes")),
            *(ledger.statements(self._setting, len(self.ledgers)) if self.ledgers else ()),
        )
        try:
            async with await connect(self._write_dsn, "holdfast_drill_setup", self._timeouts) as connection:
                for statement in statements:
                    await connection.execute(statement)
        except psycopg.Error as error:
            raise HoldfastError(
                f"the drill could not make its table {self.schema}.writes through the writable port: "
                f"{str(error).strip()}. Check that the cluster serves (holdfast status) and the role may create schemas"
            ) from error
        await self._wait_until_readable()

    async def _wait_until_readable(self) -> None:
        if not self._readers:
            return
        problem = "the table is not there"
        try:
            async with asyncio.timeout(self._timeouts.read_port_s):
                while True:
                    try:
                        if await self._is_readable():
                            return
                    except psycopg.Error as error:
                        problem = str(error).strip()
                    await asyncio.sleep(self._timeouts.reconnect_first_ms / 1000)
        except TimeoutError:
            raise HoldfastError(
                f"the drill's table did not appear on the read-only port within {self._timeouts.read_port_s:g} s "
                f"({problem}): check that a standby streams (holdfast status)"
            ) from None

    async def _is_readable(self) -> bool:
        async with await connect(self._read_dsn, "holdfast_drill_setup", self._timeouts) as connection:
            cursor = await connection.execute("SELECT to_regclass(%s) IS NOT NULL", (f"{self.schema}.writes",))
            return await cursor.fetchone() == (True,)

    async def start(self) -> None:
        """Start writers and readers, then open the idle sessions; returns when all are there. Raises HoldfastError."""
        self._tasks = [asyncio.create_task(writer.run()) for writer in self._writers]
        self._tasks += [asyncio.create_task(c.run()) for c in (*self._readers, *self._fresh, *self.ledgers)]
        slots = asyncio.Semaphore(IDLE_OPENED_AT_ONCE)

        async def open_one(session: IdleSession) -> None:
            async with slots:
                await session.open()

        try:
            await asyncio.gather(*(open_one(session) for session in self._idle))
        except psycopg.Error as error:
            raise HoldfastError(
                f"one of {len(self._idle)} idle sessions could not be opened: {str(error).strip()}. "
                "Lower the number of idle sessions, or raise max_connections and the proxy's max_clients"
            ) from error

    def join(self, dsn: str, number: int, interval_ms: float = 50.0) -> None:
        """One more writer, by a way of its own; its number must be new."""
        writer = Writer(dsn, number, interval_ms, self._setting)
        self._writers.append(writer)
        self._tasks.append(asyncio.create_task(writer.run()))

    async def cancel_writers(self) -> int:
        """Send each writer's server a cancel request; returns how many were sent."""
        return sum(await asyncio.gather(*(writer.cancel() for writer in self._writers)))

    async def stop(self) -> None:
        """End the load: let statements in flight finish, then ask every idle session whether it is still there."""
        self.stopped_at_ms = self.now_ms()
        self._stopping.set()
        await self._finish_tasks(self._timeouts.stop_s)
        await asyncio.gather(*(session.check() for session in self._idle))

    async def _finish_tasks(self, grace_s: float) -> None:
        tasks, self._tasks = self._tasks, []
        if not tasks:
            return
        done, pending = await asyncio.wait(tasks, timeout=grace_s)
        for task in pending:
            task.cancel()
        if pending:
            await asyncio.wait(pending)
        for task in done:
            task.result()

    async def close(self) -> None:
        """Close every connection; also ends a load that was not stopped."""
        self._stopping.set()
        try:
            await self._finish_tasks(0.0)
        finally:
            clients: list[Client | IdleSession] = [*self._writers, *self._readers, *self._fresh]
            clients += [*self.ledgers, *self._idle]
            await asyncio.gather(*(client.close() for client in clients))

    def counters(self) -> Counters:
        """Where the workload stands now."""
        history = self.history
        return Counters(
            at_ms=self.now_ms(),
            acknowledged=history.acknowledged,
            errors=history.errors,
            unknown=history.unknown,
            reads=len(history.read_end_ms),
            read_errors=len(history.read_error_ms),
            dropped=self.tally.dropped,
        )

    def payload_of(self, writer: int, sequence: int) -> str:
        """What a row of this workload must contain."""
        return payload_of(self.seed, writer, sequence)

    async def rows(self, dsn: str) -> list[Row]:
        """Every row there is on one server, read from the heap (an index could hide or invent one)."""
        async with await connect(dsn, "holdfast_drill_checker", self._timeouts) as connection:
            return await read_rows(connection, self.schema)

    async def drop(self) -> None:
        """Remove what ``setup`` made; raises psycopg.Error."""
        async with await connect(self._write_dsn, "holdfast_drill_setup", self._timeouts) as connection:
            await connection.execute(sql.SQL("DROP SCHEMA {} CASCADE").format(sql.Identifier(self.schema)))


async def read_rows(connection: Connection, schema: str) -> list[Row]:
    """Every row of a workload's table; raises psycopg.Error."""
    for path in ("indexscan", "indexonlyscan", "bitmapscan"):
        await connection.execute(sql.SQL("SET {} = off").format(sql.Identifier(f"enable_{path}")))
    query = sql.SQL("SELECT writer, sequence, payload FROM {}").format(sql.Identifier(schema, "writes"))
    cursor = await connection.execute(query)
    return [Row(*row) for row in await cursor.fetchall()]  # type: ignore[arg-type]
