"""A primary that was lost lets nobody in until it is back, and everybody can read what was done about it."""

from __future__ import annotations

import asyncio
import contextlib
import subprocess
import sys
import time
from collections.abc import AsyncIterator, Iterator
from pathlib import Path

import psutil
import psycopg
import pytest

from holdfast.core.incident import incidents
from holdfast.core.playbook import Isolated
from holdfast.local.cluster import LocalCluster
from holdfast.local.layout import APP_USER
from holdfast.local.orders import order
from holdfast.local.status import read_status
from holdfast.model.event import Event
from holdfast.model.policy import DEFAULT_POLICY
from holdfast.model.register import Phase, Register
from tests.installations import version_id
from tests.live.conftest import WHOLE_S, children_named, connect, noted_by_all, the_register, until_whole
from tests.live.test_policy import (
    NEWEST,
    asynchronous,
    frozen,
    killed_for_good,
    postmaster,
    process_of,
    until,
    until_reported,
)
from tests.live.test_processes import kill_process

pytestmark = [
    pytest.mark.live,
    pytest.mark.timeout(900),
    pytest.mark.parametrize("installation", NEWEST, indirect=True, ids=version_id, scope="module"),
]
KINDS = ("isolation.begun", "isolation.lifted")


def configure(cluster: LocalCluster, node: str, place: Path) -> None:
    """Add what an operator would: a command, and a snapshot that takes as long as ``place/hold`` is there."""
    config = cluster.layout.node_config(node)
    log = f"{place / 'log'}"
    lines = [
        "[isolation]",
        f"command = ['sh', '-c', 'echo $HOLDFAST_ISOLATION $HOLDFAST_LOST_NODE by $HOLDFAST_NODE >> {log}']",
        "[capture]",
        f"snapshot_command = ['sh', '-c', 'while [ -e {place / 'hold'} ]; do sleep 0.05; done']",
    ]
    config.write_text("\n".join([config.read_text(), *lines, ""]))


@pytest.fixture
async def configured(cluster: LocalCluster, tmp_path: Path) -> AsyncIterator[LocalCluster]:
    """Agents are started anew only where the quorum acknowledges: the leader goes on without its agent then."""
    plain = {node: cluster.layout.node_config(node).read_text() for node in cluster.nodes}
    try:
        for node in cluster.nodes:
            configure(cluster, node, tmp_path)
            await kill_process(cluster, node)
        await until_whole(cluster)
        yield cluster
    finally:
        (tmp_path / "hold").unlink(missing_ok=True)
        await order(cluster, "/policy", {"durability": DEFAULT_POLICY.durability.value})
        await until(cluster, lambda r: r.phase is Phase.SERVING and r.committed.quorum.k == 1)
        for node in cluster.nodes:
            cluster.layout.node_config(node).write_text(plain[node])
            await kill_process(cluster, node)


async def until_back(cluster: LocalCluster) -> None:
    """A capture gives way to everything else on its machine, and may take all the time that it is given."""
    assert await cluster.wait_until_whole(WHOLE_S + DEFAULT_POLICY.capture_wait_s)


async def lose_the_leader(cluster: LocalCluster, before: Register) -> None:
    """It is killed with log that nobody else has, so that it must be taken back before it may follow."""
    old = before.committed.leader.node
    async with await connect(cluster.superuser_dsn(old, "app")) as connection:
        senders = children_named(postmaster(cluster, old), "walsender")
        async with frozen(*senders):
            await connection.execute("SELECT pg_logical_emit_message(true, 'test', 'lost')")
            assert (await killed_for_good(cluster, before)).committed.leader.node != old


class Client:
    """Somebody who past the proxy goes on trying to get into one server."""

    def __init__(self, cluster: LocalCluster, node: str) -> None:
        port = cluster.file.ports.nodes[node].postgres
        self._dsn = f"postgresql://{APP_USER}:{cluster.layout.read_secret('app')}@127.0.0.1:{port}/app"
        self.let_in_ms: float | None = None
        self.refused = 0

    async def try_until_let_in(self) -> None:
        while self.let_in_ms is None:
            try:
                async with await psycopg.AsyncConnection.connect(self._dsn, connect_timeout=5):
                    self.let_in_ms = time.time() * 1000
            except psycopg.OperationalError as error:
                self.refused += "no pg_hba.conf entry" in str(error)
                await asyncio.sleep(0.005)  # another attempt, as a client makes it


