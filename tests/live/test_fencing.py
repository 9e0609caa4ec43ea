"""What a cluster does about a lost primary beside its failover, and whom it tells."""

from __future__ import annotations

import asyncio
import hashlib
import hmac
import json
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from pathlib import Path

import psutil
import pytest
from aiohttp import web

from holdfast.local.cluster import LocalCluster
from tests.live.conftest import WHOLE_S, the_leader, the_register, until_whole
from tests.live.test_failover import wait_until_epoch_serves
from tests.live.test_processes import kill_process
from tests.live.test_switchover import noted
from tests.live.test_verdicts import frozen, postmaster
from tests.node.test_watchdog import Machine

pytestmark = [pytest.mark.live, pytest.mark.timeout(600)]

SECRET = "between us"


class Receiver:
    """A web server that fails at first."""

    def __init__(self) -> None:
        self.failures_left = 2
        self.received: list[tuple[dict[str, object], str]] = []
        self.port = 0
        self.news = asyncio.Event()

    @asynccontextmanager
    async def listening(self) -> AsyncIterator[Receiver]:
        app = web.Application()
        app.add_routes([web.post("/role", self._receive)])
        runner = web.AppRunner(app)
        await runner.setup()
        try:
            site = web.TCPSite(runner, "127.0.0.1", 0)
            await site.start()
            self.port = runner.addresses[0][1]
            yield self
        finally:
            await runner.cleanup()

    async def _receive(self, request: web.Request) -> web.Response:
        if self.failures_left:
            self.failures_left -= 1
            return web.Response(status=500)
        body = await request.read()
        expected = "sha256=" + hmac.new(SECRET.encode(), body, hashlib.sha256).hexdigest()
        assert hmac.compare_digest(request.headers["X-Holdfast-Signature"], expected)
        self.received.append((json.loads(body), expected))
        self.news.set()
        return web.Response()


def configure(cluster: LocalCluster, node: str, place: Path, port: int) -> None:
    """Add what an operator would."""
    config = cluster.layout.node_config(node)
    log = place / "log"
    lines = [
        "",
        "[fencing]",
        f"command = ['sh', '-c', 'echo fence $HOLDFAST_LOST_NODE $HOLDFAST_EPOCH >> {log}; echo refused; exit 3']",
        f'watchdog_device = "{place / node}"',
        "watchdog_timeout_s = 10",
        "[hooks]",
        f"on_role_change = ['sh', '-c', 'echo $HOLDFAST_NODE $HOLDFAST_FORMER_ROLE $HOLDFAST_ROLE >> {log}']",
        f'webhooks = [{{ url = "http://127.0.0.1:{port}/role", secret_file = "{place / "secret"}" }}]',
        "retry_s = 0.1",
    ]
    config.write_text(config.read_text() + "\n".join(lines) + "\n")


async def test_a_lost_primary_is_fenced_and_everybody_is_told(cluster: LocalCluster, tmp_path: Path) -> None:
    (tmp_path / "secret").write_text(SECRET + "\n")
    machines = {node: Machine(tmp_path / node) for node in cluster.nodes}
    plain = {node: cluster.layout.node_config(node).read_text() for node in cluster.nodes}
    try:
        async with Receiver().listening() as receiver:
            for node in cluster.nodes:
                configure(cluster, node, tmp_path, receiver.port)
                await kill_process(cluster, node)
            await until_whole(cluster)
            await _lose_the_leader(cluster, tmp_path, machines, receiver)
    finally:
        for node in cluster.nodes:
            cluster.layout.node_config(node).write_text(plain[node])
            await kill_process(cluster, node)
        for machine in machines.values():
            machine.close()


async def _lose_the_leader(
    cluster: LocalCluster, place: Path, machines: dict[str, Machine], receiver: Receiver
) -> None:
    leader, before = await the_leader(cluster), await the_register(cluster)
    await _until_kept_alive(machines[leader])
    agent = cluster.state().processes[leader].process
    assert agent is not None
    # With its agent frozen too, it is another voter that opens the epoch: who is alive need not be fenced.
    with frozen(postmaster(cluster, leader), psutil.Process(agent.pid)):
        await wait_until_epoch_serves(cluster, before.epoch + 1)
    await until_whole(cluster)
    fenced = await noted(cluster, "fence.done", 0)
    assert (fenced.detail["node"], fenced.detail["outcome"]) == (leader, "exit status 3; it said: refused")
    assert fenced.source != leader
    new = await the_leader(cluster)
    async with asyncio.timeout(WHOLE_S):
        while not {(c["node"], c["role"]) for c, _ in receiver.received} >= {(new, "primary"), (leader, "standby")}:
            await receiver.news.wait()
            receiver.news.clear()
    told = (place / "log").read_text().splitlines()
    assert f"fence {leader} {before.epoch + 1}" in told
    assert f"{new} standby primary" in told
    assert f"{leader} primary stopped" in told
    await _until_disarmed(machines[leader])
    await _until_kept_alive(machines[new])
    done = await noted(cluster, "hook.done", 0)
    assert done.detail["ok"] is True


async def _until_disarmed(machine: Machine) -> None:
    """Once it is no primary any more; the device is looked after a few times in its own time-out."""
    async with asyncio.timeout(WHOLE_S):
        while not machine.told().endswith(b"V"):  # noqa: ASYNC110 - as below
            await asyncio.sleep(0.05)


async def _until_kept_alive(machine: Machine) -> None:
    async with asyncio.timeout(WHOLE_S):
        while set(machine.told()) != {0}:  # noqa: ASYNC110 - a FIFO that nobody has opened is always readable
            await asyncio.sleep(0.05)
