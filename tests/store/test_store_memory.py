"""What the store in memory can do beyond the contract: faults and clocks in a test's hand."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Callable

import pytest

from holdfast.model.errors import StoreUnavailable
from holdfast.model.timeouts import Timeouts
from holdfast.store.contract import Change, Connected, Disconnected, Put, Resync
from holdfast.store.memory import Fault, MemoryBackend, MemoryStore

from .running import Watcher

Watching = Callable[[AsyncIterator[Change]], Watcher]

QUICK = Timeouts(store_request_ms=50, store_silence_ms=200)


async def test_a_lost_answer_is_not_a_lost_write() -> None:
    backend = MemoryBackend()
    store, other = MemoryStore("main", backend, QUICK), MemoryStore("main", backend, QUICK)
    store.set_fault(Fault.ANSWER_LOST)
    with pytest.raises(StoreUnavailable):
        await store.compare_and_swap("/x", b"1", 0)
    entry = await other.get("/x")
    assert entry is not None
    assert entry.value == b"1"


@pytest.mark.parametrize("fault", [Fault.REFUSED, Fault.SILENT])
async def test_a_client_that_is_cut_off_is_alone_in_that(fault: Fault, watching: Watching) -> None:
    backend = MemoryBackend()
    store, other = MemoryStore("main", backend, QUICK), MemoryStore("main", backend, QUICK)
    cut, whole = watching(store.watch("/")), watching(other.watch("/"))
    await cut.until_live()
    store.set_fault(fault)
    await cut.until(lambda w: not w.live)
    with pytest.raises(StoreUnavailable):
        await store.put("/x", b"1")
    await other.put("/x", b"2")
    await whole.until(lambda w: w.puts == [b"2"])
    assert cut.puts == []
    store.set_fault(Fault.NONE)
    await cut.until_live()
    assert [type(c) for c in cut.seen] == [Resync, Connected, Disconnected, Put, Connected]
    assert whole.count(Disconnected) == 0


async def test_a_short_silence_is_none(watching: Watching) -> None:
    store = MemoryStore("main", timeouts=Timeouts(store_silence_ms=60_000))
    watcher = watching(store.watch("/"))
    await watcher.until_live()
    store.set_fault(Fault.SILENT)
    await asyncio.sleep(0)
    store.set_fault(Fault.NONE)
    await store.put("/x", b"1")
    await watcher.until(lambda w: w.puts == [b"1"])
    assert watcher.count(Disconnected) == 0


async def test_leases_end_by_the_clock_that_was_given(watching: Watching) -> None:
    now_s = 100.0
    backend = MemoryBackend(clock=lambda: now_s)
    store = MemoryStore("main", backend)
    watcher = watching(store.watch("/"))
    lease = await store.grant_lease(5)
    await store.put("/x", b"1", lease)
    now_s = 104.9
    backend.expire_leases()
    assert await store.keep_alive(lease)
    now_s = 109.8
    backend.expire_leases()
    assert await store.get("/x") is not None
    now_s = 109.95
    assert not await store.keep_alive(lease)
    await watcher.until(lambda w: w.deleted == ["/x"])


async def test_a_restored_backup_is_a_resync(watching: Watching) -> None:
    backend = MemoryBackend()
    store = MemoryStore("main", backend)
    await store.put("/x", b"old")
    backup = backend.backup()
    revision = backend.revision
    watcher = watching(store.watch("/"))
    await watcher.until_live()
    await store.put("/x", b"new")
    await watcher.until(lambda w: w.puts == [b"new"])
    backend.restore(backup)
    await watcher.until(lambda w: w.now == {"/x": b"old"})
    assert backend.revision == revision
    assert watcher.count(Resync) == 2
    await store.put("/x", b"newer")
    await watcher.until(lambda w: w.now == {"/x": b"newer"})
