from __future__ import annotations

import itertools
from collections.abc import AsyncIterator, Callable, Iterator
from pathlib import Path

import pytest

from holdfast.model.settings import StoreSettings
from holdfast.model.timeouts import Timeouts
from holdfast.store.contract import Change
from holdfast.store.etcd import EtcdStore
from holdfast.store.etcd_server import EtcdInstallation, find_etcd
from tests.ports import free_port

from .running import EtcdProcess, EtcdWorld, MemoryWorld, Watcher, World

_clusters = itertools.count(1)


@pytest.fixture(scope="session")
def installation() -> EtcdInstallation:
    return find_etcd()


@pytest.fixture(scope="session")
def shared_etcd(installation: EtcdInstallation, tmp_path_factory: pytest.TempPathFactory) -> Iterator[EtcdProcess]:
    """One etcd for all tests; each has a cluster, and so a prefix, of its own."""
    process = EtcdProcess(installation, tmp_path_factory.mktemp("etcd"))
    try:
        process.start()
        yield process
    finally:
        process.stop()


@pytest.fixture
def own_etcd(installation: EtcdInstallation, tmp_path: Path) -> Iterator[EtcdProcess]:
    """An etcd of the test's own, to freeze, to fill, to restore."""
    process = EtcdProcess(installation, tmp_path)
    try:
        process.start()
        yield process
    finally:
        process.stop()


@pytest.fixture
def three_members(installation: EtcdInstallation, tmp_path: Path) -> Iterator[list[EtcdProcess]]:
    """A cluster of three etcd members."""
    ports = {f"m{i}": free_port() for i in range(3)}
    members = ",".join(f"{name}=http://127.0.0.1:{port}" for name, port in ports.items())
    processes = []
    for name, port in ports.items():
        peer = f"http://127.0.0.1:{port}"
        directory = tmp_path / name
        directory.mkdir()
        extra = (
            f"--name={name}",
            f"--listen-peer-urls={peer}",
            f"--initial-advertise-peer-urls={peer}",
            f"--initial-cluster={members}",
            "--initial-cluster-token=three",
        )
        processes.append(EtcdProcess(installation, directory, extra=extra))
    try:
        for process in processes:
            process.spawn()
        for process in processes:
            process.wait_until_healthy()
        yield processes
    finally:
        for process in processes:
            process.stop()


@pytest.fixture
def cluster() -> str:
    return f"test{next(_clusters)}"


@pytest.fixture(params=["memory", pytest.param("etcd", marks=pytest.mark.live)])
async def world(request: pytest.FixtureRequest, cluster: str) -> AsyncIterator[World]:
    made: World
    if request.param == "memory":
        made = MemoryWorld(cluster)
    else:
        made = EtcdWorld(cluster, request.getfixturevalue("shared_etcd"))
    yield made
    await made.close()


@pytest.fixture
async def watching() -> AsyncIterator[Callable[[AsyncIterator[Change]], Watcher]]:
    """Starts watchers and ends them with the test."""
    watchers: list[Watcher] = []

    def start(changes: AsyncIterator[Change]) -> Watcher:
        watchers.append(Watcher(changes))
        return watchers[-1]

    yield start
    for watcher in watchers:
        await watcher.close()


@pytest.fixture
async def etcd_store(cluster: str) -> AsyncIterator[Callable[..., EtcdStore]]:
    """Makes stores on given settings and closes them with the test."""
    stores: list[EtcdStore] = []

    def make(settings: StoreSettings, timeouts: Timeouts | None = None) -> EtcdStore:
        stores.append(EtcdStore(settings, cluster, timeouts or Timeouts()))
        return stores[-1]

    yield make
    for store in stores:
        await store.close()
