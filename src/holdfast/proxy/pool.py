"""Server connections that sessions share: each has one for a transaction, and gives it back."""

from __future__ import annotations

import asyncio
import contextlib
from collections import deque
from collections.abc import Callable
from typing import TYPE_CHECKING, Protocol

from holdfast.model.errors import ProtocolViolation
from holdfast.proxy import syscalls
from holdfast.proxy.footing import Footing
from holdfast.wire import messages as m
from holdfast.wire.frames import FrameCutter
from holdfast.wire.sharing import Outdated

if TYPE_CHECKING:
    from holdfast.proxy.pools import PoolKey, PoolLimits
    from holdfast.proxy.server import ServerConnection

LINE_S = 0.05
"""Between two looks at how long sessions have been in line, at least."""


class Rules(Protocol):
    """What a port says of a connection that waits in a pool."""

    def must_drop(self, server: ServerConnection) -> str | None:
        """Why it must be closed now."""

    def must_hold(self, server: ServerConnection) -> bool:
        """Whether nothing may begin on it."""

    def has_better(self, server: ServerConnection) -> bool:
        """Whether another server should be used instead."""

    def is_fit(self, server: ServerConnection) -> bool:
        """Whether none of the three is so."""

    @property
    def takes_turns(self) -> bool:
        """Whether the one that has been idle for longest is used next; else the other way, so that few stay in use."""


class Queued(Protocol):
    """A session in line that is told at once what it gets, without a task of its own."""

    def served(self, server: ServerConnection, waiter: Waiter) -> None:
        """It has this connection, which may have to be told its state before."""

    def land(self) -> None:
        """Go on waiting in a task (`Waiter.in_a_task`)."""

    def waited_in_vain(self) -> None:
        """It waited for as long as it may, and is not in line any more."""


class Waiter:
    """A place in line: of a session that is told, or of a task that waits."""

    __slots__ = ("_future", "_is_awaited", "_session", "since_s")

    def __init__(self, session: Queued | None, since_s: float) -> None:
        self.since_s = since_s
        self._session = session
        self._future: asyncio.Future[ServerConnection | None] | None = None
        self._is_awaited = False
        if session is None:
            self.in_a_task()

    @property
    def session(self) -> Queued | None:
        """Who is told."""
        return self._session

    @property
    def is_over(self) -> bool:
        """Whether nobody waits any more, or got what he waited for."""
        return self._session is None and (self._future is None or self._future.done())

    def in_a_task(self) -> None:
        """A task waits in this place from now on; the session is not told."""
        self._session = None
        self._future = asyncio.get_running_loop().create_future()

    def give(self, server: ServerConnection) -> bool:
        """The connection is his, in whosever hands it was; False: nobody waits any more."""
        session = self._session
        if session is not None:
            self._session = None
            session.served(server, self)
            return True
        server.detach()
        return self.give_to_task(server)

    def give_to_task(self, given: ServerConnection | None) -> bool:
        """As `give`; None is a place for a connection."""
        if self._session is not None:
            self._session.land()
        if self._future is None or self._future.done():
            return False
        self._future.set_result(given)
        return True

    async def wait(self, pool: Pool) -> ServerConnection | None:
        """What is given; that goes to the next one if the task is cancelled meanwhile."""
        self._is_awaited = True
        if self._future is None:
            raise RuntimeError("nobody said that a task waits")
        try:
            return await self._future
        except asyncio.CancelledError:
            self._leave(pool)
            raise

    def forsake(self, pool: Pool) -> None:
        """The task has ended, maybe before it could begin to wait."""
        if not self._is_awaited and self._future is not None:
            self._future.cancel()
            self._leave(pool)

    def _leave(self, pool: Pool) -> None:
        if self._future is None or self._future.cancelled() or not self._future.done():
            pool.left(self)
            return
        given = self._future.result()
        if given is None:
            pool.failed()
        else:
            pool.give(given)


