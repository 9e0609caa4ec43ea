"""The clients of a drill: writers, readers and idle sessions, each one connection through the proxy.

They behave as a plain application does: one connection each, autocommit, reconnect with a short back-off, and never
the same row twice. Whoever starts a client must stop it: ``Workload`` does both.
"""

from __future__ import annotations

import asyncio
import hashlib
import random
from abc import ABC, abstractmethod
from collections.abc import Callable
from contextlib import suppress
from dataclasses import dataclass

import psycopg
from psycopg import AsyncConnection, sql

from holdfast.drill.history import Attempt, FreshRead, History, Outcome, Server
from holdfast.model.timeouts import DrillTimeouts

Connection = AsyncConnection[tuple[object, ...]]

PROVES_ABORTED_CLASSES = frozenset({"0A", "21", "22", "23", "25", "26", "34", "40", "42", "53", "54", "55", "P0"})
"""Classes of SQLSTATE (PostgreSQL manual, appendix A) that an ERROR carries only before its transaction commits."""

PROVES_ABORTED = frozenset({"57014", "57P03"})
"""Cancelled before the commit (a cancelled wait for standbys is no ERROR), or refused while no primary serves."""

PROVES_NOTHING = frozenset({"40002", "40003"})
"""``statement_completion_unknown`` says so itself; a deferred constraint at commit is rare enough to be careful."""

REFUSED_FATAL = frozenset({"53300", "57P03"})
"""FATAL, but said before the statement was given to a server."""


@dataclass(slots=True)
class Tally:
    """What happened to the connections of all clients."""

    dropped_writers: int = 0
    dropped_readers: int = 0
    dropped_idle: int = 0
    failed_connects: int = 0
    fresh_read_errors: int = 0

    @property
    def dropped(self) -> int:
        """Connections that were closed on their client, whoever the client was."""
        return self.dropped_writers + self.dropped_readers + self.dropped_idle


@dataclass(frozen=True, slots=True)
class Setting:
    """What the clients of one workload share. ``now_ms`` is a steady clock in Unix milliseconds."""

    schema: str
    seed: int
    history: History
    tally: Tally
    now_ms: Callable[[], float]
    timeouts: DrillTimeouts
    stopping: asyncio.Event

    def table(self, name: str) -> sql.Composable:
        """A table of this run, quoted."""
        return sql.Identifier(self.schema, name)


def payload_of(seed: int, writer: int, sequence: int) -> str:
    """The content of a row: follows from its id, so that the checker sees an altered one."""
    return hashlib.blake2b(f"{seed}/{writer}/{sequence}".encode(), digest_size=24).hexdigest()


def outcome_of(error: psycopg.Error) -> Outcome:
    """What an error, met after an autocommit statement was sent, says about the statement."""
    state = error.sqlstate
    if state is None or state in PROVES_NOTHING:
        return Outcome.UNKNOWN
    severity = error.diag.severity_nonlocalized or error.diag.severity
    if severity in ("FATAL", "PANIC"):
        return Outcome.ERROR if state in REFUSED_FATAL else Outcome.UNKNOWN
    return Outcome.ERROR if state in PROVES_ABORTED or state[:2] in PROVES_ABORTED_CLASSES else Outcome.UNKNOWN


async def connect(dsn: str, application_name: str, timeouts: DrillTimeouts) -> Connection:
    """Open an autocommit session; raises psycopg.Error.

    No named prepared statements: a client that lives through a failover gets another server behind it.
    """
    return await AsyncConnection.connect(
        dsn,
        autocommit=True,
        prepare_threshold=None,
        application_name=application_name,
        connect_timeout=timeouts.connect_s,
        gssencmode="disable",
    )


class Client(ABC):
    """One connection that is opened again, with back-off, when it is lost."""

    def __init__(self, dsn: str, name: str, setting: Setting) -> None:
        self._dsn = dsn
        self._name = name
        self._setting = setting
        self._connection: Connection | None = None

    @abstractmethod
    async def run(self) -> None:
        """Do its work until the workload stops."""

    async def _connected(self) -> Connection | None:
        """The live connection, or None if the workload stops first."""
        setting = self._setting
        pause_ms = setting.timeouts.reconnect_first_ms
        while not setting.stopping.is_set():
            if self._connection is not None and not self._connection.closed:
                return self._connection
            try:
                self._connection = await connect(self._dsn, f"holdfast_drill_{self._name}", setting.timeouts)
            except psycopg.Error:
                setting.tally.failed_connects += 1
                await self._pause(pause_ms)
                pause_ms = min(pause_ms * 2, setting.timeouts.reconnect_last_ms)
        return None

    async def cancel(self) -> bool:
        """Ask the server, by the way that the connection goes, to cancel what it does; False if nothing is open."""
        connection = self._connection
        if connection is None or connection.closed:
            return False
        await asyncio.to_thread(connection.cancel)
        return True

    async def _pause(self, pause_ms: float) -> None:
        """Sleep, but no longer than the workload runs."""
        if pause_ms <= 0:
            await asyncio.sleep(0)
            return
        try:
            await asyncio.wait_for(self._setting.stopping.wait(), pause_ms / 1000)
        except TimeoutError:
            return

    async def _discard_if_lost(self) -> bool:
        """Forget a connection that was closed on us; whether it was."""
        if self._connection is None or not self._connection.closed:
            return False
        await self.close()
        return True

    async def close(self) -> None:
        """Close the connection, if any."""
        connection, self._connection = self._connection, None
        if connection is not None:
            await connection.close()


