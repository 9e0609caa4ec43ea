"""Connections to one standby on which sessions read, each for a statement: in pools, opened when they are missed."""

from __future__ import annotations

import asyncio
import time
from collections.abc import Awaitable, Callable, Iterator
from dataclasses import dataclass
from typing import Final, Protocol
from weakref import WeakKeyDictionary

import structlog

from holdfast.model.timeouts import ProxyTimeouts
from holdfast.proxy.pool import Pool
from holdfast.proxy.pools import PoolKey, PoolLimits
from holdfast.proxy.server import ServerConnection, ServerRefused, ServerUnavailable

log = structlog.get_logger(__name__)


PAUSE_S: Final = 0.25
"""After a login that failed no other one is tried for so long, then for twice as long, and so on,"""
PAUSE_MAX_S: Final = 10.0
"""up to that."""
SPARE_S: Final = 1.0
"""What was unused for so long is given up for somebody who has none."""


@dataclass(frozen=True, slots=True)
class _Pause:
    until_s: float
    length_s: float


class Run(Protocol):
    """The run of the standby of which something is known, by a connection that asks for its position."""

    born: int
    """The moment in which that connection was there; 0: nothing is known."""
    proved: int
    """The moment in which the question was asked that it answered last."""

    def want(self) -> None:
        """It is to be asked now."""


class Readers:
    """The connections to one standby, and what its pools ask (`pool.Rules`)."""

    takes_turns = False

    def __init__(
        self,
        run: Run,
        limits: PoolLimits,
        moments: Iterator[int],
        connect: Callable[[dict[str, str]], Awaitable[ServerConnection]],
        gone: Callable[[], str | None],
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        """``gone`` says why nobody reads there any more; ``connect`` raises ServerUnavailable or ServerRefused.

        ``clock``: seconds.
        """
        self._run = run
        self._limits = limits
        self._moments = moments
        self._connect = connect
        self._gone = gone
        self._clock = clock
        self._pools: dict[PoolKey, Pool] = {}
        self._pauses: dict[PoolKey, _Pause] = {}
        self._opened: WeakKeyDictionary[ServerConnection, tuple[int, int]] = WeakKeyDictionary()
        self._opening: set[asyncio.Task[None]] = set()

    def must_drop(self, server: ServerConnection) -> str | None:
        """Why it must be closed now."""
        return self._gone()

    def must_hold(self, server: ServerConnection) -> bool:
        """Nobody waits for these."""
        return False

    def has_better(self, server: ServerConnection) -> bool:
        """Whether it belongs to a run of the server of which nothing is known."""
        return self._opened.get(server, (0, 0))[0] < self._run.born

    def is_fit(self, server: ServerConnection) -> bool:
        """Whether nothing speaks against it."""
        return self.must_drop(server) is None and not self.has_better(server)

    def borrow(self, key: PoolKey, application_name: str) -> ServerConnection | None:
        """A connection that surely belongs to the run that is known; None: there is none, for now."""
        pool = self._pool(key)
        server = pool.peek()
        if server is None:
            self._miss(pool, application_name)
            return None
        if not self._run.born or self._opened[server][1] >= self._run.proved:
            self._run.want()
            return None
        pool.take_shown()
        return server

    def give_back(self, key: PoolKey, server: ServerConnection, *, is_fit: bool) -> None:
        """The statement is over."""
        if not is_fit:
            server.detach()
            server.close()
        else:
            self._pool(key).give(server)

    def _pool(self, key: PoolKey) -> Pool:
        pool = self._pools.get(key)
        if pool is None:
            pool = self._pools[key] = Pool(key, self._limits, self, self._clock)
        return pool

    def _miss(self, pool: Pool, application_name: str) -> None:
        """Open one more, if there may be more."""
        pause = self._pauses.get(pool.key)
        if len(self._opening) >= ProxyTimeouts().readers_at_once or (pause and self._clock() < pause.until_s):
            return
        if not self._has_room(pool):
            return
        pool.open += 1
        task = asyncio.create_task(self._open(pool, application_name))
        self._opening.add(task)
        task.add_done_callback(self._opening.discard)

    def _has_room(self, pool: Pool) -> bool:
        """Whether a user has not all connections to a database that he may have, whatever he logs in with.

        If he has, what was unused for `SPARE_S` makes room for a pool that has none.
        """
        login = pool.key.user, pool.key.database
        pools = [p for p in self._pools.values() if (p.key.user, p.key.database) == login]
        if sum(p.open for p in pools) < pool.limits.size:
            return True
        if not pool.open:
            unused = min((p.idle[0] for p in pools if p.idle), key=lambda entry: entry.since_s, default=None)
            if unused is not None and self._clock() - unused.since_s >= SPARE_S:
                for other in pools:
                    other.close_idle(lambda server: server is unused.server)
        return False

    async def _open(self, pool: Pool, application_name: str) -> None:
        begun = next(self._moments)
        try:
            server = await self._connect({**dict(pool.key.parameters), "application_name": application_name})
        except (ServerUnavailable, ServerRefused) as error:
            pool.failed()
            self._pause(pool.key)
            log.debug("reader.refused", reason=str(error))
            return
        except BaseException:
            pool.failed()
            raise
        self._pauses.pop(pool.key, None)
        self._opened[server] = begun, next(self._moments)
        pool.made(server)
        pool.give(server)
        self._run.want()

    def _pause(self, key: PoolKey) -> None:
        last, now_s = self._pauses.get(key), self._clock()
        if last is None or now_s >= last.until_s:  # else it failed together with another one
            length_s = PAUSE_S if last is None else min(2 * last.length_s, PAUSE_MAX_S)
            self._pauses[key] = _Pause(now_s + length_s, length_s)

    def expire(self) -> None:
        """Close what was unused for too long."""
        for pool in self._pools.values():
            pool.expire()
        self._pools = {key: pool for key, pool in self._pools.items() if pool.open}
        now_s = self._clock()
        self._pauses = {key: pause for key, pause in self._pauses.items() if now_s < pause.until_s + PAUSE_MAX_S}

    def close(self) -> None:
        """Close what is unused, and open no more."""
        for task in self._opening:
            task.cancel()
        for pool in self._pools.values():
            pool.close_idle(lambda server: True)
