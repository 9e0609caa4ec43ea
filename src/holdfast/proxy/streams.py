"""Sockets without the event loop's price for each message: connections as transports, listening and connecting.

An event loop runs a callback of its own for each socket that can be read. On the path of every statement that costs
more than the statement does. Here sockets are served by a `Reactor`, and are read and written by plain system calls.
All else (timers, tasks, the store, TLS) stays with the event loop, and any event loop will do.
"""

from __future__ import annotations

import asyncio
import contextlib
import errno
import ipaddress
import socket
from collections.abc import Callable
from typing import Any, Final, Protocol

import structlog

from holdfast.proxy.reactor import IN, Peer, Reactor, Wire

log = structlog.get_logger(__name__)

ACCEPTS_AT_ONCE: Final = 64
"""New connections that are taken at a time: logins cost more than statements."""
ACCEPT_PAUSE_S: Final = 1.0
"""Without a free file descriptor (or memory) no connection is accepted for so long."""
_OUT_OF_RESOURCES: Final = (errno.EMFILE, errno.ENFILE, errno.ENOBUFS, errno.ENOMEM)


class Output(Protocol):
    """What bytes are sent to."""

    def write(self, data: bytes) -> None:
        """Send them, unless it is closing."""


class Stream(asyncio.Transport):
    """A connected socket, as a transport (asyncio manual, "Transports and Protocols") of its protocol."""

    def __init__(self, reactor: Reactor, sock: socket.socket, protocol: Peer, high_water_bytes: int) -> None:
        super().__init__({"socket": sock})
        self.wire = Wire(reactor, sock, protocol, high_water_bytes)
        """Does the work, and can be used at first hand."""
        if sock.family in (socket.AF_INET, socket.AF_INET6):
            sock.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
        protocol.connection_made(self)
        self.wire.look()

    def write(self, data: bytes | bytearray | memoryview[Any]) -> None:
        """Send now what the socket takes, the rest as it takes it."""
        self.wire.write(data)

    def is_closing(self) -> bool:
        """Whether nothing more can be written."""
        return self.wire.is_closing

    def close(self) -> None:
        """Read no more; close once everything is sent."""
        self.wire.close()

    def abort(self) -> None:
        """Close at once."""
        self.wire.lose(None)

    def pause_reading(self) -> None:
        """Leave what comes in the socket."""
        self.wire.is_paused = True
        self.wire.look()

    def resume_reading(self) -> None:
        """Read again."""
        self.wire.is_paused = False
        self.wire.look()

    def is_reading(self) -> bool:
        """Whether what comes is read."""
        return not (self.wire.is_paused or self.wire.is_closing)

    def get_write_buffer_size(self) -> int:
        """Bytes that the socket has not taken yet."""
        return self.wire.unsent_bytes

    def set_write_buffer_limits(self, high: int | None = None, low: int | None = None) -> None:
        """Beyond ``high`` the protocol is asked to pause, below a quarter of it to go on."""
        if high is not None:
            self.wire.high_bytes = high

    def detach(self) -> socket.socket:
        """Give the socket away, unread; the protocol is not told."""
        self.wire.give_away()
        return self.wire.socket


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
