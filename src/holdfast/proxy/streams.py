"""Sockets without the event loop's price for each message.

An event loop runs a callback of its own for each socket that can be read. On the path of every statement that costs
more than the statement does. Here all sockets of a proxy wait in one epoll instance, which is one descriptor to the
event loop: a single turn of it serves all sockets that are ready, and each is read and written by plain system calls.
All else (timers, tasks, the store, TLS) stays with the event loop, and any event loop will do.
"""

from __future__ import annotations

import asyncio
import contextlib
import errno
import ipaddress
import select
import socket
from collections.abc import Callable
from typing import Any, Final, Protocol

import structlog

log = structlog.get_logger(__name__)

READ_BYTES: Final = 64 * 1024
"""At most so much is read at once; the next socket has its turn then."""
ROUNDS: Final = 8
"""So often the sockets are asked again before the event loop has its turn: under load that spares most of its turns."""
ACCEPTS_AT_ONCE: Final = 64
"""New connections that are taken at a time: logins cost more than statements."""
ACCEPT_PAUSE_S: Final = 1.0
"""Without a free file descriptor (or memory) no connection is accepted for so long."""
_OUT_OF_RESOURCES: Final = (errno.EMFILE, errno.ENFILE, errno.ENOBUFS, errno.ENOMEM)

IN: Final = select.EPOLLIN
OUT: Final = select.EPOLLOUT
BROKEN: Final = select.EPOLLERR | select.EPOLLHUP

Handler = Callable[[int], None]
"""Told what its socket is ready for."""


class Peer(Protocol):
    """What a stream needs of its `asyncio.Protocol`."""

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        """It is connected."""

    def data_received(self, data: bytes) -> None:
        """Bytes came."""

    def connection_lost(self, exc: Exception | None) -> None:
        """It is over."""

    def pause_writing(self) -> None:
        """The other side reads slowly."""

    def resume_writing(self) -> None:
        """It has caught up."""


class Reactor:
    """Calls whoever waits for a socket, once it is open. Belongs to one event loop, and is used in its thread only."""

    def __init__(self) -> None:
        self._loop: asyncio.AbstractEventLoop | None = None
        self._epoll = select.epoll()
        self._handlers: dict[int, Handler] = {}

    @property
    def loop(self) -> asyncio.AbstractEventLoop:
        """The event loop that it belongs to; raises RuntimeError before `open`."""
        if self._loop is None:
            raise RuntimeError("open the reactor first")
        return self._loop

    def fileno(self) -> int:
        """The descriptor that the event loop waits for."""
        return self._epoll.fileno()

    def open(self) -> None:
        """Join the running event loop."""
        self._loop = asyncio.get_running_loop()
        self._loop.add_reader(self._epoll.fileno(), self._turn)

    def close(self) -> None:
        """Call nobody any more. Idempotent."""
        if not self._epoll.closed:
            if self._loop is not None:
                self._loop.remove_reader(self._epoll.fileno())
            self._epoll.close()
            self._handlers.clear()

    def wait(self, descriptor: int, mask: int, handler: Handler) -> None:
        """Call ``handler`` whenever the descriptor is ready for ``mask``; 0 ends that."""
        known = descriptor in self._handlers
        if not mask:
            if known:
                del self._handlers[descriptor]
                if not self._epoll.closed:
                    self._epoll.unregister(descriptor)
            return
        if self._epoll.closed:
            return
        if known:
            self._epoll.modify(descriptor, mask)
        else:
            self._epoll.register(descriptor, mask)
        self._handlers[descriptor] = handler

    def _turn(self) -> None:
        handlers = self._handlers
        for _ in range(ROUNDS):
            ready = self._epoll.poll(0)
            for descriptor, mask in ready:
                handler = handlers.get(descriptor)  # an earlier one may have closed it
                if handler is not None:
                    handler(mask)
            if not ready or self._epoll.closed:
                return


