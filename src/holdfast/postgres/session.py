"""One held session as the superuser over the Unix socket: bounded in time, reopened by itself."""

from __future__ import annotations

import asyncio
import contextlib
import os
import socket
from collections.abc import Sequence
from pathlib import Path
from typing import Any, Literal

import psycopg
from psycopg.conninfo import make_conninfo

from holdfast.model.errors import PostgresError

APPLICATION_NAME = "holdfast_agent"
USUAL_DEADLINE = -1.0
"""The deadline that the session was made with."""
_SHUT_S = 1.0


class NotAccepting(PostgresError):
    """The server refuses sessions. ``starting``: it says that it is starting up."""

    def __init__(self, message: str, *, starting: bool) -> None:
        super().__init__(message)
        self.starting = starting


class NoAnswer(PostgresError):
    """The server did not answer within the deadline, or the session broke."""


class Session:
    """A connection that is opened when it is needed and again when it broke. One statement at a time.

    Commits are local unless asked for: what the agent writes must not wait for the quorum that it establishes.
    """

    def __init__(
        self,
        socket_dir: Path,
        port: int,
        password: str,
        deadline_ms: int,
        synchronous_commit: Literal["local", "on"] = "local",
        database: str = "postgres",
    ) -> None:
        self._conninfo = make_conninfo(
            "",
            host=str(socket_dir),
            port=port,
            user="postgres",
            password=password,
            dbname=database,
            application_name=APPLICATION_NAME,
            # The search path: another database's owner may have set one in which other things have the same names.
            options=f"-c synchronous_commit={synchronous_commit} -c lock_timeout=0 -c statement_timeout=0 "
            "-c search_path=pg_catalog",
            gssencmode="disable",
        )
        self._deadline_ms = deadline_ms
        self._connection: psycopg.AsyncConnection[tuple[Any, ...]] | None = None
        self._lock = asyncio.Lock()
        self._running: asyncio.Task[Any] | None = None
        self._given_up: asyncio.Task[Any] | None = None
        """Whose statement nobody waits for any more: it is not tried again."""
        self._ended = False

    async def fetch(
        self, query: str, parameters: Sequence[Any] = (), *, deadline_ms: float | None = USUAL_DEADLINE
    ) -> list[tuple[Any, ...]]:
        """Run one statement and return its rows; without a deadline (None) it may take as long as it likes.

        Raises NotAccepting, NoAnswer, or PostgresError with what the server said against the statement.
        """
        if deadline_ms == USUAL_DEADLINE:
            deadline_ms = self._deadline_ms
        task = asyncio.create_task(self._fetch(query, parameters))
        try:
            done, _ = await asyncio.wait({task}, timeout=None if deadline_ms is None else deadline_ms / 1000)
        except asyncio.CancelledError:
            await self._abandon(task)
            raise
        if not done:
            await self._abandon(task)
            raise NoAnswer(f"PostgreSQL did not answer within {deadline_ms} ms")
        return task.result()

    async def close(self) -> None:
        """Close the session for good; a statement that is under way fails."""
        self._ended = True
        await self._close()

    async def _close(self) -> None:
        connection, self._connection = self._connection, None
        if connection is None:
            return
        if self._running is not None and not self._running.done() and self._running is not asyncio.current_task():
            _shut(connection)  # closed under a statement that waits, it would wait for ever
            await asyncio.wait({self._running}, timeout=_SHUT_S)
        await connection.close()

    async def _fetch(self, query: str, parameters: Sequence[Any]) -> list[tuple[Any, ...]]:
        async with self._lock:
            self._running = asyncio.current_task()
            held = self._connection is not None
            try:
                return await self._execute(query, parameters)
            except (psycopg.OperationalError, psycopg.InterfaceError) as error:
                if self._connection is not None and not self._connection.broken:
                    raise PostgresError(f"PostgreSQL: {message_of(error)}") from error
                await self._close()
                if not held or self._ended or self._given_up is asyncio.current_task():
                    raise _refusal(error) from error
            except psycopg.Error as error:
                raise PostgresError(f"PostgreSQL: {message_of(error)}") from error
            try:  # the held session was from before a restart
                return await self._execute(query, parameters)
            except (psycopg.OperationalError, psycopg.InterfaceError) as error:
                await self._close()
                raise _refusal(error) from error
            except psycopg.Error as error:
                raise PostgresError(f"PostgreSQL: {message_of(error)}") from error

    async def _execute(self, query: str, parameters: Sequence[Any]) -> list[tuple[Any, ...]]:
        if self._connection is None:
            self._connection = await psycopg.AsyncConnection.connect(self._conninfo, autocommit=True)
        cursor = await self._connection.execute(query.encode(), parameters or None)
        return await cursor.fetchall() if cursor.description else []

    async def _abandon(self, task: asyncio.Task[list[tuple[Any, ...]]]) -> None:
        """End a statement that is still under way, without asking a server that may be frozen."""
        connection = self._connection
        if self._running is not task or connection is None or connection.closed:
            task.cancel()
        else:
            self._given_up = task
            _shut(connection)
        with contextlib.suppress(asyncio.CancelledError, PostgresError, psycopg.Error):
            await task


def _shut(connection: psycopg.AsyncConnection[tuple[Any, ...]]) -> None:
    """End the connection's socket: a statement that waits on it fails at once."""
    with contextlib.suppress(OSError, psycopg.Error):
        shut = socket.socket(fileno=os.dup(connection.fileno()))
        with shut:
            shut.shutdown(socket.SHUT_RDWR)


def _refusal(error: psycopg.Error) -> PostgresError:
    text = message_of(error)
    starting = "starting up" in text or "not yet accepting connections" in text or "No such file" in text
    if starting or "Connection refused" in text or "shutting down" in text:
        return NotAccepting(f"PostgreSQL accepts no session: {text}", starting=starting)
    return NoAnswer(f"the session with PostgreSQL broke: {text}")


def message_of(error: psycopg.Error) -> str:
    """What the server said, in one line."""
    return str(error.diag.message_primary or error).strip().replace("\n", " ")
