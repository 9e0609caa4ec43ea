from __future__ import annotations

import asyncio
import shutil
import tempfile
from collections.abc import AsyncIterator, Callable, Iterator
from pathlib import Path

import pytest

from holdfast.local.machine import server_user
from holdfast.model.register import NodeState
from holdfast.proxy.loop import new_event_loop
from tests.installations import oldest_and_newest, readable, version_id
from tests.ports import free_port
from tests.proxy.cluster import Cluster, Pair
from tests.proxy.servers import PASSWORD, USER, Server


def pytest_asyncio_loop_factories(item: pytest.Item) -> dict[str, Callable[[], asyncio.AbstractEventLoop]]:
    """What knows of sockets runs in any event loop, the rest in the one that the command uses."""
    ours: dict[str, Callable[[], asyncio.AbstractEventLoop]] = {"ours": new_event_loop}
    return {**ours, "plain": asyncio.SelectorEventLoop} if item.path.name == "test_streams.py" else ours


def new_home() -> Path:
    """A directory that the servers' user may enter (pytest's own is closed to others)."""
    home = Path(tempfile.mkdtemp(prefix="holdfast-proxy-"))
    home.chmod(0o755)
    user = server_user()
    if user is not None:
        shutil.chown(home, user)
    return home


with_oldest_and_newest = pytest.mark.parametrize(
    "bin_dir", oldest_and_newest(), ids=version_id, indirect=True, scope="session"
)


@pytest.fixture(scope="session", params=oldest_and_newest()[:1], ids=version_id)
def bin_dir(request: pytest.FixtureRequest) -> Path:
    """The oldest PostgreSQL; what depends on the server most is tried with the newest, too."""
    return readable(request.param).bin_dir


@pytest.fixture(scope="session")
def template(bin_dir: Path) -> Iterator[Server]:
    """A stopped server with the applications' roles and a table."""
    home = new_home()
    server = Server(home, "template", bin_dir)
    try:
        server.init()
        server.start()
        server.query(f"create role {USER} login password '{PASSWORD}' in role pg_signal_backend")
        server.query("create role trusted login superuser")
        server.query("create role other login password 'other password'")
        server.query(f"create database app owner {USER}")
        server.query("create table ledger as select 1 as account, 0 as balance", "app")
        server.query(f"alter table ledger owner to {USER}", "app")
        server.stop()
        yield server
    finally:
        server.kill()
        shutil.rmtree(home)


ServerMaker = Callable[..., Server]


@pytest.fixture
def make_server(template: Server) -> Iterator[ServerMaker]:
    """Start copies of the template: ``make_server("n1")``, ``make_server("n2", follows=n1)``."""
    home = new_home()
    servers: list[Server] = []

    def make(name: str, follows: Server | None = None) -> Server:
        server = Server(home, name, template.bin_dir)
        server.copy(template)
        if follows is not None:
            server.follow(follows)
        servers.append(server)
        server.start()
        return server

    yield make
    for server in servers:
        server.kill()
    shutil.rmtree(home)


@pytest.fixture(scope="session")
def lasting(template: Server) -> Iterator[Server]:
    """One primary, with pgbench's tables, for all tests that break nothing."""
    home = new_home()
    server = Server(home, "n1", template.bin_dir)
    try:
        server.copy(template)
        server.start()
        server.run("pgbench", "-i", "-q", "-s", "2", "-h", str(home), "-p", str(server.port), "-U", USER, "app")
        yield server
    finally:
        server.kill()
        shutil.rmtree(home)


@pytest.fixture
async def cluster(tmp_path: Path) -> AsyncIterator[Cluster]:
    """A store and a proxy to start."""
    made = Cluster(tmp_path)
    yield made
    await made.close()


@pytest.fixture
async def served(cluster: Cluster, lasting: Server) -> Cluster:
    """A running proxy in front of the lasting primary."""
    await cluster.serve(lasting, 1)
    await cluster.start()
    return cluster


@pytest.fixture
def unused_port() -> int:
    return free_port()


@pytest.fixture
async def pair(cluster: Cluster, make_server: ServerMaker) -> Pair:
    n1 = await asyncio.to_thread(make_server, "n1")
    n2 = await asyncio.to_thread(make_server, "n2", n1)
    await asyncio.to_thread(n1.wait_for, "select exists (select from pg_stat_replication where state = 'streaming')")
    await cluster.serve(n1, 1)
    await cluster.record(n2, NodeState.STANDBY, 1)
    return Pair(cluster, n1, n2, await cluster.start())
