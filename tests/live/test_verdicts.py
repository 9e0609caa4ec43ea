"""Each way of being sick that can be made here, and what the cluster makes of it."""

from __future__ import annotations

import asyncio
import contextlib
import os
import shutil
import signal
import subprocess
from collections.abc import AsyncIterator, Awaitable, Callable, Iterator
from pathlib import Path

import psutil
import psycopg
import pytest

from holdfast.local.cluster import LocalCluster
from holdfast.local.incidents import read_record
from holdfast.local.layout import remove
from holdfast.local.machine import server_user, temporary_root
from holdfast.local.orders import order
from holdfast.local.processes import postmaster_of
from holdfast.local.status import read_status
from holdfast.model.event import Event
from holdfast.model.policy import DEFAULT_POLICY
from holdfast.model.report import VerdictKind
from holdfast.postgres.installation import Installation
from tests.live.conftest import (
    WHOLE_S,
    children_named,
    connect,
    noted_by_all,
    the_leader,
    the_register,
    until_whole,
    watch_register,
)
from tests.live.test_processes import kill_process
from tests.ports import next_window

pytestmark = pytest.mark.live

STALLER = Path(__file__).with_name("stall.c")
DISK_BYTES = 700 * 1024 * 1024
ROOM_LEFT_BYTES = 16 * 1024 * 1024


def postmaster(cluster: LocalCluster, node: str) -> psutil.Process:
    found = postmaster_of(cluster.layout.data_dir(node))
    assert found is not None
    return psutil.Process(found.pid)


def walreceiver(cluster: LocalCluster, node: str) -> psutil.Process:
    return children_named(postmaster(cluster, node), "walreceiver")[0]


@contextlib.contextmanager
def frozen(*processes: psutil.Process) -> Iterator[None]:
    try:
        for process in processes:
            with contextlib.suppress(psutil.NoSuchProcess):  # a session that has ended since it was listed
                process.send_signal(signal.SIGSTOP)
        yield
    finally:
        for process in processes:
            with contextlib.suppress(psutil.NoSuchProcess):
                process.send_signal(signal.SIGCONT)


async def wait_until_led_by_another(cluster: LocalCluster, than: str) -> str:
    async with asyncio.timeout(WHOLE_S), contextlib.aclosing(watch_register(cluster)) as registers:
        async for register in registers:
            if register.leader is not None and register.leader.node != than:
                return register.leader.node
    raise AssertionError("the watch ended")


async def wait_until_held(cluster: LocalCluster, kind: VerdictKind, voters: int) -> None:
    """Until so many agents hold this verdict."""
    async with asyncio.timeout(WHOLE_S):
        while True:
            reports = [r for r in (await cluster.reports()).values() if r is not None]
            if sum(r.verdict is not None and r.verdict.kind is kind for r in reports) >= voters:
                return
            await asyncio.sleep(0.05)  # agents are asked over HTTP: there is nothing to await


async def two_against(cluster: LocalCluster, epoch: int, rule: str) -> list[Event]:
    """What at least two voters noted by this rule since the epoch."""

    def against(events: tuple[Event, ...]) -> list[Event]:
        return [e for e in events if e.kind == "verdict.changed" and e.epoch >= epoch and e.rule == rule]

    return against(await noted_by_all(cluster, lambda events: len({e.source for e in against(events)}) >= 2))


async def test_a_frozen_postmaster_is_hung_although_its_sessions_live(cluster: LocalCluster) -> None:
    leader = await the_leader(cluster)
    epoch = (await the_register(cluster)).epoch
    async with await connect(await cluster.direct_dsn(leader)) as held:
        with frozen(postmaster(cluster, leader)):
            await held.execute("SELECT 1")
            await wait_until_led_by_another(cluster, leader)
    against = await two_against(cluster, epoch, "verdict.no-session")
    assert all(e.detail["verdict"] == VerdictKind.HUNG.value for e in against)
    sources = {r["source"] for r in against[0].detail["readings"]}  # type: ignore[union-attr, index, call-overload]
    assert {"agent", "fresh session", "held session", "local commit", "replication"} <= sources


