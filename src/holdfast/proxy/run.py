"""Listeners and their life."""

from __future__ import annotations

import asyncio
import errno
import hmac
import itertools
import signal
import socket
import ssl
import uuid
from collections import Counter
from collections.abc import Hashable, Mapping

import structlog
from aiohttp import web
from pydantic import JsonValue

from holdfast.core.course import Course
from holdfast.model.errors import ConfigurationError, EnvironmentFault, RegisterError
from holdfast.model.keys import Keys
from holdfast.model.ramp import Order, RampOrder
from holdfast.model.register import Phase
from holdfast.model.settings import ListenerSettings, ProxySettings
from holdfast.model.timeouts import ProxyTimeouts
from holdfast.proxy.admission import Admission
from holdfast.proxy.breakers import Breakers
from holdfast.proxy.client import Client
from holdfast.proxy.impact import Impact, Toll
from holdfast.proxy.lane import Lane, Purpose
from holdfast.proxy.limits import LISTEN_BACKLOG, STATUS_CACHE_MAX, WRITE_BUFFER_BYTES
from holdfast.proxy.obedience import Obedience
from holdfast.proxy.pools import PoolLimits
from holdfast.proxy.quarantine import Quarantine
from holdfast.proxy.reactor import Reactor
from holdfast.proxy.relay import Relay
from holdfast.proxy.replicas import Replicas
from holdfast.proxy.routing import Routing
from holdfast.proxy.server import send_cancel
from holdfast.proxy.status import start_status_endpoint
from holdfast.proxy.streams import Listener, Stream, listen
from holdfast.proxy.suspects import SuspectRecords
from holdfast.proxy.testimony import Testimony
from holdfast.proxy.users import Users
from holdfast.store.contract import Change, Put, Resync, Store
from holdfast.store.journal import Journal
from holdfast.store.leased import LeasedRecord
from holdfast.wire import messages as m

log = structlog.get_logger(__name__)


