"""A capture is sent away before its node comes back; storage that refuses holds nobody up, and gets it later."""

from __future__ import annotations

import hashlib
from collections.abc import AsyncIterator
from pathlib import Path

import pytest

from holdfast.local.captures import read_all
from holdfast.local.cluster import LocalCluster
from holdfast.local.orders import order
from holdfast.model.capture import Capture
from tests.installations import version_id
from tests.live.conftest import children_named, connect, noted_by_all, until_whole
from tests.live.test_policy import NEWEST, asynchronous, frozen, killed_for_good, ordered, postmaster
from tests.live.test_processes import kill_process
from tests.node.storage import KEY, FakeStorage, storage

__all__ = ["ordered"]
pytestmark = [
    pytest.mark.live,
    pytest.mark.parametrize("installation", NEWEST, indirect=True, ids=version_id, scope="module"),
]
SENT_TO = "s3://evidence/main"


@pytest.fixture
async def place(ordered: LocalCluster, tmp_path: Path) -> AsyncIterator[FakeStorage]:
    """Storage to which all agents of the cluster send, as long as the test goes on."""
    async with storage() as found:
        key_file = tmp_path / "key"
        key_file.write_text(f"{KEY.access_key_id} {KEY.secret}")
        before = {node: ordered.layout.node_config(node).read_text() for node in ordered.nodes}
        try:
            for node, text in before.items():
                assert "[capture]" not in text
                assert "[timeouts]" not in text
                capture = f'send_to = "{SENT_TO}"\ns3_endpoint = "{found.endpoint}"\ns3_key_file = "{key_file}"\n'
                ordered.layout.node_config(node).write_text(
                    f"{text}\n[capture]\n{capture}\n[timeouts]\ncapture_send_ms = 500\n"
                )
                await kill_process(ordered, node)
            await until_whole(ordered)
            yield found
        finally:
            for node, text in before.items():
                ordered.layout.node_config(node).write_text(text)
                await kill_process(ordered, node)
            await until_whole(ordered)


async def captured(cluster: LocalCluster) -> Capture:
    """Kill a primary that has log of its own, wait until it is back, and find what was taken of it."""
    before = await asynchronous(cluster)
    old = before.committed.leader.node
    async with await connect(cluster.superuser_dsn(old, "app")) as connection:
        senders = children_named(postmaster(cluster, old), "walsender")
        async with frozen(*senders):
            await connection.execute("SELECT pg_logical_emit_message(true, 'test', 'of its own')")
            after = await killed_for_good(cluster, before)
    await until_whole(cluster)
    captures, _ = await read_all(cluster)
    (found,) = [c for c in captures if c.node == old and c.epoch == after.epoch]
    return found


async def kinds_of(cluster: LocalCluster, capture: Capture, last: str) -> list[str]:
    events = await noted_by_all(
        cluster, lambda events: any(e.kind == last and e.epoch == capture.epoch for e in events)
    )
    return [e.kind for e in events if e.source == capture.node and e.epoch >= capture.epoch - 1]


def assert_arrived(place: FakeStorage, capture: Capture) -> None:
    prefix = f"/evidence/main/{Path(capture.directory).name}"
    for file in capture.files:
        assert hashlib.sha256(place.objects[f"{prefix}/files/{file.stored}"]).hexdigest() == file.sha256
    assert f"{prefix}/manifest.json" in place.objects


async def test_a_capture_has_arrived_before_its_node_is_touched(ordered: LocalCluster, place: FakeStorage) -> None:
    taken = await captured(ordered)
    assert taken.sent_to == SENT_TO
    assert_arrived(place, taken)
    kinds = await kinds_of(ordered, taken, "node.rejoined")
    assert kinds.index("capture.done") < kinds.index("capture.sent") < kinds.index("rewind.begun")


async def test_storage_that_refuses_gets_it_later(ordered: LocalCluster, place: FakeStorage) -> None:
    place.refuses_after = 3
    await order(ordered, "/policy", {"capture_wait_s": 10})
    taken = await captured(ordered)
    assert taken.sent_to is None
    kinds = await kinds_of(ordered, taken, "node.rejoined")
    assert kinds.index("capture.unsent") < kinds.index("rewind.begun")
    place.refuses_after = None
    await kinds_of(ordered, taken, "capture.sent")
    assert_arrived(place, taken)
