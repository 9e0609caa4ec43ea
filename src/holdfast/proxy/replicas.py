"""The standbys as a proxy sees them: how far each has replayed, whether it is read from, and who reads there.

One connection to each server asks for its position: now and then, and at once when somebody needs to know. What a
standby said holds for as long as it runs: one that was restarted may show less than before. So what was heard on one
connection is used for another only if both surely belong to one run of the server: the other one was opened after the
first, and the first has answered something that was asked after that.
"""

from __future__ import annotations

import asyncio
import itertools
import time
from collections.abc import Callable, Iterable, Iterator
from contextlib import suppress
from dataclasses import dataclass, field
from typing import Any, Final
from weakref import WeakSet

import structlog

from holdfast.core.freshness import Bounds, Choice, Mark, Pages, Primary, Reached, Standing, in_order, judge
from holdfast.model.lsn import Lsn
from holdfast.model.policy import Policy
from holdfast.model.timeouts import ProxyTimeouts
from holdfast.proxy.pools import PoolKey, PoolLimits
from holdfast.proxy.reactor import Reactor
from holdfast.proxy.readers import Readers
from holdfast.proxy.routing import Routing, Target
from holdfast.proxy.server import ServerConnection, ServerRefused, ServerUnavailable, checked, log_in
from holdfast.proxy.users import Users
from holdfast.proxy.verdicts import Verdicts
from holdfast.wire.readback import Readback

log = structlog.get_logger(__name__)

_WRITTEN_SQL: Final = (
    "select pg_catalog.pg_current_wal_insert_lsn(), pg_catalog.pg_current_wal_flush_lsn(), "
    "pg_catalog.current_setting('wal_block_size'), "
    "pg_catalog.pg_size_bytes(pg_catalog.current_setting('wal_segment_size'))"
)
"""What is not flushed yet is in the first, too: a session may not wait for that (synchronous_commit)."""
_REPLAYED_SQL: Final = "select pg_catalog.pg_last_wal_replay_lsn()"
_APPLICATION_NAME: Final = "holdfast reads"
_GONE: Final = "it is not read from any more"


@dataclass(slots=True)
class ReadCounters:
    """What became of reads that a standby could have answered, since the start."""

    on_standbys: int = 0
    on_primary_written: int = 0
    """No standby was known to show what the session had written, or what it waits for."""
    on_primary_none: int = 0
    """No standby is near enough."""
    on_primary_busy: int = 0
    """No connection to a standby was ready."""
    redone: int = 0
    """A standby could not answer it, or was lost; so the primary was asked."""
    waited: int = 0
    """Waited for a position that a token named,"""
    waited_in_vain: int = 0
    """and went to the primary."""
    samples: int = 0
    """Questions for a position, to all servers."""


