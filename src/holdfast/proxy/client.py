"""One connection of a client, up to the end of its start-up; then a `Relay` takes over."""

from __future__ import annotations

import asyncio
import contextlib
import secrets
import socket
import ssl
from collections.abc import Hashable
from dataclasses import replace
from typing import Protocol, cast

import structlog

from holdfast.model.errors import ProtocolViolation
from holdfast.model.owner import Owner
from holdfast.model.timeouts import ProxyTimeouts
from holdfast.proxy.lane import HoldEnded, Lane
from holdfast.proxy.limits import WRITE_BUFFER_BYTES
from holdfast.proxy.relay import Relay
from holdfast.proxy.routed import heed, session_of
from holdfast.proxy.server import ServerRefused, ServerUnavailable
from holdfast.proxy.streams import Output, Stream
from holdfast.proxy.users import Users
from holdfast.wire import messages as m
from holdfast.wire.frames import FrameCutter
from holdfast.wire.scram import MECHANISM, AuthenticationFailed, ScramServer
from holdfast.wire.startup import (
    LOGIN_BYTES_MAX,
    NEWEST_MINOR,
    CancelRequest,
    GssRequest,
    Login,
    TlsRequest,
    UnsupportedVersion,
    cut_packet,
)

log = structlog.get_logger(__name__)

_APPLICATION_NAME = "application_name"
"""The one parameter of a start-up message that differs between clients that are otherwise alike."""


class Endpoint(Protocol):
    """What all clients of a proxy share."""

    users: Users
    tls: ssl.SSLContext | None
    trust: bool

    def admit(self, client: Client) -> bool:
        """Whether one more client may log in."""

    def register(self, relay: Relay) -> None:
        """A session begins: make its cancel key known."""

    def forget(self, client: Client) -> None:
        """A connection has ended."""

    def begin_cancel(self, process_id: int, secret: bytes) -> asyncio.Task[None]:
        """A client asks to cancel what the session with this key runs; the task ends once the server was told."""

    def remembered(self, key: Hashable) -> dict[str, str] | None:
        """The parameters that a server last reported to a client that logged in like this one."""

    def remember(self, key: Hashable, parameters: dict[str, str]) -> None:
        """Keep them."""

    def next_process_id(self) -> int:
        """A number that no other session of this proxy has."""


class _Refused(Exception):
    """The client must be told and closed."""

    def __init__(self, report: m.Report) -> None:
        super().__init__(report.text)
        self.report = report


class _Left(Exception):
    """The client said goodbye, or its connection broke."""


