"""What the store's tests run: etcd processes, watchers, worlds that a test can break."""

from __future__ import annotations

import asyncio
import os
import signal
import subprocess
import time
import urllib.request
from collections.abc import AsyncIterator, Callable, Sequence
from pathlib import Path
from typing import Any, Protocol

import aiohttp
from aiohttp import web

from holdfast.model.settings import StoreSettings
from holdfast.model.timeouts import Timeouts
from holdfast.store.contract import Change, Connected, Deleted, Disconnected, Put, Resync, Store
from holdfast.store.etcd import EtcdStore
from holdfast.store.etcd_server import EtcdInstallation, PrivateEtcd
from holdfast.store.memory import Fault, MemoryBackend, MemoryStore
from tests.ports import free_port

PATIENCE_S = 60
QUICK = Timeouts(store_request_ms=300)


class EtcdProcess:
    """An etcd that a test may stop, start and freeze; independent of any event loop."""

    def __init__(
        self, installation: EtcdInstallation, directory: Path, *, extra: Sequence[str] = (), scheme: str = "http"
    ) -> None:
        client_port = free_port()
        self.installation = installation
        self.url = f"{scheme}://127.0.0.1:{client_port}"
        overrides = (
            (f"--listen-client-urls={self.url}", f"--advertise-client-urls={self.url}") if scheme != "http" else ()
        )
        self.log_file = directory / "etcd.log"
        self._server = PrivateEtcd(
            installation,
            directory / "data",
            client_port,
            free_port(),
            self.log_file,
            extra_arguments=(*overrides, *extra),
        )
        self._process: subprocess.Popen[bytes] | None = None

    @property
    def data_dir(self) -> Path:
        return self._server.data_dir

    def start(self) -> None:
        self.spawn()
        self.wait_until_healthy()

    def spawn(self) -> None:
        self._server.prepare()
        with self.log_file.open("ab") as log:
            self._process = subprocess.Popen(
                self._server.command(), stdin=subprocess.DEVNULL, stdout=log, stderr=log, start_new_session=True
            )

    def wait_until_healthy(self) -> None:
        if self.url.startswith("https://"):
            return  # the client under test waits for itself
        deadline = time.monotonic() + PATIENCE_S
        while time.monotonic() < deadline:
            assert self._process is not None
            assert self._process.poll() is None, self.log_file.read_text()[-2000:]
            try:
                with urllib.request.urlopen(f"{self.url}/health", timeout=2) as answer:
                    if answer.status == 200:
                        return
            except OSError:
                time.sleep(0.01)
        raise AssertionError(self.log_file.read_text()[-2000:])

    def signal(self, number: signal.Signals) -> None:
        assert self._process is not None
        os.kill(self._process.pid, number)

    def stop(self) -> None:
        if self._process is None:
            return
        self._process.send_signal(signal.SIGTERM)
        self._process.send_signal(signal.SIGCONT)
        try:
            self._process.wait(20)
        except subprocess.TimeoutExpired:
            self._process.kill()
            self._process.wait()
        self._process = None

    def settings(self) -> StoreSettings:
        return StoreSettings(endpoints=(self.url,))

    async def post(self, path: str, body: dict[str, Any], token: str | None = None) -> dict[str, Any]:
        headers = {"Authorization": token} if token else {}
        async with aiohttp.ClientSession() as http, http.post(self.url + path, json=body, headers=headers) as response:
            assert response.status == 200, await response.text()
            answer = await response.json()
            assert isinstance(answer, dict)
            return answer

    async def compact(self) -> None:
        revision = (await self.post("/v3/kv/range", {"key": "AA=="}))["header"]["revision"]
        await self.post("/v3/kv/compaction", {"revision": revision})


class LossyRelay:
    """Between a store and its etcd; on demand it loses the answers to transactions, which have taken effect."""

    def __init__(self, url: str) -> None:
        self._url = url
        self._lossy = False
        self._runner: web.AppRunner | None = None
        self._http: aiohttp.ClientSession | None = None

    async def start(self) -> str:
        """Its address."""
        app = web.Application()
        app.router.add_route("*", "/{path:.*}", self._pass_on)
        self._http = aiohttp.ClientSession()
        self._runner = web.AppRunner(app, access_log=None, shutdown_timeout=0.1)
        await self._runner.setup()
        await web.TCPSite(self._runner, "127.0.0.1", 0).start()
        host, port = self._runner.addresses[0]
        return f"http://{host}:{port}"

    def lose(self, lossy: bool) -> None:
        self._lossy = lossy

    async def close(self) -> None:
        if self._runner is not None and self._http is not None:
            await self._runner.cleanup()
            await self._http.close()

    async def _pass_on(self, request: web.Request) -> web.Response:
        assert self._http is not None
        body = await request.read()
        async with self._http.request(request.method, f"{self._url}{request.path}", data=body) as answer:
            whole = await answer.read()
        if self._lossy and request.path.endswith("/txn") and request.transport is not None:
            request.transport.close()
        return web.Response(status=answer.status, body=whole, content_type="application/json")


