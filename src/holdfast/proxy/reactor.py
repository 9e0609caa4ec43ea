"""The turn of a proxy's sockets, and one socket's reading and writing: what every statement passes through.

All sockets of a proxy wait in one epoll instance. In an event loop that is a `Host` it is what the loop itself waits
for, and sockets are served while the loop waits: it has a turn only when it has something of its own to do. In any
other event loop the instance is one descriptor, and a single turn serves all sockets that are ready.
"""

from __future__ import annotations

import asyncio
import select
import socket
from collections.abc import Callable
from typing import Any, Final, Protocol, runtime_checkable

from holdfast.proxy import syscalls

ROUNDS: Final = 8
"""So often the sockets are asked again before a foreign loop has its turn: that spares most of them under load."""

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


@runtime_checkable
class Host(Protocol):
    """An event loop that serves sockets while it waits."""

    def serve(self, reactor: Reactor) -> bool:
        """Serve its sockets from now on; False: there is another one already."""

    def leave(self, reactor: Reactor) -> bool:
        """Serve it no more; False: it was not served."""


class Reactor:
    """Calls whoever waits for a socket, once it is open. Belongs to one event loop, and is used in its thread only."""

    def __init__(self) -> None:
        self._loop: asyncio.AbstractEventLoop | None = None
        self._epoll = select.epoll()
        self._epoll_descriptor = self._epoll.fileno()
        self._handlers: dict[int, Handler] = {}
        self._wires: dict[int, Wire] = {}
        self.must_return = False
        """The event loop has something to do: `serve` ends with the next that is ready."""

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
        if not (isinstance(self._loop, Host) and self._loop.serve(self)):
            self._loop.add_reader(self._epoll.fileno(), self._turn)

    def close(self) -> None:
        """Call nobody any more. Idempotent."""
        if not self._epoll.closed:
            if self._loop is not None and not (isinstance(self._loop, Host) and self._loop.leave(self)):
                self._loop.remove_reader(self._epoll.fileno())
            self._epoll.close()
            self._epoll_descriptor = -1
            self._handlers.clear()
            self._wires.clear()

    def wait(self, descriptor: int, mask: int, handler: Handler) -> None:
        """Call ``handler`` whenever the descriptor is ready for ``mask``; 0 ends that."""
        is_known = self._handlers.pop(descriptor, None) is not None
        if self._ask(descriptor, mask, is_known=is_known):
            self._handlers[descriptor] = handler

    def watch(self, descriptor: int, mask: int, wire: Wire) -> None:
        """The same for a wire, which is told by its ``ready``."""
        is_known = self._wires.pop(descriptor, None) is not None
        if self._ask(descriptor, mask, is_known=is_known):
            self._wires[descriptor] = wire

    def _ask(self, descriptor: int, mask: int, *, is_known: bool) -> bool:
        """Make it known to the kernel; whether the descriptor is waited for now."""
        if self._epoll.closed:
            return False
        if not mask:
            if is_known:
                self._epoll.unregister(descriptor)
        elif is_known:
            self._epoll.modify(descriptor, mask)
        else:
            self._epoll.register(descriptor, mask)
        return mask != 0

    def serve_ready(self, wait_s: float) -> int:
        """Call the handlers of all that is ready, or is within that time (-1: whenever it is); returns how many."""
        wires = self._wires
        ready = syscalls.ready(self._epoll, self._epoll_descriptor, wait_s)
        for descriptor, mask in ready:
            wire = wires.get(descriptor)
            if wire is not None:
                wire.ready(mask)
                continue
            handler = self._handlers.get(descriptor)  # an earlier one may have closed it
            if handler is not None:
                handler(mask)
        return len(ready)

    def serve(self, wait_s: float) -> None:
        """Serve all that is ready, for that time (-1: for ever) or until it ``must_return``."""
        self.must_return = False
        until_s = syscalls.monotonic() + wait_s if wait_s > 0 else 0.0
        while True:
            self.serve_ready(wait_s)
            if self.must_return or not wait_s:
                return
            if until_s:
                wait_s = until_s - syscalls.monotonic()
                if wait_s <= 0:
                    return

    def _turn(self) -> None:
        for _ in range(ROUNDS):
            if not self.serve_ready(0) or self._epoll.closed:
                return


