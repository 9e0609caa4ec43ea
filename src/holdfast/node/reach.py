"""How an agent reaches others: over HTTP to their agents, with a fresh session to PostgreSQL."""

from __future__ import annotations

import asyncio
from collections.abc import Callable
from pathlib import Path
from typing import Protocol

import aiohttp
import psycopg
import structlog

from holdfast.model.asker import CLOCK_HEADER
from holdfast.model.errors import RegisterError
from holdfast.model.event import Stamp
from holdfast.model.register import Member, NodeRecord
from holdfast.model.report import NodeReport
from holdfast.model.timeouts import Timeouts

log = structlog.get_logger(__name__)


class PeerReach(Protocol):
    """The way to other agents."""

    async def ask(self, api_url: str) -> NodeReport:
        """What the agent there says of its node.

        Raises ConnectionRefusedError, OSError or TimeoutError without an answer, RegisterError for one that cannot
        be read.
        """
        ...

    async def pledge(self, api_url: str, leader: Member, epoch: int) -> bool:
        """Whether the node there promises this leader to join no epoch for the length of a lease."""
        ...

    async def close(self) -> None:
        """Release connections."""
        ...


class SessionReach(Protocol):
    """The way to another node's PostgreSQL."""

    async def answers(self, record: NodeRecord) -> bool:
        """Whether a fresh session gets an answer there; raises ConnectionRefusedError, or OSError for no way there."""
        ...

    async def still_answers(self, record: NodeRecord) -> bool:
        """Whether a session opened there earlier gets an answer; False while there is none. Cancelled, it ends it."""
        ...

    async def close(self) -> None:
        """Release connections."""
        ...


class HttpReach:
    """`PeerReach` over HTTP, with one pool of connections."""

    def __init__(self, timeouts: Timeouts, token: str, saw_clock: Callable[[Stamp], None] = lambda stamp: None) -> None:
        """``saw_clock`` is told what the clocks of those who answer show."""
        self._timeouts = timeouts
        self._token = token
        self._saw_clock = saw_clock
        self._session: aiohttp.ClientSession | None = None

    async def ask(self, api_url: str) -> NodeReport:
        """See `PeerReach.ask`."""
        try:
            async with self._open().get(f"{api_url}/node") as response:
                response.raise_for_status()
                self._follow_clock(response)
                return NodeReport.from_json(await response.read())
        except aiohttp.ClientConnectorError as error:
            raise error.os_error from error
        except aiohttp.ClientError as error:
            raise OSError(str(error)) from error

    async def pledge(self, api_url: str, leader: Member, epoch: int) -> bool:
        """See `PeerReach.pledge`."""
        headers = {"Authorization": f"Bearer {self._token}"}
        body = {"leader": leader.application_name, "epoch": epoch}
        try:
            async with self._open().post(f"{api_url}/pledge", json=body, headers=headers) as response:
                self._follow_clock(response)
                return response.status == 200
        except (aiohttp.ClientError, OSError, TimeoutError):
            return False

    def _follow_clock(self, response: aiohttp.ClientResponse) -> None:
        shown = response.headers.get(CLOCK_HEADER)
        if shown is not None:
            try:
                self._saw_clock(Stamp.parse(shown))
            except RegisterError as error:
                log.debug("clock.unreadable", error=str(error))

    def _open(self) -> aiohttp.ClientSession:
        if self._session is None:
            timeout = aiohttp.ClientTimeout(total=self._timeouts.peer_timeout_ms / 1000)
            self._session = aiohttp.ClientSession(timeout=timeout)
        return self._session

    async def close(self) -> None:
        """See `PeerReach.close`."""
        if self._session is not None:
            await self._session.close()


class SqlReach:
    """`SessionReach` that logs in as the replication role: a held session may live on while nobody else gets in."""

    def __init__(self, password_file: Path) -> None:
        self._password_file = password_file
        self._held: tuple[NodeRecord, psycopg.AsyncConnection[tuple[object, ...]]] | None = None

    async def answers(self, record: NodeRecord) -> bool:
        """See `SessionReach.answers`. The session is kept if none is held yet."""
        if await self._session_answers(record):
            return True
        _, writer = await asyncio.open_connection(record.postgres_host, record.postgres_port)
        writer.close()
        return False

    async def still_answers(self, record: NodeRecord) -> bool:
        """See `SessionReach.still_answers`."""
        if self._held is None or not _is_same(self._held[0], record):
            await self.close()
            return False
        connection = self._held[1]
        try:
            await connection.execute("SELECT 1")
        except psycopg.Error:
            await self.close()
            return False
        except asyncio.CancelledError:
            await asyncio.shield(self.close())  # in the middle of a statement it is of no more use
            raise
        return True

    async def close(self) -> None:
        """See `SessionReach.close`."""
        held, self._held = self._held, None
        if held is not None:
            await held[1].close()

    async def _session_answers(self, record: NodeRecord) -> bool:
        connection: psycopg.AsyncConnection[tuple[object, ...]] | None = None
        try:
            connection = await psycopg.AsyncConnection.connect(
                host=record.postgres_host,
                port=record.postgres_port,
                user="holdfast_replication",
                password=self._password_file.read_text().strip(),
                dbname="postgres",
                application_name="holdfast_probe",
                autocommit=True,
            )
            await connection.execute("SELECT 1")
            if self._held is None:
                self._held, connection = (record, connection), None
        except psycopg.Error as error:
            # The server itself turned the session down (too many of them, say): it answers.
            return "FATAL" in str(error) and "starting up" not in str(error)
        finally:
            if connection is not None:
                await connection.close()
        return True


def _is_same(one: NodeRecord, other: NodeRecord) -> bool:
    """Whether both are the same server at the same place."""
    return (one.member, one.postgres_host, one.postgres_port) == (
        other.member,
        other.postgres_host,
        other.postgres_port,
    )
