"""What only etcd can do to us: dead and silent endpoints, several members, lost answers, a restored backup."""

from __future__ import annotations

import asyncio
import os
import shutil
import signal
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager
from dataclasses import replace
from pathlib import Path

import pytest
import structlog.testing

from holdfast.model.errors import ConfigurationError, EnvironmentFault, StoreUnavailable
from holdfast.model.event import Event
from holdfast.model.keys import Keys
from holdfast.model.settings import StoreSettings
from holdfast.model.timeouts import Timeouts
from holdfast.store.contract import Change, Disconnected, Resync
from holdfast.store.etcd import EtcdStore
from holdfast.store.etcd_server import EtcdInstallation
from tests.ports import free_port

from .running import EtcdProcess, Watcher

pytestmark = pytest.mark.live

Watching = Callable[[AsyncIterator[Change]], Watcher]
MakeStore = Callable[..., EtcdStore]

QUICK = Timeouts(store_request_ms=300, store_silence_ms=300)


@asynccontextmanager
async def listener(answer: Callable[[asyncio.StreamReader, asyncio.StreamWriter], object]) -> AsyncIterator[str]:
    """A server that is not etcd; counts nothing, knows nothing."""
    writers: list[asyncio.StreamWriter] = []

    async def accept(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        writers.append(writer)
        outcome = answer(reader, writer)
        if asyncio.iscoroutine(outcome):
            await outcome

    server = await asyncio.start_server(accept, "127.0.0.1", 0)
    try:
        yield f"http://127.0.0.1:{server.sockets[0].getsockname()[1]}"
    finally:
        server.close()
        for writer in writers:
            writer.close()


def never(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
    """Accepts, reads, says nothing."""


def saying(text: bytes) -> Callable[[asyncio.StreamReader, asyncio.StreamWriter], object]:
    async def answer(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        await reader.read(1)
        writer.write(text)
        writer.close()

    return answer


def http(body: str, status: str = "200 OK") -> bytes:
    return f"HTTP/1.1 {status}\r\nContent-Length: {len(body)}\r\nConnection: close\r\n\r\n{body}".encode()


@pytest.fixture
def keys(cluster: str) -> Keys:
    return Keys(cluster)


async def test_a_dead_endpoint_costs_nothing(
    shared_etcd: EtcdProcess, keys: Keys, etcd_store: MakeStore, watching: Watching
) -> None:
    store = etcd_store(StoreSettings(endpoints=(f"http://127.0.0.1:{free_port()}", shared_etcd.url)))
    watcher = watching(store.watch(keys.prefix))
    assert await store.compare_and_swap(keys.register, b"1", 0) is not None  # refused at the first: safe to go on
    await watcher.until(lambda w: w.now == {keys.register: b"1"})
    assert await store.server_version()


async def test_a_silent_endpoint_is_left(
    shared_etcd: EtcdProcess, keys: Keys, etcd_store: MakeStore, watching: Watching
) -> None:
    async with listener(never) as silent:
        store = etcd_store(StoreSettings(endpoints=(silent, shared_etcd.url)))
        assert await store.put(keys.register, b"1") > 0
        watcher = watching(store.watch(keys.prefix))
        await watcher.until(lambda w: w.now == {keys.register: b"1"})
        assert await store.compare_and_swap(keys.register, b"2", 0) is None


async def test_all_silent(keys: Keys, etcd_store: MakeStore, watching: Watching) -> None:
    async with listener(never) as one, listener(never) as two:
        store = etcd_store(StoreSettings(endpoints=(one, two)), QUICK)
        with pytest.raises(StoreUnavailable, match=f"{one}: no answer in 300 ms.*{two}: no answer in 300 ms"):
            await store.get(keys.register)
        watcher = watching(store.watch(keys.prefix))
        await watcher.until(lambda w: w.count(Disconnected) == 1)


async def test_a_swap_whose_answer_is_lost_is_not_repeated(
    shared_etcd: EtcdProcess, keys: Keys, etcd_store: MakeStore
) -> None:
    async with listener(never) as silent:
        store = etcd_store(shared_etcd.settings())
        assert await store.compare_and_swap(keys.register, b"1", 0) is not None
        # a known endpoint that falls silent: the request may be on its way to the disk
        gateway = store._gateway
        gateway._endpoints = (silent, shared_etcd.url)
        gateway._versions[silent] = "3.5.1"
        gateway._answered_at[silent] = asyncio.get_running_loop().time()
        gateway._timeouts = QUICK
        entry = await etcd_store(shared_etcd.settings()).get(keys.register)
        assert entry is not None
        with pytest.raises(StoreUnavailable, match="no answer"):
            await store.compare_and_swap(keys.register, b"2", entry.revision)
        gateway._timeouts = Timeouts()
        assert await store.get(keys.register) == entry
        assert await store.compare_and_swap(keys.register, b"2", entry.revision) is not None


async def test_a_swap_is_not_given_to_an_endpoint_that_fell_silent(
    shared_etcd: EtcdProcess, keys: Keys, etcd_store: MakeStore
) -> None:
    async with listener(never) as silent:
        patient = Timeouts(store_patience_ms=50, store_request_ms=60_000)
        store = etcd_store(StoreSettings(endpoints=(silent, shared_etcd.url)), patient)
        store._gateway._versions[silent] = "3.5.1"
        began_at = asyncio.get_running_loop().time()
        assert await store.compare_and_swap(keys.register, b"1", 0) is not None
        assert await store.get(keys.register) is not None
        assert asyncio.get_running_loop().time() - began_at < patient.store_request_ms / 1000


async def test_a_frozen_etcd_is_noticed_and_taken_up_again(
    own_etcd: EtcdProcess, keys: Keys, etcd_store: MakeStore, watching: Watching
) -> None:
    store = etcd_store(own_etcd.settings(), QUICK)
    watcher = watching(store.watch(keys.prefix))
    await watcher.until_live()
    own_etcd.signal(signal.SIGSTOP)
    await watcher.until(lambda w: not w.live)
    with pytest.raises(StoreUnavailable, match="no answer in 300 ms"):
        await store.put(keys.register, b"lost")
    own_etcd.signal(signal.SIGCONT)
    await watcher.until_live()
    await etcd_store(own_etcd.settings()).put(keys.register, b"thawed")
    await watcher.until(lambda w: w.now.get(keys.register) == b"thawed")
    assert watcher.count(Resync) == 1


async def test_a_quiet_watch_stays_live(
    shared_etcd: EtcdProcess, keys: Keys, etcd_store: MakeStore, watching: Watching
) -> None:
    """Without any change, progress is asked for and answered: a prefix where nothing happens is not silence."""
    store = etcd_store(shared_etcd.settings(), Timeouts())
    watcher = watching(store.watch(keys.prefix))
    await watcher.until_live()
    asked: list[object] = []
    with structlog.testing.capture_logs() as logs:
        loop = asyncio.get_running_loop()
        end = loop.time() + 2.5 * Timeouts().store_silence_ms / 1000
        while loop.time() < end:
            asked.append(await store.get(keys.register))
    assert not [entry for entry in logs if entry["event"] == "store_watch_broken"]
    assert watcher.live


async def test_a_watch_moves_to_another_member_and_misses_nothing(
    three_members: list[EtcdProcess], keys: Keys, etcd_store: MakeStore, watching: Watching
) -> None:
    settings = StoreSettings(endpoints=tuple(member.url for member in three_members))
    store, writer = etcd_store(settings), etcd_store(settings)
    watcher = watching(store.watch(keys.prefix))
    at_the_last = watching(etcd_store(three_members[2].settings()).watch(keys.prefix))
    await watcher.until_live()
    await at_the_last.until_live()
    await writer.put(keys.register, b"0")
    three_members[0].stop()
    async with asyncio.timeout(30):
        while True:
            try:
                await writer.put(keys.register, b"1")
                break
            except StoreUnavailable:
                await asyncio.sleep(0.05)
    for each in (watcher, at_the_last):
        await each.until(lambda w: w.puts[-1:] == [b"1"] and w.live)
        assert each.count(Resync) == 1
    # a member without the others is alive and knows nothing new: its watches must not pass for live ones
    three_members[1].stop()
    await at_the_last.until(lambda w: not w.live)
    with pytest.raises(StoreUnavailable):
        await writer.put(keys.register, b"2")
    three_members[1].start()
    await at_the_last.until_live()
    assert at_the_last.count(Resync) == 1


async def test_a_store_restored_from_a_backup_is_resynced(
    own_etcd: EtcdProcess, keys: Keys, etcd_store: MakeStore, watching: Watching, tmp_path: Path
) -> None:
    """Its revision is back to where it was; then it is overtaken by another history."""
    store = etcd_store(own_etcd.settings())
    await store.put(keys.register, b"in the backup")
    own_etcd.stop()
    backup = tmp_path / "backup"
    shutil.copytree(own_etcd.data_dir, backup)
    own_etcd.start()
    watcher = watching(store.watch(keys.prefix))
    await watcher.until_live()
    for i in range(5):
        await store.put(keys.register, b"after it %d" % i)
    await watcher.until(lambda w: len(w.puts) == 5)
    for overtaking in (0, 20):
        own_etcd.stop()
        await watcher.until(lambda w: not w.live)
        shutil.rmtree(own_etcd.data_dir)
        shutil.copytree(backup, own_etcd.data_dir)
        resyncs = watcher.count(Resync)
        if overtaking:
            # written before the watch is back, on a port that only this test knows
            other = EtcdProcess(own_etcd.installation, tmp_path / f"other{overtaking}")
            shutil.copytree(backup, other.data_dir)
            other.start()
            try:
                rival = etcd_store(other.settings())
                for i in range(overtaking):
                    await rival.put(keys.register, b"another history %d" % i)
            finally:
                other.stop()
            shutil.rmtree(own_etcd.data_dir)
            shutil.copytree(other.data_dir, own_etcd.data_dir)
        own_etcd.start()
        await watcher.until(lambda w, n=resyncs: w.count(Resync) == n + 1 and w.live)  # type: ignore[misc]
        current = await etcd_store(own_etcd.settings()).get(keys.register)
        assert current is not None
        assert watcher.now == {keys.register: current.value}
        await etcd_store(own_etcd.settings()).put(keys.register, b"seen again")
        await watcher.until(lambda w: w.now == {keys.register: b"seen again"})


async def test_large_values(shared_etcd: EtcdProcess, keys: Keys, etcd_store: MakeStore, watching: Watching) -> None:
    store = etcd_store(shared_etcd.settings())
    watcher = watching(store.watch(keys.prefix))
    await watcher.until_live()
    large = os.urandom(1_000_000)
    await store.put(keys.register, large)
    await watcher.until(lambda w: w.puts == [large])
    entry = await store.get(keys.register)
    assert entry is not None
    assert entry.value == large
    for size in (1_600_000, 3_000_000):
        with pytest.raises(EnvironmentFault, match="max-request-bytes"):
            await store.put(keys.register, b"x" * size)
        with pytest.raises(EnvironmentFault, match="max-request-bytes"):
            await store.compare_and_swap(keys.register, b"x" * size, entry.revision)
    assert await store.get(keys.register) == entry
    for i in range(4):
        await store.put(keys.node(f"n{i}"), large)
    assert len((await store.list(keys.nodes)).entries) == 4


async def test_a_full_etcd_says_so(
    installation: EtcdInstallation, tmp_path: Path, keys: Keys, etcd_store: MakeStore
) -> None:
    process = EtcdProcess(installation, tmp_path, extra=("--quota-backend-bytes=1000000",))
    try:
        process.start()
        store = etcd_store(process.settings())

        async def fill() -> None:
            for i in range(20):
                await store.put(keys.node(f"n{i}"), os.urandom(300_000))

        with pytest.raises(StoreUnavailable, match="quota-backend-bytes"):
            await fill()
        assert await store.get(keys.node("n0")) is not None
    finally:
        process.stop()


async def test_an_unreadable_journal_entry_is_passed_over(
    shared_etcd: EtcdProcess, keys: Keys, etcd_store: MakeStore
) -> None:
    store = etcd_store(shared_etcd.settings())
    event = Event(1.0, "n1", "test.event", 1)
    await store.append_event(event)
    await store.put(f"{keys.journal}zzz", b"not an event")
    await store.append_event(event)
    assert [replace(kept, link=None) for kept in await store.read_events()] == [event, event]


async def test_an_old_etcd_is_warned_about_once(
    shared_etcd: EtcdProcess, keys: Keys, etcd_store: MakeStore, installation: EtcdInstallation
) -> None:
    store = etcd_store(shared_etcd.settings())
    with structlog.testing.capture_logs() as logs:
        assert await store.server_version() == installation.version
        await store.get(keys.register)
    warnings = [entry for entry in logs if entry["event"] == "etcd_version_can_lose_data"]
    assert len(warnings) == (0 if installation.survives_kill else 1)


@pytest.mark.parametrize(
    ("answer", "fault", "message"),
    [
        (b"SSH-2.0-OpenSSH_9.2\r\n", ConfigurationError, r"is not etcd: correct store\.endpoints"),
        (http("<html>hello</html>"), ConfigurationError, r"is not etcd: correct store\.endpoints"),
        (http("{}"), ConfigurationError, r"is not etcd: correct store\.endpoints"),
        (http('{"etcdserver":"3.3.27"}'), EnvironmentFault, r"is 3\.3\.27: Holdfast needs 3\.4 or newer"),
    ],
)
async def test_what_is_not_the_right_etcd_is_refused(
    answer: bytes, fault: type[Exception], message: str, keys: Keys, etcd_store: MakeStore
) -> None:
    async with listener(saying(answer)) as url:
        store = etcd_store(StoreSettings(endpoints=(url,)))
        with pytest.raises(fault, match=message):
            await store.get(keys.register)
        with pytest.raises(fault, match=message):
            await anext(store.watch(keys.prefix))


async def test_an_etcd_without_its_gateway_is_named(
    installation: EtcdInstallation, tmp_path: Path, keys: Keys, etcd_store: MakeStore
) -> None:
    process = EtcdProcess(installation, tmp_path, extra=("--enable-grpc-gateway=false",))
    try:
        process.start()
        with pytest.raises(ConfigurationError, match=r"--enable-grpc-gateway=true"):
            await etcd_store(process.settings()).get(keys.register)
    finally:
        process.stop()


async def test_a_wrong_endpoint_among_right_ones_does_not_stop_us(
    shared_etcd: EtcdProcess, keys: Keys, etcd_store: MakeStore
) -> None:
    async with listener(saying(http("{}"))) as url:
        store = etcd_store(StoreSettings(endpoints=(url, shared_etcd.url)))
        assert await store.put(keys.register, b"1") > 0