class Proxy:
    """Both ports, and everything their clients share."""

    def __init__(self, settings: ProxySettings, store: Store, users: Users) -> None:
        self.settings = settings
        self.users = users
        self.trust = settings.proxy.auth == "trust"
        self.tls = _tls_context(settings.proxy)
        self.routing = Routing(settings.cluster.name)
        keys, name = Keys(settings.cluster.name), f"{settings.proxy.host}:{settings.proxy.write_port}"
        self._record = LeasedRecord(store, settings.timeouts)
        testimony = Testimony(name, keys, self._record, lambda: self.lanes[Purpose.WRITE].held)
        self._obedience = Obedience(
            uuid.uuid4().hex,
            settings.cluster.name,
            store,
            self.routing,
            settings.timeouts,
            self._obey,
            self._look_again,
        )
        self._journal = Journal(store, f"proxy {name}", settings.timeouts)
        self._reactor = Reactor()
        shared = self._reactor, self.routing, users, settings, testimony.saw, self._obedience.trust
        connect_ms = settings.timeouts.server_connect_ms
        self.breakers = Breakers(connect_ms, self._tell_breaker, self._look_again)
        proxy, times = settings.proxy, settings.timeouts
        limits = PoolLimits(proxy.pool_size, proxy.pool_idle_s, proxy.pool_lifetime_s, 0)
        self.replicas = Replicas(self._reactor, self.routing, users, times.server_connect_ms, limits, self._look_again)
        self._suspects = SuspectRecords(store, keys, settings.timeouts)
        admissions = {purpose: Admission(self._tell_ramp) for purpose in Purpose}
        self.quarantine = Quarantine(admissions[Purpose.WRITE], self._suspects.update, self._tell_suspect)
        quarantines = {Purpose.WRITE: self.quarantine, Purpose.READ: Quarantine()}
        self.lanes = {
            purpose: Lane(purpose, *shared, admissions[purpose], self.breakers, quarantines[purpose], self.replicas)
            for purpose in Purpose
        }
        self._impact = Impact(self.lanes.values(), self._tell_impact)
        self._store = store
        self._clients: set[Client] = set()
        self._relays: dict[int, Relay] = {}
        self._remembered: dict[Hashable, dict[str, str]] = {}
        self._cancels: set[asyncio.Task[None]] = set()
        self._process_ids = itertools.count(1)
        self._listeners: list[Listener] = []
        self._status: web.AppRunner | None = None
        self._watch: asyncio.Task[None] | None = None
        self._telling: asyncio.Task[None] | None = None
        self._obeying: asyncio.Task[None] | None = None
        self._accounting: list[asyncio.Task[None]] = []
        self._letting_go: asyncio.Task[None] | None = None
        self._announced = keys.announced
        self._ramp_order = keys.ramp_order
        self._heard = asyncio.Event()

    async def start(self) -> None:
        """Bind the ports and begin to watch the store; raises EnvironmentFault that names the setting."""
        proxy = self.settings.proxy
        self._reactor.open()
        try:
            await self._listen("write_port", proxy.write_port, Purpose.WRITE)
            await self._listen("read_port", proxy.read_port, Purpose.READ)
            if proxy.api_port is not None:
                try:
                    self._status = await start_status_endpoint(proxy.host, proxy.api_port, self.status)
                except OSError as error:
                    raise _cannot_listen("api_port", proxy.host, proxy.api_port, error) from error
        except EnvironmentFault:
            await self.stop()
            raise
        self._watch = asyncio.get_running_loop().create_task(self._follow_store())
        self._telling = asyncio.get_running_loop().create_task(self._record.run())
        self._obeying = asyncio.get_running_loop().create_task(self._obedience.run())
        runs = [self._journal.run(), self._impact.run(), self._suspects.run(), self.quarantine.run()]
        runs.append(self.replicas.run())
        self._accounting = list(map(asyncio.create_task, runs))
        for lane in self.lanes.values():
            lane_runs = lane.admission.run(), lane.pools.run(), lane.probe_standbys()
            self._accounting += map(asyncio.create_task, lane_runs)
        log.info("proxy.listening", host=proxy.host, write_port=proxy.write_port, read_port=proxy.read_port)

    async def stop(self) -> None:
        """Close the ports, tell every client, end every session. Idempotent."""
        for listener in self._listeners:
            listener.close()
        for client in list(self._clients):
            goodbye = m.fatal("57P01", "the proxy is shutting down", hint="Connect again.")
            if client.relay is not None:
                client.relay.end(goodbye)
            else:
                client.close(goodbye)
        self.replicas.close()
        for lane in self.lanes.values():
            lane.orphans.close()
            lane.pools.close()
            await lane.guard.close()
        if self._watch is not None:
            self._watch.cancel()
            await asyncio.gather(self._watch, return_exceptions=True)
            self._watch = None
        if self._letting_go is not None:
            self._letting_go.cancel()
            await asyncio.gather(self._letting_go, return_exceptions=True)
            self._letting_go = None
        if self._telling is not None:
            self._telling.cancel()
            await asyncio.gather(self._telling, return_exceptions=True)
            self._telling = None
            await self._record.withdraw()
        if self._obeying is not None:
            self._obeying.cancel()
            await asyncio.gather(self._obeying, return_exceptions=True)
            self._obeying = None
            await self._obedience.close()
        for task in self._accounting:
            task.cancel()
        await asyncio.gather(*self._accounting, return_exceptions=True)
        if self._accounting:
            self._impact.close()
            await self._journal.flush()
        self._accounting.clear()
        if self._status is not None:
            await self._status.cleanup()
            self._status = None
        self._listeners.clear()
        for client in list(self._clients):
            client.abort()  # what it has not read by now
        self._reactor.close()

    async def _listen(self, setting: str, port: int, purpose: Purpose) -> None:
        lane = self.lanes[purpose]
        host = self.settings.proxy.host

        def accept(sock: socket.socket) -> None:
            client = Client(self, lane)
            self._clients.add(client)
            Stream(lane.reactor, sock, client, WRITE_BUFFER_BYTES)

        try:
            self._listeners.append(Listener(lane.reactor, await listen(host, port, LISTEN_BACKLOG), accept))
        except OSError as error:
            raise _cannot_listen(setting, host, port, error) from error

    async def run_until(self, stopping: asyncio.Event) -> None:
        """Serve; raises what ends the watch, and EnvironmentFault if the store is not heard of at all."""
        if self._watch is None or self._obeying is None:
            raise RuntimeError("start the proxy first")
        ended = asyncio.ensure_future(stopping.wait())
        heard = asyncio.ensure_future(self._heard.wait())
        try:
            limit_s = self.settings.timeouts.store_first_ms / 1000
            await asyncio.wait((ended, heard, self._watch), timeout=limit_s, return_when=asyncio.FIRST_COMPLETED)
            if not (ended.done() or heard.done() or self._watch.done()):
                endpoints = ", ".join(self.settings.store.endpoints)
                raise EnvironmentFault(
                    f"store.endpoints: no etcd answers at {endpoints}: start it, or correct the setting"
                )
            await asyncio.wait((ended, self._watch, self._obeying), return_when=asyncio.FIRST_COMPLETED)
            for task in (self._watch, self._obeying):
                if task.done():
                    task.result()
        finally:
            ended.cancel()
            heard.cancel()

    async def _follow_store(self) -> None:
        async for change in self._store.watch(Keys(self.settings.cluster.name).prefix):
            if isinstance(change, Resync):
                self._heard.set()
            self._obey(change)

    def _obey(self, change: Change) -> None:
        was_handing_over, epoch = self.routing.is_handing_over(), self.routing.epoch
        self._suspects.hear(change, self.quarantine)
        if self.routing.apply(change):
            self._admit_by_policy()
            self._reroute()
            if self.routing.epoch > epoch > 0 and not was_handing_over:
                self.quarantine.primary_lost(epoch)
            if self.routing.is_handing_over() and not was_handing_over:
                self._let_go_of_idle()
            if isinstance(change, Resync):
                self._hear_orders_again(change)
        elif isinstance(change, Put) and change.entry.key == self._ramp_order:
            self._order_ramp(change.entry.value)
        elif isinstance(change, Put) and change.entry.key == self._announced:
            is_letting_go = self._letting_go is not None and not self._letting_go.done()
            if change.entry.value == str(self.routing.epoch).encode() and not is_letting_go:
                self._letting_go = asyncio.get_running_loop().create_task(self._let_go())

    def _admit_by_policy(self) -> None:
        for lane in self.lanes.values():
            lane.admission.policy_is(self.routing.policy)
            lane.quarantine.policy_is(self.routing.policy)
            lane.stale.policy_is(self.routing.policy)
        self.lanes[Purpose.WRITE].guard.is_on = self.routing.policy.commit_guard
        register = self.routing.register
        self._suspects.lasts_ms = self.routing.policy.quarantine_s * 1000
        self.breakers.policy_is(self.routing.policy)
        self.breakers.heard(register.committed.epoch if register is not None else 0)
        if register is not None and register.phase is Phase.SERVING:
            self.lanes[Purpose.WRITE].admission.serves(register.epoch)

    def _hear_orders_again(self, change: Resync) -> None:
        """After a while without the store: the last order may have been missed."""
        for entry in change.snapshot.entries:
            if entry.key == self._ramp_order:
                self._order_ramp(entry.value, may_have_been_heard=True)

    def _order_ramp(self, raw: bytes, *, may_have_been_heard: bool = False) -> None:
        try:
            order = RampOrder.from_json(raw)
        except RegisterError as error:
            log.error("store.unreadable", key=self._ramp_order, error=str(error))
            return
        again = may_have_been_heard and order.order is Order.FASTER
        if order.epoch == self.routing.epoch and not again:
            self.lanes[Purpose.WRITE].admission.ordered(order.order)

    def _tell_ramp(self, kind: str, rule: str | None, detail: dict[str, JsonValue]) -> None:
        self._journal.record(kind, self.routing.epoch, rule, stamp=None, **detail)

    def _let_go_of_idle(self) -> None:
        """Whoever is between statements waits now, and then for another server: this one need not end the session."""
        self.lanes[Purpose.WRITE].pools.let_go()
        for relay in self._relays.values():
            if relay.lane.purpose is Purpose.WRITE:
                relay.mark_unused()
                relay.let_go()

    async def _let_go(self) -> None:
        """A switchover is announced: the fewer sessions the primary has to end, the shorter it stands still."""
        times = ProxyTimeouts()
        self.lanes[Purpose.WRITE].pools.let_go()
        relays = [relay for relay in self._relays.values() if relay.lane.purpose is Purpose.WRITE]
        for relay in relays:
            relay.mark_unused()
        await asyncio.sleep(times.unused_ms / 1000)
        steps = max(1, times.let_go_ms // times.let_go_step_ms)
        for step in range(steps):
            for relay in relays[step::steps]:
                relay.let_go()
            await asyncio.sleep(times.let_go_step_ms / 1000)

    def _tell_impact(self, toll: Toll, longest_ms: Mapping[str, int], course: Course | None) -> None:
        self._journal.record("clients.held", self.routing.epoch, None, stamp=None, **toll.told(longest_ms, course))
        owners = self.lanes[Purpose.WRITE].owners.take()
        if owners is not None:
            self._journal.record("outcomes.unknown", self.routing.epoch, None, stamp=None, **owners)

    def _tell_suspect(self, kind: str, epoch: int, rule: str | None, detail: dict[str, JsonValue]) -> None:
        self._journal.record(kind, epoch, rule, stamp=None, **detail)

    def _tell_breaker(self, kind: str, epoch: int, detail: dict[str, JsonValue]) -> None:
        self._journal.record(kind, epoch, None, stamp=None, **detail)

    def _look_again(self) -> None:
        """What may be used has changed, though the store has said nothing."""
        self.routing.wake()
        self._reroute()

    def _reroute(self) -> None:
        self.replicas.reroute()
        for relay in list(self._relays.values()):
            relay.reroute()
        for lane in self.lanes.values():
            lane.orphans.reroute(lane.must_drop)
            lane.pools.reroute()

    # Endpoint

    def admit(self, client: Client) -> bool:
        """Whether one more client may log in."""
        return len(self._clients) <= self.settings.proxy.max_clients

    def register(self, relay: Relay) -> None:
        """Make a session's cancel key known."""
        self._relays[relay.process_id] = relay

    def forget(self, client: Client) -> None:
        """A connection has ended."""
        self._clients.discard(client)
        if client.relay is not None:
            self._relays.pop(client.relay.process_id, None)

    def begin_cancel(self, process_id: int, secret: bytes) -> asyncio.Task[None]:
        """Pass a cancel request on to the server that runs the session's statement now, also if its sender has left."""
        task = asyncio.get_running_loop().create_task(self._cancel(process_id, secret))
        self._cancels.add(task)
        task.add_done_callback(self._cancels.discard)
        return task

    async def _cancel(self, process_id: int, secret: bytes) -> None:
        relay = self._relays.get(process_id)
        if relay is None or not hmac.compare_digest(relay.secret, secret):
            return
        server = relay.cancel()
        if server is not None:
            relay.lane.counters.cancels += 1
            connect_ms = self.settings.timeouts.server_connect_ms
            server.cancels += 1
            is_told = False
            try:
                is_told = await send_cancel(server.target, server.process_id, server.secret, connect_ms)
            finally:
                server.cancels -= 1
                server.is_doubtful |= not is_told
                relay.settle()

    def remembered(self, key: Hashable) -> dict[str, str] | None:
        """What a server last reported to a client that logged in like this one."""
        return self._remembered.get(key)

    def remember(self, key: Hashable, parameters: dict[str, str]) -> None:
        """Keep it, for clients that come while no primary serves."""
        self._remembered.pop(key, None)
        if len(self._remembered) >= STATUS_CACHE_MAX:
            self._remembered.pop(next(iter(self._remembered)))
        self._remembered[key] = parameters

    def next_process_id(self) -> int:
        """A number that no other session of this proxy has."""
        while True:
            process_id = next(self._process_ids) & 0x7FFFFFFF
            if process_id and process_id not in self._relays:
                return process_id

    def status(self) -> dict[str, object]:
        """What ``/status`` says."""
        register = self.routing.register
        servers = Counter(r.current.target.node for r in self._relays.values() if r.current is not None)
        return {
            "serving": self.lanes[Purpose.WRITE].has_target(),
            "store_connected": self.routing.connected,
            "phase": register.phase.value if register is not None else None,
            "epoch": self.routing.epoch,
            "primary": register.leader.node if register is not None and register.leader is not None else None,
            "handover": register.handover if register is not None else None,
            "clients": len(self._clients),
            "held": {purpose.value: lane.held for purpose, lane in self.lanes.items()},
            "servers": dict(servers),
            "counters": {purpose.value: lane.counters.status() for purpose, lane in self.lanes.items()},
            "pools": {purpose.value: lane.pools.status() for purpose, lane in self.lanes.items()},
            "breakers": self.breakers.status(),
            "quarantine": self.quarantine.status(),
            "breakers_opened": self.breakers.opened,
            "reads": self.replicas.status(),
            "stale_answers": {purpose.value: lane.stale.status() for purpose, lane in self.lanes.items()},
            "commit_guard": self.lanes[Purpose.WRITE].guard.status(),
            "admission": {purpose.value: lane.admission.status() for purpose, lane in self.lanes.items()},
        }


def _tls_context(proxy: ListenerSettings) -> ssl.SSLContext | None:
    if proxy.tls_cert_file is None and proxy.tls_key_file is None:
        return None
    if proxy.tls_cert_file is None or proxy.tls_key_file is None:
        raise ConfigurationError("settings proxy.tls_cert_file and proxy.tls_key_file belong together: set both")
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    context.minimum_version = ssl.TLSVersion.TLSv1_2
    try:
        context.load_cert_chain(proxy.tls_cert_file, proxy.tls_key_file)
    except (OSError, ssl.SSLError) as error:
        raise ConfigurationError(
            f"settings proxy.tls_cert_file and proxy.tls_key_file: {proxy.tls_cert_file} and {proxy.tls_key_file} "
            f"cannot be used: {error}"
        ) from error
    return context


def _cannot_listen(setting: str, host: str, port: int, error: OSError) -> EnvironmentFault:
    if error.errno == errno.EADDRINUSE:
        fix = "it is in use; stop what listens there, or choose another port"
    elif error.errno == errno.EACCES:
        fix = "ports below 1024 need a right that this process lacks; choose another port"
    else:
        fix = f"{error.strerror or error}; check proxy.host and the port"
    return EnvironmentFault(f"setting proxy.{setting}: cannot listen on {host}:{port}: {fix}")


async def run_proxy(settings: ProxySettings, store: Store) -> None:
    """Serve until SIGTERM or SIGINT; raises ConfigurationError or EnvironmentFault before anything is served."""
    proxy = Proxy(settings, store, Users.load(settings.proxy.users_file))
    stopping = asyncio.Event()
    loop = asyncio.get_running_loop()
    for number in (signal.SIGTERM, signal.SIGINT):
        loop.add_signal_handler(number, stopping.set)
    await proxy.start()
    try:
        await proxy.run_until(stopping)
    finally:
        await proxy.stop()
