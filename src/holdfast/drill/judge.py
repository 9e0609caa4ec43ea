"""From what clients saw, the rows found at the end and the journal to a result."""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Sequence
from datetime import UTC, datetime
from typing import TYPE_CHECKING

import psycopg
import structlog

from holdfast.core.phases import phase_durations
from holdfast.core.words import duration
from holdfast.drill.checker import Verdict, check
from holdfast.drill.cluster import ClusterUnderTest
from holdfast.drill.history import Row
from holdfast.drill.losses import Losses
from holdfast.drill.report import write_report
from holdfast.drill.result import (
    Cluster,
    Connections,
    DrillResult,
    LostTransactions,
    Phases,
    Reads,
    Writes,
    rejoined_at_ms,
)
from holdfast.drill.retrospective import write_retrospectives
from holdfast.drill.scenario import LOWERED_WRITER, Drill
from holdfast.drill.series import Samples
from holdfast.drill.workload import Workload
from holdfast.local.cluster import LocalCluster
from holdfast.local.lost import read_lost, read_proof
from holdfast.model.errors import EnvironmentFault, HoldfastError, StoreUnavailable
from holdfast.model.event import Event
from holdfast.model.register import Phase, Register

if TYPE_CHECKING:
    from holdfast.drill.runner import DrillOptions

log = structlog.get_logger(__name__)


PLAIN = "primary-crash"
"""The drill whose page says *kill* where those of the others say *fault*."""


LOST_TAIL_MS = 1000.0
"""An asynchronous standby on the same switch is never that far behind."""


async def verdict_of(cluster: ClusterUnderTest, workload: Workload, began_ms: float) -> Verdict:
    """Judge a load that has ended by the rows of the node that leads, whatever happened since ``began_ms``.

    Raises HoldfastError, StoreUnavailable and psycopg.Error.
    """
    register = await cluster.register()
    if register is None:
        raise HoldfastError("the store holds no register")
    return check(
        workload.history,
        await workload.rows(await cluster.direct_dsn(register.committed.leader.node)),
        fault_at_ms=began_ms,
        stopped_at_ms=workload.now_ms() if workload.stopped_at_ms is None else workload.stopped_at_ms,
        payload_of=workload.payload_of,
        lowered_from=LOWERED_WRITER,
    )