class Stream(asyncio.Transport):
    """A connected socket, as a transport (asyncio manual, "Transports and Protocols") of its protocol."""

    def __init__(self, reactor: Reactor, sock: socket.socket, protocol: Peer, high_water_bytes: int) -> None:
        super().__init__({"socket": sock})
        self._reactor = reactor
        self._socket = sock
        self._descriptor = sock.fileno()
        self._protocol = protocol
        self._high_bytes = high_water_bytes
        self._unsent = bytearray()
        self._mask = 0
        self._is_paused = False
        self._is_full = False
        self._is_closing = False
        if sock.family in (socket.AF_INET, socket.AF_INET6):
            sock.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
        protocol.connection_made(self)
        self._want()

    # asyncio.Transport

    def write(self, data: bytes | bytearray | memoryview[Any]) -> None:
        """Send now what the socket takes, the rest as it takes it."""
        if self._is_closing:
            return
        if not self._unsent:
            try:
                sent = self._socket.send(data)
            except (BlockingIOError, InterruptedError):
                sent = 0
            except OSError as error:
                self._lost(error)
                return
            if sent == len(data):
                return
            data = memoryview(data)[sent:]
        self._unsent += data
        self._want()
        if not self._is_full and len(self._unsent) > self._high_bytes:
            self._is_full = True
            self._protocol.pause_writing()

    def is_closing(self) -> bool:
        """Whether nothing more can be written."""
        return self._is_closing

    def close(self) -> None:
        """Read no more; close once everything is sent."""
        if self._is_closing:
            return
        self._is_closing = True
        if self._unsent:
            self._want()
        else:
            self._end(None)

    def abort(self) -> None:
        """Close at once."""
        self._lost(None)

    def pause_reading(self) -> None:
        """Leave what comes in the socket."""
        self._is_paused = True
        self._want()

    def resume_reading(self) -> None:
        """Read again."""
        self._is_paused = False
        self._want()

    def is_reading(self) -> bool:
        """Whether what comes is read."""
        return not (self._is_paused or self._is_closing)

    def get_write_buffer_size(self) -> int:
        """Bytes that the socket has not taken yet."""
        return len(self._unsent)

    def set_write_buffer_limits(self, high: int | None = None, low: int | None = None) -> None:
        """Beyond ``high`` the protocol is asked to pause, below a quarter of it to go on."""
        if high is not None:
            self._high_bytes = high

    def detach(self) -> socket.socket:
        """Give the socket away, unread; the protocol is not told."""
        self._is_closing = True
        self._want(nothing=True)
        self._descriptor = -1
        return self._socket

    # readiness

    def _want(self, *, nothing: bool = False) -> None:
        mask = 0
        if not nothing and self._descriptor >= 0:
            mask = (IN if self.is_reading() else 0) | (OUT if self._unsent else 0)
        if mask != self._mask:
            self._mask = mask
            self._reactor.wait(self._descriptor, mask, self._ready)

    def _ready(self, mask: int) -> None:
        if mask & OUT or (mask & BROKEN and not self._mask & IN):
            self._send_more()
        if mask & ~OUT and self._mask & IN:
            self._receive()

    def _receive(self) -> None:
        try:
            data = self._socket.recv(READ_BYTES)
        except (BlockingIOError, InterruptedError):
            return
        except OSError as error:
            self._lost(error)
            return
        if not data:
            self.close()
            return
        is_understood = False
        try:
            self._protocol.data_received(data)
            is_understood = True
        finally:
            if not is_understood:  # a fault costs this connection and no other; the event loop tells of it
                self._lost(None)

    def _send_more(self) -> None:
        try:
            sent = self._socket.send(self._unsent)
        except (BlockingIOError, InterruptedError):
            return
        except OSError as error:
            self._lost(error)
            return
        del self._unsent[:sent]
        if not self._unsent:
            if self._is_closing:
                self._end(None)
                return
            self._want()
        if self._is_full and len(self._unsent) <= self._high_bytes // 4:
            self._is_full = False
            self._protocol.resume_writing()

    # the end

    def _lost(self, error: OSError | None) -> None:
        if self._descriptor < 0:
            return
        self._is_closing = True
        self._unsent.clear()
        self._end(error)

    def _end(self, error: OSError | None) -> None:
        """The socket is closed now; the protocol is told in a turn of its own, as by any transport."""
        self._want(nothing=True)
        self._descriptor = -1
        self._socket.close()
        self._reactor.loop.call_soon(self._protocol.connection_lost, error)


