"""All pools of one port, and by what they are found."""

from __future__ import annotations

import asyncio
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from weakref import WeakValueDictionary

from holdfast.proxy.footing import Footing
from holdfast.proxy.pool import Pool, Rules

LOOK_S = 1.0
"""Between two looks at how long connections have been there."""


@dataclass(frozen=True, slots=True)
class PoolKey:
    """Sessions that log in to servers in the same way, but for their application's name."""

    user: str
    database: str
    parameters: frozenset[tuple[str, str]]


@dataclass(frozen=True, slots=True)
class PoolLimits:
    """How many connections a pool has, and how long one lives."""

    size: int
    idle_s: float
    lifetime_s: float
    wait_s: float
    """How long a session that is told may be in line."""


class Pools:
    """All pools of one port."""

    def __init__(self, limits: PoolLimits, rules: Rules, footing: Footing) -> None:
        self._limits = limits
        self._rules = rules
        self._footing = footing
        # Sessions and connections keep their pool; one that has neither goes by itself.
        self._pools: WeakValueDictionary[PoolKey, Pool] = WeakValueDictionary()

    def __iter__(self) -> Iterator[Pool]:
        return iter(list(self._pools.values()))

    def get(self, key: PoolKey) -> Pool:
        """The pool for a key."""
        pool = self._pools.get(key)
        if pool is None:
            pool = self._pools[key] = Pool(key, self._limits, self._rules, footing=self._footing)
        return pool

    def reroute(self) -> None:
        """The routing has changed: close what must not be used, hand out what may be used again."""
        for pool in self:
            pool.close_idle(lambda server: self._rules.must_drop(server) is not None)
            pool.release()

    def let_go(self) -> None:
        """A switchover is announced: what nobody uses would only make the primary's stop longer."""
        for pool in self:
            pool.close_idle(lambda server: server.target.is_primary)

    def close(self) -> None:
        """Close all that is idle."""
        for pool in self:
            pool.close_idle(lambda server: True)

    async def run(self) -> None:
        """Look at the clock, for ever."""
        while True:
            await asyncio.sleep(LOOK_S)
            for pool in self:
                pool.expire()

    def status(self) -> list[dict[str, object]]:
        """One entry for each pool."""
        return [
            {
                "user": pool.key.user,
                "database": pool.key.database,
                "open": pool.open,
                "idle": len(pool.idle),
                "waiting": pool.waiting,
                "size": pool.limits.size,
            }
            for pool in self
        ]


def key_of(user: str, database: str, parameters: Iterable[tuple[str, str]]) -> PoolKey:
    """The key of a login."""
    return PoolKey(user, database, frozenset((n, v) for n, v in parameters if n != "application_name"))
