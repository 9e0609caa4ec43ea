"""An isolated server lets nobody in but its agent, replication and the investigator; open again it is as before."""

from __future__ import annotations

import asyncio
from collections.abc import Callable
from pathlib import Path

import psutil
import psycopg
import pytest

from holdfast.core.observation import Observation
from holdfast.model.register import NO_QUORUM
from holdfast.model.server import ServerStatus
from holdfast.model.settings import NodeSettings, parse_settings
from holdfast.model.timeouts import Timeouts
from holdfast.node.clock import monotonic_ms
from holdfast.node.isolation import Isolation
from holdfast.postgres.config import REPLICATION_ROLE
from holdfast.store.journal import Journal
from holdfast.store.memory import MemoryStore
from tests.core.test_isolation import BACK, seen_by_n1
from tests.node.firewall_trial import CONFIG
from tests.postgres.lab import PASSWORD, Lab

pytestmark = pytest.mark.live

ONLY = ('local all "investigator" scram-sha-256', 'host all "investigator" 127.0.0.1/32 scram-sha-256')
REFUSED = "no pg_hba.conf entry"


async def come_in(lab: Lab, node: str, user: str, **more: object) -> None:
    """A session over TCP, unless ``host`` says otherwise."""
    settings = lab.settings_of(node)
    where: dict[str, object] = {"host": settings.host, "port": settings.port, "dbname": "postgres", **more}
    async with await psycopg.AsyncConnection.connect("", user=user, password=PASSWORD, **where) as connection:  # type: ignore[arg-type]
        await connection.execute("SELECT 1")


async def test_only_agent_replication_and_investigator_are_let_in(lab: Lab) -> None:
    server = await lab.primary("a")
    for role in ("app", "investigator"):
        await lab.execute("a", f"CREATE ROLE {role} LOGIN PASSWORD '{PASSWORD.replace(chr(39), chr(39) * 2)}'")
    await come_in(lab, "a", "app")

    server.isolate(ONLY)
    await server.settle_isolation()
    for user in ("app", "postgres"):
        with pytest.raises(psycopg.OperationalError, match=REFUSED):
            await come_in(lab, "a", user)
    with pytest.raises(psycopg.OperationalError, match=REFUSED):
        await come_in(lab, "a", "app", host=str(lab.settings_of("a").socket_dir))
    await come_in(lab, "a", "investigator")
    await come_in(lab, "a", "investigator", host=str(lab.settings_of("a").socket_dir))
    await come_in(lab, "a", REPLICATION_ROLE)
    assert await server.accepts_sessions(5000), "the agent"

    server.isolate(None)
    await come_in(lab, "a", "investigator")
    await server.settle_isolation()
    await come_in(lab, "a", "app")
    await come_in(lab, "a", "postgres")


async def test_replication_to_and_from_an_isolated_server_goes_on(lab: Lab) -> None:
    primary = await lab.primary("a")
    first, _ = await lab.standby("b")
    for server in (primary, first):
        server.isolate(ONLY)
        await server.settle_isolation()
    second, _ = await lab.standby("c")  # it streams from an isolated server, as standbys of a new candidate do
    await primary.write_epoch_record(7)
    for standby in (first, second):
        await lab.until_equal(primary, standby)


async def test_a_start_counts_at_once_and_what_is_told_meanwhile_is_not_undone(lab: Lab) -> None:
    server = await lab.primary("a")
    await server.stop("fast", 10_000)
    server.isolate(ONLY)
    await server.settle_isolation()  # nothing runs: nothing is touched
    assert "Isolated" not in (lab.data_dir("a") / "pg_hba.conf").read_text()
    await server.start(standby=False)
    await lab.until(server, lambda view: view.status is ServerStatus.PRIMARY)
    with pytest.raises(psycopg.OperationalError, match=REFUSED):
        await come_in(lab, "a", "postgres")
    server.isolate(None)
    await server.set_quorum(NO_QUORUM)  # any change of settings brings it along
    await come_in(lab, "a", "postgres")


async def test_what_could_not_be_done_is_settled_when_it_is_not_wanted_any_more(lab: Lab, tmp_path: Path) -> None:
    """A server that is just starting accepts no session, not even its agent's; later the node may be back."""
    server = await lab.primary("a")
    store = MemoryStore("some-cluster", owner="n1")
    settings = parse_settings(CONFIG.format(directory=tmp_path), NodeSettings, "here")
    done = asyncio.Event()
    isolation = Isolation(settings, server, store, Journal(store, "n1", Timeouts()), done.set)

    async def look_until(seen: Callable[[], Observation], told: Callable[[str | None], bool]) -> None:
        async with asyncio.timeout(60):
            while not told(isolation.told):
                done.clear()
                isolation.look(seen())
                await asyncio.wait([asyncio.create_task(done.wait())], timeout=0.2)

    isolation.look(seen_by_n1(now_ms=monotonic_ms(), **BACK))
    await done.wait()
    assert server.pid is not None
    postmaster = psutil.Process(server.pid)
    postmaster.suspend()
    try:
        lost = lambda: seen_by_n1(now_ms=monotonic_ms())  # noqa: E731
        await look_until(lost, lambda told: told is not None and "pg_hba failed" in told)
    finally:
        postmaster.resume()
    await look_until(lambda: seen_by_n1(now_ms=monotonic_ms(), **BACK), lambda told: told is None)
    assert not isolation.shut
    await come_in(lab, "a", "postgres")
    await isolation.close()
