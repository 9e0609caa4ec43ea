"""One port's way to a server: choosing, holding, pacing."""

from __future__ import annotations

import asyncio
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import InitVar, dataclass, field
from enum import StrEnum
from typing import Protocol

import structlog

from holdfast.core.admission.gate import Permit
from holdfast.model.errors import ProtocolViolation
from holdfast.model.owner import Owner
from holdfast.model.report import ProxyOutcome
from holdfast.model.settings import ProxySettings
from holdfast.model.timeouts import ProxyTimeouts
from holdfast.proxy.admission import Admission
from holdfast.proxy.answers import none_reached, pool_is_busy, too_many_wait
from holdfast.proxy.breakers import Breakers
from holdfast.proxy.counters import Counters
from holdfast.proxy.early import Early, drop_unused
from holdfast.proxy.footing import Footing, Trust
from holdfast.proxy.guard import CommitGuard
from holdfast.proxy.limits import CONNECTS_AT_ONCE
from holdfast.proxy.orphans import Orphans
from holdfast.proxy.owners import Owners
from holdfast.proxy.pool import Pool, Waiter
from holdfast.proxy.pools import PoolLimits, Pools, key_of
from holdfast.proxy.quarantine import Quarantine
from holdfast.proxy.reactor import Reactor
from holdfast.proxy.replicas import Replicas
from holdfast.proxy.routing import Routing, Target
from holdfast.proxy.server import ServerConnection, ServerRefused, ServerUnavailable, checked, log_in
from holdfast.proxy.sharing import Share
from holdfast.proxy.stale import StaleAnswers
from holdfast.proxy.users import Users
from holdfast.wire import messages as m
from holdfast.wire.loss import Loss
from holdfast.wire.startup import Login
from holdfast.wire.state import ReplayStep

log = structlog.get_logger(__name__)

_INVALID_AUTHORIZATION = "28"
"""The class of SQLSTATEs (PostgreSQL manual, appendix A)."""


class Purpose(StrEnum):
    """What a port is for."""

    WRITE = "write"
    READ = "read"


class HoldEnded(Exception):
    """The statement waited long enough, or too many wait already; the report says which."""

    def __init__(self, report: m.Report) -> None:
        super().__init__(report.text)
        self.report = report


class Wanted(Protocol):
    """A session that needs a server."""

    @property
    def server_parameters(self) -> dict[str, str]:
        """What to log in with."""

    @property
    def current(self) -> ServerConnection | None:
        """The server it has, if it waits only for leave to go on."""

    @property
    def pool(self) -> Pool | None:
        """Where its servers come from, if it shares them."""

    @property
    def traffic_class(self) -> str:
        """The class that the policy gives it."""

    def steps(self, server: ServerConnection) -> list[ReplayStep]:
        """What to tell a server."""

    def forget(self, names: set[bytes]) -> None:
        """These prepared statements could not be made again."""


