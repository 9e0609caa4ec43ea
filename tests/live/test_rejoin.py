"""A node that cannot be rewound, or does not stream then, is cloned, by itself; nobody makes it a primary again."""

from __future__ import annotations

import asyncio
import contextlib
import os
from collections.abc import AsyncIterator
from pathlib import Path

import psycopg
import pytest

from holdfast.local.cluster import LocalCluster
from holdfast.model.event import Event
from holdfast.postgres.config import REPLICATION_ROLE, slot_of
from holdfast.postgres.files import remove_durably
from tests.installations import version_id
from tests.live.conftest import WHOLE_S, children_named, connect, noted_by_all, the_leader, until_whole
from tests.live.test_policy import NEWEST, asynchronous, frozen, killed_for_good, ordered, postmaster

__all__ = ["ordered"]
pytestmark = [
    pytest.mark.live,
    pytest.mark.parametrize("installation", NEWEST, indirect=True, ids=version_id, scope="module"),
]


async def lose_primary(cluster: LocalCluster, *, spoil: bool) -> tuple[str, int]:
    """Kill the primary with rows that nobody else has; returns which, and the epoch that follows.

    ``spoil``: pg_rewind will refuse its directory, in which a directory lies where the source has a file.
    """
    before = await asynchronous(cluster)
    old = before.committed.leader.node
    async with await connect(cluster.superuser_dsn(old, "app")) as connection:
        await connection.execute("CREATE TABLE IF NOT EXISTS rejoining (i int)")
        senders = children_named(postmaster(cluster, old), "walsender")
        assert senders
        async with frozen(*senders):
            await connection.execute("INSERT INTO rejoining SELECT generate_series(1, 1000)")
            if spoil:
                path = cluster.layout.data_dir(old) / "pg_ident.conf"
                remove_durably(path)
                path.mkdir()
            after = await killed_for_good(cluster, before)
    assert after.committed.leader.node != old
    return old, after.epoch


async def kinds_of(cluster: LocalCluster, node: str, epoch: int, last: str) -> list[str]:
    """What the journal says of a node from an epoch on, once it has the ``last`` of it."""

    def has_it(events: tuple[Event, ...]) -> bool:
        return any(e.kind == last and e.source == node and e.epoch >= epoch for e in events)

    events = await noted_by_all(cluster, has_it)
    return [e.kind for e in events if e.source == node and e.epoch >= epoch - 1]


async def test_a_node_whose_rewind_fails_is_cloned(ordered: LocalCluster) -> None:
    old, epoch = await lose_primary(ordered, spoil=True)
    await until_whole(ordered)
    kinds = await kinds_of(ordered, old, epoch, "clone.done")
    kinds = kinds[kinds.index("rewind.begun") :]
    assert kinds.index("rewind.failed") < kinds.index("clone.begun") < kinds.index("clone.done")
    assert "rewind.done" not in kinds
    assert (ordered.layout.data_dir(old) / "pg_ident.conf").is_file()
    async with await connect(ordered.superuser_dsn(old, "app")) as connection:
        rows = await (await connection.execute("SELECT pg_is_in_recovery(), count(*) FROM rejoining")).fetchone()
    assert rows is not None
    assert rows[0] is True


@contextlib.asynccontextmanager
async def kept_from_streaming(cluster: LocalCluster, node: str, leader: str, place: Path) -> AsyncIterator[None]:
    """Somebody else holds the slot through which it would stream, and speaks every second, so that nobody ends it."""
    ports, slot = cluster.file.ports.nodes, slot_of(node)
    command = [
        str(Path(cluster.file.postgresql.path) / "pg_receivewal"), "-D", str(place), "-S", slot, "--status-interval=1",
        "-h", cluster.file.address(leader), "-p", str(ports[leader].postgres), "-U", REPLICATION_ROLE, "--no-password",
    ]  # fmt: skip
    environment = {**os.environ, "PGPASSWORD": cluster.layout.read_secret("replication")}
    async with await connect(cluster.superuser_dsn(leader, "app")) as connection:
        await begin_here(connection, place)
        holder = await asyncio.create_subprocess_exec(*command, env=environment)
        try:
            async with asyncio.timeout(WHOLE_S):
                while not (await (await connection.execute(HELD, (slot,))).fetchall()):
                    assert holder.returncode is None
                    await asyncio.sleep(0.05)  # nobody tells of a slot that is taken
            yield
        finally:
            with contextlib.suppress(ProcessLookupError):
                holder.kill()
            await holder.wait()


HELD = """
SELECT FROM pg_replication_slots JOIN pg_stat_replication r ON r.pid = active_pid
 WHERE slot_name = %s AND r.application_name = 'pg_receivewal'
"""


async def begin_here(connection: psycopg.AsyncConnection[tuple[object, ...]], place: Path) -> None:
    """Let pg_receivewal begin where the log is now: what the slot is at may be older than the timeline."""
    size = "pg_size_bytes(current_setting('wal_segment_size'))"
    before = f"SELECT pg_walfile_name(pg_current_wal_lsn() - {size}), {size}"
    row = await (await connection.execute(before.encode())).fetchone()
    assert row is not None
    name, size_bytes = str(row[0]), int(str(row[1]))
    with (place / name).open("wb") as segment:
        segment.truncate(size_bytes)


async def test_a_rewound_node_that_does_not_stream_in_time_is_cloned(ordered: LocalCluster, tmp_path: Path) -> None:
    old, epoch = await lose_primary(ordered, spoil=False)
    async with kept_from_streaming(ordered, old, await the_leader(ordered), tmp_path):
        kinds = await kinds_of(ordered, old, epoch, "clone.begun")
    assert kinds.index("rewind.done") < kinds.index("clone.begun")
    await until_whole(ordered)
    assert "clone.done" in await kinds_of(ordered, old, epoch, "clone.done")