class Pace:
    """Evenly spaced turns with some jitter; a turn that was missed is not made up for (no burst after a stall)."""

    def __init__(self, interval_ms: float, rng: random.Random) -> None:
        self._interval_ms = interval_ms
        self._rng = rng
        self._next_ms = 0.0

    def pause_ms(self, now_ms: float) -> float:
        """How long to wait before the next turn."""
        if self._next_ms == 0.0:
            self._next_ms = now_ms + self._rng.uniform(0, self._interval_ms)
        due_ms = self._next_ms
        self._next_ms = max(due_ms, now_ms) + self._interval_ms * self._rng.uniform(0.7, 1.3)
        return max(0.0, due_ms - now_ms)


def insert_into(setting: Setting) -> sql.Composed:
    """The statement of every writer; the server says who it is, and on which timeline it writes."""
    return sql.SQL(
        "INSERT INTO {} (writer, sequence, sent_at, payload) VALUES (%s, %s, to_timestamp(%s), %s) "
        "RETURNING coalesce(host(inet_server_addr()), '') || ':' || coalesce(inet_server_port(), 0), "
        "left(pg_walfile_name(pg_current_wal_insert_lsn()), 8)"
    ).format(setting.table("writes"))


def _server_of(row: tuple[object, ...] | None) -> Server | None:
    return None if row is None else Server(str(row[0]), int(str(row[1]), 16))


class Writer(Client):
    """Inserts one row after the other and records the outcome of each."""

    def __init__(self, dsn: str, number: int, interval_ms: float, setting: Setting) -> None:
        super().__init__(dsn, f"writer{number}", setting)
        self._number = number
        self._pace = Pace(interval_ms, random.Random(f"{setting.seed}/writer/{number}"))
        self._insert = insert_into(setting)

    async def run(self) -> None:
        """Write until the workload stops."""
        sequence = 0
        while (connection := await self._connected()) is not None:
            sequence += 1
            await self._write(connection, sequence)
            await self._pause(self._pace.pause_ms(self._setting.now_ms()))

    async def _write(self, connection: Connection, sequence: int) -> None:
        setting = self._setting
        payload = payload_of(setting.seed, self._number, sequence)
        outcome, sqlstate, server, start_ms = Outcome.UNKNOWN, None, None, setting.now_ms()
        try:
            async with asyncio.timeout(setting.timeouts.statement_s):
                values = (self._number, sequence, start_ms / 1000, payload)
                server = _server_of(await (await connection.execute(self._insert, values)).fetchone())
            outcome = Outcome.ACKNOWLEDGED
        except psycopg.Error as error:
            outcome, sqlstate = outcome_of(error), error.sqlstate
        except TimeoutError:
            await self.close()
        finally:
            # Also when cancelled: a statement that was sent is never left out of the evidence.
            server = server if outcome is Outcome.ACKNOWLEDGED else None
            end_ms = setting.now_ms()
            setting.history.record(Attempt(self._number, sequence, outcome, start_ms, end_ms, sqlstate, server))
        if await self._discard_if_lost():
            setting.tally.dropped_writers += 1


class LongWriter(Client):
    """Writes a row, goes on thinking in the open transaction, and commits; each transaction is one attempt."""

    def __init__(self, dsn: str, number: int, lasts_ms: float, setting: Setting) -> None:
        super().__init__(dsn, f"long{number}", setting)
        self._number = number
        self._lasts_ms = lasts_ms
        self._insert = insert_into(setting)

    async def run(self) -> None:
        """Write until the workload stops."""
        sequence = 0
        while (connection := await self._connected()) is not None:
            sequence += 1
            await self._transact(connection, sequence)
            await self._pause(self._lasts_ms / 10)

    async def _transact(self, connection: Connection, sequence: int) -> None:
        setting = self._setting
        payload = payload_of(setting.seed, self._number, sequence)
        # Until COMMIT is sent, whatever happens, nothing is committed.
        outcome, sqlstate, server, start_ms = Outcome.ERROR, None, None, setting.now_ms()
        try:
            async with asyncio.timeout(setting.timeouts.statement_s):
                await connection.execute("BEGIN")
                values = (self._number, sequence, start_ms / 1000, payload)
                server = _server_of(await (await connection.execute(self._insert, values)).fetchone())
                await self._pause(self._lasts_ms)
                outcome, start_ms = Outcome.UNKNOWN, setting.now_ms()
                status = (await connection.execute("COMMIT")).statusmessage
            outcome = Outcome.ACKNOWLEDGED if status == "COMMIT" else Outcome.ERROR
        except psycopg.Error as error:
            outcome = outcome if outcome is Outcome.ERROR else outcome_of(error)
            sqlstate = error.sqlstate
        except TimeoutError:
            await self.close()
        finally:
            server = server if outcome is Outcome.ACKNOWLEDGED else None
            end_ms = setting.now_ms()
            setting.history.record(Attempt(self._number, sequence, outcome, start_ms, end_ms, sqlstate, server))
        if await self._discard_if_lost():
            setting.tally.dropped_writers += 1
        elif outcome is not Outcome.ACKNOWLEDGED and self._connection is not None:
            with suppress(psycopg.Error):
                await self._connection.execute("ROLLBACK")