async def test_what_a_primary_in_trouble_shows_is_in_the_report_though_it_lets_nobody_in(cluster: LocalCluster) -> None:
    """Its agent asks in a session that it has had before."""
    await until_whole(cluster)
    leader, epoch = await the_leader(cluster), (await the_register(cluster)).epoch
    dsn = await cluster.direct_dsn(leader)
    held, *others = [await connect(dsn) for _ in range(3)]
    try:
        await held.execute("CREATE TABLE IF NOT EXISTS queued (id int)")
        await held.execute("BEGIN")
        await held.execute("LOCK TABLE queued")
        waiting = [asyncio.ensure_future(each.execute("SELECT FROM queued")) for each in others]
        queue = "SELECT count(*) FROM pg_stat_activity WHERE wait_event_type = 'Lock'"
        async with asyncio.timeout(WHOLE_S):
            while await (await held.execute(queue)).fetchone() != (2,):  # noqa: ASYNC110
                await asyncio.sleep(0.02)
        with frozen(postmaster(cluster, leader)):
            await wait_until_led_by_another(cluster, leader)
        await asyncio.gather(*waiting, return_exceptions=True)
    finally:
        for each in (held, *others):
            await each.close()
    await noted_by_all(cluster, lambda found: any(e.kind == "primary.troubled" and e.epoch >= epoch for e in found))
    incident = (await read_record(cluster)).incidents[-1]
    causes = {cause.what: cause.evidence for cause in incident.causes}
    (said,) = causes["sessions waited for each other's locks"]
    assert said.startswith(f"{leader}, ")
    assert "2 sessions waited behind session " in said
    assert "idle in transaction" in said


async def test_standbys_that_confirm_nothing_are_at_fault_and_nobody_fails_over(cluster: LocalCluster) -> None:
    leader = await the_leader(cluster)
    before = await the_register(cluster)
    standbys = [n for n in cluster.nodes if n != leader]
    async with await connect(await cluster.direct_dsn(leader)) as connection:
        await connection.execute("CREATE TABLE IF NOT EXISTS waited (id int)")
        with frozen(*(walreceiver(cluster, n) for n in standbys)):
            writing = asyncio.ensure_future(connection.execute("INSERT INTO waited VALUES (1)"))
            await wait_until_held(cluster, VerdictKind.STANDBYS_AT_FAULT, 3)
            assert not writing.done()
            troubles = (await read_status(cluster)).troubles
            assert any(t.startswith(f"ALARM {leader}: standbys at fault: ") for t in troubles)
            register = await the_register(cluster)
            assert (register.epoch, register.leader) == (before.epoch, before.leader)
        async with asyncio.timeout(WHOLE_S):
            await writing
    await wait_until_held(cluster, VerdictKind.HEALTHY, 3)
    assert (await the_register(cluster)).epoch == before.epoch


async def test_a_full_disk_that_all_share_is_an_alarm_and_no_failover(cluster: LocalCluster) -> None:
    """Every node of this cluster is on one file system; here it counts as full whatever is left."""
    before, leader = await the_register(cluster), await the_leader(cluster)
    plain = {node: cluster.layout.node_config(node).read_text() for node in cluster.nodes}
    try:
        for node in cluster.nodes:
            cluster.layout.node_config(node).write_text(f"{plain[node]}\n[thresholds]\ndisk_full_bytes = {10**18}\n")
            await kill_process(cluster, node)
        await wait_until_held(cluster, VerdictKind.DISK_FULL, 3)
        assert not any(r.verdict.calls_for_failover for r in (await cluster.reports()).values() if r and r.verdict)
        troubles = (await read_status(cluster)).troubles
        assert any(t.startswith(f"ALARM {leader}: disk full: ") for t in troubles)
        assert (await the_register(cluster)).epoch == before.epoch
    finally:
        for node in cluster.nodes:
            cluster.layout.node_config(node).write_text(plain[node])
            await kill_process(cluster, node)


# ---- one node on a disk of its own that can be made to stall and to fill up --------------------------------------


def stalling_programs(directory: Path, installation: Installation) -> Path:
    """PostgreSQL's programs, with a server whose writes to the disk wait while a file says so."""
    library = directory / "stall.so"
    compiler = shutil.which("cc") or pytest.skip("no C compiler to build what stalls the disk")
    subprocess.run([compiler, "-shared", "-fPIC", "-O1", "-o", library, STALLER, "-ldl"], check=True)
    programs = directory / "bin"
    programs.mkdir()
    for program in installation.bin_dir.iterdir():
        if program.name != "postgres":
            (programs / program.name).symlink_to(program)
    server = programs / "postgres"
    server.write_text(f'#!/bin/sh\nLD_PRELOAD={library} exec {installation.bin_dir}/postgres "$@"\n')
    for path in (library, server, programs, directory):
        path.chmod(0o755)
    return programs


