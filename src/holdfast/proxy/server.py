"""One connection to a server: login, check that it is what the register says, replay of a session, relaying."""

from __future__ import annotations

import asyncio
import secrets
import socket
import struct
from collections import deque
from collections.abc import AsyncIterator, Callable, Sequence
from contextlib import asynccontextmanager
from typing import Final, Protocol, cast

from holdfast.model.errors import ProtocolViolation
from holdfast.model.lsn import Lsn
from holdfast.model.timeouts import ProxyTimeouts
from holdfast.proxy.limits import WRITE_BUFFER_BYTES
from holdfast.proxy.link import Link
from holdfast.proxy.reactor import Reactor
from holdfast.proxy.routing import Target
from holdfast.proxy.streams import Stream, connect
from holdfast.proxy.users import KeysMissing, Users
from holdfast.wire import messages as m
from holdfast.wire.frames import FrameCutter
from holdfast.wire.loss import SERVER_GONE
from holdfast.wire.scram import MECHANISM, AuthenticationFailed, ScramClient
from holdfast.wire.state import ReplayStep

CHECK: Final = (
    "select pg_catalog.pg_is_in_recovery(), case when pg_catalog.pg_is_in_recovery() then null "
    "else pg_catalog.pg_walfile_name(pg_catalog.pg_current_wal_lsn()) end, "
    "case when pg_catalog.pg_is_in_recovery() then null else pg_catalog.pg_current_wal_lsn() end"
)
"""One round trip: is it a primary, of which timeline (the first eight digits of the file's name), and how long is its
log?"""

TRANSIENT: Final = frozenset(("57P01", "57P02", "57P03", "53300"))
"""Start-up refusals that pass by themselves: shutting down, crashed, starting, too many connections."""


class ServerUnavailable(Exception):
    """The server is gone, not ready, or not what the register says: try again."""


class ServerNotReady(ServerUnavailable):
    """The server answered: it lives, and is not ready or not what the register says."""


class ServerRefused(Exception):
    """The server answered, and its answer will not change by trying again: the client must be told."""

    def __init__(self, report: m.Report) -> None:
        super().__init__(report.text)
        self.report = report


class Session(Protocol):
    """Who uses a server connection."""

    def from_server(self, data: bytes) -> None:
        """The server sent bytes."""

    def server_lost(self, server: ServerConnection, reason: str) -> None:
        """The connection is gone."""

    def server_busy(self, busy: bool) -> None:
        """The server reads slowly (True), or has caught up."""


