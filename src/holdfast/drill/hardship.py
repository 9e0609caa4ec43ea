"""What makes a primary-crash harder than the plain one: much data, readers in the way, a checkpoint under way."""

from __future__ import annotations

import asyncio
from collections.abc import Callable

import psycopg
from psycopg import sql

from holdfast.drill.client import Connection, connect
from holdfast.model.errors import HoldfastError
from holdfast.model.timeouts import DrillTimeouts

BALLAST_CHUNK_ROWS = 20_000
"""Rows in one transaction of ballast, about 20 MB: standbys keep up, and nothing waits for long."""

BALLAST_FACTOR = 1.5
"""How much larger than shared_buffers the data becomes, so that it cannot all be in memory."""

BALLAST_ROWS_SMALL = 2_000
"""Ballast of a run without large data: something to make the readers conflict with, or the checkpoint write."""

CHECKPOINT_HEAD_START_S = 0.02
"""From the start of CHECKPOINT to the kill: it is writing by then."""


class Hardship:
    """The table of ballast and the sessions that go past the proxy. Use ``close`` in any case."""

    def __init__(self, schema: str, timeouts: DrillTimeouts) -> None:
        self._table = sql.Identifier(schema, "ballast")
        self._timeouts = timeouts
        self._readers: list[tuple[Connection, asyncio.Task[None]]] = []
        self._checkpoint: asyncio.Task[bool] | None = None

    async def load(self, write_dsn: str, *, large: bool, progress: Callable[[str], None]) -> None:
        """Fill the ballast; with ``large``, beyond the server's shared_buffers. Raises HoldfastError."""
        try:
            async with await connect(write_dsn, "holdfast_drill_ballast", self._timeouts) as connection:
                await connection.execute(
                    sql.SQL("CREATE TABLE {} (id bigint GENERATED ALWAYS AS IDENTITY, n int, filling text)").format(
                        self._table
                    )
                )
                if not large:
                    await self._add(connection, BALLAST_ROWS_SMALL)
                    return
                target_bytes = BALLAST_FACTOR * await self._number(
                    connection, sql.SQL("SELECT pg_size_bytes(current_setting('shared_buffers'))")
                )
                size = sql.SQL("SELECT pg_table_size({}::text::regclass)").format(
                    sql.Literal(self._table.as_string(connection))
                )
                while (bytes_now := await self._number(connection, size)) < target_bytes:
                    progress(f"loading data: {bytes_now >> 20} of {int(target_bytes) >> 20} MiB")
                    await self._add(connection, BALLAST_CHUNK_ROWS)
        except psycopg.Error as error:
            raise HoldfastError(
                f"the drill could not load its data: {str(error).strip()}. Check the free disk space of every node"
            ) from error

    async def _add(self, connection: Connection, rows: int) -> None:
        # Incompressible, below the size at which a value is moved out of its table.
        await connection.execute(
            sql.SQL(
                "INSERT INTO {} (n, filling) SELECT i, (SELECT string_agg(md5(random()::text || i || j), '') "
                "FROM generate_series(1, 30) AS j) FROM generate_series(1, %s) AS i"
            ).format(self._table),
            (rows,),
        )

    @staticmethod
    async def _number(connection: Connection, query: sql.SQL | sql.Composed) -> int:
        row = await (await connection.execute(query)).fetchone()
        if row is None or not isinstance(row[0], int):
            raise HoldfastError(f"the server answered {row!r} where a number of bytes was expected")
        return row[0]

    async def read_for_long(self, standby_dsns: dict[str, str]) -> None:
        """On each standby, a transaction that keeps its snapshot and goes on reading. Raises HoldfastError."""
        for node, dsn in standby_dsns.items():
            try:
                connection = await connect(dsn, "holdfast_drill_long_reader", self._timeouts)
                await connection.execute("BEGIN ISOLATION LEVEL REPEATABLE READ")
                await connection.execute(sql.SQL("SELECT count(*) FROM {}").format(self._table))
            except psycopg.Error as error:
                raise HoldfastError(f"the long reader on {node} could not start: {str(error).strip()}") from error
            self._readers.append((connection, asyncio.create_task(self._keep_reading(connection))))

    async def _keep_reading(self, connection: Connection) -> None:
        query = sql.SQL("SELECT sum(length(filling)), pg_sleep(0.2) FROM {}").format(self._table)
        try:
            while True:
                await connection.execute(query)
        except psycopg.Error:
            return  # cancelled by a conflict or by the promotion: its part is done

    async def obstruct_replay(self, write_dsn: str) -> None:
        """Remove row versions that the long readers still see, so that replay has to wait for them."""
        async with await connect(write_dsn, "holdfast_drill_ballast", self._timeouts) as connection:
            await connection.execute(sql.SQL("UPDATE {} SET n = n + 1 WHERE id % 7 = 0").format(self._table))
            await connection.execute(sql.SQL("VACUUM {}").format(self._table))

    async def start_checkpoint(self, primary_dsn: str, write_dsn: str) -> None:
        """Make many pages dirty and start a CHECKPOINT; returns while it is under way. Raises HoldfastError."""
        async with await connect(write_dsn, "holdfast_drill_ballast", self._timeouts) as connection:
            await connection.execute(sql.SQL("UPDATE {} SET n = n + 1").format(self._table))
        connection = await connect(primary_dsn, "holdfast_drill_checkpoint", self._timeouts)

        async def checkpoint() -> bool:
            try:
                await connection.execute("CHECKPOINT")
            except psycopg.OperationalError:
                return True
            finally:
                await connection.close()
            return False

        self._checkpoint = asyncio.create_task(checkpoint())
        await asyncio.wait([self._checkpoint], timeout=CHECKPOINT_HEAD_START_S)
        if self._checkpoint.done():
            self._checkpoint.result()  # an error (no right to CHECKPOINT) is said here

    async def checkpoint_was_cut_off(self) -> bool:
        """Whether the fault came before the CHECKPOINT was done; else it did not make the run harder."""
        return self._checkpoint is not None and await self._checkpoint

    async def close(self) -> None:
        """End the readers and the checkpoint's session."""
        tasks = [task for _, task in self._readers]
        if self._checkpoint is not None:
            tasks_left: list[asyncio.Task[None] | asyncio.Task[bool]] = [*tasks, self._checkpoint]
        else:
            tasks_left = [*tasks]
        for task in tasks_left:
            task.cancel()
        if tasks_left:
            await asyncio.wait(tasks_left)
        for connection, _ in self._readers:
            await connection.close()
        self._readers = []
        self._checkpoint = None