@pytest.fixture(scope="module")
def sick_directory(installation: Installation) -> Iterator[Path]:
    """A cluster whose n1 has a small disk of its own and a server that can be stalled."""
    if os.geteuid() != 0:
        pytest.skip("only root can mount a small disk")
    if not installation.bin_dir.is_relative_to("/usr/lib"):
        pytest.skip("one PostgreSQL is enough for what its disk does")
    next_window()
    cluster = LocalCluster.create(temporary_root(3, server_user()), nodes=3, temporary=True)
    disk = cluster.layout.node("n1")
    extra = cluster.layout.root / "programs"
    extra.mkdir()
    mounted = False
    try:
        programs = stalling_programs(extra, installation)
        config = cluster.layout.node_config("n1")
        there = {p.name: p.stat() for p in disk.iterdir()}
        subprocess.run(["mount", "-t", "tmpfs", "-o", f"size={DISK_BYTES},mode=0711", "tmpfs", disk], check=True)
        mounted = True
        for name, stat in there.items():
            (disk / name).mkdir(mode=stat.st_mode & 0o777)
            os.chown(disk / name, stat.st_uid, stat.st_gid)
        cluster.start()
        assert config.exists()
        _use_programs(cluster, programs)

        async def serve() -> None:
            await cluster.wait_until_serving(lambda step: None)
            await cluster.close()

        asyncio.run(serve())
        yield cluster.layout.root
    finally:
        asyncio.run(cluster.stop())
        if mounted:
            subprocess.run(["umount", disk], check=True)
        remove(cluster.layout)


def _use_programs(cluster: LocalCluster, programs: Path) -> None:
    """The agent reads its configuration at its start, and the supervisor has only just begun."""
    config = cluster.layout.node_config("n1")
    lines = [line for line in config.read_text().splitlines() if not line.startswith("bin_dir")]
    lines.insert(lines.index("[postgres]") + 1, f'bin_dir = "{programs}"')
    config.write_text("\n".join(lines) + "\n")


@pytest.fixture
async def sick(sick_directory: Path) -> AsyncIterator[LocalCluster]:
    """The cluster, led by the node on the small disk."""
    opened = LocalCluster.open(sick_directory)
    try:
        await until_whole(opened)
        if await the_leader(opened) != "n1":
            await opened.switch_over("n1")
            await until_whole(opened)
        yield opened
    finally:
        await opened.close()


async def lets_go_when_its_disk_stalls(sick: LocalCluster, meanwhile: Callable[[], Awaitable[object]]) -> None:
    """n1 loses the lead and ends its server although its disk takes nothing; ``meanwhile`` is done once it stalls."""
    epoch = (await the_register(sick)).epoch
    stall = sick.layout.data_dir("n1").parent / "stall"
    async with await connect(await sick.direct_dsn("n1")) as connection:
        stall.touch()
        try:
            await meanwhile()
            writing = asyncio.ensure_future(connection.execute("CREATE TABLE never_acknowledged (id int)"))
            try:
                await wait_until_led_by_another(sick, "n1")
            except TimeoutError:
                raise AssertionError(f"nobody takes over: {await sick.reports()}, {await sick.events()}") from None
            done, _ = await asyncio.wait((writing,), timeout=WHOLE_S)
            assert done, f"the old primary lives on: {await sick.reports()}, {await sick.events()}"
            assert isinstance(writing.exception(), psycopg.Error)
        finally:
            stall.unlink()  # before the session is closed, which waits for its statement
    await two_against(sick, epoch, "verdict.storage-stall")
    await until_whole(sick)


async def test_a_disk_that_stalls_is_told_and_another_takes_over(sick: LocalCluster) -> None:
    async def nothing() -> None:
        """It is as it was."""

    await lets_go_when_its_disk_stalls(sick, nothing)


async def test_a_leader_whose_disk_stalls_while_it_changes_its_quorum_lets_go(sick: LocalCluster) -> None:
    """Its agent waits for a row to be committed then, which must not keep it from ending its server."""

    async def confirmed_by(k: int, **policy: object) -> None:
        await order(sick, "/policy", policy)
        async with asyncio.timeout(WHOLE_S), contextlib.aclosing(watch_register(sick)) as registers:
            async for register in registers:
                if register.committed.quorum.k == k:
                    return

    await confirmed_by(2, durability="degrading", confirmations=2)
    await until_whole(sick)
    await lets_go_when_its_disk_stalls(sick, lambda: confirmed_by(1, confirmations=None))
    await order(sick, "/policy", {"durability": DEFAULT_POLICY.durability.value})


async def test_a_full_disk_of_its_own_is_left_for_one_with_room(sick: LocalCluster) -> None:
    epoch = (await the_register(sick)).epoch
    disk = sick.layout.data_dir("n1").parent
    ballast = disk / "ballast"
    free_bytes = shutil.disk_usage(disk).free
    try:
        with ballast.open("wb") as file:
            os.posix_fallocate(file.fileno(), 0, free_bytes - ROOM_LEFT_BYTES)
        await wait_until_led_by_another(sick, "n1")
    finally:
        ballast.unlink()
    await two_against(sick, epoch, "verdict.disk-full")
    await until_whole(sick)
