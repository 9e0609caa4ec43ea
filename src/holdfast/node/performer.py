"""Performs actions. Whatever takes long runs as a job beside the loop; whatever fails is tried again."""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Coroutine
from functools import partial
from typing import ClassVar

import structlog

from holdfast.core import actions as a
from holdfast.core.observation import Observation
from holdfast.model.capture import Occasion
from holdfast.model.errors import PostgresError, StoreUnavailable
from holdfast.model.keys import Keys
from holdfast.model.lost import LostLog, Unaccounted
from holdfast.model.lsn import Position
from holdfast.model.register import NO_QUORUM, Configuration, Member, Phase, Quorum, Recruit, Register
from holdfast.model.server import Upstream
from holdfast.model.settings import NodeSettings
from holdfast.node.capturing import Capturing
from holdfast.node.clock import monotonic_ms
from holdfast.node.coordinator import Coordinator, Hands
from holdfast.node.observer import Observer
from holdfast.node.parts import LocalServer
from holdfast.node.peers import Peers
from holdfast.node.promise import Names, Promise, PromiseKeeper
from holdfast.node.registry import Registry
from holdfast.store.contract import ABSENT, Store
from holdfast.store.journal import Journal

log = structlog.get_logger(__name__)


class Performer(Coordinator):
    """The hands of an agent. Methods raise StoreUnavailable and PostgresError; the agent tries again later."""

    def __init__(
        self,
        settings: NodeSettings,
        server: LocalServer,
        store: Store,
        registry: Registry,
        peers: Peers,
        promise: PromiseKeeper,
        names: Names,
        observer: Observer,
        journal: Journal,
        on_done: Callable[[], None],
    ) -> None:
        self._settings = settings
        self._timeouts = settings.timeouts
        self._node = settings.node.name
        super().__init__(store, registry, peers, Keys(settings.cluster.name), journal)
        self._server = server
        self._promise = promise
        self._names = names
        self._observer = observer
        self.capturing = Capturing(settings, server, journal)
        self._on_done = on_done
        self._job: asyncio.Task[None] | None = None
        self._detached: Position | None = None
        self._tidying: asyncio.Task[None] | None = None
        self._doubt: tuple[Register, int] | None = None
        """A swap of the quorum whose answer is not known, and the revision that it expected."""
        self._starts = 0
        self._promoting: tuple[int, int] | None = None
        """The epoch that the server was told to promote in, and at which of its starts."""
        self.rebuilding = False
        self.creating = False
        self.failure: tuple[type[a.Action], BaseException] | None = None
        """The last job that failed, and with what; the agent takes it from here."""

    @property
    def in_doubt(self) -> bool:
        """Whether the register may say another quorum than is known here."""
        return self._doubt is not None

    @property
    def busy(self) -> bool:
        """Whether a job is under way."""
        return self._job is not None and not self._job.done()

    async def cancel_job(self) -> None:
        """End the job under way; what it left half made is known to be so."""
        if self._job is not None:
            self._job.cancel()
            await asyncio.gather(self._job, return_exceptions=True)

    # ---- jobs -------------------------------------------------------------------------------------------------

    def _start_job(self, action: a.Action, work: Coroutine[None, None, None], *, rebuilding: bool) -> bool:
        if self.busy:
            work.close()
            return False
        self.rebuilding = rebuilding
        self._job = asyncio.create_task(work)
        self._job.add_done_callback(partial(self._job_ended, type(action)))
        return True

    def _job_ended(self, kind: type[a.Action], job: asyncio.Task[None]) -> None:
        self.rebuilding = False
        self.progress = None
        error = None if job.cancelled() else job.exception()
        if error is not None:
            self.failure = kind, error
        self._on_done()

    def _say(self, what: str, share: float | None) -> None:
        self.progress = what if share is None else f"{what} {share:.0%}"

    # ---- the data directory -----------------------------------------------------------------------------------

    async def _initialize(self, action: a.Initialize, rule: str, o: Observation) -> bool:
        async def work() -> None:
            await self._server.initialize()
            incarnation = self._names.incarnation()
            await self._promise.save(Promise(self._settings.cluster.name, self._names.cluster_id(), 0, incarnation))
            await self._server.set_incarnation(incarnation)

        return self._start_job(action, work(), rebuilding=True)

    async def _read_end_of_log(self, action: a.ReadEndOfLog, rule: str, o: Observation) -> bool:
        async def work() -> None:
            self._observer.own_end = await self._server.end_of_log()

        return self._start_job(action, work(), rebuilding=False)

    async def _rewind(self, action: a.Rewind, rule: str, o: Observation) -> bool:
        source, own_end = self._upstream(action.source), o.own_end
        if source is None or own_end is None or not await self._may_touch(action, Occasion.REWIND, rule, o):
            return False

        async def work() -> None:
            self._journal.record("rewind.begun", o.promised, rule, source=source.node, end=str(own_end.lsn))
            incarnation = await self._rename()
            try:
                self._tell_lost(await self._server.rewind(source, own_end, self._say), o.promised, rule)
            except PostgresError as error:
                self._journal.record("rewind.failed", o.promised, rule, reason=str(error))
                await self._clone_from(source, rule)
                return
            await self._server.set_incarnation(incarnation)
            self.capturing.touched()
            self._observer.rewound()
            self._journal.record("rewind.done", o.promised, rule, incarnation=incarnation)

        return self._start_job(action, work(), rebuilding=True)

    def _tell_lost(self, lost: LostLog | Unaccounted | None, epoch: int, rule: str) -> None:
        if isinstance(lost, Unaccounted):
            self._journal.record("log.unaccounted", epoch, rule, reason=lost.reason)
        elif lost is not None:
            self._journal.record(
                "log.accounted",
                epoch,
                rule,
                transactions=len(lost.of_clients),
                lost_bytes=lost.lost_bytes,
                fork=str(lost.fork_lsn),
                evidence=lost.evidence_dir,
            )
            if lost.salvage is not None:
                found = lost.salvage
                kind = "rows.salvaged" if found.is_whole else "rows.salvaged-in-part"
                self._journal.record(
                    kind, epoch, rule, rows=found.rows, took_ms=found.took_ms, missing="; ".join(found.notes)
                )

    async def _clone(self, action: a.Clone, rule: str, o: Observation) -> bool:
        source = self._upstream(action.source)
        if source is None or not await self._may_touch(action, Occasion.CLONE, rule, o):
            return False
        return self._start_job(action, self._clone_from(source, rule), rebuilding=True)

    async def _may_touch(self, action: a.Action, occasion: Occasion, rule: str, o: Observation) -> bool:
        """Whether the directory has been captured; else that is begun. A recruit it can be all the while."""
        if not self.capturing.is_due(occasion, o):
            return True
        if self.capturing.is_too_long(o):
            await self.cancel_job()
        self._start_job(action, self.capturing.capture(occasion, o, rule, self._say), rebuilding=False)
        return False

    async def _clone_from(self, source: Upstream, rule: str) -> None:
        register = self._registry.register
        if register is None:
            return
        incarnation = self._names.incarnation()
        epoch = self._promise.current.epoch if self._promise.current else 0
        name = self._settings.cluster.name
        await self._promise.save(Promise(name, register.cluster_id, max(epoch, register.epoch), incarnation))
        self._journal.record("clone.begun", register.epoch, rule, source=source.node)
        await self._server.clone(source, Member(self._node, incarnation), self._say)
        await self._server.set_incarnation(incarnation)
        self._observer.cloned()
        self.capturing.touched()
        self._journal.record("clone.done", register.epoch, rule, source=source.node, incarnation=incarnation)

    async def _rename(self) -> str:
        incarnation = self._names.incarnation()
        await self._promise.speak_for(incarnation)
        return incarnation

    # ---- the process ------------------------------------------------------------------------------------------

    async def _start(self, action: a.Start, rule: str, o: Observation) -> bool:
        follows = action.standby and o.led_by != o.member
        if follows and self.capturing.is_due(Occasion.START, o) and await self._server.has_failed():
            await self._may_touch(action, Occasion.START, rule, o)
            return False
        if self.capturing.underway:  # clients wait for this start
            await self.cancel_job()
        self._observer.starts(monotonic_ms())
        await self._server.start(standby=action.standby)
        self._observer.started()
        self.capturing.touched()
        self._starts += 1
        self._journal.record("postgres.started", o.promised, rule, standby=action.standby)
        return True

    async def _stop(self, action: a.Stop, rule: str, o: Observation) -> bool:
        if action.immediate:
            await self.cancel_job()
            await self._server.stop("immediate", self._timeouts.fence_ms)
        else:
            await self._server.stop("fast", self._timeouts.stop_ms)
        self._journal.record("postgres.stopped", o.promised, rule, immediate=action.immediate)
        return True

    async def _kill(self, action: a.Kill, rule: str, o: Observation) -> bool:
        await self.cancel_job()
        await self._server.kill()
        self._journal.record("postgres.killed", o.promised, rule)
        return True

    async def _hand_over(self, action: a.HandOver, rule: str, o: Observation) -> bool:
        async def work() -> None:
            give_up_ms = monotonic_ms() + self._timeouts.handover_drain_ms
            while monotonic_ms() < give_up_ms:
                if await self._server.active_transactions() == 0:
                    break
                await asyncio.sleep(self._timeouts.busy_tick_interval_ms / 1000)
            await self._server.stop("fast", self._timeouts.handover_stop_ms)
            self._journal.record("postgres.stopped", o.promised, rule, immediate=False)
            self._observer.own_end = await self._server.end_of_log()

        return self._start_job(action, work(), rebuilding=False)

    # ---- following and leading --------------------------------------------------------------------------------

    async def _persist_promise(self, action: a.PersistPromise, rule: str, o: Observation) -> bool:
        if self._promise.current is None and o.register is not None:
            await self._promise.save(Promise(self._settings.cluster.name, o.register.cluster_id, action.epoch, None))
        await self._promise.raise_to(action.epoch)
        return True

    async def _remember_register(self, action: a.RememberRegister, rule: str, o: Observation) -> bool:
        await self._promise.remember(action.age)
        return True

    async def _detach(self, action: a.Detach, rule: str, o: Observation) -> bool:
        self._detached = await self._server.detach()
        return True

    async def _report_recruit(self, action: a.ReportRecruit, rule: str, o: Observation) -> bool:
        position = o.own_end if o.own_end is not None else self._detached
        if position is None or o.member is None:
            raise PostgresError("an epoch cannot be joined without knowing where the own log ends")
        history = await self._server.history_of(position.timeline)
        replayed_lsn = o.server.replay_lsn or position.lsn
        heard_ms = o.stopped_ms if o.own_end is not None else self._server.heard_ms
        silent_ms = 0 if heard_ms is None else max(0, monotonic_ms() - heard_ms)
        recruit = Recruit(o.member, action.epoch, position, history, replayed_lsn, silent_ms)
        moment = self._journal.moment()
        await self._store.put(self._keys.recruit(action.epoch, self._node), recruit.to_json())
        self._journal.record(
            "recruit.joined",
            action.epoch,
            rule,
            stamp=moment,
            node=self._node,
            timeline=position.timeline,
            position=str(position.lsn),
        )
        return True

    async def _follow(self, action: a.Follow, rule: str, o: Observation) -> bool:
        upstream = self._upstream(action.member)
        if upstream is None or o.member is None:
            return False
        await self._server.follow(upstream, o.member)
        self._journal.record("upstream.set", o.promised, rule, upstream=action.member.node)
        return True

    async def _promote(self, action: a.Promote, rule: str, o: Observation) -> bool:
        # Told again at each turn until it is done: sessions that come in the way of replay give way.
        await self._server.promote(action.epoch)
        told_before = self._promoting == (action.epoch, self._starts)
        self._promoting = (action.epoch, self._starts)
        return not told_before

    async def _write_marker(self, action: a.WriteMarker, rule: str, o: Observation) -> bool:
        if o.register is not None and o.register.phase is Phase.PROMOTING:
            self._journal.record("primary.promoted", action.epoch, rule)
        record = await self._server.write_epoch_record(action.epoch)
        self._observer.marker = max(record, await self._server.flushed_lsn())
        return True

    async def _tell_postgres(self, action: a.TellPostgres, rule: str, o: Observation) -> bool:
        if self._doubt is not None:
            await self._resolve_doubt(self._doubt)
            return True
        await self._set_quorum(action.quorum, rule, o)
        return True

    async def _set_quorum(self, quorum: Quorum, rule: str, o: Observation) -> None:
        try:
            await self._server.set_quorum(quorum)
            # Commits that waited for the former names are released by a standby's next word: give it one to say.
            await self._server.heartbeat(o.promised, 2 * self._timeouts.heartbeat_interval_ms)
        finally:
            self._observer.told_postgres(monotonic_ms())
        self._journal.record("quorum.postgres", o.promised, rule, quorum=str(quorum))

    # ---- the register -----------------------------------------------------------------------------------------

    async def _resolve_doubt(self, doubt: tuple[Register, int]) -> None:
        """Learn what became of a swap whose answer was lost: try the very same one again.

        Whether it succeeds or not, the register is beyond the revision that the lost one expected, so that it cannot
        take effect any more.
        """
        new, expected_revision = doubt
        revision = await self._store.compare_and_swap(self._keys.register, new.to_json(), expected_revision)
        if revision is not None:
            self._registry.swapped(new, revision)
        else:
            await self._read_register()
        self._doubt = None

    async def _create_register(self, action: a.CreateRegister, rule: str, o: Observation) -> bool:
        system_identifier = self._server.system_identifier()
        if o.member is None or o.cluster_id is None or system_identifier is None:
            raise PostgresError("the new data directory cannot be read")
        witnesses = self._settings.cluster.witnesses
        voters = (*(self._settings.cluster.nodes or (self._node,)), *witnesses)
        nobody = Configuration(o.member, 0, NO_QUORUM)
        name = self._settings.cluster.name
        new = Register(
            name, o.cluster_id, system_identifier, 1, Phase.PROMOTING, o.member, voters, nobody, witnesses=witnesses
        )
        moment = self._journal.moment()
        revision = await self._store.compare_and_swap(self._keys.register, new.to_json(), ABSENT)
        self.creating = False
        if revision is not None:
            await self._promise.raise_to(1)
            self._registry.swapped(new, revision)
            self._journal.record("cluster.created", 1, rule, stamp=moment, node=self._node)
        return True

    async def _commit(self, action: a.CommitConfiguration, rule: str, o: Observation) -> bool:
        if o.register is not None and o.member is not None:
            new = o.register.served_by(o.member, action.quorum)
            if not await self._swap(o, new, "epoch.serving", rule, leader=self._node, quorum=str(action.quorum)):
                return False
            before = range(o.register.committed.epoch, new.epoch)
            self._tidying = asyncio.create_task(self._forget_recruits(before))
            if action.quorum.k:  # with k = 0 the lease comes first
                await self._set_quorum(action.quorum, rule, o)
        return True

    async def _forget_recruits(self, epochs: range) -> None:
        """What was written for epochs that are over; nobody waits for it."""
        for epoch in epochs:
            try:
                await self._store.delete_prefix(self._keys.recruits(epoch))
            except StoreUnavailable as error:
                log.debug("recruits.left", epoch=epoch, error=str(error))

    async def _tell_register(self, action: a.TellRegister, rule: str, o: Observation) -> bool:
        if o.register is None:
            return False
        new = o.register.requorumed(action.quorum)
        self._doubt = new, o.register_revision
        swapped = await self._swap(o, new, "quorum.register", rule, quorum=str(action.quorum))
        self._doubt = None
        return swapped

    # ---- others -----------------------------------------------------------------------------------------------

    async def _raise_alarm(self, action: a.Alarm, rule: str, o: Observation) -> bool:
        if self.alarm != action.reason:
            self.alarm = action.reason
            self._journal.record("alarm", o.promised, rule, reason=action.reason)
        return True

    def _upstream(self, member: Member) -> Upstream | None:
        record = self._registry.nodes.get(member.node)
        return None if record is None else Upstream(member.node, record.postgres_host, record.postgres_port)

    HANDS: ClassVar[Hands] = {
        **Coordinator.HANDS,
        a.Initialize: _initialize,
        a.CreateRegister: _create_register,
        a.PersistPromise: _persist_promise,
        a.RememberRegister: _remember_register,
        a.Detach: _detach,
        a.ReportRecruit: _report_recruit,
        a.Start: _start,
        a.Stop: _stop,
        a.Kill: _kill,
        a.Follow: _follow,
        a.Promote: _promote,
        a.WriteMarker: _write_marker,
        a.CommitConfiguration: _commit,
        a.TellPostgres: _tell_postgres,
        a.TellRegister: _tell_register,
        a.ReadEndOfLog: _read_end_of_log,
        a.Rewind: _rewind,
        a.Clone: _clone,
        a.HandOver: _hand_over,
        a.Alarm: _raise_alarm,
    }