@dataclass(slots=True)
class Lane:
    """One port. Waiting sessions go on in the order in which they came, at most `CONNECTS_AT_ONCE` at the same time."""

    purpose: Purpose
    reactor: Reactor
    routing: Routing
    users: Users
    settings: ProxySettings
    saw: Callable[[Target, ProxyOutcome], None] = lambda target, outcome: None
    """Told what was met at a server."""
    trust: Trust = field(default_factory=Trust)
    """Until when the primary that the routing names is surely the only one."""
    admission: Admission = field(default_factory=Admission)
    breakers: Breakers = field(default_factory=Breakers)
    """Of all servers, for all ports."""
    quarantine: Quarantine = field(default_factory=Quarantine)
    standbys: InitVar[Replicas | None] = None
    replicas: Replicas = field(init=False)
    counters: Counters = field(default_factory=Counters)
    owners: Owners = field(default_factory=Owners)
    guard: CommitGuard = field(init=False)
    stale: StaleAnswers = field(default_factory=StaleAnswers)
    orphans: Orphans = field(init=False)
    footing: Footing = field(init=False)
    pools: Pools = field(init=False)
    held: int = 0
    _slots: asyncio.Semaphore = field(default_factory=lambda: asyncio.Semaphore(CONNECTS_AT_ONCE))
    _turn: int = 0
    _last_refusal: str = ""
    _login_refusals: dict[tuple[str, str], str] = field(default_factory=dict)
    _parameters: dict[str, str] | None = None
    """What was last logged in with."""

    def __post_init__(self, standbys: Replicas | None) -> None:
        self.replicas = standbys or Replicas(self.reactor, self.routing, self.users)
        self.guard = CommitGuard(self.routing)
        self.orphans = Orphans(self.admission, self.note_in_flight)
        proxy = self.settings.proxy
        wait_s = self.settings.timeouts.hold_max_ms / 1000
        # Who reads at the read-only port has agreed to what may be no longer true.
        self.footing = Footing(self.routing, self.trust if self.purpose is Purpose.WRITE else Trust())
        limits = PoolLimits(proxy.pool_size, proxy.pool_idle_s, proxy.pool_lifetime_s, wait_s)
        self.pools = Pools(limits, self, self.footing)
        self.admission.is_disturbed = lambda: self.held > 0

    def share(self, login: Login) -> Share | None:
        """A session's part in a pool; None: it has servers of its own."""
        if self.settings.proxy.pooling_of(login.user, login.database) != "transaction":
            return None
        key = key_of(login.user, login.database, login.parameters.items())
        return Share(self.pools.get(key), login.parameters.get("application_name", ""))

    # rules

    def must_drop(self, server: ServerConnection) -> str | None:
        """Why a server connection must be closed now, by the register's last word."""
        target = server.target
        if target.is_primary and self.routing.epoch > target.epoch:
            return f"epoch {self.routing.epoch} has begun"
        if not target.is_primary and self.routing.is_rising(target.node):
            return f"{target.node} becomes the primary"
        if not target.is_primary and not self.routing.policy.readable(target.node):
            return f"nobody may read from {target.node} any more"
        return None

    def must_hold(self, server: ServerConnection) -> bool:
        """Whether new statements must wait although the server is there."""
        handing_over = self.purpose is Purpose.WRITE and self.routing.is_handing_over() and server.target.is_primary
        return handing_over or self.must_withhold(server)

    def must_withhold(self, server: ServerConnection) -> bool:
        """Whether what the server says may be no longer true. Who reads at the read-only port has agreed to that."""
        return server.target.is_primary and self.is_doubtful()

    def is_doubtful(self) -> bool:
        """Whether what any server of this port says may be no longer true."""
        return not self.footing.trust.is_fresh()

    def is_fit(self, server: ServerConnection) -> bool:
        """Whether nothing speaks against a server: no must_drop, no must_hold, no has_better."""
        version = self.routing.version
        if server.fit_version != version:
            if self.must_drop(server) is not None or self.has_better(server) or self.must_hold(server):
                return False
            server.fit_version = version  # but for the time that `is_doubtful` looks at
        return not self.is_doubtful()

    @property
    def takes_turns(self) -> bool:
        """Whether one server is as good as another, so that the load is to be spread."""
        return self.purpose is Purpose.READ

    def has_better(self, server: ServerConnection) -> bool:
        """Whether a read-only session sits on the primary while a standby could serve it, or on one too far behind."""
        target = server.target
        if self.purpose is Purpose.WRITE or not (target.is_primary or self.replicas.is_behind(target)):
            return False
        may_leave = not target.is_primary and self.routing.primary() is not None
        return may_leave or any(map(self._is_well, self.routing.standbys()))

    def _is_well(self, target: Target) -> bool:
        return self.breakers.is_closed(target) and not self.replicas.is_behind(target)

    def has_target(self) -> bool:
        """Whether the register and the nodes' records name a server for this port."""
        return bool(self._targets())

    def can_serve(self) -> bool:
        """Whether a new session need not wait, as far as is known."""
        return self.has_target() and not self.footing.is_failing

    def is_out_of_reach(self) -> bool:
        """Whether no server is to be had: none is named, or it fails and somebody who waits for it tries again."""
        return not self.has_target() or (self.footing.is_failing and self.held > 0)

    def surely_serves(self) -> bool:
        """The same, at little cost: what the routing says is looked at once. False: ask `can_serve`."""
        footing = self.footing
        if footing.known_version != self.routing.version:
            footing.known_version, footing.has_target = self.routing.version, self.has_target()
        return footing.surely_serves()

    def _targets(self) -> list[Target]:
        """Where to go now, the best first; standbys that are too far behind or have an open breaker come last."""
        primary = self.routing.primary()
        if self.purpose is Purpose.WRITE:
            open_to_all = not self.routing.is_handing_over() and not self.is_doubtful()
            return [primary] if primary is not None and open_to_all else []
        in_turn = self.replicas.spread(self.routing.standbys(), self._turn)
        well = [target for target in in_turn if self._is_well(target)]
        last = [target for target in in_turn if target not in well]
        return well + ([primary] if primary is not None else []) + last

    def lost(self, owner: Owner, traffic_class: str, target: Target, loss: Loss, *, held_open: bool) -> None:
        """A session lost its server; ``held_open``: between two statements of a transaction."""
        told = self.counters.lost(traffic_class, loss, held_open)
        if told is not None:
            self.owners.lost(owner, target, told)

    def note_in_flight(self, server: ServerConnection, permit: Permit) -> None:
        """A session loses its server; what it has in flight is not forgotten yet."""
        if self.purpose is Purpose.WRITE and server.target.is_primary and not self.routing.is_handing_over():
            self.quarantine.lost(permit)

    # waiting

    async def acquire(self, wanted: Wanted, *, once: bool = False, waiter: Waiter | None = None) -> ServerConnection:
        """A checked server connection with the session's state on it, to be attached before anything is awaited.

        ``waiter`` is the place in the pool's line that the session has had for some time. Raises HoldEnded,
        ServerRefused; with ``once`` ServerUnavailable instead of waiting.
        """
        hold_max_ms = self.settings.timeouts.hold_max_ms
        hold = _Hold(self, wanted.traffic_class)
        waited_s = 0.0 if waiter is None else time.monotonic() - waiter.since_s
        try:
            async with asyncio.timeout(max(0.0, hold_max_ms / 1000 - waited_s)):
                with hold.counted():
                    if waiter is None and not self.can_serve():
                        hold.begin()
                    if wanted.pool is not None and wanted.current is None:
                        return await self._acquire_shared(wanted, wanted.pool, hold, once, waiter)
                    async with self._slots:
                        server = await self._acquire(wanted, hold, once)
                    if wanted.pool is not None and server is not wanted.current:
                        wanted.pool.made(server, in_place_of_another=True)
                    return server
        except TimeoutError:
            raise HoldEnded(self.waited_in_vain(wanted.pool, wanted.traffic_class)) from None

    def waited_in_vain(self, pool: Pool | None, traffic_class: str) -> m.Report:
        """A statement has waited as long as it may for a connection (of ``pool``); what its client is told."""
        hold_max_ms = self.settings.timeouts.hold_max_ms
        self.counters.held_in_vain(traffic_class)
        if pool is not None and self.can_serve():
            return pool_is_busy(pool.limits.size, hold_max_ms)
        return none_reached("primary" if self.purpose is Purpose.WRITE else "server", hold_max_ms)

    async def _acquire_shared(
        self, wanted: Wanted, pool: Pool, hold: _Hold, once: bool, waiter: Waiter | None
    ) -> ServerConnection:
        while True:
            server = await pool.reserve(waiter)
            waiter = None
            if server is None:
                try:
                    async with self._slots:
                        server = await self._acquire(wanted, hold, once)
                except _GivenBack:
                    pool.failed()
                    continue
                except BaseException:
                    pool.failed()
                    raise
                pool.made(server)
                return server
            try:
                await self._tell(server, wanted)
            except ServerUnavailable:
                continue
            if server.is_open and self.must_drop(server) is None and not self.must_hold(server):
                self.footing.is_failing = False
                return server
            server.close()

    async def _acquire(self, wanted: Wanted, hold: _Hold, once: bool) -> ServerConnection:
        early = Early(self.reactor, self.users, self.settings.timeouts.server_connect_ms)
        try:
            return await self._acquire_once_named(wanted, hold, once, early)
        finally:
            early.drop()

    async def _acquire_once_named(self, wanted: Wanted, hold: _Hold, once: bool, early: Early) -> ServerConnection:
        times = ProxyTimeouts()
        delay_ms = times.retry_first_ms
        while True:
            version = self.routing.version
            server = await self._try_all(wanted, early)
            if server is not None:
                return server
            if once:
                raise ServerUnavailable(self._last_refusal)
            if wanted.pool is not None and wanted.current is None and wanted.pool.peek() is not None:
                raise _GivenBack
            hold.begin()
            if self.routing.version != version:
                continue
            if self.purpose is Purpose.WRITE:
                early.begin(self.routing.candidate(), wanted.server_parameters)
            pause_s = delay_ms / 1000 if self._targets() else None
            try:
                await asyncio.wait_for(self.routing.wait_changed(), pause_s)
                delay_ms = times.retry_first_ms
            except TimeoutError:
                delay_ms = min(2 * delay_ms, times.retry_last_ms)

    async def _try_all(self, wanted: Wanted, early: Early) -> ServerConnection | None:
        version = self.routing.version
        self._turn += 1
        for target in self._targets():
            current = wanted.current
            if (
                current is not None
                and current.is_open
                and current.target.is_same(target)
                and not self.must_hold(current)
            ):
                return current
            if not self.breakers.admits(target):
                continue
            server = await self._try_while_named(target, wanted, early)
            if server is not None:
                return server
            if self.routing.version != version:
                break
        return None

    async def _try_while_named(self, target: Target, wanted: Wanted, early: Early) -> ServerConnection | None:
        """Try a server, and stop at once when the register no longer names it: it may be one that never answers."""
        trying = asyncio.create_task(self._try(target, wanted, early))
        server: ServerConnection | None = None
        try:
            while not trying.done() and target in self._targets():
                change = asyncio.create_task(self.routing.wait_changed())
                try:
                    await asyncio.wait((trying, change), return_when=asyncio.FIRST_COMPLETED)
                finally:
                    change.cancel()
            if trying.done() and target in self._targets():
                server = trying.result()
        finally:
            if server is None:
                trying.cancel()
                trying.add_done_callback(drop_unused)
        if server is None or not server.is_open:
            return None
        self.footing.is_failing = False
        self._last_refusal = ""
        self.saw(target, ProxyOutcome.ANSWERS)
        self.counters.servers_opened += 1
        self.replicas.opened(server)
        return server

    async def _try(self, target: Target, wanted: Wanted, early: Early) -> ServerConnection | None:
        parameters = wanted.server_parameters
        if self.purpose is Purpose.READ and target.is_primary:
            parameters = {**parameters, "default_transaction_read_only": "on"}
        try:
            with self.breakers.trying(target) as may_try:
                if not may_try:
                    return None
                server = await early.take(target)
                if server is None:
                    server = await self._log_in(target, parameters)
                await checked(server, self.settings.timeouts.server_connect_ms)
                await self._tell(server, wanted)
        except ServerUnavailable as unavailable:
            self.saw(target, _outcome_of(unavailable.__cause__))
            self._refused(target, str(unavailable))
            return None
        except ServerRefused as refused:
            self._login_refused(target, parameters["user"], refused.report)
            raise
        return server

    async def _log_in(self, target: Target, parameters: dict[str, str]) -> ServerConnection:
        self._parameters = parameters
        if self.purpose is Purpose.READ:
            self.replicas.log_in_as(parameters["user"], parameters.get("database") or parameters["user"])
        connect_ms = self.settings.timeouts.server_connect_ms
        return await log_in(self.reactor, target, parameters, self.users, connect_ms)

    async def probe_standbys(self) -> None:
        """Probe those that nobody reads from because they failed, for ever: no client has to wait for what they say."""
        while True:
            await asyncio.sleep(ProxyTimeouts().probe_look_ms / 1000)
            targets = [t for t in self._targets() if not (t.is_primary or self.breakers.is_closed(t))]
            await asyncio.gather(*map(self._probe, targets))

    async def _probe(self, target: Target) -> None:
        if self._parameters is None:
            return
        try:
            with self.breakers.trying(target) as may_try:
                if may_try:
                    server = await self._log_in(target, self._parameters)
                    (await checked(server, self.settings.timeouts.server_connect_ms)).close()
        except (ServerUnavailable, ServerRefused) as error:
            log.debug("server.probed", port=self.purpose, node=target.node, reason=str(error))

    async def _tell(self, server: ServerConnection, wanted: Wanted) -> None:
        """Make the server's session the wanted one, or drop it; raises ServerUnavailable, ServerRefused."""
        try:
            async with asyncio.timeout(ProxyTimeouts().replay_ms / 1000):
                wanted.forget(await server.replay(wanted.steps(server)))
        except (TimeoutError, ProtocolViolation) as error:
            server.drop()
            reason = str(error) or "not in time"
            raise ServerUnavailable(f"{server.target.node} did not take over the session: {reason}") from None
        except BaseException:
            server.drop()
            raise

    def _login_refused(self, target: Target, user: str, report: m.Report) -> None:
        """The user proved its password here, but the server has another one, or none: the operator must know."""
        if not report.sqlstate.startswith(_INVALID_AUTHORIZATION):
            return
        reason = f"{report.text}; {report.detail}" if report.detail else report.text
        if self._login_refusals.get((target.node, user)) != reason:
            fix = f"proxy.users_file must have the password, or the stored secret, that role {user} has on the servers"
            log.warning("server.login_refused", port=self.purpose, node=target.node, user=user, reason=reason, fix=fix)
        self._login_refusals[target.node, user] = reason

    def _refused(self, target: Target, reason: str) -> None:
        self.footing.is_failing = True
        self.counters.servers_refused += 1
        if reason != self._last_refusal:
            log.info("server.refused", port=self.purpose, node=target.node, epoch=target.epoch, reason=reason)
        self._last_refusal = reason