class Client(asyncio.Protocol):
    """A client's connection."""

    def __init__(self, endpoint: Endpoint, lane: Lane) -> None:
        self._endpoint = endpoint
        self._lane = lane
        self._transport: asyncio.Transport | None = None
        self._buffer = bytearray()
        self._cutter = FrameCutter(size_max=LOGIN_BYTES_MAX)
        self._wake: asyncio.Event = asyncio.Event()
        self._task: asyncio.Task[None] | None = None
        self._is_lost = False
        self._is_paused = False
        self._address = ""
        self.relay: Relay | None = None
        self.output: Output = self
        """Where a session sends to."""

    # asyncio.Protocol

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        """Begin the start-up, or go on with it when the connection has become encrypted."""
        self._transport = cast(asyncio.Transport, transport)
        self._transport.set_write_buffer_limits(WRITE_BUFFER_BYTES)
        sock: socket.socket = transport.get_extra_info("socket")
        sock.setsockopt(socket.SOL_SOCKET, socket.SO_KEEPALIVE, 1)
        self._address = self._address or _address_of(sock)
        if self._task is None:
            self._task = asyncio.get_running_loop().create_task(self._start_up())

    def data_received(self, data: bytes) -> None:
        """Hand bytes on."""
        if self.relay is not None:
            self.relay.from_client(data)
            return
        if len(self._buffer) > 2 * LOGIN_BYTES_MAX:
            self.abort()
            return
        self._buffer += data
        self._wake.set()

    def connection_lost(self, exc: Exception | None) -> None:
        """The client is gone."""
        self._is_lost = True
        self._wake.set()
        if self._task is not None and self.relay is None:
            self._pass_last_cancel_on()
            self._task.cancel()
        if self.relay is not None:
            self.relay.client_lost()
        self._endpoint.forget(self)

    def _pass_last_cancel_on(self) -> None:
        """A request to cancel that came together with the end of its connection."""
        with contextlib.suppress(ProtocolViolation):
            packet = cut_packet(self._buffer) if self._buffer else None
            if isinstance(packet, CancelRequest):
                self._endpoint.begin_cancel(packet.process_id, packet.secret)

    def pause_writing(self) -> None:
        """The client reads slowly."""
        if self.relay is not None:
            self.relay.client_busy(True)

    def resume_writing(self) -> None:
        """The client has caught up."""
        if self.relay is not None:
            self.relay.client_busy(False)

    # for the relay

    def owner(self, login: Login) -> Owner:
        """Who the client is, for those who must know whose a transaction was."""
        return Owner(login.user, login.database, login.parameters.get(_APPLICATION_NAME, ""), self._address)

    def heed(self, relay: Relay) -> None:
        """The session has settings for the proxy."""
        heed(relay)

    def write(self, data: bytes) -> None:
        """Send bytes."""
        if self._transport is not None and not self._transport.is_closing():
            self._transport.write(data)

    def pause_reading(self, pause: bool) -> None:
        """Stop or go on reading."""
        if self._transport is None or self._transport.is_closing() or pause == self._is_paused:
            return
        self._is_paused = pause
        if pause:
            self._transport.pause_reading()
        else:
            self._transport.resume_reading()

    def close(self, report: m.Report | None = None) -> None:
        """Close after a last word."""
        if report is not None:
            self.write(report.encode())
        if self._transport is not None:
            self._transport.close()

    def abort(self) -> None:
        """Close at once, with nothing more to say."""
        if self._transport is not None:
            self._transport.abort()

    # start-up

    async def _start_up(self) -> None:
        report: m.Report | None = None
        try:
            async with asyncio.timeout(ProxyTimeouts().client_login_ms / 1000) as patience:
                login = await self._receive_login()
                if login is not None:
                    await self._authenticate(login)
                    patience.reschedule(None)
                    await self._begin(login)
                    return
        except ProtocolViolation as violation:
            log.info("client.malformed", port=self._lane.purpose, reason=str(violation))
            report = m.fatal("08P01", str(violation))
        except (_Refused, HoldEnded, ServerRefused) as refused:
            report = replace(refused.report, severity="FATAL")
        except TimeoutError:
            report = m.fatal("08006", "the login took too long")
        except _Left:
            pass
        self.close(report)

    async def _receive_login(self) -> Login | None:
        """The start-up packets; None if the client wanted no session."""
        while True:
            packet = await self._packet()
            match packet:
                case Login():
                    return packet
                case TlsRequest():
                    await self._answer_tls()
                case GssRequest():
                    self.write(b"N")
                case CancelRequest(process_id, secret):
                    # Whoever waits for the end of this connection knows that it was passed on; not everybody waits.
                    await asyncio.shield(self._endpoint.begin_cancel(process_id, secret))
                    return None
                case UnsupportedVersion(major, minor):
                    text = f"unsupported frontend protocol {major}.{minor}: 3.0 to 3.{NEWEST_MINOR} are supported"
                    raise _Refused(m.fatal("0A000", text))

    async def _packet(self) -> Login | TlsRequest | GssRequest | CancelRequest | UnsupportedVersion:
        while (packet := cut_packet(self._buffer)) is None:
            await self._more()
        return packet

    async def _more(self) -> None:
        self._wake.clear()
        await self._wake.wait()
        if self._is_lost:
            raise _Left

    async def _answer_tls(self) -> None:
        """The event loop takes over a connection that is to be encrypted."""
        transport = self._transport
        if not isinstance(transport, Stream) or self._endpoint.tls is None:
            self.write(b"N")
            return
        if self._buffer:
            raise ProtocolViolation("unencrypted data after an encryption request")
        transport.write(b"S")
        sock = transport.detach()
        loop = asyncio.get_running_loop()
        try:
            await loop.connect_accepted_socket(lambda: self, sock, ssl=self._endpoint.tls)
        except (OSError, ssl.SSLError) as error:
            raise ProtocolViolation(f"the TLS handshake failed: {error}") from error
        finally:
            if self._transport is transport:  # nobody will say that the connection is lost
                sock.close()
                self._is_lost = True
                self._endpoint.forget(self)

    async def _message(self, kind: int) -> bytes:
        """The body of the next message, which must be of ``kind``."""
        while True:
            data = bytes(self._buffer)
            self._buffer.clear()
            buffer, frames = self._cutter.feed(data)
            if frames:
                got, start, end = frames[0]
                self._buffer += buffer[end:]
                if got == kind:
                    return buffer[start + 5 : end]
                if got == m.TERMINATE:
                    raise _Left
                raise ProtocolViolation(f"expected a password message, got type {got:#x}")
            await self._more()

    async def _authenticate(self, login: Login) -> None:
        if not self._endpoint.admit(self):
            raise _Refused(m.fatal("53300", "too many clients", hint="Try again later, or raise proxy.max_clients."))
        if login.parameters.get("replication", "false").lower() not in ("false", "off", "no", "0"):
            hint = "Connect to the server itself for replication."
            raise _Refused(m.fatal("0A000", "replication connections do not go through the proxy", hint=hint))
        if login.needs_negotiation:
            self.write(m.negotiate_version(min(login.minor, NEWEST_MINOR), login.unknown_options))
        refusal = _Refused(m.fatal("28P01", f'password authentication failed for user "{login.user}"'))
        users = self._endpoint.users
        if self._endpoint.trust:
            if login.user not in users:
                raise refusal
            return
        secret, known = users.secret_of(login.user)
        scram = ScramServer(secret, secrets.token_urlsafe(18), known=known)
        self.write(m.sasl_mechanisms([MECHANISM]))
        (mechanism,), offset = m.read_strings(body := await self._message(m.PASSWORD), 1)
        if mechanism != MECHANISM.encode():
            raise ProtocolViolation("the client chose a SASL mechanism that was not offered")
        self.write(m.authentication(m.AUTH_SASL_CONTINUE, scram.first(body[offset + 4 :])))
        try:
            final = scram.final(await self._message(m.PASSWORD))
        except AuthenticationFailed:
            log.info("client.refused", user=login.user, port=self._lane.purpose)
            raise refusal from None
        self.write(m.authentication(m.AUTH_SASL_FINAL, final))
        users.learn(login.user, scram.keys())

    async def _begin(self, login: Login) -> None:
        """Find a server, or remember what one last said; then let the client go on."""
        endpoint = self._endpoint
        secret = secrets.token_bytes(32 if login.minor >= 2 else 4)
        relay = session_of(self, self._lane, login, endpoint.next_process_id(), secret)
        alike = {name: value for name, value in login.parameters.items() if name != _APPLICATION_NAME}
        key = (self._lane.purpose, tuple(sorted(alike.items())))
        remembered = endpoint.remembered(key)
        server = None
        needs_server = remembered is None or (relay.pool is None and self._lane.can_serve())
        if needs_server:
            with contextlib.suppress(ServerUnavailable):
                server = await self._lane.acquire(relay, once=remembered is not None)
        if server is not None:
            parameters = dict(server.parameters)
            endpoint.remember(key, parameters)
        else:
            own_name = login.parameters.get(_APPLICATION_NAME, "")
            parameters = {**(remembered or {}), _APPLICATION_NAME: own_name}
        welcome = [m.authentication(m.AUTH_OK)]
        welcome += [m.parameter_status(name, value) for name, value in parameters.items()]
        welcome += [m.backend_key_data(relay.process_id, secret), m.ready_for_query(m.IDLE)]
        self.write(b"".join(welcome))
        endpoint.register(relay)
        self.relay = relay
        if isinstance(self._transport, Stream):
            self.output = relay.wire = self._transport.wire
            self._transport.wire.received = relay.from_client
        relay.begin(server, parameters)
        if self._buffer:
            data = bytes(self._buffer)
            self._buffer.clear()
            relay.from_client(data)


def _address_of(sock: socket.socket) -> str:
    """``host:port`` of the other side; empty if it has gone already."""
    try:
        peer = sock.getpeername()
    except OSError:
        return ""
    host, port = peer[:2]
    return f"[{host}]:{port}" if ":" in host else f"{host}:{port}"
