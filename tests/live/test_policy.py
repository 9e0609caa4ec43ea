"""What people decide at run time: each policy, on real processes, through the orders that the command line gives."""

from __future__ import annotations

import asyncio
import contextlib
import signal
from collections.abc import AsyncIterator, Callable

import psutil
import psycopg
import pytest

from holdfast.core.choice import ChoiceReason
from holdfast.core.incident import incidents
from holdfast.local.cluster import LocalCluster
from holdfast.local.orders import order
from holdfast.model.errors import HoldfastError
from holdfast.model.keys import Keys
from holdfast.model.policy import DEFAULT_POLICY
from holdfast.model.register import NodeRecord, Phase, Register
from holdfast.model.report import NodeReport
from holdfast.model.server import ServerStatus
from holdfast.model.timeouts import Timeouts
from holdfast.store.contract import Resync
from tests.installations import oldest_and_newest, version_id
from tests.live.conftest import WHOLE_S, another, connect, the_leader, the_register, until_whole, watch, watch_register
from tests.live.test_processes import kill_process, postmaster_pid

NEWEST = oldest_and_newest()[-1:]
pytestmark = [
    pytest.mark.live,
    pytest.mark.parametrize("installation", NEWEST, indirect=True, ids=version_id, scope="module"),
]


@pytest.fixture
async def ordered(cluster: LocalCluster) -> AsyncIterator[LocalCluster]:
    """A whole cluster, which has the default policy again afterwards."""
    try:
        yield cluster
    finally:
        plain = DEFAULT_POLICY.model_dump(mode="json")
        nodes = {name: {"promotable": True, "priority": 0, "readable": True, "zone": ""} for name in cluster.nodes}
        await order(cluster, "/policy", {**plain, "nodes": nodes})
        await until(cluster, lambda r: r.phase is Phase.SERVING and r.committed.quorum.k == 1)


async def until(cluster: LocalCluster, holds: Callable[[Register], bool]) -> Register:
    async with asyncio.timeout(WHOLE_S), contextlib.aclosing(watch_register(cluster)) as registers:
        async for register in registers:
            if holds(register):
                return register
    raise AssertionError("the watch ended")


async def until_reported(cluster: LocalCluster, node: str, holds: Callable[[NodeReport], bool]) -> NodeReport:
    async with asyncio.timeout(WHOLE_S):
        while True:
            report = (await cluster.reports())[node]
            if report is not None and holds(report):
                return report
            await asyncio.sleep(0.05)  # an agent is asked, it does not call


@contextlib.asynccontextmanager
async def frozen(*processes: psutil.Process) -> AsyncIterator[None]:
    try:
        for process in processes:
            with contextlib.suppress(psutil.NoSuchProcess):  # a session that has ended since it was listed
                process.send_signal(signal.SIGSTOP)
        yield
    finally:
        for process in processes:
            with contextlib.suppress(psutil.NoSuchProcess):
                process.send_signal(signal.SIGCONT)


def process_of(cluster: LocalCluster, name: str) -> psutil.Process:
    process = cluster.state().processes[name].process
    assert process is not None
    return psutil.Process(process.pid)


def postmaster(cluster: LocalCluster, node: str) -> psutil.Process:
    return psutil.Process(postmaster_pid(cluster, node))


async def asynchronous(cluster: LocalCluster) -> Register:
    await order(cluster, "/policy", {"durability": "asynchronous"})
    return await until(cluster, lambda r: r.phase is Phase.SERVING and r.committed.quorum.k == 0)


async def killed_for_good(cluster: LocalCluster, before: Register) -> Register:
    """Kill the primary's PostgreSQL while its agent stands still, so that another takes over; the register then.

    What is to be lost with it must have been written before: without its agent its lease ends within moments.
    """
    old = before.committed.leader.node
    server = postmaster(cluster, old)
    async with frozen(process_of(cluster, old)):
        for process in (server, *server.children(recursive=True)):
            process.kill()
        return await until(cluster, lambda r: r.phase is Phase.SERVING and r.epoch > before.epoch)


def is_alive(process: psutil.Process) -> bool:
    with contextlib.suppress(psutil.NoSuchProcess):
        return process.is_running() and process.status() != psutil.STATUS_ZOMBIE
    return False


async def ended(process: psutil.Process) -> None:
    async with asyncio.timeout(WHOLE_S):
        while is_alive(process):  # noqa: ASYNC110
            await asyncio.sleep(0.01)  # another's child: nothing to await