class _Sampler:
    """One server, asked for its position on one connection after the other."""

    def __init__(self, replicas: Replicas, target: Target) -> None:
        self.target = target
        self.replicas = replicas
        self.born = 0
        """When the connection of now was there."""
        self.proved = 0
        """When the question was asked that it answered last."""
        self.reached: Reached | None = None
        """A standby has replayed so far; None: it is not known of the run of now."""
        self.is_wanted = False
        """Somebody needed to know what was asked last."""
        self.failures = 0
        """In a row."""
        self._wanted = asyncio.Event()
        self._chase_until_s = 0.0
        self.task = asyncio.create_task(self._run(), name=f"sample-{target.node}")

    def want(self) -> None:
        """Somebody needs to know at once."""
        self._wanted.set()

    def chase(self) -> None:
        """And again for a moment, until the standby shows what the primary has."""
        self._chase_until_s = time.monotonic() + ProxyTimeouts().chase_ms / 1000
        self._wanted.set()

    def close(self) -> None:
        """Ask no more."""
        self.task.cancel()

    async def _run(self) -> None:
        replicas, times = self.replicas, ProxyTimeouts()
        while True:
            connection: ServerConnection | None = None
            try:
                connection = await replicas.connect(self.target, await replicas.parameters())
                self.born = next(replicas.moments)
                while True:
                    async with asyncio.timeout(times.sample_max_ms / 1000):
                        await self._ask(connection)
                    await asyncio.sleep(times.sample_pause_ms / 1000)
                    await self._wait()
            except (ServerUnavailable, ServerRefused, TimeoutError, ValueError, IndexError) as error:
                log.debug("sample.failed", node=self.target.node, reason=str(error) or "no answer in time")
            finally:
                if connection is not None:
                    connection.drop()
                self.reached, self.born = None, 0
            self.failures += 1
            replicas.heard_nothing(self)
            await asyncio.sleep(times.sample_ms / 1000)

    async def _ask(self, connection: ServerConnection) -> None:
        replicas, target = self.replicas, self.target
        self.is_wanted = self._wanted.is_set()
        self._wanted.clear()
        asked, sent_ms = next(replicas.moments), _now_ms()
        number = replicas.primary.begin() if target.is_primary else 0
        replicas.counters.samples += 1
        rows = await connection.ask(_WRITTEN_SQL if target.is_primary else _REPLAYED_SQL)
        said = [b"" if value is None else value for value in rows[0]]
        reached = Reached(target.epoch, Lsn.parse(said[0].decode()))
        if target.is_primary:
            flushed = Lsn.parse(said[1].decode())
            replicas.primary.pages = Pages(page=int(said[2]), segment=int(said[3]))
            replicas.primary.answer(number, sent_ms, reached, _now_ms(), flushed)
        else:
            self.proved, self.reached = asked, reached
        self.failures = 0
        replicas.heard(self)

    async def _wait(self) -> None:
        """Until it is time to ask again."""
        newest, times = self.replicas.primary.newest, ProxyTimeouts()
        is_behind = newest is not None and self.reached is not None and self.reached < newest
        is_chasing = is_behind and time.monotonic() < self._chase_until_s
        with suppress(TimeoutError):
            async with asyncio.timeout((times.chase_step_ms if is_chasing else times.sample_ms) / 1000):
                await self._wanted.wait()


class Replica:
    """A standby, its standing, and the reads that it answers."""

    def __init__(self, replicas: Replicas, target: Target) -> None:
        self.target = target
        self.standing = Standing()
        self.sampler = _Sampler(replicas, target)
        self.reading: dict[ServerConnection, Readback | None] = {}
        """Connections that answer a statement now, and the answers."""
        self.served = 0
        self.readers = Readers(
            self.sampler,
            replicas.limits,
            replicas.moments,
            lambda parameters: replicas.connect(target, parameters),
            lambda: None if replicas.has(self) else _GONE,
        )

    def borrow(self, key: PoolKey, application_name: str) -> ServerConnection | None:
        """A connection on which what the standby is known to show is shown; None: there is none, for now.

        Whoever has it attaches to it before anything is awaited, and gives it back.
        """
        server = self.readers.borrow(key, application_name)
        if server is not None:
            self.reading[server] = None
        return server

    def give_back(self, key: PoolKey, server: ServerConnection, *, is_fit: bool) -> None:
        """The statement is over."""
        self.reading.pop(server, None)
        self.readers.give_back(key, server, is_fit=is_fit)

    def forsake(self, reason: str) -> None:
        """Whoever has not got any of an answer asks elsewhere."""
        for server, readback in list(self.reading.items()):
            if readback is None or not readback.is_given:
                server.abort(reason)

    def leave(self) -> None:
        """Nobody begins to read here any more. What is answered goes elsewhere, or on if some of it was shown."""
        self.sampler.close()
        self.readers.close()
        self.forsake(_GONE)

    def close(self) -> None:
        """Nothing is answered any more."""
        self.leave()
        for server in list(self.reading):
            server.abort(_GONE)


