"""The lease of a primary that acknowledges alone, so long that an agent is started anew before it ends."""

from __future__ import annotations

import time

import psycopg
import pytest

from holdfast.local.cluster import LocalCluster
from tests.installations import version_id
from tests.live.conftest import until_whole
from tests.live.test_policy import NEWEST, asynchronous, ended, frozen, is_alive, ordered, postmaster, process_of
from tests.live.test_processes import kill_process

__all__ = ["ordered"]
pytestmark = [
    pytest.mark.live,
    pytest.mark.parametrize("installation", NEWEST, indirect=True, ids=version_id, scope="module"),
]
LEASE_MS = 12_000


@pytest.fixture
async def patient(ordered: LocalCluster) -> LocalCluster:
    """A cluster whose agents have all been started with a long lease."""
    for name in ordered.nodes:
        with ordered.layout.node_config(name).open("a") as config:
            config.write(f"\n[timeouts]\nlease_ms = {LEASE_MS}\n")
        await kill_process(ordered, name)
    await until_whole(ordered)
    return ordered


async def test_an_agent_started_anew_without_the_store_leaves_the_guard_of_its_former_life(
    patient: LocalCluster,
) -> None:
    """It cannot know who leads now: the server must end when the lease of the former agent does."""
    before = await asynchronous(patient)
    leader = before.committed.leader.node
    server = postmaster(patient, leader)
    began = time.monotonic()
    async with frozen(process_of(patient, "etcd")):
        await kill_process(patient, leader)
        assert is_alive(server)
        await ended(server)
        assert time.monotonic() - began < LEASE_MS / 1000
    await until_whole(patient)
    async with await psycopg.AsyncConnection.connect(patient.write_dsn, autocommit=True) as connection:
        await connection.execute("CREATE TABLE after_the_guard (id int)")