async def test_a_killed_agent_finds_the_lease_of_its_former_life(ordered: LocalCluster) -> None:
    before = await asynchronous(ordered)
    leader = before.committed.leader.node
    pid = postmaster_pid(ordered, leader)
    async with await connect(ordered.write_dsn) as connection:
        await connection.execute("CREATE TABLE IF NOT EXISTS local_commits (id int)")
        await kill_process(ordered, leader)
        await connection.execute("INSERT INTO local_commits VALUES (1)")
    await until_whole(ordered)
    after = await the_register(ordered)
    assert (after.epoch, after.committed.leader) == (before.epoch, before.committed.leader)
    assert postmaster_pid(ordered, leader) == pid


async def test_a_primary_whose_agent_is_frozen_is_killed_before_another_is_promoted(ordered: LocalCluster) -> None:
    """With local commits no quorum fences it; its guard does, with nobody's help."""
    before = await asynchronous(ordered)
    leader = before.committed.leader.node
    server = postmaster(ordered, leader)
    alive_at_promotion: list[bool] = []

    def serves_again(register: Register) -> bool:
        if register.epoch > before.epoch and register.phase in (Phase.PROMOTING, Phase.SERVING):
            alive_at_promotion.append(is_alive(server))
        return register.epoch > before.epoch and register.phase is Phase.SERVING

    async with frozen(process_of(ordered, leader)):
        after = await until(ordered, serves_again)
        assert not any(alive_at_promotion)
        assert after.committed.leader.node != leader
        async with await connect(ordered.write_dsn) as connection:
            await connection.execute("CREATE TABLE IF NOT EXISTS after_the_lease (id int)")
    chosen = [e for e in await ordered.events() if e.kind == "candidate.chosen" and e.epoch == after.epoch]
    assert [e.detail["reason"] for e in chosen] == [ChoiceReason.WITHIN_LAG.value]
    await until_whole(ordered)


async def test_local_commits_go_on_without_the_store_while_the_members_give_their_word(ordered: LocalCluster) -> None:
    before = await asynchronous(ordered)
    server = postmaster(ordered, before.committed.leader.node)
    lease_s = Timeouts().lease_ms / 1000
    async with await connect(ordered.write_dsn) as connection:
        await connection.execute("CREATE TABLE IF NOT EXISTS without_the_store (id int)")
        async with frozen(process_of(ordered, "etcd")):
            with contextlib.suppress(TimeoutError):
                async with asyncio.timeout(3 * lease_s):
                    await ended(server)
            await connection.execute("INSERT INTO without_the_store VALUES (1)")
    assert is_alive(server)
    await until_whole(ordered)
    assert (await the_register(ordered)).epoch == before.epoch


async def test_a_degrading_cluster_writes_on_without_standbys_and_comes_back_to_its_quorum(
    ordered: LocalCluster,
) -> None:
    await order(ordered, "/policy", {"durability": "degrading"})
    leader = await the_leader(ordered)
    standbys = [n for n in ordered.nodes if n != leader]
    async with await connect(ordered.write_dsn) as connection:
        await connection.execute("CREATE TABLE IF NOT EXISTS degraded (id int)")
        everything = [p for n in standbys for p in (process_of(ordered, n), postmaster(ordered, n))]
        walreceivers = [c for n in standbys for c in postmaster(ordered, n).children()]
        async with frozen(*everything, *walreceivers), asyncio.timeout(WHOLE_S):
            await connection.execute("INSERT INTO degraded VALUES (1)")
            alone = await the_register(ordered)
            assert alone.committed.quorum.k == 0
            assert {m.node for m in alone.committed.quorum.members} == set(standbys)
            assert "only until a standby is back" in await order(ordered, "/policy", {"durability": "strict"})
    restored = await until(ordered, lambda r: r.committed.quorum.k == 1)
    assert restored.committed.leader.node == leader
    await until_whole(ordered)


