"""A whole local cluster for each PostgreSQL version, shared by the tests of a module; each test finds it whole."""

from __future__ import annotations

import asyncio
import contextlib
import os
from collections.abc import AsyncGenerator, AsyncIterator, Callable, Iterator, Mapping
from pathlib import Path

import psutil
import psycopg
import pytest

from holdfast.local.cluster import LocalCluster
from holdfast.local.layout import remove
from holdfast.local.machine import server_user, temporary_root
from holdfast.model.event import Event
from holdfast.model.keys import Keys
from holdfast.model.register import Register
from holdfast.postgres.installation import Installation
from holdfast.store.contract import Change, Put, Resync
from tests.installations import oldest_and_newest, readable, version_id
from tests.ports import next_window

WHOLE_S = 120.0


@pytest.fixture(scope="module", params=oldest_and_newest(), ids=version_id)
def installation(request: pytest.FixtureRequest) -> Installation:
    return readable(request.param)


@pytest.fixture(scope="module")
def parameters() -> Mapping[str, str]:
    """Of PostgreSQL; a module that needs some has a fixture of its own."""
    return {}


@pytest.fixture(scope="module")
def running(installation: Installation, parameters: Mapping[str, str]) -> Iterator[Path]:
    """The directory of a cluster of three that serves."""
    next_window()
    os.environ["HOLDFAST_PG_BINDIR"] = str(installation.bin_dir)
    try:
        root = temporary_root(3, server_user())
        cluster = LocalCluster.create(root, nodes=3, temporary=True, parameters=parameters)
    finally:
        del os.environ["HOLDFAST_PG_BINDIR"]

    async def serve() -> None:
        await cluster.wait_until_serving(lambda step: None)
        await cluster.close()

    try:
        cluster.start()
        asyncio.run(serve())
        yield cluster.layout.root
    finally:
        asyncio.run(cluster.stop())
        remove(cluster.layout)


@pytest.fixture
async def cluster(running: Path) -> AsyncIterator[LocalCluster]:
    opened = LocalCluster.open(running)
    try:
        await until_whole(opened)
        yield opened
    finally:
        await opened.close()


async def until_whole(cluster: LocalCluster) -> None:
    """A primary serves and every other node follows; else everything that may explain why not."""
    if await cluster.wait_until_whole(WHOLE_S):
        return
    told = "\n".join(f"{name}: {report}" for name, report in (await cluster.reports()).items())
    journal = "\n".join(map(str, (await cluster.events())[-60:]))
    logs = "\n".join(_end_of(path) for path in sorted(cluster.layout.root.rglob("*.log")))
    raise AssertionError(f"not whole: {await cluster.register()}\n{told}\n{journal}\n{logs}")


def _end_of(path: Path) -> str:
    return f"== {path}\n" + "\n".join(path.read_text(errors="replace").splitlines()[-25:])


async def noted_by_all(cluster: LocalCluster, wanted: Callable[[tuple[Event, ...]], bool]) -> tuple[Event, ...]:
    """The journal, once it has what is wanted: each agent writes its own entries a little after what they tell of."""
    async with asyncio.timeout(WHOLE_S):
        while not wanted(events := await cluster.events()):  # noqa: ASYNC110 - the journal is read, not watched
            await asyncio.sleep(0.05)
    return events


async def the_register(cluster: LocalCluster) -> Register:
    register = await cluster.register()
    assert register is not None
    return register


async def the_leader(cluster: LocalCluster) -> str:
    leader = (await the_register(cluster)).leader
    assert leader is not None
    return leader.node


def another(cluster: LocalCluster, *but: str) -> str:
    return next(n for n in cluster.nodes if n not in but)


async def connect(dsn: str) -> psycopg.AsyncConnection[tuple[object, ...]]:
    return await psycopg.AsyncConnection.connect(dsn, autocommit=True)


async def watch(cluster: LocalCluster, prefix: str) -> AsyncGenerator[Change, None]:
    """What happens below a prefix of the store."""
    async for change in cluster.store().watch(prefix):
        yield change


async def watch_register(cluster: LocalCluster) -> AsyncGenerator[Register, None]:
    """The register as it is, and every change of it."""
    async for change in watch(cluster, Keys(cluster.name).register):
        entries = change.snapshot.entries if isinstance(change, Resync) else ()
        if isinstance(change, Put):
            entries = (change.entry,)
        for entry in entries:
            yield Register.from_json(entry.value)


def children_named(process: psutil.Process, word: str) -> list[psutil.Process]:
    """Its children with the word in their titles; one that ends while it is looked at is none of them."""
    found = []
    for child in process.children():
        with contextlib.suppress(psutil.NoSuchProcess):
            if word in " ".join(child.cmdline()):
                found.append(child)
    return found
