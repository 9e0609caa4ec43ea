"""The store as an agent sees it, and swaps of exactly the register that was decided on."""

from __future__ import annotations

import asyncio
import contextlib
import time
from collections.abc import AsyncGenerator, AsyncIterator
from dataclasses import replace
from pathlib import Path
from typing import cast

import pytest
from aiohttp import web

from holdfast.core import actions as a
from holdfast.core.causality import in_order
from holdfast.core.choice import ChoiceReason
from holdfast.model.asker import CLOCK_HEADER
from holdfast.model.errors import StoreUnavailable
from holdfast.model.event import Stamp
from holdfast.model.keys import Keys
from holdfast.model.register import Phase, Quorum, Register
from holdfast.model.settings import (
    ApiSettings,
    ClusterSettings,
    NodeIdentity,
    NodeSettings,
    PostgresSettings,
    StoreSettings,
)
from holdfast.node.observer import Observer
from holdfast.node.peers import Peers
from holdfast.node.performer import Performer
from holdfast.node.promise import Names, PromiseFile
from holdfast.node.reach import HttpReach
from holdfast.node.registry import Registry
from holdfast.postgres.disk import Disk
from holdfast.postgres.server import Server
from holdfast.store.clock import Clock
from holdfast.store.contract import Change, Put, Resync
from holdfast.store.journal import Journal
from holdfast.store.memory import Fault, MemoryBackend, MemoryStore
from tests.core.builders import BOTH, N2, N3, TIMEOUTS, observation, recruit, register

KEYS = Keys("main")


class Changes:
    """Counts the calls of ``on_change`` and lets a test wait for the next."""

    def __init__(self) -> None:
        self._happened = asyncio.Event()

    def __call__(self) -> None:
        self._happened.set()

    async def next(self) -> None:
        async with asyncio.timeout(60):
            await self._happened.wait()
        self._happened.clear()


@pytest.fixture
def backend() -> MemoryBackend:
    return MemoryBackend()


@pytest.fixture
def store(backend: MemoryBackend) -> MemoryStore:
    return MemoryStore("main", backend)


@pytest.fixture
def changes() -> Changes:
    return Changes()


@pytest.fixture
async def registry(store: MemoryStore, changes: Changes) -> AsyncIterator[Registry]:
    followed = Registry(store, KEYS, changes)
    watching = asyncio.create_task(followed.run())
    await followed.synced.wait()
    yield followed
    watching.cancel()
    with contextlib.suppress(asyncio.CancelledError):
        await watching


async def put_register(store: MemoryStore, value: Register) -> int:
    return await store.put(KEYS.register, value.to_json())


async def test_it_follows_the_register_and_the_recruits_of_its_epoch(
    store: MemoryStore, registry: Registry, changes: Changes
) -> None:
    assert registry.register is None
    await put_register(store, register())
    await store.put(KEYS.recruit(1, "n2"), recruit(N2, 1, 1, 10).to_json())
    await store.put(KEYS.recruit(2, "n3"), recruit(N3, 2, 1, 10).to_json())
    while len(registry.recruits()) != 1:
        await changes.next()
    assert registry.recruits()[0].member == N2
    await put_register(store, register(2, Phase.RECRUITING))
    while registry.register != register(2, Phase.RECRUITING):
        await changes.next()
    assert [r.member for r in registry.recruits()] == [N3]


async def test_what_cannot_be_read_is_no_register(store: MemoryStore, registry: Registry, changes: Changes) -> None:
    await put_register(store, register())
    await store.put(KEYS.register, b'{"format": 99}')
    while registry.unreadable is None:
        await changes.next()
    assert registry.register is None


async def test_an_own_swap_is_known_at_once_and_older_news_do_not_undo_it(
    store: MemoryStore, registry: Registry
) -> None:
    revision = await put_register(store, register())
    registry.swapped(register(2, Phase.RECRUITING), revision + 5)
    assert registry.register == register(2, Phase.RECRUITING)
    await asyncio.sleep(0)
    assert registry.register_revision == revision + 5


def settings(tmp_path: Path) -> NodeSettings:
    secret = tmp_path / "secret"
    secret.write_text("secret")
    return NodeSettings(
        cluster=ClusterSettings(name="main", nodes=("n1", "n2", "n3")),
        node=NodeIdentity(name="n2", state_dir=tmp_path),
        postgres=PostgresSettings(
            data_dir=tmp_path / "data",
            port=5,
            socket_dir=tmp_path,
            superuser_password_file=secret,
            replication_password_file=secret,
        ),
        api=ApiSettings(port=6, token_file=secret),
        store=StoreSettings(endpoints=("http://127.0.0.1:1",)),
    )


async def test_a_swap_is_of_the_register_that_was_decided_on(
    store: MemoryStore, registry: Registry, changes: Changes, tmp_path: Path
) -> None:
    """Between decision and swap the register moved: whatever the decision was, it is not forced upon the new one."""
    performer = Performer(
        settings(tmp_path), cast(Server, None), store, registry,
        Peers("n2", TIMEOUTS, HttpReach(TIMEOUTS, "token"), dict, changes),
        PromiseFile(tmp_path, Disk(), 1000), Names(), Observer("n2", TIMEOUTS), Journal(store, "n2", TIMEOUTS), changes,
    )  # fmt: skip
    revision = await put_register(store, register())
    decided_on = observation(register=register(), register_revision=revision)
    newer = replace(register(3, Phase.PROMOTING, N3))
    await put_register(store, newer)
    while registry.register != newer:
        await changes.next()
    for action in (a.OpenEpoch("test"), a.ChooseCandidate(N2, ChoiceReason.STANDBYS)):
        await performer.perform(action, "test", decided_on)
        entry = await store.get(KEYS.register)
        assert entry is not None
        assert Register.from_json(entry.value) == newer
    await performer.perform(
        a.OpenEpoch("test"), "test", observation(register=newer, register_revision=registry.register_revision)
    )
    assert registry.register == newer.opened()


