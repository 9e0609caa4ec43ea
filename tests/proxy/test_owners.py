"""Whose the transactions were that a primary took with it."""

from __future__ import annotations

import asyncio
import socket

import psycopg
import pytest

from holdfast.core.whose import Client, whose
from holdfast.model.owner import Owner, Unanswered
from holdfast.proxy.owners import NAMED_MAX, Owners
from holdfast.proxy.routing import Target
from tests.proxy.cluster import Cluster, Pair, wait_until_active
from tests.proxy.servers import USER

PRIMARY = Target("n1", "127.0.0.1", 5432, 3, True)
STANDBY = Target("n2", "127.0.0.1", 5432, 3, False)
ALICE = Owner("alice", "app", "billing", "10.0.0.7:51234")


def test_an_entry_has_room_for_each_kind() -> None:
    owners = Owners()
    assert owners.take() is None
    for _ in range(NAMED_MAX + 5):
        owners.lost(ALICE, PRIMARY, Unanswered.UNDONE)
    owners.lost(ALICE, PRIMARY, Unanswered.UNKNOWN)
    taken = owners.take()
    assert taken is not None
    assert (taken["unknown"], taken["undone"], taken["unnamed"]) == (1, NAMED_MAX + 5, 5)
    assert isinstance(taken["clients"], list)
    assert [c["outcome"] for c in taken["clients"] if isinstance(c, dict)].count("unknown") == 1
    assert owners.take() is None


def test_what_a_standby_answered_is_nobodys_loss() -> None:
    owners = Owners()
    owners.lost(ALICE, STANDBY, Unanswered.UNKNOWN)
    assert owners.take() is None


async def named(cluster: Cluster, count: int) -> dict[str, Client]:
    """The clients that the journal names, by their applications."""
    async with asyncio.timeout(30):
        while True:
            clients = whose(await cluster.store.read_events()).clients
            if len(clients) >= count:
                return {client.owner.application: client for client in clients}
            await asyncio.sleep(0.05)  # the journal is read, not watched


@pytest.mark.live
async def test_a_primary_killed_during_commits_names_user_application_and_address(pair: Pair) -> None:
    await asyncio.to_thread(pair.n1.query, "alter system set synchronous_standby_names = 'nobody'")
    await asyncio.to_thread(pair.n1.query, "select pg_reload_conf()")
    await asyncio.to_thread(pair.n1.wait_for, "select current_setting('synchronous_standby_names') = 'nobody'")
    committing = await pair.cluster.connect(application_name="committing")
    thinking = await pair.cluster.connect(application_name="thinking")
    idle = await pair.cluster.connect(application_name="idle")
    for connection in (committing, thinking):
        await connection.execute("begin")
        await connection.execute("insert into ledger values (7, 7)")
    await idle.execute("select 1")
    commit = asyncio.create_task(committing.execute("commit"))
    await wait_until_active(pair.n1, "commit")
    where = {c: "{}:{}".format(*_own_address(c)) for c in (committing, thinking)}
    await pair.fail_over()
    with pytest.raises(psycopg.errors.TransactionResolutionUnknown):
        await commit
    clients = await named(pair.cluster, 2)
    assert clients.keys() == {"committing", "thinking"}
    assert clients["committing"].owner == Owner(USER, "app", "committing", where[committing])
    assert clients["committing"].told is Unanswered.UNKNOWN
    assert (clients["committing"].node, clients["committing"].epoch) == ("n1", 1)
    assert clients["thinking"].owner == Owner(USER, "app", "thinking", where[thinking])
    assert clients["thinking"].told is Unanswered.UNDONE
    for connection in (committing, thinking, idle):
        await connection.close()


def _own_address(connection: psycopg.AsyncConnection[object]) -> tuple[str, int]:
    with socket.fromfd(connection.fileno(), socket.AF_INET, socket.SOCK_STREAM) as sock:
        host, port = sock.getsockname()
        return str(host), int(port)
