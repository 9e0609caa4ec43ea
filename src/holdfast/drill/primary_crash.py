"""The drill *primary-crash*: under load, SIGKILL the primary's whole PostgreSQL; nothing acknowledged may be lost.

It goes on until a new primary serves and the old one is back as a standby by itself, then compares every acknowledged
row with what is on the new primary and on every standby.
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

from holdfast.drill.checker import Verdict, check
from holdfast.drill.cluster import ClusterUnderTest
from holdfast.drill.hardship import Hardship
from holdfast.drill.history import Row
from holdfast.drill.observer import Observer, Plan, Step
from holdfast.drill.report import write_report
from holdfast.drill.result import (
    Cluster,
    Connections,
    DrillResult,
    Reads,
    Writes,
    failover_marks,
    phases_from_journal,
    rejoined_at_ms,
)
from holdfast.drill.series import Samples
from holdfast.drill.workload import RATE_PER_S, Workload, steady_clock
from holdfast.model.errors import EnvironmentFault, HoldfastError, RegisterError, StoreUnavailable
from holdfast.model.event import Event
from holdfast.model.register import Phase, Register
from holdfast.model.timeouts import DrillTimeouts

NAME = "primary-crash"
TITLE = "The primary's PostgreSQL is killed under load"

log = structlog.get_logger(__name__)


@dataclass(frozen=True, slots=True)
class DrillOptions:
    """How to run it. ``report_path`` is where the page goes (None: no page); ``keep_rows`` leaves the table behind.

    ``large_data`` loads more than shared_buffers first, ``long_readers`` keeps a reader on each standby that replay
    conflicts with, ``checkpoint`` kills the primary in the middle of a CHECKPOINT.
    """

    seed: int = 1
    writers: int = 8
    readers: int = 2
    idle: int = 100
    rate_per_s: float = RATE_PER_S
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


async def run_primary_crash(cluster: ClusterUnderTest, options: DrillOptions, observer: Observer) -> DrillResult:
    """Run the drill once; raises HoldfastError if it could not be tried (then nothing was killed, or it is said)."""
    return await _Run(cluster, options, observer).run()


class _Run:
    """One run, from a whole cluster to the verdict."""

    def __init__(self, cluster: ClusterUnderTest, options: DrillOptions, observer: Observer) -> None:
        self._cluster = cluster
        self._options = options
        self._times = options.timeouts
        self._observer = observer
        self._now_ms = steady_clock()
        self._started_at_ms = self._now_ms()
        self._rng = random.Random(f"{options.seed}/fault")
        run_id = f"{datetime.now(UTC):%Y%m%d_%H%M%S}_{options.seed}"
        self._workload = Workload(
            cluster.write_dsn,
            cluster.read_dsn,
            run_id=run_id,
            writers=options.writers,
            readers=options.readers,
            idle=options.idle,
            seed=options.seed,
            rate_per_s=options.rate_per_s,
            now_ms=self._now_ms,
            timeouts=self._times,
        )
        self._hardship = Hardship(self._workload.schema, self._times)
        self._events: tuple[Event, ...] = ()
        self._known: set[tuple[float, str, str]] = set()
        self._told_first_write = False
        self._problems: list[str] = []
        self._fault_at_ms = 0.0
        self._injection_ms = 0.0
        self._whole_at_ms: float | None = None
        self._epoch_before = 0
        self._old_primary = ""
        self._new_primary: str | None = None
        self._agreement: dict[str, bool] = {}

    async def run(self) -> DrillResult:
        """All steps in order; every session that was opened is closed, also when it is interrupted."""
        try:
            register = await self._wait_until_whole()
            await self._prepare(register)
            async with self._sampling():
                await self._load_and_kill()
                await self._go_on_until_rejoined()
            verdict = await self._judge()
            result = self._result(register, verdict)
            await self._clean_up(result)
            result = self._with_report(result)
            self._observer.end(result)
            return result
        finally:
            self._observer.close()
            await self._hardship.close()
            await self._workload.close()

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

    async def _prepare(self, register: Register) -> None:
        options = self._options
        self._old_primary = register.committed.leader.node
        self._epoch_before = register.epoch
        self._observer.begin(
            Plan(
                drill=NAME,
                title=TITLE,
                cluster=self._cluster.name,
                nodes=tuple(self._cluster.nodes),
                primary=self._old_primary,
                durability=f"ANY {register.committed.quorum.k}",
                writers=options.writers,
                readers=options.readers,
                idle=options.idle,
                rate_per_s=options.rate_per_s,
                seed=options.seed,
                variants=options.variants,
            )
        )
        self._observer.step(Step.PREPARING)
        await self._workload.setup()
        if options.variants:
            await self._hardship.load(
                self._cluster.write_dsn,
                large=options.large_data,
                progress=lambda text: self._observer.step(Step.PREPARING, text),
            )

    async def _load_and_kill(self) -> None:
        self._observer.step(Step.WARM_UP)
        await self._workload.start()
        if self._options.long_readers:
            standbys = [node for node in self._cluster.nodes if node != self._old_primary]
            await self._hardship.read_for_long({n: await self._cluster.direct_dsn(n) for n in standbys})
        await asyncio.sleep((self._times.warm_up_ms + self._rng.uniform(0, self._times.fault_jitter_ms)) / 1000)
        await self._refuse_if_not_as_before()
        try:
            if self._options.long_readers:
                await self._hardship.obstruct_replay(self._cluster.write_dsn)
            if self._options.checkpoint:
                direct = await self._cluster.direct_dsn(self._old_primary)
                await self._hardship.start_checkpoint(direct, self._cluster.write_dsn)
        except psycopg.Error as error:
            raise HoldfastError(f"the hard variant could not be set up: {str(error).strip()}") from error
        self._observer.step(Step.FAULT, f"kill -9 of the whole PostgreSQL of {self._old_primary}")
        self._fault_at_ms = await self._cluster.kill_postgres(self._old_primary)
        self._injection_ms = max(0.0, self._now_ms() - self._fault_at_ms)
        self._observer.fault(self._fault_at_ms, f"PostgreSQL of {self._old_primary} killed", self._epoch_before)

    async def _refuse_if_not_as_before(self) -> None:
        register = await self._cluster.register()
        if register is None or register.epoch != self._epoch_before or register.phase is not Phase.SERVING:
            raise HoldfastError(
                "the cluster changed its leader during the warm-up, so nothing was killed: "
                "look at its journal (holdfast status), then run the drill again"
            )
        if self._workload.history.acknowledged == 0:
            raise HoldfastError(
                "no write was acknowledged during the warm-up, so nothing was killed: check the proxy's writable port"
            )

    async def _go_on_until_rejoined(self) -> None:
        self._observer.step(Step.FAILING_OVER)
        register = await self._wait_until_serving()
        if register is None:
            self._problems.append(f"no new primary served within {self._times.serving_s:g} s")
            await self._workload.stop()
            return
        self._new_primary = register.committed.leader.node
        self._observer.step(Step.SETTLING, f"{self._new_primary} is the primary now")
        whole = asyncio.create_task(self._wait_until_whole_again())
        try:
            await asyncio.sleep(self._times.settle_ms / 1000)
            if not whole.done():
                self._observer.step(Step.REJOINING, self._old_primary)
            await whole
        finally:
            whole.cancel()
        await self._workload.stop()

    async def _wait_until_whole_again(self) -> None:
        if await self._cluster.wait_until_whole(self._times.rejoin_s):
            self._whole_at_ms = self._now_ms()
        else:
            self._problems.append(f"the cluster was not whole again within {self._times.rejoin_s:g} s")

    async def _wait_until_serving(self) -> Register | None:
        """The register once a later epoch serves; None if that does not happen in time."""
        give_up_ms = self._now_ms() + self._times.serving_s * 1000
        while self._now_ms() < give_up_ms:
            try:
                register = await self._cluster.register()
            except StoreUnavailable as error:
                log.warning("the store did not answer", error=str(error))
                register = None
            if register is not None and register.epoch > self._epoch_before and register.phase is Phase.SERVING:
                return register
            await asyncio.sleep(self._times.sample_interval_ms / 2000)
        return None

    async def _judge(self) -> Verdict | None:
        """Compare; None if no primary is there to be asked."""
        self._observer.step(Step.CHECKING)
        await self._read_journal()
        if self._options.checkpoint and not await self._hardship.checkpoint_was_cut_off():
            self._problems.append("the CHECKPOINT was done before the kill: this variant was not tried")
        if self._new_primary is None:
            return None
        try:
            rows = await self._workload.rows(await self._cluster.direct_dsn(self._new_primary))
        except psycopg.Error as error:
            self._problems.append(f"the rows on {self._new_primary} could not be read: {str(error).strip()}")
            return None
        await self._compare_standbys(rows)
        return self._verdict(rows)

    def _verdict(self, rows: list[Row]) -> Verdict:
        stopped_at_ms = self._workload.stopped_at_ms
        return check(
            self._workload.history,
            rows,
            fault_at_ms=self._fault_at_ms,
            stopped_at_ms=self._now_ms() if stopped_at_ms is None else stopped_at_ms,
            injection_ms=self._injection_ms,
            payload_of=self._workload.payload_of,
        )

    async def _compare_standbys(self, rows: list[Row]) -> None:
        """Every standby, the old primary among them, must end with the very same rows."""
        expected = sorted(rows, key=_row_key)
        for node in self._cluster.nodes:
            if node == self._new_primary:
                continue
            agrees, problem = await self._has_rows(node, expected)
            self._agreement[node] = agrees
            if not agrees:
                self._problems.append(problem)

    async def _has_rows(self, node: str, expected: list[Row]) -> tuple[bool, str]:
        problem = f"{node} does not have the rows of the primary"
        give_up_ms = self._now_ms() + self._times.replay_s * 1000
        while True:
            try:
                rows = await self._workload.rows(await self._cluster.direct_dsn(node))
                if sorted(rows, key=_row_key) == expected:
                    return True, ""
                problem = f"{node} has {len(rows)} rows that differ from the primary's {len(expected)}"
            except psycopg.Error as error:
                problem = f"the rows on {node} could not be read: {str(error).strip()}"
            if self._now_ms() > give_up_ms:
                return False, problem
            await asyncio.sleep(self._times.sample_interval_ms / 1000)

    async def _clean_up(self, result: DrillResult) -> None:
        """Leave nothing behind, unless the rows are evidence of something wrong."""
        if self._options.keep_rows or not result.passed:
            return
        await self._hardship.close()
        try:
            await self._workload.drop()
        except psycopg.Error as error:
            log.warning("the drill's table stays", schema=self._workload.schema, error=str(error).strip())

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
            if self._fault_at_ms:
                await self._read_journal()
                self._tell_first_write()
            await asyncio.sleep(self._times.sample_interval_ms / 1000)

    def _tell_first_write(self) -> None:
        serving_ms = failover_marks(self._events, epoch_before=self._epoch_before).get("barrier")
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
            after = event.epoch > self._epoch_before or event.at_ms >= self._fault_at_ms
            if after and key not in self._known:
                self._known.add(key)
                self._observer.event(event)

    def _result(self, register: Register, verdict: Verdict | None) -> DrillResult:
        back_at_ms = rejoined_at_ms(self._events, self._old_primary, epoch_before=self._epoch_before)
        if back_at_ms is None:
            back_at_ms = self._whole_at_ms
        self._add_problems(verdict)
        tally = self._workload.tally
        history = self._workload.history
        acknowledged_at_ms = history.acknowledged_at_ms()
        whole = self._whole_at_ms is not None
        shown = verdict or self._verdict([])
        return DrillResult(
            drill=NAME,
            seed=self._options.seed,
            passed=not self._problems,
            settings=self._cluster.settings_hash,
            cluster=Cluster(
                nodes=len(self._cluster.nodes),
                durability=f"ANY {register.committed.quorum.k}",
                postgresql=self._cluster.postgresql_version,
                etcd=self._cluster.etcd_version,
            ),
            rto_ms=round(shown.rto_ms, 1),
            phases_ms=phases_from_journal(
                self._events,
                fault_at_ms=self._fault_at_ms,
                epoch_before=self._epoch_before,
                acknowledged_at_ms=acknowledged_at_ms,
            ),
            writes=_writes(shown, asked=verdict is not None, sqlstates=history.sqlstates()),
            connections=Connections(
                clients=self._options.writers,
                idle=self._options.idle,
                dropped=tally.dropped,
                dropped_writers=tally.dropped_writers,
                dropped_readers=tally.dropped_readers,
                dropped_idle=tally.dropped_idle,
                failed_connects=tally.failed_connects,
            ),
            old_primary=self._old_primary,
            new_primary=self._new_primary,
            rejoined=whole,
            rejoin_ms=round(back_at_ms - self._fault_at_ms, 1) if whole and back_at_ms is not None else None,
            report=None,
            problems=tuple(self._problems),
            variants=self._options.variants,
            reads=Reads(answered=len(history.read_end_ms), errors=len(history.read_error_ms)),
            availability=round(shown.availability, 5),
            standbys_agree=self._agreement,
            started_at=datetime.fromtimestamp(self._started_at_ms / 1000, UTC),
            fault_at=datetime.fromtimestamp(self._fault_at_ms / 1000, UTC),
            duration_ms=round(self._now_ms() - self._started_at_ms, 1),
            rate_per_s=self._options.rate_per_s,
            injection_ms=round(self._injection_ms, 1),
        )

    def _add_problems(self, verdict: Verdict | None) -> None:
        if verdict is None:
            return
        counted = {
            "{} acknowledged writes are lost": verdict.lost,
            "{} rows are there more than once": verdict.duplicated,
            "{} rows have another content than was written": verdict.altered,
            "{} rows are there although their client was told that they failed": verdict.wrong_errors,
            "{} rows are there that no client wrote": verdict.strangers,
        }
        self._problems += [text.format(len(ids)) for text, ids in counted.items() if ids]
        if not verdict.recovered:
            self._problems.append("writing had not resumed when the load was stopped")

    def _with_report(self, result: DrillResult) -> DrillResult:
        path = self._options.report_path
        if path is None:
            return result
        named = result.model_copy(update={"report": str(path)})
        samples = Samples.of(
            self._workload.history,
            fault_at_ms=self._fault_at_ms,
            stopped_at_ms=self._workload.stopped_at_ms or self._now_ms(),
        )
        try:
            write_report(path, named, samples, [e for e in self._events if e.epoch >= self._epoch_before])
        except EnvironmentFault as error:
            log.warning("the run stands, but it has no page", error=str(error))
            return result
        return named


def _row_key(row: Row) -> tuple[int, int, str]:
    return row.writer, row.sequence, row.payload


def _writes(verdict: Verdict, *, asked: bool, sqlstates: dict[str, int]) -> Writes:
    def count(ids: tuple[tuple[int, int], ...]) -> int | None:
        return len(ids) if asked else None

    return Writes(
        acknowledged=verdict.acknowledged,
        lost=count(verdict.lost),
        duplicated=count(verdict.duplicated),
        unknown=verdict.unknown,
        errors=verdict.errors,
        altered=count(verdict.altered),
        wrong_errors=count(verdict.wrong_errors),
        strangers=count(verdict.strangers),
        seen_then_gone=count(verdict.seen_then_gone),
        unknown_committed=count(verdict.unknown_committed),
        failed_in_flight=verdict.failed_in_flight,
        failed_later=verdict.failed_later,
        sqlstates=sqlstates,
    )