class ServerConnection(Link, asyncio.Protocol):
    """A connection in set-up (`log_in`, `checked`) or in the hands of one `Session` (`attach`)."""

    def __init__(self, target: Target) -> None:
        super().__init__()
        self.target = target
        self.process_id = 0
        self.secret = b""
        self.position = Lsn(0)
        """A primary had written its log up to there when the connection was checked."""
        self.on_end: Callable[[ServerConnection], None] | None = None
        """Called once, when the connection is over."""
        self.has_ended = False
        self._cutter = FrameCutter()
        self._frames: deque[tuple[int, bytes]] = deque()
        self._waiter: asyncio.Future[None] | None = None

    # asyncio.Protocol

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        """Set the socket up."""
        self._transport = cast(asyncio.Transport, transport)
        self.wire = transport.wire if isinstance(transport, Stream) else None
        self.output = self.wire if self.wire is not None else self._transport
        sock: socket.socket = transport.get_extra_info("socket")
        if sock.family in (socket.AF_INET, socket.AF_INET6):
            silence_ms = ProxyTimeouts().server_silence_ms
            sock.setsockopt(socket.SOL_SOCKET, socket.SO_KEEPALIVE, 1)
            sock.setsockopt(socket.IPPROTO_TCP, socket.TCP_KEEPIDLE, max(1, silence_ms // 2000))
            sock.setsockopt(socket.IPPROTO_TCP, socket.TCP_KEEPINTVL, 1)
            sock.setsockopt(socket.IPPROTO_TCP, socket.TCP_KEEPCNT, max(1, silence_ms // 2000))
            sock.setsockopt(socket.IPPROTO_TCP, socket.TCP_USER_TIMEOUT, silence_ms)

    def data_received(self, data: bytes) -> None:
        """Hand bytes to the session, or collect messages during set-up."""
        if self._session is not None:
            self._session.from_server(data)
            return
        try:
            buffer, frames = self._cutter.feed(data)
        except ProtocolViolation as violation:
            self.abort(str(violation))
            return
        self._frames.extend((kind, buffer[start + 5 : end]) for kind, start, end in frames)
        self._wake()

    def connection_lost(self, exc: Exception | None) -> None:
        """Tell whoever uses it, and whoever counts it."""
        self._gone(str(exc) if exc is not None else "the server closed the connection")
        self.has_ended = True
        if self.on_end is not None:
            self.on_end(self)

    def pause_writing(self) -> None:
        """The server reads slowly."""
        self.is_full = True
        if self._session is not None:
            self._session.server_busy(True)

    def resume_writing(self) -> None:
        """The server has caught up."""
        self.is_full = False
        if self._session is not None:
            self._session.server_busy(False)

    # for the session

    def detach(self) -> None:
        """From now on nobody uses it: it may be told another session's state (`replay`)."""
        self._leave()

    def write(self, data: bytes) -> None:
        """Send bytes."""
        if self._transport is not None:
            self._transport.write(data)

    def pause_reading(self, pause: bool) -> None:
        """Stop or go on reading, for a client that reads slowly."""
        if self._transport is None or self._transport.is_closing():
            return
        if pause:
            self._transport.pause_reading()
        else:
            self._transport.resume_reading()

    def close(self) -> None:
        """End the session in good order: what was written still goes out."""
        self._leave()
        if self._transport is not None and not self._transport.is_closing():
            self._transport.write(m.TERMINATE_MESSAGE)
            self._transport.close()

    def say_goodbye(self) -> None:
        """Let the server end the session once it has done what was asked, and hear of that."""
        if self._transport is not None and not self._transport.is_closing():
            self._transport.write(m.TERMINATE_MESSAGE)

    def drop(self) -> None:
        """Close at once and tell nobody."""
        self._leave()
        if self._transport is not None:
            self._transport.abort()

    def abort(self, reason: str) -> None:
        """Close at once and tell the session now."""
        if self._transport is not None:
            self._transport.abort()
        self._gone(reason)

    def _gone(self, reason: str) -> None:
        if self._lost is not None:
            return
        self._lost = reason
        self._wake()
        session: Session | None = self._session
        self._leave()
        if session is not None:
            session.server_lost(self, reason)

    def _leave(self) -> None:
        self._session = None
        if self.wire is not None:
            self.wire.received = self.data_received

    # set-up

    def _wake(self) -> None:
        if self._waiter is not None and not self._waiter.done():
            self._waiter.set_result(None)

    async def _next(self) -> tuple[int, bytes]:
        """The next message that is no ParameterStatus, notice or notification; raises ServerUnavailable."""
        while True:
            while not self._frames:
                if self._lost is not None:
                    raise ServerUnavailable(self._lost)
                self._waiter = asyncio.get_running_loop().create_future()
                await self._waiter
            kind, body = self._frames.popleft()
            if kind == m.PARAMETER_STATUS:
                name, value = m.read_parameter_status(body)
                self.parameters[name] = value
            elif kind not in (m.NOTICE, m.NOTIFICATION):
                return kind, body

    async def login(self, parameters: dict[str, str], users: Users) -> None:
        """Log in; raises ServerUnavailable or ServerRefused."""
        self.write(m.startup_message(parameters))
        scram = ScramClient(secrets.token_urlsafe(18))
        while True:
            kind, body = await self._next()
            if kind == m.READY_FOR_QUERY:
                return
            if kind == m.ERROR:
                report = m.read_report(body)
                if report.sqlstate in TRANSIENT:
                    raise ServerNotReady(report.text)
                raise ServerRefused(report)
            if kind == m.BACKEND_KEY_DATA and len(body) >= 8:
                self.process_id, self.secret = int.from_bytes(body[:4], "big"), body[4:]
            elif kind == m.AUTHENTICATION and len(body) >= 4:
                self._authenticate(body, scram, parameters["user"], users)
            else:
                raise ProtocolViolation(f"a server sent {kind:#x} during its start-up")

    def _authenticate(self, body: bytes, scram: ScramClient, user: str, users: Users) -> None:
        (code,) = struct.unpack_from("!I", body)
        try:
            if code == m.AUTH_SASL and MECHANISM.encode() in body[4:].split(b"\0"):
                self.write(m.sasl_initial_response(MECHANISM, scram.first()))
            elif code == m.AUTH_SASL_CONTINUE:
                salt, iterations = scram.challenge(body[4:])
                self.write(m.message(m.PASSWORD, scram.prove(users.keys_of(user, salt, iterations))))
            elif code == m.AUTH_SASL_FINAL:
                scram.verify(body[4:])
            elif code != m.AUTH_OK:
                raise ServerRefused(
                    m.fatal(
                        "28000",
                        f"server {self.target.node} asks for a way of logging in that is not supported",
                        hint="Use scram-sha-256 (or trust) for the proxy's address in the servers' pg_hba.conf.",
                    )
                )
        except KeysMissing as missing:
            raise ServerRefused(m.fatal("28000", "cannot log in to the server", detail=str(missing))) from missing
        except AuthenticationFailed as failed:
            raise ServerRefused(m.fatal("28000", "the server did not prove that it knows the password")) from failed

    async def check(self) -> None:
        """Refuse a server that is not what the register says; raises ServerNotReady, ServerUnavailable."""
        rows, report = await self._ask(m.query(CHECK))
        if report is not None or len(rows) != 1 or len(rows[0]) != 3:
            raise ServerNotReady(report.text if report is not None else "the server's check has no answer")
        in_recovery, wal_file, position = rows[0]
        if in_recovery == b"t":
            if self.target.is_primary:
                raise ServerNotReady(f"{self.target.node} is still a standby")
        elif not self.target.is_primary:
            raise ServerNotReady(f"{self.target.node} is no standby")
        elif wal_file is None or int(wal_file[:8], 16) != self.target.epoch:
            raise ServerNotReady(f"{self.target.node} is a primary of another epoch than {self.target.epoch}")
        elif position is not None:
            self.position = Lsn.parse(position.decode())

    async def replay(self, steps: Sequence[ReplayStep]) -> set[bytes]:
        """Make this server's session another one; returns the prepared statements that failed.

        Raises ServerUnavailable, or ServerRefused if a setting cannot be restored.
        """
        forgotten: set[bytes] = set()
        self.write(b"".join(step.message for step in steps))
        for step in steps:
            _, report = await self._answer()
            if report is None or step.may_fail:
                continue
            if step.name is None:
                raise ServerRefused(
                    m.fatal(
                        SERVER_GONE,
                        "the server connection was lost, and the session's settings cannot be restored on another",
                        detail=report.text,
                        hint="Connect again.",
                    )
                )
            forgotten.add(step.name)
        return forgotten

    async def ask(self, sql: str) -> list[list[bytes | None]]:
        """Ask a question of the proxy's own; returns the rows. Raises ServerUnavailable, also for an error."""
        rows, report = await self._ask(m.query(sql))
        if report is not None:
            raise ServerNotReady(report.text)
        return rows

    async def _ask(self, message: bytes) -> tuple[list[list[bytes | None]], m.Report | None]:
        """Send something that ends in one ReadyForQuery; returns the rows, and the error if there was one."""
        self.write(message)
        return await self._answer()

    async def _answer(self) -> tuple[list[list[bytes | None]], m.Report | None]:
        rows: list[list[bytes | None]] = []
        report: m.Report | None = None
        while True:
            kind, body = await self._next()
            if kind == m.READY_FOR_QUERY:
                self.status = body[0]
                return rows, report
            if kind == m.DATA_ROW:
                rows.append(m.read_data_row(body))
            elif kind == m.ERROR:
                report = m.read_report(body)
                if report.is_fatal:
                    raise ServerNotReady(report.text)


async def log_in(
    reactor: Reactor, target: Target, parameters: dict[str, str], users: Users, connect_ms: int
) -> ServerConnection:
    """Connect and log in, and do not `check` yet; raises ServerUnavailable or ServerRefused."""
    connection = ServerConnection(target)
    async with _dropped_on_failure(connection, connect_ms):
        Stream(reactor, await connect(target.host, target.port), connection, WRITE_BUFFER_BYTES)
        await connection.login(parameters, users)
        connection.held.application_name = parameters.get("application_name", "")
    return connection


async def checked(connection: ServerConnection, connect_ms: int) -> ServerConnection:
    """The connection, if its server is what the register says; raises ServerUnavailable."""
    async with _dropped_on_failure(connection, connect_ms):
        await connection.check()
    return connection


@asynccontextmanager
async def _dropped_on_failure(connection: ServerConnection, limit_ms: int) -> AsyncIterator[None]:
    target = connection.target
    try:
        async with asyncio.timeout(limit_ms / 1000):
            yield
    except (OSError, TimeoutError, ProtocolViolation) as error:
        connection.drop()
        reason = str(error) or f"no answer within {limit_ms} ms"
        raise ServerUnavailable(f"{target.node} at {target.host}:{target.port}: {reason}") from error
    except BaseException:
        connection.drop()
        raise


async def send_cancel(target: Target, process_id: int, secret: bytes, connect_ms: int) -> bool:
    """Ask a server to cancel what one of its sessions runs; whether it is known to have been told."""
    try:
        async with asyncio.timeout(connect_ms / 1000):
            reader, writer = await asyncio.open_connection(target.host, target.port)
            try:
                writer.write(m.cancel_request(process_id, secret))
                await reader.read()
            finally:
                writer.close()
    except (OSError, TimeoutError):
        return False
    return True