class World(Protocol):
    """A store with its surroundings: a test connects to it and breaks it."""

    def connect(self, owner: str | None = None) -> Store: ...

    async def connect_lossy(self) -> tuple[Store, Callable[[bool], None]]:
        """A store, and what says whether the answers to its writes are lost on the way back."""
        ...

    async def compact(self) -> None: ...

    def take_down(self) -> None: ...

    def bring_back(self) -> None: ...

    async def close(self) -> None: ...


class MemoryWorld:
    def __init__(self, cluster: str) -> None:
        self.backend = MemoryBackend()
        self._cluster = cluster
        self._stores: list[Store] = []

    def connect(self, owner: str | None = None) -> Store:
        store = MemoryStore(self._cluster, self.backend, journal_entries_max=200, owner=owner)
        self._stores.append(store)
        return store

    async def connect_lossy(self) -> tuple[Store, Callable[[bool], None]]:
        store = MemoryStore(self._cluster, self.backend, QUICK)
        self._stores.append(store)
        return store, lambda lossy: store.set_fault(Fault.ANSWER_LOST if lossy else Fault.NONE)

    async def compact(self) -> None:
        self.backend.compact()

    def take_down(self) -> None:
        self.backend.set_fault(Fault.REFUSED)

    def bring_back(self) -> None:
        self.backend.set_fault(Fault.NONE)

    async def close(self) -> None:
        for store in self._stores:
            await store.close()


class EtcdWorld:
    def __init__(self, cluster: str, process: EtcdProcess) -> None:
        self._cluster = cluster
        self._process = process
        self._stores: list[Store] = []
        self._relays: list[LossyRelay] = []
        self._down = False

    def connect(self, owner: str | None = None) -> Store:
        store = EtcdStore(self._process.settings(), self._cluster, Timeouts(), journal_entries_max=200, owner=owner)
        self._stores.append(store)
        return store

    async def connect_lossy(self) -> tuple[Store, Callable[[bool], None]]:
        relay = LossyRelay(self._process.url)
        self._relays.append(relay)
        store = EtcdStore(StoreSettings(endpoints=(await relay.start(),)), self._cluster, QUICK)
        self._stores.append(store)
        return store, relay.lose

    async def compact(self) -> None:
        await self._process.compact()

    def take_down(self) -> None:
        self._process.stop()
        self._down = True

    def bring_back(self) -> None:
        self._process.start()
        self._down = False

    async def close(self) -> None:
        for store in self._stores:
            await store.close()
        for relay in self._relays:
            await relay.close()
        if self._down:
            self.bring_back()


class Watcher:
    """Collects a watch's changes in the background; `until` waits for what a test wants to see."""

    def __init__(self, changes: AsyncIterator[Change]) -> None:
        self.seen: list[Change] = []
        self._changes = changes
        self._news = asyncio.Condition()
        self._task = asyncio.create_task(self._collect())

    async def _collect(self) -> None:
        try:
            async for change in self._changes:
                async with self._news:
                    self.seen.append(change)
                    self._news.notify_all()
        finally:
            async with self._news:
                self._news.notify_all()

    async def until(self, condition: Callable[[Watcher], bool]) -> None:
        async with asyncio.timeout(PATIENCE_S), self._news:
            while not condition(self):
                if self._task.done():
                    self._task.result()
                    raise AssertionError(f"the watch ended: {self.seen}")
                await self._news.wait()

    async def until_live(self) -> None:
        await self.until(lambda w: w.live)

    @property
    def live(self) -> bool:
        states = [change for change in self.seen if isinstance(change, Connected | Disconnected)]
        return bool(states) and isinstance(states[-1], Connected)

    @property
    def puts(self) -> list[bytes]:
        return [change.entry.value for change in self.seen if isinstance(change, Put)]

    @property
    def deleted(self) -> list[str]:
        return [change.key for change in self.seen if isinstance(change, Deleted)]

    @property
    def revisions(self) -> list[int]:
        return [
            change.entry.revision if isinstance(change, Put) else change.revision
            for change in self.seen
            if isinstance(change, Put | Deleted)
        ]

    @property
    def now(self) -> dict[str, bytes]:
        """The keys as the changes so far add up to."""
        keys: dict[str, bytes] = {}
        for change in self.seen:
            if isinstance(change, Resync):
                keys = {entry.key: entry.value for entry in change.snapshot.entries}
            elif isinstance(change, Put):
                keys[change.entry.key] = change.entry.value
            elif isinstance(change, Deleted):
                keys.pop(change.key, None)
        return keys

    def count(self, kind: type[Change]) -> int:
        return sum(isinstance(change, kind) for change in self.seen)

    async def close(self) -> None:
        self._task.cancel()
        await asyncio.wait([self._task])