@dataclass(eq=False)
class Replicas:
    """All standbys that may be read from, and the primary's position. Nobody is asked before the first `log_in_as`."""

    reactor: Reactor
    routing: Routing
    users: Users
    connect_ms: int = 1000
    limits: PoolLimits = field(default_factory=lambda: PoolLimits(20, 600, 3600, 0))
    changed: Callable[[], None] = lambda: None
    """Called when a standby has left those that are read from, or has come back."""
    primary: Primary = field(default_factory=Primary)
    counters: ReadCounters = field(default_factory=ReadCounters)
    verdicts: Verdicts = field(default_factory=Verdicts)
    moments: Iterator[int] = field(default_factory=lambda: itertools.count(1))
    """What happens here, in order."""
    _members: list[Replica] = field(default_factory=list)
    _leader: _Sampler | None = None
    _login: dict[str, str] = field(default_factory=dict)
    _has_login: asyncio.Event = field(default_factory=asyncio.Event)
    _used: dict[str, WeakSet[ServerConnection]] = field(default_factory=dict)
    _waiting: set[asyncio.Future[None]] = field(default_factory=set)
    _turn: int = 0

    @property
    def policy(self) -> Policy:
        """The one in force."""
        return self.routing.policy

    @property
    def bounds(self) -> Bounds:
        """By the policy."""
        return Bounds(self.policy.read_lag_max_ms, self.policy.read_back_ms)

    def log_in_as(self, user: str, database: str) -> None:
        """A user who may log in: the servers are asked in his name."""
        self._login = {"user": user, "database": database, "application_name": _APPLICATION_NAME}
        if not self._has_login.is_set():
            self._has_login.set()
            self.reroute()

    async def parameters(self) -> dict[str, str]:
        """What to log in with to ask for positions."""
        await self._has_login.wait()
        return self._login

    async def connect(self, target: Target, parameters: dict[str, str]) -> ServerConnection:
        """A connection that may be asked; raises ServerUnavailable or ServerRefused."""
        connection = await log_in(self.reactor, target, parameters, self.users, self.connect_ms)
        return await checked(connection, self.connect_ms)

    def reroute(self) -> None:
        """The routing has changed: other servers are asked, and read from."""
        if not self._has_login.is_set():
            return
        primary, standbys = self.routing.primary(), self.routing.standbys()
        if self._leader is not None and (primary is None or not primary.is_same(self._leader.target)):
            self._leader.close()
            self._leader = None
        if self._leader is None and primary is not None:
            self._leader = _Sampler(self, primary)
        gone = [r for r in self._members if not any(t.is_same(r.target) for t in standbys)]
        self._members = [r for r in self._members if r not in gone]
        for replica in gone:
            replica.leave()
        known = [r.target for r in self._members]
        self._members += [Replica(self, t) for t in standbys if not any(t.is_same(k) for k in known)]

    def has(self, replica: Replica) -> bool:
        """Whether it may be read from."""
        return replica in self._members

    def close(self) -> None:
        """Ask nobody any more, and read nowhere."""
        self._has_login.clear()
        leader, self._leader = self._leader, None
        if leader is not None:
            leader.close()
        members, self._members = self._members, []
        for replica in members:
            replica.close()

    async def run(self) -> None:
        """Look at the clock, for ever."""
        while True:
            await asyncio.sleep(1.0)
            for replica in self._members:
                replica.readers.expire()

    # what the samplers heard

    def heard(self, sampler: _Sampler) -> None:
        """A server has told its position."""
        if sampler.target.is_primary:
            if sampler.is_wanted:
                for replica in self._members:
                    replica.sampler.chase()
            self._wake()
            return
        if sampler.reached is not None and self.primary.can_measure(sampler.reached):
            self._judge(sampler, self.primary.lag_ms(sampler.reached))
        self._wake()

    def _wake(self) -> None:
        waiting, self._waiting = self._waiting, set()
        for future in waiting:
            if not future.done():
                future.set_result(None)

    def heard_nothing(self, sampler: _Sampler) -> None:
        """A server has not told its position in time, or is lost."""
        if sampler.target.is_primary:
            return
        self._judge(sampler, None)
        for replica in self._members:
            if replica.sampler is sampler and sampler.failures > 1:  # nor is a new connection answered
                replica.forsake("the standby does not answer")

    def _judge(self, sampler: _Sampler, lag_ms: float | None) -> None:
        for replica in self._members:
            if replica.sampler is not sampler:
                continue
            before, replica.standing = replica.standing, judge(replica.standing, lag_ms, self.bounds, _now_ms())
            if before.is_in != replica.standing.is_in and before.is_known:
                told = "back" if replica.standing.is_in else "left"
                log.info(f"replica.{told}", node=replica.target.node, lag_ms=None if lag_ms is None else round(lag_ms))
                self.changed()
            if before.is_in and sampler.reached is not None and not replica.standing.is_in:
                replica.forsake("the standby is behind")  # it may be waiting for a lock that replay holds

    # for sessions

    def mark(self) -> Mark:
        """The moment in which an answer of the primary has come; it is asked for its position now."""
        if self._leader is not None:
            self._leader.want()
        return Mark(self.routing.epoch, self.primary.sent)

    def near(self) -> list[Replica]:
        """Those that are near enough to be read from, the best first."""
        self._turn += 1
        members = [r for r in self._members if r.standing.is_in and r.sampler.reached is not None]
        choices = [Choice(len(r.reading), r.standing.lag_ms or 0.0) for r in members]
        return [members[index] for index in in_order(choices, self.bounds, self._turn)]

    def shows(self, replica: Replica, needed: Iterable[Reached]) -> bool:
        """Whether a standby is known to show all that; if not, it is asked how far it is."""
        reached = replica.sampler.reached
        if reached is not None and all(self.primary.is_seen(one, reached) for one in needed):
            return True
        replica.sampler.chase()
        return False

    async def wait_heard(self) -> None:
        """Until a standby has told how far it is."""
        future: asyncio.Future[None] = asyncio.get_running_loop().create_future()
        self._waiting.add(future)
        try:
            await future
        finally:
            self._waiting.discard(future)

    # for the read-only port

    def spread(self, targets: list[Target], turn: int) -> list[Target]:
        """Standbys in the order in which a new session tries them: by sessions there and by lag, equals in turn."""
        lags = {r.target.node: r.standing.lag_ms or 0.0 for r in self._members}
        choices = [Choice(self._load(t), lags.get(t.node, 0.0)) for t in targets]
        return [targets[index] for index in in_order(choices, self.bounds, turn)]

    def is_behind(self, target: Target) -> bool:
        """Whether a standby is known to be further behind than it may be."""
        for replica in self._members:
            if replica.target.node == target.node:
                standing = replica.standing
                return standing.is_known and not standing.is_in and replica.sampler.reached is not None
        return False

    def opened(self, server: ServerConnection) -> None:
        """A session has this server, which counts if it is a standby's."""
        self._used.setdefault(server.target.node, WeakSet()).add(server)

    def _load(self, target: Target) -> int:
        return sum(not server.has_ended for server in self._used.get(target.node, ()))

    # for people

    def status(self) -> dict[str, Any]:
        """For ``/status``."""
        return {
            **{name: getattr(self.counters, name) for name in ReadCounters.__slots__},
            "standbys": [
                {
                    "node": r.target.node,
                    "read_from": r.standing.is_in,
                    "lag_ms": None if r.standing.lag_ms is None else round(r.standing.lag_ms),
                    "replayed": None if r.sampler.reached is None else str(r.sampler.reached),
                    "left": r.standing.left,
                    "served": r.served,
                    "sessions": self._load(r.target),
                }
                for r in self._members
            ],
        }


def _now_ms() -> float:
    return time.monotonic() * 1000