class Listener:
    """Accepts connections on one or more listening sockets."""

    def __init__(
        self, reactor: Reactor, sockets: list[socket.socket], accepted: Callable[[socket.socket], None]
    ) -> None:
        self._reactor = reactor
        self._sockets = {sock.fileno(): sock for sock in sockets}
        self._accepted = accepted
        for descriptor, sock in self._sockets.items():
            self._listen(descriptor, sock)

    def close(self) -> None:
        """Accept nobody any more. Idempotent."""
        for descriptor, sock in self._sockets.items():
            self._reactor.wait(descriptor, 0, _nobody)
            sock.close()
        self._sockets.clear()

    def _listen(self, descriptor: int, sock: socket.socket) -> None:
        if descriptor in self._sockets:
            self._reactor.wait(descriptor, IN, lambda mask: self._accept(descriptor, sock))

    def _accept(self, descriptor: int, sock: socket.socket) -> None:
        for _ in range(ACCEPTS_AT_ONCE):
            try:
                accepted, _ = sock.accept()
            except (BlockingIOError, InterruptedError, ConnectionAbortedError):
                return
            except OSError as error:
                if error.errno not in _OUT_OF_RESOURCES:
                    raise
                log.error("proxy.cannot_accept", error=str(error), fix="raise the limit of open files (ulimit -n)")
                self._reactor.wait(descriptor, 0, _nobody)
                self._reactor.loop.call_later(ACCEPT_PAUSE_S, self._listen, descriptor, sock)
                return
            accepted.setblocking(False)
            self._accepted(accepted)


def _nobody(mask: int) -> None:
    """Whoever waits for nothing is never called."""


async def _addresses(host: str, port: int) -> list[tuple[int, Any]]:
    """Families and addresses of a host; one that is written as numbers is not looked up, which would take a thread."""
    with contextlib.suppress(ValueError):
        return [(socket.AF_INET if ipaddress.ip_address(host).version == 4 else socket.AF_INET6, (host, port))]
    found = await asyncio.get_running_loop().getaddrinfo(host, port, type=socket.SOCK_STREAM, flags=socket.AI_PASSIVE)
    return list(dict.fromkeys((family, address) for family, _, _, _, address in found))


async def listen(host: str, port: int, backlog: int) -> list[socket.socket]:
    """Listening sockets on all addresses of a host; raises OSError."""
    sockets: list[socket.socket] = []
    try:
        for family, address in await _addresses(host, port):
            sock = socket.socket(family, socket.SOCK_STREAM)
            sockets.append(sock)
            sock.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
            if family == socket.AF_INET6:
                sock.setsockopt(socket.IPPROTO_IPV6, socket.IPV6_V6ONLY, 1)
            sock.setblocking(False)
            sock.bind(address)
            sock.listen(backlog)
    except BaseException:
        for sock in sockets:
            sock.close()
        raise
    return sockets


async def connect(host: str, port: int) -> socket.socket:
    """A connected socket to the first address of a host that answers; raises OSError."""
    loop = asyncio.get_running_loop()
    failure: OSError | None = None
    for family, address in await _addresses(host, port):
        sock = socket.socket(family, socket.SOCK_STREAM)
        try:
            sock.setblocking(False)
            await loop.sock_connect(sock, address)
        except OSError as error:
            sock.close()
            failure = error
        except BaseException:
            sock.close()
            raise
        else:
            return sock
    raise failure or OSError(f"{host} has no address")
