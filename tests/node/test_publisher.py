"""A node's record leaves with its lease; its address stays."""

from __future__ import annotations

import asyncio
import contextlib
from collections.abc import AsyncGenerator, AsyncIterator
from typing import cast

import pytest

from holdfast.model.keys import Keys
from holdfast.model.register import NodeRecord, NodeState
from holdfast.node.publisher import Publisher
from holdfast.node.registry import Registry
from holdfast.store.contract import Change, Put, Resync
from holdfast.store.memory import MemoryStore
from tests.core.builders import N1, N2, TIMEOUTS

KEYS = Keys("main")
RECORD = NodeRecord(N1, NodeState.PRIMARY, 3, "10.0.0.1", 5432, "http://10.0.0.1:8000")


@pytest.fixture
async def store() -> AsyncIterator[MemoryStore]:
    made = MemoryStore("main")
    yield made
    await made.close()


async def read(store: MemoryStore, key: str) -> NodeRecord | None:
    entry = await store.get(key)
    return NodeRecord.from_json(entry.value) if entry is not None else None


async def until_written(store: MemoryStore, key: str, record: NodeRecord) -> None:
    changes = cast("AsyncGenerator[Change, None]", store.watch(key))
    async with asyncio.timeout(60), contextlib.aclosing(changes):
        async for change in changes:
            entries = change.snapshot.entries if isinstance(change, Resync) else ()
            if isinstance(change, Put):
                entries = (change.entry,)
            if any(NodeRecord.from_json(e.value) == record for e in entries):
                return


@contextlib.asynccontextmanager
async def running(store: MemoryStore, record: NodeRecord) -> AsyncIterator[Publisher]:
    """A publisher that has published ``record``."""
    publisher = Publisher(store, KEYS, TIMEOUTS)
    publisher.publish(record)
    task = asyncio.create_task(publisher.run())
    try:
        await until_written(store, KEYS.node(record.member.node), record)
        yield publisher
    finally:
        task.cancel()
        with contextlib.suppress(asyncio.CancelledError):
            await task


async def nodes_as_seen_from_now_on(store: MemoryStore) -> dict[str, NodeRecord]:
    registry = Registry(store, KEYS, lambda: None)
    watching = asyncio.create_task(registry.run())
    await registry.synced.wait()
    watching.cancel()
    with contextlib.suppress(asyncio.CancelledError):
        await watching
    return registry.nodes


async def test_an_agent_that_starts_later_knows_where_a_silent_node_is(store: MemoryStore) -> None:
    async with running(store, RECORD) as publisher:
        assert await nodes_as_seen_from_now_on(store) == {"n1": RECORD}
        await publisher.withdraw()
    assert await read(store, KEYS.node("n1")) is None
    seen = (await nodes_as_seen_from_now_on(store))["n1"]
    assert (seen.postgres_host, seen.postgres_port, seen.api_url) == ("10.0.0.1", 5432, "http://10.0.0.1:8000")
    assert (seen.member, seen.state, seen.epoch) == (N1, NodeState.SILENT, 0)


async def test_an_address_is_written_again_only_when_it_changed(store: MemoryStore) -> None:
    async with running(store, RECORD) as publisher:
        first = await store.get(KEYS.address("n1"))
        await publisher.withdraw()
    async with running(store, RECORD) as publisher:
        second = await store.get(KEYS.address("n1"))
        demoted = NodeRecord(N1, NodeState.STANDBY, 4, "10.0.0.1", 5432, "http://10.0.0.1:8000")
        publisher.publish(demoted)
        await until_written(store, KEYS.node("n1"), demoted)
        assert await store.get(KEYS.address("n1")) == second
        moved = NodeRecord(N1, NodeState.STANDBY, 4, "10.0.0.9", 5432, "http://10.0.0.9:8000")
        publisher.publish(moved)
        await until_written(store, KEYS.node("n1"), moved)
        assert await read(store, KEYS.address("n1")) == moved.address()
    assert first is not None
    assert second is not None
    assert first.revision < second.revision  # a new lease: the store may have been emptied meanwhile


async def test_a_new_address_moves_a_node_that_is_known(store: MemoryStore) -> None:
    await store.put(KEYS.node("n2"), NodeRecord(N2, NodeState.STANDBY, 3, "10.0.0.2", 1, "http://a").to_json())
    news = asyncio.Event()
    registry = Registry(store, KEYS, news.set)
    moved = NodeRecord(N2, NodeState.SILENT, 0, "10.0.0.3", 2, "http://b")
    watching = asyncio.create_task(registry.run())
    await registry.synced.wait()
    await store.put(KEYS.address("n2"), moved.to_json())
    async with asyncio.timeout(60):
        while registry.nodes["n2"].postgres_port != 2:
            await news.wait()
            news.clear()
    assert registry.nodes["n2"] == NodeRecord(N2, NodeState.STANDBY, 3, "10.0.0.3", 2, "http://b")
    watching.cancel()
    with contextlib.suppress(asyncio.CancelledError):
        await watching
