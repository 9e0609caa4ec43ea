"""A voter without PostgreSQL: it watches, judges and coordinates like any agent, and has no data to offer."""

from __future__ import annotations

import asyncio
import contextlib

import structlog

from holdfast.core import actions as a
from holdfast.core.coordination import coordinate
from holdfast.core.durability import may_pledge
from holdfast.core.observation import Observation
from holdfast.model.errors import EnvironmentFault, PostgresError, ProtocolViolation, RegisterError, StoreUnavailable
from holdfast.model.event import Event
from holdfast.model.keys import Keys
from holdfast.model.register import Member, NodeRecord, NodeState, Phase
from holdfast.model.report import NodeReport
from holdfast.model.server import ABSENT_SERVER
from holdfast.model.settings import WitnessSettings
from holdfast.node.clock import monotonic_ms
from holdfast.node.control import Control
from holdfast.node.coordinator import Coordinator
from holdfast.node.fencing import Fencing
from holdfast.node.observer import Look, Observer
from holdfast.node.peers import Peers, PrimaryProbe
from holdfast.node.publisher import Publisher
from holdfast.node.reach import PeerReach, SessionReach
from holdfast.node.registry import Registry
from holdfast.node.telling import NO_INCARNATION, report_of
from holdfast.node.verdicts import VerdictNotes
from holdfast.store.contract import Store
from holdfast.store.journal import Journal

log = structlog.get_logger(__name__)


class Witness:
    """The witness of one site; `run` returns when it was asked to stop."""

    def __init__(
        self, settings: WitnessSettings, store: Store, peers: PeerReach, sessions: SessionReach, journal: Journal
    ) -> None:
        name, timeouts = settings.witness.name, settings.timeouts
        keys = Keys(settings.cluster.name)
        self._name = name
        self._settings = settings
        self._timeouts = timeouts
        self._wake = asyncio.Event()
        self._stopping = False
        self._observer = Observer(name, timeouts, settings.thresholds)
        self._registry = Registry(store, keys, self._wake.set, lambda: self._probe.hurry())
        self._peers = Peers(name, timeouts, peers, lambda: self._registry.nodes, self._wake.set)
        self._probe = PrimaryProbe(sessions, timeouts)
        self._journal = journal
        self._publisher = Publisher(store, keys, timeouts)
        self._hands = Coordinator(store, self._registry, self._peers, keys, journal)
        self._fencing = Fencing(settings.fencing, settings.cluster.name, name, journal, timeouts.kill_ms)
        self._verdicts = VerdictNotes(journal)
        self.control = Control(self, store, self._registry, keys, journal, timeouts, lambda: self._last)
        self._last: Observation | None = None
        self._retry_after_ms = 0

    async def run(self) -> None:
        """Observe, judge and coordinate until `stop`; raises EnvironmentFault if the store is not heard of at all."""
        api = self._settings.api
        member = Member(self._name, NO_INCARNATION)
        self._publisher.publish(NodeRecord(member, NodeState.WITNESS, 0, "", 0, f"http://{api.host}:{api.port}"))
        async with asyncio.TaskGroup() as group:
            helpers = [
                group.create_task(self._registry.run()),
                group.create_task(self._peers.run()),
                group.create_task(self._probe.run(self._leading_record, self._wake.set)),
                group.create_task(self._journal.run()),
                group.create_task(self._publisher.run()),
            ]
            try:
                await self._reach_store()
                while not self._stopping:
                    await self._turn()
                    await self._rest()
            finally:
                for helper in helpers:
                    helper.cancel()
                await self._peers.close()
                await self._probe.close()
        await self._fencing.close()
        await self._journal.flush()
        await self._publisher.withdraw()

    def stop(self) -> None:
        """Ask `run` to return."""
        self._stopping = True
        self._wake.set()

    async def _reach_store(self) -> None:
        try:
            async with asyncio.timeout(self._timeouts.store_first_ms / 1000):
                await self._registry.synced.wait()
        except TimeoutError:
            endpoints = ", ".join(self._settings.store.endpoints)
            raise EnvironmentFault(
                f"store.endpoints: no etcd answers at {endpoints}: start it, or correct the setting"
            ) from None

    async def _turn(self) -> None:
        o = self._observer.observe(self._look())
        self._last = o
        self._peers.hurried = o.verdict is not None and o.verdict.is_trouble
        self._verdicts.note(o.verdict)
        self._hands.begin_turn()
        try:
            coordination = coordinate(o)
        except ProtocolViolation as violation:
            self._hands.alarm = str(violation)
            return
        self._hands.alarm = None
        if coordination is None or o.now_ms < self._retry_after_ms:
            return
        for action in coordination.actions:
            try:
                did = await self._hands.perform(action, coordination.rule.id, o)
            except (StoreUnavailable, RegisterError) as error:
                log.warning("action.failed", action=type(action).__name__, error=str(error))
                self._retry_after_ms = monotonic_ms() + self._timeouts.retry_min_ms
                return
            if did and isinstance(action, a.OpenEpoch):
                self._fencing.epoch_opened(o)

    def _look(self) -> Look:
        registry = self._registry
        return Look(
            now_ms=monotonic_ms(),
            server=ABSENT_SERVER,
            system_identifier=None,
            promise=None,
            creating=False,
            rebuilding=False,
            register=registry.register,
            register_revision=registry.register_revision,
            unreadable=registry.unreadable is not None,
            recruits=registry.recruits(),
            nodes=registry.nodes,
            peers=self._peers.known,
            probe=self._probe.result,
            proxies=tuple(registry.proxies.values()),
            obeying=dict(registry.obeying),
            policy=registry.policy,
            approved_epoch=registry.approved_epoch,
            lease=registry.lease,
            lease_renewed_ms=registry.lease_renewed_ms,
        )

    async def _rest(self) -> None:
        register = self._registry.register
        busy = register is not None and register.phase is Phase.RECRUITING
        tick_ms = self._timeouts.busy_tick_interval_ms if busy else self._timeouts.tick_interval_ms
        with contextlib.suppress(TimeoutError):
            async with asyncio.timeout(tick_ms / 1000):
                await self._wake.wait()
        self._wake.clear()

    def _leading_record(self) -> NodeRecord | None:
        register = self._registry.register
        if register is None:
            return None
        about = register.candidate if register.phase is Phase.PROMOTING else register.leader
        return self._registry.nodes.get(about.node) if about is not None else None

    # ---- what others are told, and may ask for ----------------------------------------------------------------

    def report(self) -> NodeReport:
        """This voter now."""
        return report_of(self._name, self._last, None, self._registry, self._hands, None, None)

    def recent_events(self) -> tuple[Event, ...]:
        """What this witness noted lately, oldest first."""
        return tuple(self._journal.recent)

    def has_looked(self) -> bool:
        """Whether there is anything to tell yet."""
        return self._last is not None

    def serves_writes(self) -> bool:
        """Never."""
        return False

    def serves_reads(self) -> bool:
        """Never."""
        return False

    def fresh_for_ms(self) -> int:
        """Never for any time: no primary is here."""
        return 0

    def is_healthy(self) -> bool:
        """Whether it can vote."""
        return self._registry.connected and self._hands.alarm is None

    def pledge(self, leader: Member, epoch: int) -> bool:
        """Promise a leader that is cut off from the store to join no epoch: a witness joins none anyway."""
        return self._last is not None and may_pledge(self._last, leader, epoch)

    async def checkpoint(self) -> None:
        """Raises PostgresError: there is none here to ask."""
        raise PostgresError("a witness has no PostgreSQL")