class Pool:
    """The connections for one key. Who waits is served in the order of coming."""

    def __init__(
        self,
        key: PoolKey,
        limits: PoolLimits,
        rules: Rules,
        clock: Callable[[], float] | None = None,
        footing: Footing | None = None,
    ) -> None:
        """``clock``: seconds, if not of the monotonic clock. What ``footing`` bears the rules need not be asked
        about.
        """
        self.key = key
        self.limits = limits
        self.rules = rules
        self.clock = clock
        self.open = 0
        """Connections that are there or being made."""
        self.outdated = Outdated()
        self.idle: list[Rest] = []
        self._waiting: deque[Waiter] = deque()
        self._alarm: asyncio.TimerHandle | None = None
        self._footing = footing
        self._size, self._lifetime_s = limits.size, limits.lifetime_s
        self._next = 0 if rules.takes_turns else -1  # which of those that are idle is used next

    @property
    def waiting(self) -> int:
        """Sessions that wait for a connection."""
        return len(self._waiting)

    def _now_s(self) -> float:
        return syscalls.monotonic() if self.clock is None else self.clock()

    def peek(self) -> ServerConnection | None:
        """A connection that may be used now; it stays in the pool. Those that may not are closed on the way."""
        while self.idle:
            entry = self.idle[self._next]
            server = entry.server
            is_sound = server.stands() and (entry.cutter is None or entry.cutter.is_empty)
            if is_sound and self._is_fit(server):
                return server
            if is_sound and not self.rules.has_better(server):
                return None if self.rules.must_hold(server) else server
            self._pop()
            server.close()
        return None

    def take(self) -> ServerConnection | None:
        """The one that `peek` shows, for whoever attaches to it before anything is awaited."""
        server = self.peek()
        if server is not None:
            self._pop()
            server.detach()
        return server

    def take_shown(self) -> None:
        """The session that was shown a connection by `peek` uses it from now on."""
        del self.idle[self._next]

    def _is_fit(self, server: ServerConnection) -> bool:
        footing = self._footing
        if footing is not None and server.fit_version == footing.routing.version and footing.trust.is_fresh():
            return True
        return self.rules.is_fit(server)

    def _pop(self) -> None:
        del self.idle[self._next]

    def stand_in_line(self, session: Queued) -> Waiter | None:
        """A place in line for a session that will be told; None: it need not wait, or not for the others."""
        if self.idle or self.open < self._size:
            return None
        waiter = Waiter(session, self._now_s())
        self._waiting.append(waiter)
        if self._alarm is None:
            self._wake_up_in(self.limits.wait_s)
        return waiter

    def _wake_up_in(self, wait_s: float) -> None:
        self._alarm = asyncio.get_running_loop().call_later(wait_s, self._look_at_line)

    def _look_at_line(self) -> None:
        """Who was in line for too long is told; who waits in a task looks at the clock himself."""
        self._alarm = None
        now_s, wait_s = self._now_s(), self.limits.wait_s
        told = [waiter for waiter in self._waiting if waiter.session is not None]
        for waiter in told:
            session = waiter.session
            if session is None:
                continue
            if now_s - waiter.since_s < wait_s:
                self._wake_up_in(max(waiter.since_s + wait_s - now_s, LINE_S))
                return
            self._waiting.remove(waiter)
            session.waited_in_vain()

    def left(self, waiter: Waiter) -> None:
        """Nobody waits in this place any more."""
        with contextlib.suppress(ValueError):  # it was its turn
            self._waiting.remove(waiter)

    async def reserve(self, waiter: Waiter | None = None) -> ServerConnection | None:
        """A connection; or None: a place for one, to be made with `made` or given up with `failed`.

        ``waiter`` is in line already.
        """
        if waiter is not None:
            return await waiter.wait(self)
        server = self.take()
        if server is not None:
            return server
        if self.open < self.limits.size:
            self.open += 1
            return None
        waiter = Waiter(None, self._now_s())
        self._waiting.append(waiter)
        return await waiter.wait(self)

    def made(self, server: ServerConnection, *, in_place_of_another: bool = False) -> None:
        """The reserved place is taken by this connection, until it ends.

        Without a place if it is ``in_place_of_another``, which will end now.
        """
        self.open += in_place_of_another
        server.opened_s = self._now_s()
        if server.has_ended:  # before anybody could be told
            self.failed()
        else:
            server.on_end = self._ended

    def failed(self) -> None:
        """The reserved place is free again."""
        self.open -= 1
        self._offer_place()

    def give(self, server: ServerConnection) -> None:
        """A session does not need the connection any more."""
        if not server.stands():
            return
        now_s = syscalls.monotonic() if self.clock is None else self.clock()
        # One too many is made for a session that lost its connection while it waited for leave to go on with it.
        is_old = now_s - server.opened_s > self._lifetime_s or self.open > self._size
        is_fit = not is_old and self._is_fit(server)
        if not is_fit and (is_old or self.rules.must_drop(server) or self.rules.has_better(server)):
            server.close()  # who waits is given its place
            return
        if is_fit or not self.rules.must_hold(server):
            while self._waiting:
                waiter = self._waiting.popleft()
                if not waiter.is_over:
                    waiter.give(server)
                    return
        entry = server.rest
        if entry is None:
            entry = server.rest = Rest(server)
        entry.since_s, entry.cutter = now_s, None
        server.hand_to(entry)
        self.idle.append(entry)

    def release(self) -> None:
        """What may not be used before may be used now: hand it to those who wait."""
        while any(not waiter.is_over for waiter in self._waiting) and (server := self.take()) is not None:
            self.give(server)

    def close_idle(self, unfit: Callable[[ServerConnection], bool]) -> None:
        """Close those idle connections."""
        for entry in [entry for entry in self.idle if unfit(entry.server)]:
            self.idle.remove(entry)
            entry.server.close()

    def expire(self) -> None:
        """Close what was idle, or there, for too long."""
        now_s = self._now_s()
        limits = self.limits
        for entry in list(self.idle):
            if now_s - entry.since_s > limits.idle_s or now_s - entry.server.opened_s > limits.lifetime_s:
                self.idle.remove(entry)
                entry.server.close()

    def _ended(self, server: ServerConnection) -> None:
        for entry in self.idle:
            if entry.server is server:
                self.idle.remove(entry)
                break
        self.failed()

    def _offer_place(self) -> None:
        while self._waiting and self.open < self.limits.size:
            waiter = self._waiting.popleft()
            if not waiter.is_over:
                self.open += 1
                waiter.give_to_task(None)