async def test_a_failover_waits_for_approval_where_the_policy_asks_for_it(ordered: LocalCluster) -> None:
    await order(ordered, "/policy", {"promotion": "approved"})
    leader = await the_leader(ordered)
    before = await the_register(ordered)
    voter = another(ordered, leader)
    with pytest.raises(HoldfastError, match="no failover waits for approval"):
        await order(ordered, "/approve", {})
    async with frozen(process_of(ordered, leader)):
        await ordered.kill_postgres(leader)
        report = await until_reported(ordered, voter, lambda r: r.waiting is not None)
        assert report.waiting is not None
        assert "waits for `holdfast approve`" in report.waiting
        assert (await the_register(ordered)).epoch == before.epoch
        assert "is approved" in await order(
            ordered,
            "/approve",
            {},
        )
        after = await until(ordered, lambda r: r.phase is Phase.SERVING and r.epoch > before.epoch)
        assert after.committed.leader.node != leader
        (approval,) = [p for p in incidents(await ordered.events())[-1].parts if p.name == "approve"]
        assert approval.ms > 0
    await until_whole(ordered)


async def clients_notice_no_pause(cluster: LocalCluster) -> None:
    async with contextlib.aclosing(watch(cluster, Keys(cluster.name).nodes)) as records:
        change = await anext(records)
        assert isinstance(change, Resync)
        told = [NodeRecord.from_json(entry.value) for entry in change.snapshot.entries]
    assert {r.epoch for r in told} == {(await the_register(cluster)).epoch}
    async with await connect(cluster.read_dsn) as connection:
        cursor = await connection.execute("SELECT pg_is_in_recovery()")
        assert await cursor.fetchone() == (True,)
    async with await connect(cluster.write_dsn) as connection:
        await connection.execute("SELECT 1")


async def test_a_paused_cluster_is_left_alone(ordered: LocalCluster) -> None:
    leader = await the_leader(ordered)
    standby = another(ordered, leader)
    await order(ordered, "/policy", {"paused": True})
    for node in ordered.nodes:
        await until_reported(ordered, node, lambda r: r.duty == "paused")
    await clients_notice_no_pause(ordered)
    await ordered.kill_postgres(standby)
    await ordered.kill_postgres(leader)
    for node in (leader, standby):
        report = await until_reported(ordered, node, lambda r: r.status is ServerStatus.STOPPED)
        assert report.rule == "pause.look"
    before = await the_register(ordered)
    assert before.phase is Phase.SERVING
    await order(ordered, "/policy", {"paused": False})
    await until_whole(ordered)
    async with await connect(ordered.write_dsn) as connection:
        await connection.execute("SELECT 1")


async def test_a_node_that_is_not_promotable_confirms_nothing_and_is_never_chosen(ordered: LocalCluster) -> None:
    leader = await the_leader(ordered)
    reporting, able = (n for n in ordered.nodes if n != leader)
    await order(ordered, "/policy", {"durability": "degrading", "nodes": {reporting: {"promotable": False}}})
    await until(ordered, lambda r: {m.node for m in r.committed.quorum.members} == {able})
    with pytest.raises(HoldfastError, match="not to be promoted by policy"):
        await ordered.switch_over(reporting)


async def test_a_wrong_policy_changes_nothing(ordered: LocalCluster) -> None:
    before = await ordered.policy()
    for changes, said in (
        ({"durability": "never"}, "policy durability: should be"),
        ({"confirmations": 2}, "would stop all writes at the loss of one node"),
        ({"nodes": {"n9": {"priority": 1}}}, "there is no such node"),
        ({"nodes": {"n3": {"promotable": False}}}, "nobody would take over"),
    ):
        with pytest.raises(HoldfastError, match=said):
            await order(ordered, "/policy", changes)
    assert await ordered.policy() == before


async def test_an_acknowledged_row_survives_the_way_back_to_a_quorum(ordered: LocalCluster) -> None:
    """Written while commits were local, then the policy is strict again, then the primary is lost."""
    await asynchronous(ordered)
    async with await connect(ordered.write_dsn) as connection:
        await connection.execute("DROP TABLE IF EXISTS way_back")
        await connection.execute("CREATE TABLE way_back AS SELECT generate_series(1, 1000) AS id")
    await order(ordered, "/policy", {"durability": "strict"})
    strict = await until(ordered, lambda r: r.committed.quorum.k == 1)
    leader = strict.committed.leader.node
    async with frozen(process_of(ordered, leader)):
        await ordered.kill_postgres(leader)
        await until(ordered, lambda r: r.phase is Phase.SERVING and r.epoch > strict.epoch)
        async with asyncio.timeout(WHOLE_S), await connect(ordered.write_dsn) as connection:
            cursor: psycopg.AsyncCursor[tuple[object, ...]] = await connection.execute("SELECT count(*) FROM way_back")
            assert await cursor.fetchone() == (1000,)
    await until_whole(ordered)
