"""The agent: observe, decide, apply, record; at once when something happens, else every tick."""

from __future__ import annotations

import asyncio
from dataclasses import dataclass

import structlog

from holdfast.core import actions as a
from holdfast.core.coordination import Coordination, coordinate
from holdfast.core.durability import may_pledge
from holdfast.core.leadership import Decision, Duty, Situation, decide
from holdfast.core.membership import change_of, wants_lease
from holdfast.core.observation import Observation
from holdfast.model.errors import (
    ConfigurationError,
    EnvironmentFault,
    HoldfastError,
    PostgresError,
    ProtocolViolation,
    RegisterError,
    StoreUnavailable,
)
from holdfast.model.event import Event
from holdfast.model.keys import Keys
from holdfast.model.register import Member, NodeRecord, Phase
from holdfast.model.report import NodeReport
from holdfast.model.server import ABSENT_SERVER, ServerStatus, ServerView
from holdfast.model.settings import NodeSettings
from holdfast.node.appointment import Appointment
from holdfast.node.clock import monotonic_ms
from holdfast.node.control import Control
from holdfast.node.fencing import Fencing
from holdfast.node.hooks import Hooks
from holdfast.node.isolation import Isolation
from holdfast.node.lease import Leadership, LeaseKeeper
from holdfast.node.observer import Look, Observer
from holdfast.node.pace import is_urgent
from holdfast.node.parts import Parts
from holdfast.node.peers import Peers, PrimaryProbe
from holdfast.node.performer import Performer
from holdfast.node.publisher import Publisher
from holdfast.node.pulse import Pulse
from holdfast.node.registry import Registry
from holdfast.node.slots import SlotKeeper
from holdfast.node.telling import record_of, report_of
from holdfast.node.verdicts import VerdictNotes
from holdfast.node.watchdog import Watchdog

log = structlog.get_logger(__name__)


@dataclass(slots=True)
class Pause:
    """An action that failed waits before it is tried again."""

    until_ms: int
    length_ms: int