class Rest:
    """In the place of a session, while there is none."""

    __slots__ = ("cutter", "server", "since_s")

    def __init__(self, server: ServerConnection) -> None:
        self.server = server
        self.since_s = 0.0
        self.cutter: FrameCutter | None = None
        """Of what the server says meanwhile, which is hardly ever anything. It may be inside of a message, whose end a
        session would not understand."""

    def from_server(self, data: bytes) -> None:
        """Nothing was asked: only what comes at any time may come, or a last word."""
        try:
            if self.cutter is None:
                self.cutter = FrameCutter()
            buffer, frames = self.cutter.feed(data)
            for kind, start, end in frames:
                body = buffer[start + 5 : end]
                if kind == m.PARAMETER_STATUS:
                    name, value = m.read_parameter_status(body)
                    self.server.parameters[name] = value
                elif kind == m.ERROR:
                    self.server.abort(m.read_report(body).text)
                elif kind not in (m.NOTICE, m.NOTIFICATION):
                    self.server.abort("the server said something that nobody had asked for")
        except ProtocolViolation as violation:
            self.server.abort(str(violation))

    def server_lost(self, server: ServerConnection, reason: str) -> None:
        """The pool is told by ``on_end``."""

    def server_busy(self, busy: bool) -> None:
        """Nothing is sent."""
