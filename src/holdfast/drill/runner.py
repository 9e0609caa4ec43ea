"""The runner of every drill: from a whole cluster under load, through the fault, to the verdict.

It goes on until the cluster is whole again by itself, then compares every acknowledged row with what is on the
primary and on every standby.
"""

from __future__ import annotations

import asyncio
import random
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from dataclasses import dataclass, field
from datetime import UTC, datetime
from pathlib import Path

import psycopg
import structlog

from holdfast.core.phases import failover_marks
from holdfast.drill.cluster import ClusterUnderTest
from holdfast.drill.hardship import Hardship
from holdfast.drill.judge import Judge
from holdfast.drill.observer import Observer, Plan, Step
from holdfast.drill.result import DrillResult
from holdfast.drill.scenario import Drill, NotInjected, Scene
from holdfast.drill.scenario import Step as DrillStep
from holdfast.drill.workload import Workload, steady_clock
from holdfast.model.errors import HoldfastError, RegisterError, StoreUnavailable
from holdfast.model.event import Event
from holdfast.model.register import Phase, Register
from holdfast.model.timeouts import DrillTimeouts

log = structlog.get_logger(__name__)


@dataclass(frozen=True, slots=True)
class DrillOptions:
    """How to run one. ``report_path`` is where the page goes (None: no page); ``keep_rows`` leaves the table behind.

    ``large_data`` loads more than shared_buffers first, ``long_readers`` keeps a reader on each standby that replay
    conflicts with, ``checkpoint`` breaks the primary in the middle of a CHECKPOINT.
    """

    seed: int = 1
    large_data: bool = False
    long_readers: bool = False
    checkpoint: bool = False
    keep_rows: bool = False
    report_path: Path | None = None
    timeouts: DrillTimeouts = field(default_factory=DrillTimeouts)

    @property
    def variants(self) -> tuple[str, ...]:
        """What makes this run harder, in words."""
        named = {
            "data larger than shared_buffers": self.large_data,
            "a long reader on each standby": self.long_readers,
            "a checkpoint under way": self.checkpoint,
        }
        return tuple(name for name, chosen in named.items() if chosen)


async def run_drill(drill: Drill, cluster: ClusterUnderTest, options: DrillOptions, observer: Observer) -> DrillResult:
    """Run a drill once; raises HoldfastError if it could not be tried, NotInjected if its fault was not there."""
    return await Run(drill, cluster, options, observer).run()