class Agent:
    """The agent of one node; `run` returns when it was asked to stop, with PostgreSQL stopped."""

    def __init__(self, settings: NodeSettings, parts: Parts, *, bootstrap: bool) -> None:
        name, timeouts = settings.node.name, settings.timeouts
        self._settings = settings
        self._timeouts = timeouts
        self._server = parts.server
        self._store = parts.store
        self._wake = asyncio.Event()
        self._stopping = False
        keys = Keys(settings.cluster.name)
        self._keys = keys
        self._promise = parts.promise
        self._names = parts.names
        self._observer = Observer(name, timeouts, settings.thresholds)
        self._registry = Registry(parts.store, keys, self._wake.set, lambda: self._probe.hurry())
        self._peers = Peers(name, timeouts, parts.peers, lambda: self._registry.nodes, self._wake.set)
        self._probe = PrimaryProbe(parts.sessions, timeouts)
        self._pulse = Pulse(parts.server, timeouts, self.serves_writes, self._epoch)
        self._journal = parts.journal
        self._publisher = Publisher(parts.store, keys, timeouts)
        self._performer = Performer(
            settings, parts.server, parts.store, self._registry, self._peers, self._promise, self._names,
            self._observer, self._journal, self._wake.set,
        )  # fmt: skip
        self._performer.creating = bootstrap
        self._keeper = LeaseKeeper(
            parts.server, parts.store, self._registry, keys, timeouts, self._ask_members, self._wake.set
        )
        self.control = Control(
            parts.server, parts.store, self._registry, keys, parts.journal, timeouts, lambda: self._last
        )
        self._appointment = Appointment(
            parts.store, self._registry, keys, timeouts, self.control, parts.journal, self.serves_writes
        )
        self._hooks = Hooks(settings.hooks, settings.cluster.name, name, parts.journal, timeouts.kill_ms)
        self._fencing = Fencing(settings.fencing, settings.cluster.name, name, parts.journal, timeouts.kill_ms)
        self._isolation = Isolation(settings, parts.gate, parts.store, parts.journal, self._wake.set)
        self._watchdog = Watchdog(settings.fencing, lambda: self._guards_primary)
        self._guards_primary = False
        self._pledged_until_ms = monotonic_ms() + timeouts.lease_ms  # a former life may have given its word
        self._last: Observation | None = None
        self._decision: Decision | None = None
        self._rule_noted: str | None = None
        self._verdicts = VerdictNotes(parts.journal)
        self._pauses: dict[type[a.Action], Pause] = {}
        self._ever_started = False
        self._streamed: Member | None = None
        self._exit_watch: asyncio.Task[None] | None = None
        self._slots = SlotKeeper(parts.server, timeouts, self._peers, parts.journal, lambda: self._last)

    # ---- life -------------------------------------------------------------------------------------------------

    async def prepare(self) -> None:
        """Read the promise, pick up a server left running; raises ConfigurationError, EnvironmentFault."""
        self._watchdog.check()
        self._promise.load(self._settings.cluster.name)
        self._ever_started = await self._server.adopt()
        await self._keeper.adopt()
        await self._isolation.prepare()
        promise = self._promise.current
        if promise is not None:
            self._performer.creating = self._performer.creating and promise.epoch == 0
        if self._server.system_identifier() is not None and not self._is_spoken_for():
            await self._name_directory()

    async def run(self) -> None:
        """Observe, decide and apply until `stop`; raises ConfigurationError or EnvironmentFault before the start."""
        async with asyncio.TaskGroup() as group:
            helpers = [
                group.create_task(self._registry.run()),
                group.create_task(self._peers.run()),
                group.create_task(self._probe.run(self._leading_record, self._wake.set)),
                group.create_task(self._journal.run()),
                group.create_task(self._publisher.run()),
                group.create_task(self._pulse.run()),
                group.create_task(self._keeper.run()),
                group.create_task(self._appointment.run()),
                group.create_task(self._hooks.run()),
                group.create_task(self._watchdog.run()),
                group.create_task(self._slots.run()),
            ]
            try:
                await self._reach_store()
                while not self._stopping:
                    await self._turn()
                    self._watchdog.turned()
                    await self._rest()
            finally:
                for helper in helpers:
                    helper.cancel()
                if self._exit_watch is not None:
                    self._exit_watch.cancel()
                await self._peers.close()
                await self._probe.close()
        await self._leave()

    async def _reach_store(self) -> None:
        """Wait for the first word of the store; for ever only if there is a server to look after."""
        limit_ms = None if self._ever_started else self._timeouts.store_first_ms
        try:
            async with asyncio.timeout(None if limit_ms is None else limit_ms / 1000):
                await self._registry.synced.wait()
        except TimeoutError:
            endpoints = ", ".join(self._settings.store.endpoints)
            raise EnvironmentFault(
                f"store.endpoints: no etcd answers at {endpoints}: start it, or correct the setting"
            ) from None

    def stop(self) -> None:
        """Ask `run` to stop PostgreSQL and return."""
        self._stopping = True
        self._wake.set()

    async def _leave(self) -> None:
        await self._performer.cancel_job()
        self._journal.record("agent.stopped", self._epoch())
        try:
            if not self._registry.policy.paused:
                await self._server.stop("fast", self._timeouts.stop_ms)
            self._watchdog.close()
        finally:
            await self._fencing.close()
            await self._isolation.close()
            await self._performer.capturing.close()
            await self._journal.flush()
            await self._publisher.withdraw()
            await self._server.close()

    # ---- one turn ---------------------------------------------------------------------------------------------

    async def _turn(self) -> None:
        self._take_failure()
        if self._has_nameless_directory():
            await self._name_directory()
        server = await self._look_at_server()
        o = self._observer.observe(self._look(server))
        self._last = o
        self._peers.hurried = o.verdict is not None and o.verdict.is_trouble
        try:
            decision = decide(o)
            coordination = coordinate(o)
        except ProtocolViolation as violation:
            await self._fence(o, violation)
            return
        self._decision = decision
        self._note(decision, o)
        self._verdicts.note(o.verdict)
        self._performer.capturing.look(o)
        self._isolation.look(o)
        self._note_role(o)
        if o.trouble is None:
            self._performer.alarm = None
        self._performer.begin_turn()
        performed = await self._perform(decision.actions, decision.rule.id, o)
        if coordination is not None:
            opened = await self._perform(coordination.actions, coordination.rule.id, o)
            performed |= opened
            self._note_coordination(coordination, o)
            if opened and any(isinstance(action, a.OpenEpoch) for action in coordination.actions):
                self._fencing.epoch_opened(o)
        leads = decision.duty is Duty.LEAD and decision.situation in (Situation.OPEN, Situation.MARKED)
        if leads and o.register is not None:
            change = change_of(o, o.register)
            if change is not None:
                performed |= await self._perform(change.actions, change.rule.value, o)
        self._keeper.want(self._lease_wanted(decision, o))
        if performed:
            self._wake.set()
        epoch = self._epoch() if self.serves_writes() or self.serves_reads() else 0
        self._publisher.publish(record_of(self._settings, o, epoch))
        await self._slots.ensure(o)

    async def _perform(self, actions: tuple[a.Action, ...], rule: str, o: Observation) -> bool:
        performed = False
        for action in actions:
            kind = type(action)
            pause = self._pauses.get(kind)
            if pause is not None and o.now_ms < pause.until_ms:
                break
            try:
                did = await self._performer.perform(action, rule, o)
            except (ConfigurationError, EnvironmentFault) as error:
                if not self._ever_started:
                    raise
                self._failed(kind, rule, error)
                break
            except (StoreUnavailable, PostgresError, RegisterError, OSError) as error:
                self._failed(kind, rule, error)
                break
            self._pauses.pop(kind, None)
            self._ever_started |= isinstance(action, a.Start)
            if isinstance(action, a.Start):
                self._slots.server_started()
                self._keeper.server_started()
            performed |= did and not isinstance(action, (a.AskPeers, a.Await, a.Alarm))
        return performed

    def _failed(self, kind: type[a.Action], rule: str, error: HoldfastError | OSError) -> None:
        former = self._pauses.get(kind)
        length_ms = min(former.length_ms * 2, self._timeouts.retry_max_ms) if former else self._timeouts.retry_min_ms
        self._pauses[kind] = Pause(monotonic_ms() + length_ms, length_ms)
        self._journal.record(
            "action.failed", self._epoch(), rule, action=kind.__name__, error=str(error), again_in_ms=length_ms
        )

    def _take_failure(self) -> None:
        if self._performer.failure is None:
            return
        (kind, failure), self._performer.failure = self._performer.failure, None
        if isinstance(failure, (ConfigurationError, EnvironmentFault)) and not self._ever_started:
            raise failure
        if not isinstance(failure, (HoldfastError, OSError)):
            raise failure
        self._failed(kind, self._rule_noted or "", failure)

    async def _fence(self, o: Observation, violation: ProtocolViolation) -> None:
        if self._performer.alarm != str(violation):
            self._performer.alarm = str(violation)
            self._journal.record("violation", o.promised, None, reason=str(violation))
        if o.server.status in (ServerStatus.PRIMARY, ServerStatus.UNRESPONSIVE):
            await self._server.stop("immediate", self._timeouts.fence_ms)

    # ---- looking ----------------------------------------------------------------------------------------------

    def _is_spoken_for(self) -> bool:
        """Whether the promise speaks for the directory that is there."""
        promise = self._promise.current
        if promise is None or promise.incarnation is None:
            return False
        return promise.incarnation == self._server.incarnation()

    def _has_nameless_directory(self) -> bool:
        promise = self._promise.current
        if promise is None or promise.incarnation is not None or self._performer.busy:
            return False
        return self._server.system_identifier() is not None

    async def _name_directory(self) -> None:
        """A directory that no promise speaks for is a new member, and streams under its new name only."""
        await self._server.stop("fast", self._timeouts.stop_ms)
        if self._promise.current is not None:
            incarnation = self._names.incarnation()
            await self._promise.speak_for(incarnation)
            await self._server.set_incarnation(incarnation)

    async def _look_at_server(self) -> ServerView:
        if self._performer.rebuilding:
            return ABSENT_SERVER
        view = await self._server.view()
        self._pulse.saw(view)
        return view

    def _look(self, server: ServerView) -> Look:
        return Look(
            now_ms=monotonic_ms(),
            server=server,
            system_identifier=self._server.system_identifier() if not self._performer.rebuilding else None,
            promise=self._promise.current,
            creating=self._performer.creating,
            rebuilding=self._performer.rebuilding,
            register=self._registry.register,
            register_revision=self._registry.register_revision,
            unreadable=self._registry.unreadable is not None,
            recruits=self._registry.recruits(),
            nodes=self._registry.nodes,
            peers=self._peers.known,
            probe=self._probe.result,
            vitals=self._pulse.vitals(),
            proxies=tuple(self._registry.proxies.values()),
            obeying=dict(self._registry.obeying),
            policy=self._registry.policy,
            approved_epoch=self._registry.approved_epoch,
            lease=self._registry.lease,
            lease_renewed_ms=self._registry.lease_renewed_ms,
            leased_until_ms=self._leased_until_ms(),
            pledged_until_ms=self._pledged_until_ms if self._is_bound() else None,
        )

    # ---- the lease --------------------------------------------------------------------------------------------

    def _lease_wanted(self, decision: Decision, o: Observation) -> Leadership | None:
        leads = decision.duty in (Duty.LEAD, Duty.LAPSED, Duty.YIELD, Duty.PAUSED) and o.led_by == o.member
        if o.register is None or o.member is None or not leads or o.server.status is not ServerStatus.PRIMARY:
            return None
        if o.register.phase is not Phase.SERVING or not (wants_lease(o, o.register) or self._performer.in_doubt):
            return None
        return Leadership(o.member, o.register.epoch, o.server.position.lsn if o.server.position else None)

    def _leased_until_ms(self) -> int | None:
        register, last = self._registry.register, self._last
        if register is None or last is None:
            return None
        return self._keeper.until_ms(last.member, register.epoch)

    def _is_bound(self) -> bool:
        """Whether a word given counts: with a quorum, recruits are safe without it."""
        register = self._registry.register
        return register is not None and register.committed.quorum.k == 0

    async def _ask_members(self, leadership: Leadership) -> bool:
        register = self._registry.register
        if register is None or register.phase is not Phase.SERVING or register.epoch != leadership.epoch:
            return False
        return await self._peers.pledges(register.voters, leadership.leader, leadership.epoch)

    def pledge(self, leader: Member, epoch: int) -> bool:
        """Promise a leader that is cut off from the store to join no epoch for the length of a lease; if possible."""
        o = self._last
        if o is None or not may_pledge(o, leader, epoch) or self._registry.register != o.register:
            return False
        self._pledged_until_ms = monotonic_ms() + self._timeouts.lease_ms
        return True

    def _leading_record(self) -> NodeRecord | None:
        register = self._registry.register
        if register is None:
            return None
        about = register.candidate if register.phase is Phase.PROMOTING else register.leader
        if about is None or about.node == self._settings.node.name:
            return None
        return self._registry.nodes.get(about.node)

    async def _rest(self) -> None:
        """Until something happens, the server's end included; at most a tick."""
        busy = not self._performer.busy and is_urgent(self._last, self._decision)
        tick_ms = self._timeouts.busy_tick_interval_ms if busy else self._timeouts.tick_interval_ms
        running = self._last is not None and self._last.server.status not in (ServerStatus.STOPPED, ServerStatus.ABSENT)
        if running and (self._exit_watch is None or self._exit_watch.done()):
            self._exit_watch = asyncio.create_task(self._wake_at_exit())
        timer = asyncio.get_running_loop().call_later(tick_ms / 1000, self._wake.set)
        try:
            if self._wake.is_set():
                await asyncio.sleep(0)  # others get their turn all the same
            await self._wake.wait()
        finally:
            timer.cancel()
        self._wake.clear()

    async def _wake_at_exit(self) -> None:
        await self._server.exited.wait()
        self._wake.set()

    def _note(self, decision: Decision, o: Observation) -> None:
        if decision.rule.id != self._rule_noted:
            self._rule_noted = decision.rule.id
            log.info("rule", rule=decision.rule.id, situation=decision.situation, duty=decision.duty, epoch=o.promised)
        attached = decision.situation is Situation.ATTACHED and o.server.streaming
        if attached and decision.duty is Duty.FOLLOW and self._streamed != o.led_by:
            self._streamed = o.led_by
            upstream = o.led_by.node if o.led_by else None
            self._journal.record("node.rejoined", self._epoch(), decision.rule.id, upstream=upstream)
        elif not attached and decision.situation is not Situation.SILENT:
            self._streamed = None

    def _note_role(self, o: Observation) -> None:
        """A server that does not answer, or that starts, keeps the role that it had."""
        status = o.server.status
        if status is not ServerStatus.UNRESPONSIVE:
            self._guards_primary = status is ServerStatus.PRIMARY
        if self.serves_writes():
            self._hooks.role_is("primary", self._epoch())
        elif status is ServerStatus.STANDBY:
            self._hooks.role_is("standby", self._epoch())
        elif status in (ServerStatus.STOPPED, ServerStatus.ABSENT):
            self._hooks.role_is("stopped", self._epoch())

    def _note_coordination(self, coordination: Coordination, o: Observation) -> None:
        if coordination.actions:
            log.info("rule", rule=coordination.rule.id, phase=coordination.phase, signal=coordination.signal)

    # ---- what others are told ---------------------------------------------------------------------------------

    def _epoch(self) -> int:
        return self._registry.register.epoch if self._registry.register is not None else 0

    def recent_events(self) -> tuple[Event, ...]:
        """What this agent noted lately, oldest first."""
        return tuple(self._journal.recent)

    def has_looked(self) -> bool:
        """Whether there is anything to tell yet: before the first look, "absent" would depose a healthy primary."""
        return self._last is not None

    def serves_writes(self) -> bool:
        """Whether this node is the primary and acknowledges."""
        return self._is(Situation.OPEN, Duty.LEAD) or self._is_paused_as(Situation.OPEN, leads=True)

    def serves_reads(self) -> bool:
        """Whether this node is a standby that streams from the primary."""
        streaming = self._last is not None and self._last.server.streaming
        return (
            streaming
            and not self._isolation.shut
            and (self._is(Situation.ATTACHED, Duty.FOLLOW) or self._is_paused_as(Situation.ATTACHED, leads=False))
        )

    def fresh_for_ms(self) -> int:
        """For how long the primary here is surely the only one: by its quorum's last word, or by its lease."""
        now_ms, leased_until_ms = monotonic_ms(), self._leased_until_ms()
        if not self.serves_writes():
            return 0
        if leased_until_ms is not None:
            return max(0, leased_until_ms - now_ms)
        confirmed = self._pulse.vitals().quorum
        if confirmed.age_ms is None or confirmed.latency_ms is None:
            return 0
        return max(0, self._timeouts.freshness_ms - confirmed.age_ms - confirmed.latency_ms)

    def is_healthy(self) -> bool:
        """Whether PostgreSQL answers its agent."""
        status = self._last.server.status if self._last is not None else ServerStatus.ABSENT
        return status in (ServerStatus.PRIMARY, ServerStatus.STANDBY) and self._performer.alarm is None

    def _is_paused_as(self, situation: Situation, *, leads: bool) -> bool:
        """Whether this node, in a paused cluster, is what the register calls it: clients notice no pause."""
        o = self._last
        if o is None or o.register is None or o.register.phase is not Phase.SERVING:
            return False
        return self._is(situation, Duty.PAUSED) and o.led_by is not None and (o.led_by == o.member) is leads

    def _is(self, situation: Situation, duty: Duty) -> bool:
        return self._decision is not None and (self._decision.situation, self._decision.duty) == (situation, duty)

    def report(self) -> NodeReport:
        """The node now."""
        vitals, identifier = self._pulse.vitals(), self._server.system_identifier()
        return report_of(
            self._settings.node.name, self._last, self._decision, self._registry, self._performer, vitals, identifier,
            self._isolation.told,
        )  # fmt: skip