class FreshReader(Client):
    """Asks the writable port for the newest row of one writer after the other; its answers may never be old."""

    def __init__(self, dsn: str, number: int, writers: int, interval_ms: float, setting: Setting) -> None:
        super().__init__(dsn, f"fresh{number}", setting)
        self._rng = random.Random(f"{setting.seed}/fresh/{number}")
        self._writers = writers
        self._pace = Pace(interval_ms, self._rng)
        self._select = sql.SQL("SELECT max(sequence) FROM {} WHERE writer = %s").format(setting.table("writes"))

    async def run(self) -> None:
        """Read until the workload stops."""
        setting = self._setting
        while (connection := await self._connected()) is not None:
            writer, start_ms = self._rng.randrange(self._writers), setting.now_ms()
            try:
                async with asyncio.timeout(setting.timeouts.statement_s):
                    row = await (await connection.execute(self._select, (writer,))).fetchone()
            except psycopg.Error:
                setting.tally.fresh_read_errors += 1
            except TimeoutError:
                setting.tally.fresh_read_errors += 1
                await self.close()
            else:
                newest = row[0] if row is not None and isinstance(row[0], int) else 0
                setting.history.fresh_reads.append(FreshRead(start_ms, setting.now_ms(), writer, newest))
            if await self._discard_if_lost():
                setting.tally.dropped_readers += 1
            await self._pause(self._pace.pause_ms(setting.now_ms()))


class Reader(Client):
    """Asks the read-only port for the newest row of one writer after the other."""

    def __init__(self, dsn: str, number: int, writers: int, interval_ms: float, setting: Setting) -> None:
        super().__init__(dsn, f"reader{number}", setting)
        self._rng = random.Random(f"{setting.seed}/reader/{number}")
        self._writers = writers
        self._pace = Pace(interval_ms, self._rng)
        self._select = sql.SQL("SELECT max(sequence) FROM {} WHERE writer = %s").format(setting.table("writes"))

    async def run(self) -> None:
        """Read until the workload stops."""
        while (connection := await self._connected()) is not None:
            await self._read(connection, self._rng.randrange(self._writers))
            await self._pause(self._pace.pause_ms(self._setting.now_ms()))

    async def _read(self, connection: Connection, writer: int) -> None:
        setting = self._setting
        start_ms = setting.now_ms()
        try:
            async with asyncio.timeout(setting.timeouts.statement_s):
                row = await (await connection.execute(self._select, (writer,))).fetchone()
        except psycopg.Error:
            setting.history.record_read_error(setting.now_ms())
        except TimeoutError:
            setting.history.record_read_error(setting.now_ms())
            await self.close()
        else:
            newest = row[0] if row is not None else None
            seen = (writer, newest) if isinstance(newest, int) else None
            setting.history.record_read(start_ms, setting.now_ms(), seen)
        if await self._discard_if_lost():
            setting.tally.dropped_readers += 1


class IdleSession:
    """A session that says one thing, is silent through the failover, and must still be there afterwards."""

    def __init__(self, dsn: str, number: int, setting: Setting) -> None:
        self._dsn = dsn
        self._name = f"holdfast_drill_idle{number}"
        self._setting = setting
        self._connection: Connection | None = None

    async def open(self) -> None:
        """Connect and say ``SELECT 1``; raises psycopg.Error."""
        self._connection = await connect(self._dsn, self._name, self._setting.timeouts)
        await self._connection.execute("SELECT 1")

    async def check(self) -> None:
        """Say it again on the same connection; no answer counts as dropped."""
        if self._connection is None:
            return
        try:
            async with asyncio.timeout(self._setting.timeouts.stop_s):
                await self._connection.execute("SELECT 1")
        except (psycopg.Error, TimeoutError):
            self._setting.tally.dropped_idle += 1

    async def close(self) -> None:
        """Close the connection, if any."""
        connection, self._connection = self._connection, None
        if connection is not None:
            await connection.close()