class Run:
    """One run, from a whole cluster to the verdict."""

    def __init__(self, drill: Drill, cluster: ClusterUnderTest, options: DrillOptions, observer: Observer) -> None:
        self._drill = drill
        self._cluster = cluster
        self._options = options
        self._times = options.timeouts
        self._observer = observer
        self._now_ms = steady_clock()
        self._rng = random.Random(f"{options.seed}/fault")
        self._workload = self._make_workload()
        self._hardship = Hardship(self._workload.schema, self._times)
        self._judge = Judge(drill, cluster, options, self._workload, self._now_ms)
        self._events: tuple[Event, ...] = ()
        self._known: set[tuple[float, str, str]] = set()
        self._told_first_write = False

    def _make_workload(self) -> Workload:
        load, cluster = self._drill.load, self._cluster
        turned = getattr(cluster, "write_dsn_turned", None)
        return Workload(
            cluster.write_dsn if turned is None else (cluster.write_dsn, turned),
            cluster.read_dsn,
            run_id=f"{datetime.now(UTC):%Y%m%d_%H%M%S}_{self._options.seed}",
            writers=load.writers,
            readers=load.readers,
            idle=load.idle,
            fresh_readers=load.fresh_readers,
            long_writers=load.long_writers,
            long_ms=load.long_ms,
            ledgers=load.ledgers,
            seed=self._options.seed,
            rate_per_s=load.rate_per_s,
            now_ms=self._now_ms,
            timeouts=self._times,
        )

    async def run(self) -> DrillResult:
        """All steps in order; every session that was opened is closed, also when it is interrupted."""
        scene: Scene | None = None
        try:
            register = await self._wait_until_whole()
            scene = await self._prepare(register)
            async with self._sampling():
                await self._warm_up(scene)
                await self._break(scene)
                await self._go_on_until_whole(scene)
            self._observer.step(Step.CHECKING)
            await self._read_journal()
            if self._options.checkpoint and not await self._hardship.checkpoint_was_cut_off():
                self._judge.problem("the CHECKPOINT was done before the kill: this variant was not tried")
            result = await self._judge.judge(self._events)
            await self._clean_up(result)
            self._observer.end(result)
            return result
        finally:
            self._observer.close()
            if scene is not None:
                await _undo(scene)
            await self._hardship.close()
            await self._workload.close()

    # -- before ---------------------------------------------------------------------------------------------------

    async def _wait_until_whole(self) -> Register:
        self._observer.step(Step.WAITING)
        if not await self._cluster.wait_until_whole(self._times.whole_before_s):
            raise HoldfastError(
                f"the cluster was not whole within {self._times.whole_before_s:g} s, so nothing was killed: "
                "a drill needs a serving primary and every standby streaming (holdfast status shows what is missing)"
            )
        register = await self._cluster.register()
        if register is None or register.phase is not Phase.SERVING:
            raise HoldfastError("no primary serves, so nothing was killed: see holdfast status")
        return register

    async def _prepare(self, register: Register) -> Scene:
        drill, load = self._drill, self._drill.load
        primary = register.committed.leader.node
        self._judge.begin(register)
        self._observer.begin(
            Plan(
                drill=drill.name,
                title=drill.title,
                cluster=self._cluster.name,
                nodes=tuple(self._cluster.nodes),
                primary=primary,
                durability=f"ANY {register.committed.quorum.k}",
                writers=load.writers,
                readers=load.readers,
                idle=load.idle,
                rate_per_s=load.rate_per_s,
                seed=self._options.seed,
                variants=self._options.variants,
            )
        )
        self._observer.step(Step.PREPARING)
        await self._workload.setup()
        if self._options.variants:
            await self._hardship.load(
                self._cluster.write_dsn,
                large=self._options.large_data,
                progress=lambda text: self._observer.step(Step.PREPARING, text),
            )
        standbys = [node for node in self._cluster.nodes if node != primary]
        self._rng.shuffle(standbys)
        return Scene(
            self._cluster,
            self._workload,
            primary,
            tuple(standbys),
            register.epoch,
            self._now_ms,
            self._judge.saw,
            self._judge.problem,
        )

    async def _warm_up(self, scene: Scene) -> None:
        self._observer.step(Step.WARM_UP)
        await self._workload.start()
        if self._options.long_readers:
            await self._hardship.read_for_long({n: await self._cluster.direct_dsn(n) for n in scene.standbys})
        if not self._drill.is_quiet_before:
            for step in self._drill.prepare:
                await self._perform(scene, step)
        await asyncio.sleep((self._times.warm_up_ms + self._rng.uniform(0, self._times.fault_jitter_ms)) / 1000)
        if self._drill.is_quiet_before:
            for step in self._drill.prepare:
                await self._perform(scene, step)
        await self._refuse_if_not_as_before(scene)
        try:
            if self._options.long_readers:
                await self._hardship.obstruct_replay(self._cluster.write_dsn)
            if self._options.checkpoint:
                direct = await self._cluster.direct_dsn(scene.primary)
                await self._hardship.start_checkpoint(direct, self._cluster.write_dsn)
        except psycopg.Error as error:
            raise HoldfastError(f"the hard variant could not be set up: {str(error).strip()}") from error

    async def _refuse_if_not_as_before(self, scene: Scene) -> None:
        register = await self._cluster.register()
        if register is None or register.epoch != scene.epoch_before or register.phase is not Phase.SERVING:
            later = [e for e in await self._cluster.events() if e.epoch > scene.epoch_before]
            why = next((f" ({e.detail.get('reason')})" for e in later if e.kind == "epoch.opened"), "")
            raise NotInjected(f"the cluster changed its leader during the warm-up{why}, so nothing was killed")
        if self._workload.history.acknowledged == 0:
            raise NotInjected(
                "no write was acknowledged during the warm-up, so nothing was killed: check the proxy's writable port"
            )

    # -- the fault ------------------------------------------------------------------------------------------------

    async def _break(self, scene: Scene) -> None:
        told = self._drill.fault_at(scene.primary)
        self._observer.step(Step.FAULT, told)
        first, *rest = self._drill.steps
        at_ms = self._now_ms()
        await first.action.perform(scene)
        at_ms = _as_number(scene.kept.get("fault_at_ms"), at_ms)
        self._judge.fault(at_ms, max(0.0, self._now_ms() - at_ms))
        self._observer.fault(at_ms, told, scene.epoch_before)
        self._judge.saw(await first.action.proof(scene))
        for step in rest:
            await self._perform(scene, step)
        self._judge.broken(_as_number(scene.kept.get("powered_off_at_ms"), self._now_ms()))

    async def _perform(self, scene: Scene, step: DrillStep) -> None:
        await asyncio.sleep(step.after_s)
        self._observer.step(Step.FAULT, step.action.words)
        self._judge.saw(f"did: {step.action.words}")
        await step.action.perform(scene)
        self._judge.saw(await step.action.proof(scene))

    # -- afterwards -----------------------------------------------------------------------------------------------

    async def _go_on_until_whole(self, scene: Scene) -> None:
        expected = self._drill.expect.failover
        if expected:
            self._observer.step(Step.FAILING_OVER)
            register = await self._wait_until_serving(scene.epoch_before)
            if register is None:
                self._judge.problem(f"no new primary served within {self._times.serving_s:g} s")
                await self._workload.stop()
                return
            self._observer.step(Step.SETTLING, f"{register.committed.leader.node} is the primary now")
        whole = None if self._drill.heal else asyncio.create_task(self._wait_until_whole_again())
        try:
            await asyncio.sleep(max(self._drill.watch_s, self._times.settle_ms / 1000))
            if whole is None:
                await self._heal(scene)
                await _undo(scene)
                whole = asyncio.create_task(self._wait_until_whole_again())
            if not whole.done():
                self._observer.step(Step.REJOINING, scene.primary)
            await whole
            if self._drill.heal:
                await asyncio.sleep(self._times.settle_ms / 1000)
        finally:
            if whole is not None:
                whole.cancel()
        await self._workload.stop()

    async def _heal(self, scene: Scene) -> None:
        for step in self._drill.heal:
            await self._perform(scene, step)

    async def _wait_until_whole_again(self) -> None:
        patience_s = self._times.rejoin_s if self._drill.expect.whole else self._times.settle_ms / 1000
        if await self._cluster.wait_until_whole(patience_s):
            self._judge.whole(self._now_ms())
        elif self._drill.expect.whole:
            self._judge.problem(f"the cluster was not whole again within {self._times.rejoin_s:g} s")

    async def _wait_until_serving(self, epoch_before: int) -> Register | None:
        """The register once a later epoch serves; None if that does not happen in time."""
        give_up_ms = self._now_ms() + self._times.serving_s * 1000
        while self._now_ms() < give_up_ms:
            try:
                register = await self._cluster.register()
            except StoreUnavailable as error:
                log.warning("the store did not answer", error=str(error))
                register = None
            if register is not None and register.epoch > epoch_before and register.phase is Phase.SERVING:
                return register
            await asyncio.sleep(self._times.sample_interval_ms / 2000)
        return None

    async def _clean_up(self, result: DrillResult) -> None:
        """Leave nothing behind, unless the rows are evidence of something wrong."""
        if self._options.keep_rows or not result.passed:
            return
        await self._hardship.close()
        try:
            await self._workload.drop()
        except psycopg.Error as error:
            log.warning("the drill's table stays", schema=self._workload.schema, error=str(error).strip())

    # -- watching -------------------------------------------------------------------------------------------------

    @asynccontextmanager
    async def _sampling(self) -> AsyncIterator[None]:
        """Tell the observer how the workload and the journal stand, until the block ends."""
        task = asyncio.create_task(self._sample())
        try:
            yield
        finally:
            task.cancel()
            await asyncio.wait([task])
        if not task.cancelled():
            task.result()

    async def _sample(self) -> None:
        while True:
            self._observer.sample(self._workload.counters())
            if self._judge.fault_at_ms:
                await self._read_journal()
                self._tell_first_write()
            await asyncio.sleep(self._times.sample_interval_ms / 1000)

    def _tell_first_write(self) -> None:
        serving_ms = failover_marks(self._events, epoch_before=self._judge.epoch_before).get("barrier")
        if self._told_first_write or serving_ms is None:
            return
        at_ms = self._workload.history.first_acknowledged_from(serving_ms)
        if at_ms is not None:
            self._told_first_write = True
            self._observer.first_write(at_ms)

    async def _read_journal(self) -> None:
        try:
            self._events = await self._cluster.events()
        except (StoreUnavailable, RegisterError) as error:
            log.warning("the journal could not be read", error=str(error))
            return
        for event in self._events:
            key = (event.at_ms, event.source, event.kind)
            after = event.epoch > self._judge.epoch_before or event.at_ms >= self._judge.fault_at_ms
            if after and key not in self._known:
                self._known.add(key)
                self._observer.event(event)


async def _undo(scene: Scene) -> None:
    """Put back what the steps changed, the last one first; what cannot be put back is said, and the rest still is."""
    while scene.undo:
        try:
            await scene.undo.pop()()
        except (HoldfastError, OSError, psycopg.Error) as error:
            log.warning("something that a drill changed could not be put back", error=str(error))


def _as_number(value: object, otherwise: float) -> float:
    return float(value) if isinstance(value, int | float) else otherwise


__all__ = ["DrillOptions", "NotInjected", "Run", "run_drill"]
