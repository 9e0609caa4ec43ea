"""What every store must do; runs on the one in memory and on etcd."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Callable
from dataclasses import replace
from functools import partial

import pytest

from holdfast.core.chain import Chain, Ends, check
from holdfast.core.chain import Entry as JournalEntry
from holdfast.model.errors import StoreUnavailable
from holdfast.model.event import Event, Head, Stamp
from holdfast.model.keys import Keys
from holdfast.store.contract import (
    ABSENT,
    Change,
    Connected,
    Deleted,
    Disconnected,
    Entry,
    Lease,
    LeaseEnded,
    Put,
    Resync,
    Store,
)

from .running import PATIENCE_S, Watcher, World

Watching = Callable[[AsyncIterator[Change]], Watcher]


@pytest.fixture
def keys(cluster: str) -> Keys:
    return Keys(cluster)


async def test_what_was_put_is_read(world: World, keys: Keys) -> None:
    store = world.connect()
    assert await store.get(keys.register) is None
    revision = await store.put(keys.register, b"\x00\xff value")
    assert await store.get(keys.register) == Entry(keys.register, b"\x00\xff value", revision)
    assert await world.connect().get(keys.register) == Entry(keys.register, b"\x00\xff value", revision)
    assert await store.put(keys.register, b"") > revision
    entry = await store.get(keys.register)
    assert entry is not None
    assert entry.value == b""


async def test_list_is_one_prefix_at_one_revision(world: World, keys: Keys) -> None:
    store = world.connect()
    for name in ("n2", "n1", "n3"):
        await store.put(keys.node(name), name.encode())
    last = await store.put(f"{keys.prefix}nodesx", b"a neighbour of the prefix")
    snapshot = await store.list(keys.nodes)
    assert [(e.key, e.value) for e in snapshot.entries] == [(keys.node(n), n.encode()) for n in ("n1", "n2", "n3")]
    assert snapshot.revision >= last
    assert (await store.list(f"{keys.prefix}nothing/")).entries == ()


async def test_delete(world: World, keys: Keys) -> None:
    store = world.connect()
    await store.put(keys.node("n1"), b"1")
    await store.put(keys.node("n2"), b"2")
    await store.put(keys.register, b"r")
    await store.delete(keys.node("n1"))
    await store.delete(keys.node("n1"))
    assert [e.key for e in (await store.list(keys.prefix)).entries] == [keys.node("n2"), keys.register]
    await store.delete_prefix(keys.nodes)
    await store.delete_prefix(keys.nodes)
    assert [e.key for e in (await store.list(keys.prefix)).entries] == [keys.register]


async def test_compare_and_swap(world: World, keys: Keys) -> None:
    store = world.connect()
    assert await store.compare_and_swap(keys.register, b"1", 12345) is None
    first = await store.compare_and_swap(keys.register, b"1", ABSENT)
    assert first is not None
    assert await store.compare_and_swap(keys.register, b"2", ABSENT) is None
    second = await store.compare_and_swap(keys.register, b"2", first)
    assert second is not None
    assert second > first
    assert await store.compare_and_swap(keys.register, b"3", first) is None
    assert await store.get(keys.register) == Entry(keys.register, b"2", second)
    await store.delete(keys.register)
    assert await store.compare_and_swap(keys.register, b"3", second) is None
    assert await store.compare_and_swap(keys.register, b"3", ABSENT) is not None


async def test_exactly_one_of_fifty_wins(world: World, keys: Keys) -> None:
    stores = [world.connect() for _ in range(5)]
    base = await stores[0].put(keys.register, b"start")
    outcomes = await asyncio.gather(
        *(stores[i % 5].compare_and_swap(keys.register, str(i).encode(), base) for i in range(50))
    )
    winners = [i for i, revision in enumerate(outcomes) if revision is not None]
    assert len(winners) == 1
    entry = await stores[0].get(keys.register)
    assert entry == Entry(keys.register, str(winners[0]).encode(), outcomes[winners[0]] or 0)


async def test_keys_leave_with_their_lease(world: World, keys: Keys, watching: Watching) -> None:
    store = world.connect()
    watcher = watching(world.connect().watch(keys.nodes))
    await watcher.until_live()
    lease = await store.grant_lease(4)
    assert lease.ttl_s >= 4
    await store.put(keys.node("n1"), b"1", lease)
    await store.put(keys.node("n2"), b"2", lease)
    await store.put(keys.node("n3"), b"3")
    await store.put(keys.node("n2"), b"without the lease now")
    assert await store.keep_alive(lease)
    await watcher.until(lambda w: w.deleted == [keys.node("n1")])
    assert not await store.keep_alive(lease)
    assert [e.key for e in (await store.list(keys.nodes)).entries] == [keys.node("n2"), keys.node("n3")]
    with pytest.raises(LeaseEnded):
        await store.put(keys.node("n1"), b"1", lease)
    assert await store.get(keys.node("n1")) is None


async def test_a_revoked_lease_ends_at_once(world: World, keys: Keys, watching: Watching) -> None:
    store = world.connect()
    watcher = watching(store.watch(keys.nodes))
    await watcher.until_live()
    lease = await store.grant_lease(300)
    await store.put(keys.node("n1"), b"1", lease)
    await store.revoke_lease(lease)
    await store.revoke_lease(lease)
    await watcher.until(lambda w: w.deleted == [keys.node("n1")])
    assert not await store.keep_alive(lease)


async def test_a_lease_that_is_kept_alive_stays(world: World, keys: Keys) -> None:
    store = world.connect()
    kept, left = await store.grant_lease(3), await store.grant_lease(5)  # not kept alive, it would go first
    await store.put(keys.node("kept"), b"", kept)
    await store.put(keys.node("left"), b"", left)
    async with asyncio.timeout(PATIENCE_S):
        while await store.get(keys.node("left")) is not None:
            assert await store.keep_alive(kept)
    assert await store.get(keys.node("kept")) is not None


async def test_a_watch_begins_with_how_it_is_now(world: World, keys: Keys, watching: Watching) -> None:
    store = world.connect()
    revision = await store.put(keys.node("n1"), b"1")
    watcher = watching(store.watch(keys.nodes))
    await watcher.until_live()
    assert isinstance(watcher.seen[0], Resync)
    assert watcher.seen[0].snapshot.entries == (Entry(keys.node("n1"), b"1", revision),)
    assert isinstance(watcher.seen[1], Connected)
    assert len(watcher.seen) == 2


async def test_a_watch_sees_its_prefix_and_nothing_else(world: World, keys: Keys, watching: Watching) -> None:
    store = world.connect()
    watcher = watching(store.watch(keys.nodes))
    await watcher.until_live()
    await store.put(keys.register, b"elsewhere")
    await store.put(keys.node("n1"), b"1")
    await store.delete(keys.node("n1"))
    await store.delete(keys.node("n1"))
    await store.put(f"{keys.prefix}nodesx", b"elsewhere")
    revision = await store.put(keys.node("n1"), b"2")
    await watcher.until(lambda w: len(w.puts) == 2)
    assert (watcher.puts, watcher.deleted) == ([b"1", b"2"], [keys.node("n1")])
    assert watcher.revisions[-1] == revision


async def test_watches_are_complete_and_in_order_under_concurrent_writes(
    world: World, keys: Keys, watching: Watching
) -> None:
    watchers = [watching(world.connect().watch(keys.prefix)) for _ in range(3)]
    writers = [world.connect() for _ in range(8)]

    async def write(number: int) -> None:
        for i in range(25):
            await writers[number].put(keys.node(f"w{number}"), f"{number}.{i}".encode())

    await asyncio.gather(*(write(number) for number in range(8)))
    await writers[0].put(keys.register, b"end")
    for watcher in watchers:
        await watcher.until(lambda w: w.now.get(keys.register) == b"end")
        assert watcher.revisions == sorted(set(watcher.revisions))
        for number in range(8):
            own = [value for value in watcher.puts if value.startswith(f"{number}.".encode())]
            # what was written before the first list is in that list, the rest follows without a gap
            assert own == [f"{number}.{i}".encode() for i in range(25)][25 - len(own) :]


async def test_a_watch_survives_a_restart(world: World, keys: Keys, watching: Watching) -> None:
    store = world.connect()
    watcher = watching(store.watch(keys.prefix))
    await watcher.until_live()
    for i in range(5):
        await store.put(keys.register, b"before %d" % i)
    world.take_down()
    with pytest.raises(StoreUnavailable):
        await store.put(keys.register, b"nobody sees this")
    await watcher.until(lambda w: not w.live)
    world.bring_back()
    other = world.connect()
    for i in range(5):
        await other.put(keys.register, b"after %d" % i)
    await other.delete(keys.register)
    await watcher.until(lambda w: w.deleted == [keys.register] and w.live)
    assert watcher.puts == [b"before %d" % i for i in range(5)] + [b"after %d" % i for i in range(5)]
    assert watcher.count(Resync) == 1
    assert watcher.count(Disconnected) == 1
    assert await store.put(keys.register, b"the old client goes on") > 0


async def test_a_resumed_watch_is_live_only_when_it_has_caught_up(world: World, keys: Keys) -> None:
    store = world.connect()
    await store.put(keys.node("old"), b"")
    for deletion_only in (False, True):
        changes = store.watch(keys.nodes)
        assert isinstance(await anext(changes), Resync)
        assert isinstance(await anext(changes), Connected)
        world.take_down()
        world.bring_back()
        other = world.connect()
        written = 0
        if not deletion_only:
            for i in range(5):
                await other.put(keys.node("n1"), b"%d" % i)
            written = 5
        await other.delete(keys.node("n1" if deletion_only else "old"))
        await other.put(keys.register, b"elsewhere")
        # nobody has asked this watch for anything since: it finds the broken connection and all of it now
        seen: list[Change] = []
        while sum(isinstance(change, Put | Deleted) for change in seen) < written + 1:
            seen.append(await anext(changes))
        assert not any(isinstance(change, Connected | Resync) for change in seen)
        if any(isinstance(change, Disconnected) for change in seen):
            assert isinstance(await anext(changes), Connected)


async def test_a_watch_that_missed_compacted_history_resyncs(world: World, keys: Keys, watching: Watching) -> None:
    store = world.connect()
    await store.put(keys.node("n1"), b"1")
    watcher = watching(store.watch(keys.nodes))
    await watcher.until_live()
    slow = store.watch(keys.nodes)
    assert isinstance(await anext(slow), Resync)
    assert isinstance(await anext(slow), Connected)
    world.take_down()
    world.bring_back()
    other = world.connect()
    await other.delete(keys.node("n1"))
    await other.put(keys.node("n2"), b"2")
    await world.compact()
    await other.put(keys.node("n3"), b"3")
    # `slow` did not come back between the restart and the compaction: nobody asked it for anything
    late = watching(slow)
    await late.until(lambda w: w.count(Resync) == 1 and w.now == {keys.node("n2"): b"2", keys.node("n3"): b"3"})
    await watcher.until(lambda w: w.now == {keys.node("n2"): b"2", keys.node("n3"): b"3"})


async def test_a_store_that_is_away_from_the_start(world: World, keys: Keys, watching: Watching) -> None:
    world.take_down()
    store = world.connect()
    with pytest.raises(StoreUnavailable):
        await store.get(keys.register)
    watcher = watching(store.watch(keys.prefix))
    await watcher.until(lambda w: bool(w.seen))
    assert isinstance(watcher.seen[0], Disconnected)
    world.bring_back()
    await watcher.until_live()
    assert [type(change) for change in watcher.seen] == [Disconnected, Resync, Connected]


async def test_every_method_says_when_the_store_is_away(world: World, keys: Keys) -> None:
    store = world.connect()
    lease = await store.grant_lease(60)
    world.take_down()
    event = Event(1.0, "n1", "test.event", 1)
    for attempt in (
        lambda: store.get(keys.register),
        lambda: store.list(keys.prefix),
        lambda: store.put(keys.register, b""),
        lambda: store.compare_and_swap(keys.register, b"", ABSENT),
        lambda: store.delete(keys.register),
        lambda: store.delete_prefix(keys.prefix),
        lambda: store.grant_lease(1),
        lambda: store.keep_alive(lease),
        lambda: store.revoke_lease(lease),
        lambda: store.append_event(event),
        lambda: store.read_events(),
    ):
        with pytest.raises(StoreUnavailable):
            await attempt()
    world.bring_back()
    assert (await world.connect().list(keys.prefix)).entries == ()


async def test_the_journal_keeps_the_order_of_writing(world: World, keys: Keys) -> None:
    writers = [world.connect() for _ in range(4)]
    reader = world.connect()
    assert await reader.read_events() == ()
    for i in range(12):  # the writers' clocks disagree
        await writers[i % 4].append_event(Event(1000.0 - i, f"n{i % 4}", "test.event", i, detail={"i": i}))
    assert [event.epoch for event in await reader.read_events()] == list(range(12))
    assert [event.epoch for event in await reader.read_events(3)] == [9, 10, 11]
    assert await reader.read_events(0) == ()
    newest = (await reader.read_events(1))[0]
    assert replace(newest, link=None) == Event(989.0, "n3", "test.event", 11, detail={"i": 11})


async def test_no_entry_of_the_journal_is_overwritten(world: World) -> None:
    writers = [world.connect() for _ in range(4)]
    events = [Event(5.0, "n1", "test.event", 1, stamp=Stamp(5000, i)) for i in range(40)]
    await asyncio.gather(*(writers[i % 4].append_event(event) for i, event in enumerate(events)))
    kept = await writers[0].read_events()
    assert sorted((replace(event, link=None) for event in kept), key=lambda event: event.order) == events
    assert sorted(event.link.number for event in kept if event.link) == list(range(1, 41))


async def test_the_journal_is_bounded(world: World) -> None:
    store = world.connect()  # keeps 200 entries
    for i in range(384):
        await store.append_event(Event(float(i), "n1", "test.event", i))
    events = await store.read_events()
    assert [event.epoch for event in events] == list(range(184, 384))


async def read_chains(store: Store, keys: Keys) -> tuple[Chain, ...]:
    found = (await store.list(keys.all_of_journal)).entries
    heads, bases = (
        {e.key.removeprefix(prefix): Head.from_json(e.value) for e in found if e.key.startswith(prefix)}
        for prefix in (keys.journal_heads, keys.journal_bases)
    )
    entries = [JournalEntry.read(e.value) for e in found if e.key.startswith(keys.journal)]
    return check(entries, Ends(heads, bases))


async def test_each_source_has_a_chain_that_outlives_its_process(world: World, keys: Keys) -> None:
    for life in range(3):
        store = world.connect()
        for i in range(4):
            kept = [await store.append_event(Event(float(i), source, "test.event", life)) for source in ("n1", "p 1")]
        assert [event.link and event.link.number for event in kept] == [4 * (life + 1)] * 2
        await store.close()
    chains = await read_chains(world.connect(), keys)
    assert [(c.source, c.first, c.last, c.intact) for c in chains] == [("n1", 1, 12, True), ("p 1", 1, 12, True)]


async def test_a_chain_can_be_checked_from_where_the_journal_begins(world: World, keys: Keys) -> None:
    stores = [world.connect() for _ in range(3)]  # each keeps 200 entries
    await stores[2].append_event(Event(0.0, "n9", "test.event", 0))
    for i in range(400):
        await asyncio.gather(*(store.append_event(Event(float(i), f"n{n}", "t", i)) for n, store in enumerate(stores)))
    chains = await read_chains(stores[0], keys)
    assert [c.source for c in chains if not c.intact] == []
    assert {c.source: c.last for c in chains} == {"n0": 400, "n1": 400, "n2": 400, "n9": None}
    assert all(c.first is None or c.first > 250 for c in chains)


async def test_an_entry_that_is_asked_for_again_is_there_once(world: World, keys: Keys) -> None:
    store, lose = await world.connect_lossy()
    event = Event(1.0, "n1", "test.event", 1)
    await store.append_event(event)
    lose(True)
    for _ in range(3):
        with pytest.raises(StoreUnavailable):
            await store.append_event(replace(event, epoch=2))
    lose(False)
    kept = await store.append_event(replace(event, epoch=2))
    assert (await store.read_events())[1:] == (kept,)
    assert all(chain.intact for chain in await read_chains(store, keys))


def has_value(key: str, value: bytes, watcher: Watcher) -> bool:
    return watcher.now.get(key) == value


async def test_a_write_brings_the_clock_of_who_wrote_before_what_he_wrote(
    world: World, keys: Keys, watching: Watching
) -> None:
    writer, late, reader = world.connect("n1"), world.connect("n2"), world.connect()
    watcher = watching(reader.watch(keys.prefix))
    await watcher.until_live()
    for attempt in range(3):
        ahead = Stamp(reader.clock.stamp().us + 3_600_000_000, attempt)
        writer.clock.saw(ahead)
        if attempt == 0:
            await writer.put(keys.node("n1"), b"1")
        elif attempt == 1:
            lease = await writer.grant_lease(60)
            await writer.put(keys.node("n1"), b"2", lease)
        else:
            entry = await reader.get(keys.node("n1"))
            assert entry is not None
            assert await writer.compare_and_swap(keys.node("n1"), b"3", entry.revision - 1) is None
            assert await writer.compare_and_swap(keys.node("n1"), b"3", entry.revision) is not None
        await watcher.until(partial(has_value, keys.node("n1"), str(attempt + 1).encode()))
        puts = [change.entry.key for change in watcher.seen if isinstance(change, Put)]
        assert puts[-2:] == [keys.clock("n1"), keys.node("n1")]
        assert reader.clock.stamp() > ahead
    starting = watching(late.watch(keys.prefix))
    await starting.until_live()
    assert late.clock.stamp() > ahead
    with pytest.raises(LeaseEnded):
        await writer.put(keys.node("n1"), b"4", Lease(4711, 60))


async def test_a_closed_store_is_closed(world: World, keys: Keys, watching: Watching) -> None:
    store = world.connect()
    watcher = watching(store.watch(keys.prefix))
    await watcher.until_live()
    await store.close()
    await store.close()
    async with asyncio.timeout(PATIENCE_S):
        await asyncio.wait([watcher._task])
    assert watcher._task.exception() is None
    with pytest.raises(StoreUnavailable, match="closed"):
        await store.get(keys.register)


async def test_a_watch_that_is_left_behind_leaves_nothing(world: World, keys: Keys) -> None:
    store = world.connect()
    changes = store.watch(keys.prefix)
    assert isinstance(await anext(changes), Resync)
    assert isinstance(await anext(changes), Connected)
    await changes.aclose()  # type: ignore[attr-defined]
    assert await store.get(keys.register) is None