@contextlib.contextmanager
def trying(client: Client) -> Iterator[asyncio.Task[None]]:
    task = asyncio.create_task(client.try_until_let_in())
    try:
        yield task
    finally:
        task.cancel()


def of(events: tuple[Event, ...], old: str, epoch: int) -> list[Event]:
    return [e for e in events if e.kind in KINDS and e.source == old and e.epoch >= epoch]


def holdfast(cluster: LocalCluster, *words: str) -> str:
    command = [sys.executable, "-m", "holdfast.cli", *words, "--dir", str(cluster.layout.root)]
    return subprocess.run(command, check=False, capture_output=True, text=True, timeout=120).stdout


async def test_a_lost_primary_is_cut_off_until_it_is_back(configured: LocalCluster, tmp_path: Path) -> None:
    before = await asynchronous(configured)
    old = before.committed.leader.node
    (tmp_path / "hold").touch()
    await lose_the_leader(configured, before)
    client = Client(configured, old)
    with trying(client) as task:
        told = await until_reported(configured, old, lambda r: r.isolated is not None)
        assert told.isolated is not None
        assert told.isolated.startswith("clients are kept out (by pg_hba), as n")
        status = await read_status(configured)
        assert {n.name: n.isolated for n in status.nodes}[old] == told.isolated
        assert f"ISOLATED {old}: clients are kept out" in await asyncio.to_thread(holdfast, configured, "status")

        await kill_process(configured, old)  # its agent, while the node is captured
        again = await until_reported(configured, old, lambda r: r.isolated is not None)
        assert again.isolated is not None
        (tmp_path / "hold").unlink()
        await until_back(configured)
        await asyncio.wait_for(task, 60)
    epoch = before.epoch + 1
    events = await noted_by_all(
        configured,
        lambda es: (
            any(e.kind == "isolation.lifted" and e.epoch >= epoch for e in es)
            and sum(e.kind == "isolation.command" and e.epoch >= epoch for e in es) >= 2
        ),
    )
    own = of(events, old, epoch)
    assert [e.kind for e in own] == ["isolation.begun", "isolation.begun", "isolation.lifted"]
    assert [e.detail.get("resumed") for e in own] == [False, True, None]
    assert client.let_in_ms is not None
    assert client.let_in_ms >= next(e for e in events if e.kind == "postgres.started" and e.source == old).at_ms
    said = (tmp_path / "log").read_text().splitlines()
    new = (await configured.register() or before).committed.leader.node
    assert said == [f"begin {old} by {new}", f"lift {old} by {new}"]
    evidence = next(s.evidence for s in incidents(events)[-1].steps if s.step.letter == "I")
    assert isinstance(evidence, Isolated)
    assert (evidence.kept_out, evidence.command) == ("clients (by pg_hba)", "exit status 0")
    assert evidence.lifted == f"it streams from {new}, from outside, exit status 0"
    assert "kept out: clients" in await asyncio.to_thread(holdfast, configured, "incident", "show")


async def test_one_that_wakes_up_as_a_primary_lets_nobody_in(configured: LocalCluster) -> None:
    """With its agent it stood still while another took over: its server is up, and would serve the past."""
    before = await the_register(configured)
    old = before.committed.leader.node
    server = postmaster(configured, old)
    everything = [server, *server.children(recursive=True), psutil.Process(process_of(configured, old).pid)]
    async with frozen(*everything):
        async with asyncio.timeout(60):
            while (await configured.register() or before).committed.leader.node == old:  # noqa: ASYNC110
                await asyncio.sleep(0.05)
    client = Client(configured, old)
    events = await noted_by_all(configured, lambda es: bool(of(es, old, before.epoch + 1)))
    assert of(events, old, before.epoch + 1)[0].kind == "isolation.begun"
    with trying(client) as task:
        await until_back(configured)
        await asyncio.wait_for(task, 60)
    events = await noted_by_all(configured, lambda es: len(of(es, old, before.epoch + 1)) >= 2)
    assert of(events, old, before.epoch + 1)[-1].kind == "isolation.lifted"
    assert client.let_in_ms is not None
    assert client.let_in_ms >= max(e.at_ms for e in events if e.kind == "postgres.stopped" and e.source == old)