class Judge:
    """Collects the evidence of one run, and says what it amounts to."""

    def __init__(
        self,
        drill: Drill,
        cluster: ClusterUnderTest,
        options: DrillOptions,
        workload: Workload,
        now_ms: Callable[[], float],
    ) -> None:
        self._drill = drill
        self._cluster = cluster
        self._options = options
        self._times = options.timeouts
        self._workload = workload
        self._now_ms = now_ms
        self._started_at_ms = now_ms()
        self._problems: list[str] = []
        self._evidence: list[str] = []
        self._injection_ms = 0.0
        self._whole_at_ms: float | None = None
        self._durability = ""
        self._old_primary = ""
        self._new_primary: str | None = None
        self._agreement: dict[str, bool] = {}
        self._lost_transactions: LostTransactions | None = None
        self._proved: bool | None = None
        self.fault_at_ms = 0.0
        self._broken_at_ms = 0.0
        self.epoch_before = 0

    # -- what the runner tells --------------------------------------------------------------------------------------

    def begin(self, register: Register) -> None:
        """The cluster as it was before the fault."""
        self._old_primary = register.committed.leader.node
        self._durability = f"ANY {register.committed.quorum.k}"
        self.epoch_before = register.epoch

    def fault(self, at_ms: float, injection_ms: float) -> None:
        """The fault came at that time, and its injection took so long."""
        self.fault_at_ms = at_ms
        self._injection_ms = injection_ms

    def broken(self, at_ms: float) -> None:
        """All that was to break was broken by then."""
        self._broken_at_ms = at_ms

    def saw(self, words: str) -> None:
        """Something was done, or seen from outside."""
        if words:
            after_ms = self._now_ms() - self.fault_at_ms if self.fault_at_ms else None
            self._evidence.append(words if after_ms is None else f"+{duration(after_ms)}: {words}")

    def whole(self, at_ms: float) -> None:
        """The cluster was whole again."""
        self._whole_at_ms = at_ms

    def problem(self, words: str) -> None:
        """Something that must not be."""
        self._problems.append(words)

    # -- the judgement ----------------------------------------------------------------------------------------------

    async def judge(self, events: Sequence[Event]) -> DrillResult:
        """Compare, count, and write the page."""
        verdict = await self._compare()
        failovers = len({e.epoch for e in events if e.kind == "epoch.serving" and e.epoch > self.epoch_before})
        shown = verdict or self._verdict([])
        if verdict is not None:
            self._add_violations(verdict)
            if self._drill.expect.may_lose:
                self._account_for_losses(verdict)
                await self._examine_losses(verdict)
            await self._ask_for_proof(verdict)
        self._hold_against_expectation(shown, failovers)
        return await self._with_report(self._result(events, shown, verdict is not None, failovers), events)

    async def _compare(self) -> Verdict | None:
        """None if no primary is there to be asked."""
        try:
            register = await self._cluster.register()
        except StoreUnavailable as error:
            self._problems.append(f"the store does not answer at the end: {error}")
            return None
        if register is None or register.phase is not Phase.SERVING:
            return None
        if self._drill.expect.failover and register.epoch == self.epoch_before:
            return None
        self._new_primary = register.committed.leader.node
        try:
            rows = await self._workload.rows(await self._cluster.direct_dsn(self._new_primary))
        except psycopg.Error as error:
            self._problems.append(f"the rows on {self._new_primary} could not be read: {str(error).strip()}")
            return None
        await self._compare_standbys(self._new_primary, rows)
        return self._verdict(rows)

    def _verdict(self, rows: list[Row]) -> Verdict:
        stopped_at_ms = self._workload.stopped_at_ms
        return check(
            self._workload.history,
            rows,
            fault_at_ms=self.fault_at_ms,
            stopped_at_ms=self._now_ms() if stopped_at_ms is None else stopped_at_ms,
            injection_ms=self._injection_ms,
            payload_of=self._workload.payload_of,
            may_lose=self._drill.expect.may_lose,
            lowered_from=LOWERED_WRITER if self._drill.load.lowered else None,
        )

    async def _compare_standbys(self, primary: str, rows: list[Row]) -> None:
        """Every standby, the old primary among them, must end with the very same rows."""
        expected = sorted(rows, key=_row_key)
        for node in (name for name in self._cluster.nodes if name != primary):
            agrees, problem = await self._has_rows(node, expected)
            self._agreement[node] = agrees
            if not agrees and self._drill.expect.whole:
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

    def _add_violations(self, verdict: Verdict) -> None:
        counted = {
            "{} acknowledged writes are lost": () if self._drill.expect.may_lose else verdict.lost,
            "{} rows are there more than once": verdict.duplicated,
            "{} rows have another content than was written": verdict.altered,
            "{} rows are there although their client was told that they failed": verdict.wrong_errors,
            "{} rows are there that no client wrote": verdict.strangers,
            "{} reads on the writable port went back in time": verdict.stale_reads,
            "{} writes were acknowledged by a server after another had taken over": verdict.two_leaders,
        }
        self._problems += [text.format(len(found)) for text, found in counted.items() if found]
        if not verdict.recovered and self._drill.expect.resumes:
            self._problems.append("writing had not resumed when the load was stopped")

    def _account_for_losses(self, verdict: Verdict) -> None:
        """What an asynchronous cluster loses must be the end of its log: acknowledged last, before all was broken."""
        if not verdict.lost:
            self._problems.append("nothing was lost, so that it was not seen whether losses are counted")
            return
        missing = set(verdict.lost)
        ends_ms = sorted(a.end_ms for a in self._workload.history if (a.writer, a.sequence) in missing)
        first_ms, last_ms = ends_ms[0] - self.fault_at_ms, ends_ms[-1] - self.fault_at_ms
        self._evidence.append(
            f"{len(missing)} acknowledged writes are lost, acknowledged from {first_ms:+.0f} ms to {last_ms:+.0f} ms"
        )
        if first_ms < -LOST_TAIL_MS or ends_ms[-1] > self._broken_at_ms + LOST_TAIL_MS:
            self._problems.append(
                f"writes are lost that were acknowledged more than {duration(LOST_TAIL_MS)} before or after the fault"
            )

    async def _examine_losses(self, verdict: Verdict) -> None:
        """Whether the list of lost transactions is whole and true, and its script brings everything back."""
        if self._new_primary is None or not isinstance(self._cluster, LocalCluster):
            return
        losses = Losses(self._cluster, self._workload, self._new_primary)
        try:
            self._lost_transactions = await losses.examine(verdict.lost)
        except (psycopg.Error, HoldfastError) as error:
            self._problems.append(f"what was lost could not be examined: {str(error).strip()}")
        self._problems += losses.problems
        for words in losses.seen:
            self.saw(words)

    async def _ask_for_proof(self, verdict: Verdict) -> None:
        """What the cluster says of its losses may be too careful, but not too bold."""
        if not isinstance(self._cluster, LocalCluster):
            return
        try:
            accounts, silent = await read_lost(self._cluster)
            proof, _ = await read_proof(self._cluster, accounts, silent)
        except HoldfastError as error:
            self._evidence.append(f"the cluster could not be asked what is lost: {error}")
            return
        self._proved = proof.nothing_lost
        self._evidence += [f"the cluster does not say that nothing is lost: {doubt}" for doubt in proof.doubts]
        if proof.nothing_lost and verdict.lost:
            self._problems.append("the cluster says that nothing acknowledged is lost, and that is not true")

    def _hold_against_expectation(self, verdict: Verdict, failovers: int) -> None:
        expect, tally = self._drill.expect, self._workload.tally
        if expect.failover is False and failovers:
            self._problems.append(f"the cluster failed over {failovers} times, and should not have")
        if expect.failover and not failovers:
            self._problems.append("no failover was seen")
        if verdict.rto_ms > expect.worst_stall_ms:
            limit = duration(expect.worst_stall_ms)
            self._problems.append(f"writes stood still for {duration(verdict.rto_ms)}; at most {limit} are allowed")
        if not expect.errors:
            told = {
                "writes were not acknowledged": verdict.errors + verdict.unknown,
                "reads on the writable port failed": tally.fresh_read_errors,
                "connections were dropped": tally.dropped,
                "connections were refused": tally.failed_connects,
            }
            self._problems += [f"{count} {words}, and none should have" for words, count in told.items() if count]

    def _phases(self, events: Sequence[Event], acknowledged_at_ms: Sequence[float]) -> Phases:
        return Phases(
            **phase_durations(
                events,
                began_at_ms=self.fault_at_ms,
                epoch_before=self.epoch_before,
                acknowledged_at_ms=acknowledged_at_ms,
            )
        )

    def _result(self, events: Sequence[Event], shown: Verdict, asked: bool, failovers: int) -> DrillResult:
        load, tally, history = self._drill.load, self._workload.tally, self._workload.history
        back_at_ms = rejoined_at_ms(events, self._old_primary, epoch_before=self.epoch_before)
        if back_at_ms is None:
            back_at_ms = self._whole_at_ms
        whole = self._whole_at_ms is not None
        return DrillResult(
            drill=self._drill.name,
            seed=self._options.seed,
            passed=not self._problems,
            settings=self._cluster.settings_hash,
            cluster=Cluster(
                nodes=len(self._cluster.nodes),
                durability=self._durability,
                postgresql=self._cluster.postgresql_version,
                etcd=self._cluster.etcd_version,
            ),
            rto_ms=round(shown.rto_ms, 1),
            phases_ms=self._phases(events, history.acknowledged_at_ms()),
            writes=_writes(shown, asked=asked, sqlstates=history.sqlstates()),
            connections=Connections(
                clients=load.writers + load.long_writers,
                idle=load.idle,
                dropped=tally.dropped,
                dropped_writers=tally.dropped_writers,
                dropped_readers=tally.dropped_readers,
                dropped_idle=tally.dropped_idle,
                failed_connects=tally.failed_connects,
            ),
            old_primary=self._old_primary,
            new_primary=self._new_primary,
            rejoined=whole,
            rejoin_ms=round(back_at_ms - self.fault_at_ms, 1) if whole and back_at_ms is not None else None,
            report=None,
            problems=tuple(self._problems),
            variants=self._options.variants,
            reads=Reads(answered=len(history.read_end_ms), errors=len(history.read_error_ms)),
            availability=round(shown.availability, 5),
            standbys_agree=self._agreement,
            started_at=datetime.fromtimestamp(self._started_at_ms / 1000, UTC),
            fault_at=datetime.fromtimestamp(self.fault_at_ms / 1000, UTC),
            duration_ms=round(self._now_ms() - self._started_at_ms, 1),
            rate_per_s=load.rate_per_s,
            fault="" if self._drill.name == PLAIN else self._drill.fault_at(self._old_primary),
            evidence=tuple(self._evidence),
            failovers=failovers,
            stale_reads=len(shown.stale_reads) if load.fresh_readers else None,
            two_leaders=len(shown.two_leaders),
            fresh_reads=len(history.fresh_reads),
            fresh_read_errors=tally.fresh_read_errors,
            injection_ms=round(self._injection_ms, 1),
            lost_transactions=self._lost_transactions,
            nothing_lost_proved=self._proved,
        )

    async def _with_report(self, result: DrillResult, events: Sequence[Event]) -> DrillResult:
        path = self._options.report_path
        if path is None:
            return result
        told = await write_retrospectives(self._cluster, self.epoch_before, path)
        named = result.model_copy(update={"report": str(path), "retrospectives": told})
        samples = Samples.of(
            self._workload.history,
            fault_at_ms=self.fault_at_ms,
            stopped_at_ms=self._workload.stopped_at_ms or self._now_ms(),
        )
        try:
            write_report(path, named, samples, [e for e in events if e.epoch >= self.epoch_before])
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
        lost_by_choice=count(verdict.lost_by_choice),
        failed_in_flight=verdict.failed_in_flight,
        failed_later=verdict.failed_later,
        sqlstates=sqlstates,
    )