class Wire:
    """A connected socket that does not block: what comes is handed to ``received``, what is written is sent."""

    def __init__(self, reactor: Reactor, sock: socket.socket, protocol: Peer, high_water_bytes: int) -> None:
        self.received: Callable[[bytes], None] = protocol.data_received
        """Who is told what came."""
        self.socket = sock
        self.high_bytes = high_water_bytes
        """Beyond so many unsent bytes the protocol is asked to pause, below a quarter of it to go on."""
        self.is_closing = False
        """Nothing more can be written."""
        self.is_paused = False
        self._reactor = reactor
        self._descriptor = sock.fileno()
        self._protocol = protocol
        self._unsent = bytearray()
        self._mask = 0
        self._is_full = False

    @property
    def unsent_bytes(self) -> int:
        """What the socket has not taken yet."""
        return len(self._unsent)

    def write(self, data: bytes | bytearray | memoryview[Any]) -> None:
        """Send now what the socket takes, the rest as it takes it."""
        if self.is_closing:
            return
        if not self._unsent:
            try:
                sent = syscalls.send(self._descriptor, data)
            except OSError as error:
                self.lose(error)
                return
            if sent == len(data):
                return
            data = memoryview(data)[sent:]
        self._unsent += data
        self.look()
        if not self._is_full and len(self._unsent) > self.high_bytes:
            self._is_full = True
            self._protocol.pause_writing()

    def look(self) -> None:
        """Wait for what is wanted now."""
        mask = 0
        if self._descriptor >= 0:
            if not (self.is_paused or self.is_closing):
                mask = IN
            if self._unsent:
                mask |= OUT
        self._want(mask)

    def _want(self, mask: int) -> None:
        if mask != self._mask:
            self._mask = mask
            self._reactor.watch(self._descriptor, mask, self)

    def ready(self, mask: int) -> None:
        """The socket is ready for this."""
        if mask & OUT or (mask & BROKEN and not self._mask & IN):
            self._send_more()
        if not (mask & ~OUT and self._mask & IN):
            return
        try:
            data = syscalls.receive(self._descriptor)
        except OSError as error:
            self.lose(error)
            return
        if data is None:
            return
        if not data:
            self.close()
            return
        is_understood = False
        try:
            self.received(data)
            is_understood = True
        finally:
            if not is_understood:  # a fault costs this connection and no other; the event loop tells of it
                self.lose(None)

    def _send_more(self) -> None:
        try:
            sent = syscalls.send(self._descriptor, self._unsent)
        except OSError as error:
            self.lose(error)
            return
        del self._unsent[:sent]
        if not self._unsent:
            if self.is_closing:
                self._end(None)
                return
            self.look()
        if self._is_full and len(self._unsent) <= self.high_bytes // 4:
            self._is_full = False
            self._protocol.resume_writing()

    # the end

    def close(self) -> None:
        """Read no more; close once everything is sent."""
        if self.is_closing:
            return
        self.is_closing = True
        if self._unsent:
            self.look()
        else:
            self._end(None)

    def lose(self, error: OSError | None) -> None:
        """Close at once."""
        if self._descriptor < 0:
            return
        self.is_closing = True
        self._unsent.clear()
        self._end(error)

    def give_away(self) -> None:
        """The socket is another's from now on; the protocol is not told."""
        self.is_closing = True
        self._want(0)
        self._descriptor = -1

    def _end(self, error: OSError | None) -> None:
        """The socket is closed now; the protocol is told in a turn of its own, as by any transport."""
        self._want(0)
        self._descriptor = -1
        self.socket.close()
        self._reactor.loop.call_soon(self._protocol.connection_lost, error)
