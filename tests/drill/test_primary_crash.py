"""The whole drill on real servers with a failover made by hand: it passes an honest cluster and convicts a liar."""

from __future__ import annotations

import dataclasses
from pathlib import Path

import pytest

from holdfast.drill.observer import Silent, Step
from holdfast.drill.primary_crash import run_primary_crash
from holdfast.drill.runner import DrillOptions
from holdfast.drill.scenario import Load
from holdfast.model.errors import HoldfastError
from holdfast.model.timeouts import DrillTimeouts
from tests.drill.servers import HandMadeCluster, Server

LOAD = Load(writers=4, idle=10, long_writers=1)
OPTIONS = DrillOptions(timeouts=DrillTimeouts(warm_up_ms=500, fault_jitter_ms=50, settle_ms=300, rejoin_s=40))


class Steps(Silent):
    """Remembers where the drill went."""

    def __init__(self) -> None:
        self.steps: list[Step] = []

    def step(self, step: Step, detail: str = "") -> None:
        self.steps.append(step)


@pytest.mark.live
@pytest.mark.parametrize("hard", [False, True])
async def test_nothing_is_lost_with_a_synchronous_standby(server_home: Path, bin_dir: Path, hard: bool) -> None:
    cluster = HandMadeCluster({n: Server(server_home, n, bin_dir) for n in ("n1", "n2")})
    observer = Steps()
    report = server_home / "report.html"
    options = dataclasses.replace(OPTIONS, report_path=report)
    if hard:
        options = dataclasses.replace(options, large_data=True, long_readers=True, checkpoint=True)
    try:
        await cluster.start()
        result = await run_primary_crash(cluster, options, observer, LOAD)
        assert result.problems == ()
        assert result.passed
        assert (result.writes.lost, result.writes.duplicated) == (0, 0)
        assert (result.old_primary, result.new_primary) == ("n1", "n2")
        assert result.rejoined
        assert result.rejoin_ms is not None
        assert result.rejoin_ms >= result.rto_ms
        assert result.standbys_agree == {"n1": True}
        assert result.phases_ms.promote > 0
        assert len(result.variants) == (3 if hard else 0)
        assert observer.steps[-1] is Step.CHECKING
        assert report.exists()
        left = await cluster.servers["n2"].sql("SELECT nspname FROM pg_namespace WHERE nspname LIKE 'drill%'")
        assert left == []
    finally:
        await cluster.stop()


@pytest.mark.live
async def test_a_cluster_that_loses_rows_is_convicted(server_home: Path, bin_dir: Path) -> None:
    cluster = HandMadeCluster({n: Server(server_home, n, bin_dir) for n in ("n1", "n2")}, durable=False)
    try:
        await cluster.start()
        result = await run_primary_crash(cluster, OPTIONS, Silent(), LOAD)
        assert not result.passed
        assert result.writes.lost
        assert any("acknowledged writes are lost" in problem for problem in result.problems)
        kept = await cluster.servers["n2"].sql("SELECT nspname FROM pg_namespace WHERE nspname LIKE 'drill%'")
        assert len(kept) == 1  # the evidence stays
    finally:
        await cluster.stop()


@pytest.mark.live
async def test_a_cluster_that_is_not_whole_is_left_alone(server_home: Path, bin_dir: Path) -> None:
    cluster = HandMadeCluster({n: Server(server_home, n, bin_dir) for n in ("n1", "n2")})
    options = dataclasses.replace(OPTIONS, timeouts=DrillTimeouts(whole_before_s=0.5))
    try:
        await cluster.start()
        cluster.servers["n2"].kill()
        with pytest.raises(HoldfastError, match="nothing was killed"):
            await run_primary_crash(cluster, options, Silent(), LOAD)
        assert await cluster.servers["n1"].sql("SELECT 1") == [(1,)]
    finally:
        await cluster.stop()