async def test_a_lost_answer_is_learnt_before_postgresql_is_told_anything(
    store: MemoryStore, registry: Registry, changes: Changes, tmp_path: Path
) -> None:
    """The register tightened although nobody heard of it: PostgreSQL, told on the old one, would no longer imply it."""
    performer = Performer(
        settings(tmp_path), cast(Server, None), store, registry,
        Peers("n2", TIMEOUTS, HttpReach(TIMEOUTS, "token"), dict, changes),
        PromiseFile(tmp_path, Disk(), 1000), Names(), Observer("n2", TIMEOUTS), Journal(store, "n2", TIMEOUTS), changes,
    )  # fmt: skip
    revision = await put_register(store, register())
    while registry.register != register():
        await changes.next()
    narrow = Quorum(frozenset({N2}), 1)
    o = observation(register=register(), register_revision=revision)
    store.set_fault(Fault.ANSWER_LOST)
    with pytest.raises(StoreUnavailable):
        await performer.perform(a.TellRegister(narrow), "test", o)
    store.set_fault(Fault.NONE)
    assert await performer.perform(a.TellPostgres(BOTH), "test", o)  # the server, which there is none of, was not asked
    assert registry.register is not None
    assert registry.register.committed.quorum == narrow


async def test_what_a_register_leads_to_is_noted_after_it_whatever_the_clocks_say(
    backend: MemoryBackend, changes: Changes, tmp_path: Path
) -> None:
    """n3's clock is an hour behind that of n2, who opens an epoch."""
    store = MemoryStore("main", backend, owner="n2")
    behind = MemoryStore("main", backend, owner="n3")
    behind.clock = Clock(lambda: time.time_ns() // 1000 - 3_600_000_000)
    registry, journal = Registry(store, KEYS, changes), Journal(store, "n2", TIMEOUTS)
    performer = Performer(
        settings(tmp_path), cast(Server, None), store, registry,
        Peers("n2", TIMEOUTS, HttpReach(TIMEOUTS, "token"), dict, changes),
        PromiseFile(tmp_path, Disk(), 1000), Names(), Observer("n2", TIMEOUTS), journal, changes,
    )  # fmt: skip
    other, theirs = Journal(behind, "n3", TIMEOUTS), Registry(behind, KEYS, changes)
    watching = [asyncio.create_task(registry.run()), asyncio.create_task(theirs.run())]
    revision = await put_register(store, register())
    while registry.register != register():
        await changes.next()
    o = observation(register=register(), register_revision=revision)
    await performer.perform(a.OpenEpoch("test"), "test", o)
    while theirs.register != register().opened():
        await changes.next()
    other.record("recruit.joined", 3)
    journal.record("something.else", 3)
    opened, joined = journal.recent[0], other.recent[0]
    assert joined.at_ms < opened.at_ms
    assert opened.order < joined.order
    assert in_order([joined, *journal.recent])[0] == opened
    for task in watching:
        task.cancel()
    await asyncio.gather(*watching, return_exceptions=True)


async def test_answers_carry_the_clock(changes: Changes) -> None:
    ahead = Stamp(time.time_ns() // 1000 + 3_600_000_000, 3)

    async def node(request: web.Request) -> web.Response:
        return web.Response(status=409, headers={CLOCK_HEADER: str(ahead)})

    app = web.Application()
    app.add_routes([web.post("/pledge", node)])
    runner = web.AppRunner(app)
    await runner.setup()
    clock = Clock()
    reach = HttpReach(TIMEOUTS, "token", clock.saw)
    try:
        site = web.TCPSite(runner, "127.0.0.1", 0)
        await site.start()
        host, port = runner.addresses[0]
        assert await reach.pledge(f"http://{host}:{port}", N2, 3) is False
        assert clock.stamp() > ahead
    finally:
        await reach.close()
        await runner.cleanup()


async def test_the_journal_waits_for_the_store_and_keeps_its_order(store: MemoryStore, backend: MemoryBackend) -> None:
    journal = Journal(store, "n2", TIMEOUTS)
    writing = asyncio.create_task(journal.run())
    backend.set_fault(Fault.REFUSED)
    for epoch in (1, 2, 3):
        journal.record("test.happened", epoch)
    await asyncio.sleep(0)
    backend.set_fault(Fault.NONE)
    written = 0
    async with (
        asyncio.timeout(60),
        contextlib.aclosing(cast("AsyncGenerator[Change, None]", store.watch(KEYS.journal))) as watch,
    ):
        async for change in watch:
            written += len(change.snapshot.entries) if isinstance(change, Resync) else isinstance(change, Put)
            if written == 3:
                break
    assert [e.epoch for e in await store.read_events()] == [1, 2, 3]
    writing.cancel()
    with contextlib.suppress(asyncio.CancelledError):
        await writing
