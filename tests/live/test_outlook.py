"""What people are told before, during and after a failover."""

from __future__ import annotations

import asyncio
import json
import signal
from typing import Any

import pytest

from holdfast.local.cluster import LocalCluster
from tests.cli.running import holdfast
from tests.live.conftest import WHOLE_S, noted_by_all, the_leader, the_register, until_whole
from tests.live.test_failover import wait_until_epoch_serves

pytestmark = pytest.mark.live

STEPS = ["verdict.changed", "epoch.opened", "candidate.chosen", "primary.promoted", "epoch.serving"]


async def wait_until_told(cluster: LocalCluster, epoch: int) -> None:
    """Until the epoch serves, the cluster is whole, and the journal has every step of the way."""
    await wait_until_epoch_serves(cluster, epoch)
    await until_whole(cluster)
    first, *others = STEPS
    await noted_by_all(
        cluster,
        lambda seen: (
            {e.kind for e in seen if e.epoch >= epoch} >= set(others)
            and any(e.kind == first and e.epoch >= epoch - 1 for e in seen)
        ),
    )


async def told(cluster: LocalCluster, *words: str, status: int = 0) -> Any:
    done = await asyncio.to_thread(holdfast, *words, "--dir", cluster.layout.root, "--json")
    assert done.returncode == status, done.stderr
    return json.loads(done.stdout)


async def test_the_forecast_comes_true_and_the_story_says_why(cluster: LocalCluster) -> None:
    before = await the_register(cluster)
    leader = await the_leader(cluster)
    foretold = await told(cluster, "forecast")
    assert foretold["primary"] == leader
    assert foretold["if_primary_died"]["candidate"] in set(cluster.nodes) - {leader}
    assert foretold["if_primary_died"]["rpo_bytes"] == 0
    await cluster.kill_postgres(leader)
    await wait_until_told(cluster, before.epoch + 1)
    story = (await told(cluster, "explain", "--last"))["story"]
    assert (story["old"], story["new"], story["switchover"]) == (leader, await the_leader(cluster), False)
    opened = next(at for at, line in enumerate(story["lines"]) if line["kind"] == "epoch.opened")
    noticed = [line["rule"] for line in story["lines"][:opened] if line["rule"] != "verdict.slow"]  # maybe long before
    assert noticed[0] == "verdict.process-gone"
    kinds = [line["kind"] for line in story["lines"]]
    assert [kind for kind in dict.fromkeys(kinds) if kind in STEPS] == STEPS
    again = await told(cluster, "forecast")
    assert again["if_primary_died"]["rto"]["ms"] == story["serving_ms"] - story["opened_ms"]


async def test_status_says_what_each_voter_thinks(cluster: LocalCluster) -> None:
    leader = await the_leader(cluster)
    evidence = {"agent", "fresh session", "held session"}
    async with asyncio.timeout(WHOLE_S):
        while True:  # until each has asked twice (a session is held only after it was fresh) and finds nobody slow
            found = await told(cluster, "status")
            seen = {v["name"]: {r["source"] for r in v["readings"]} for v in found["voters"]}
            verdicts = {v["verdict"] for v in found["voters"]}
            if all(evidence <= seen[name] for name in set(cluster.nodes) - {leader}) and verdicts == {"healthy"}:
                break
    assert (found["votes_needed"], [v["name"] for v in found["voters"]]) == (2, list(cluster.nodes))
    by_name = {v["name"]: v for v in found["voters"]}
    assert by_name[leader]["rule"] == "verdict.runs"
    done = await asyncio.to_thread(holdfast, "status", "--dir", cluster.layout.root)
    assert "0 of 3 voters hold the primary for lost; 2 must agree" in done.stdout


async def test_the_agents_tell_the_story_while_the_store_is_away(cluster: LocalCluster) -> None:
    epoch = (await the_register(cluster)).epoch
    await cluster.kill_postgres(await the_leader(cluster))
    await wait_until_told(cluster, epoch + 1)
    by_store = await told(cluster, "explain", "--last")
    etcd = cluster.state().processes["etcd"].process
    assert etcd is not None
    etcd.send(signal.SIGSTOP)
    try:
        by_agents = await told(cluster, "explain", "--last")
    finally:
        etcd.send(signal.SIGCONT)
    assert (by_store["source"], by_agents["source"]) == ("store", "agents")
    for field in ("old", "new", "epoch", "began_at_ms", "opened_ms", "chosen_ms", "promoted_ms", "serving_ms"):
        assert by_agents["story"][field] == by_store["story"][field]