def _outcome_of(cause: BaseException | None) -> ProxyOutcome:
    """What a failed attempt says of the server."""
    if isinstance(cause, TimeoutError):
        return ProxyOutcome.SILENT
    return ProxyOutcome.RESET if isinstance(cause, ConnectionResetError) else ProxyOutcome.REFUSED


class _GivenBack(Exception):
    """Another session does not need its connection any more: no new one has to be made."""


class _Hold:
    """Whether one statement counts as held."""

    def __init__(self, lane: Lane, traffic_class: str) -> None:
        self._lane = lane
        self._class = traffic_class
        self._is_counted = False
        self._began_s = 0.0

    def begin(self) -> None:
        """From now on it is held; raises HoldEnded if too many are."""
        if self._is_counted:
            return
        limit = self._lane.settings.proxy.hold_max_clients
        if self._lane.held >= limit:
            self._lane.counters.held_in_vain(self._class)
            raise HoldEnded(too_many_wait(limit))
        self._is_counted = True
        self._began_s = asyncio.get_running_loop().time()
        self._lane.held += 1
        self._lane.counters.hold_begun(self._class)

    @contextmanager
    def counted(self) -> Iterator[None]:
        """Count it for as long as the block runs."""
        try:
            yield
        finally:
            if self._is_counted:
                waited_s = asyncio.get_running_loop().time() - self._began_s
                self._lane.held -= 1
                self._lane.counters.held_for(self._class, waited_s)
