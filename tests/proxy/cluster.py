"""A cluster for the proxy's tests: servers, a store that the test writes, and a running proxy."""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable
from dataclasses import replace
from pathlib import Path
from typing import Any, Protocol

import psycopg

from holdfast.model.keys import Keys
from holdfast.model.register import (
    NO_QUORUM,
    Configuration,
    Member,
    NodeRecord,
    NodeState,
    Phase,
    Register,
)
from holdfast.model.settings import ListenerSettings, ProxySettings, StoreSettings
from holdfast.model.timeouts import Timeouts
from holdfast.proxy.lane import Purpose
from holdfast.proxy.run import Proxy
from holdfast.proxy.users import Users
from holdfast.store.memory import MemoryStore
from tests.ports import free_port
from tests.proxy.servers import PASSWORD, USER, Server

KEYS = Keys("main")


def member(name: str) -> Member:
    return Member(name, "00000001")


class Address(Protocol):
    """A server, as far as the store knows it."""

    name: str
    port: int


class Cluster:
    """What a test plays with. ``serve``, ``open_epoch`` and ``record`` are what agents would write."""

    def __init__(self, tmp_path: Path) -> None:
        self.tmp_path = tmp_path
        self.store = MemoryStore("main")
        self.proxy: Proxy | None = None
        self.register: Register | None = None
        self.write_port = free_port()
        self.read_port = free_port()

    def settings(
        self,
        *,
        hold_max_ms: int = 20_000,
        server_connect_ms: int = 5000,
        proxy_lease_s: int = Timeouts().proxy_lease_s,
        **listener: Any,
    ) -> ProxySettings:
        users_file = self.tmp_path / "users"
        if not users_file.exists():
            users_file.write_text(f'{USER} "{PASSWORD}"\ntrusted anything\n')
            users_file.chmod(0o600)
        values: dict[str, Any] = {
            "write_port": self.write_port,
            "read_port": self.read_port,
            "users_file": users_file,
            **listener,
        }
        return ProxySettings(
            proxy=ListenerSettings(**values),
            store=StoreSettings(endpoints=("http://127.0.0.1:1",)),
            timeouts=Timeouts(
                hold_max_ms=hold_max_ms, server_connect_ms=server_connect_ms, proxy_lease_s=proxy_lease_s
            ),
        )

    async def start(self, *, users: str | None = None, **settings_of: Any) -> Proxy:
        settings = self.settings(**settings_of)
        known = Users.parse(users) if users is not None else Users.load(settings.proxy.users_file)
        self.proxy = Proxy(settings, self.store, known)
        await self.proxy.start()
        return self.proxy

    async def close(self) -> None:
        if self.proxy is not None:
            await self.proxy.stop()
        await self.store.close()

    async def record(self, server: Address, state: NodeState, epoch: int) -> None:
        record = NodeRecord(member(server.name), state, epoch, "127.0.0.1", server.port, "http://127.0.0.1:1")
        await self.store.put(KEYS.node(server.name), record.to_json())

    async def write(self, register: Register) -> None:
        self.register = register
        await self.store.put(KEYS.register, register.to_json())

    async def serve(self, server: Address, epoch: int) -> None:
        """``server`` serves in ``epoch``."""
        await self.record(server, NodeState.PRIMARY, epoch)
        leader = Configuration(member(server.name), epoch, NO_QUORUM)
        if self.register is None:
            await self.write(Register("main", "c" * 32, "1", epoch, Phase.SERVING, None, ("n1", "n2"), leader))
        else:
            register = replace(self.register, epoch=epoch, phase=Phase.RECRUITING, candidate=None)
            await self.write(register.served_by(member(server.name), NO_QUORUM))

    async def open_epoch(self) -> None:
        assert self.register is not None
        await self.write(self.register.opened())

    def dsn(self, *, read: bool = False, **more: str) -> str:
        values = {
            "host": "127.0.0.1",
            "port": str(self.read_port if read else self.write_port),
            "user": USER,
            "password": PASSWORD,
            "dbname": "app",
            "connect_timeout": "30",
            **more,
        }
        return psycopg.conninfo.make_conninfo(**values)

    async def connect(self, *, read: bool = False, **more: str) -> psycopg.AsyncConnection[tuple[Any, ...]]:
        """A connection in autocommit."""
        return await psycopg.AsyncConnection.connect(self.dsn(read=read, **more), autocommit=True)


async def fetch(connection: psycopg.AsyncConnection[tuple[Any, ...]], sql: str, *values: object) -> Any:
    """The first column of the first row."""
    cursor = await connection.execute(sql.encode(), values or None)
    row = await cursor.fetchone()
    return row[0] if row is not None else None


async def until(condition: Callable[[], bool | Awaitable[bool]]) -> None:
    """Wait for something that has no event; the test's own time limit ends a vain wait."""
    while True:
        result = condition()
        if result if isinstance(result, bool) else await result:
            return
        await asyncio.sleep(0.01)


class Pair:
    """A primary, its standby, a proxy, and the failover from one to the other."""

    def __init__(self, cluster: Cluster, n1: Server, n2: Server, proxy: Proxy) -> None:
        self.cluster = cluster
        self.n1 = n1
        self.n2 = n2
        self.proxy = proxy

    def held(self) -> int:
        return self.proxy.lanes[Purpose.WRITE].held

    async def wait_until_held(self, count: int) -> None:
        await until(lambda: self.held() == count)

    async def lose_primary(self) -> None:
        """The primary dies, and an epoch is opened."""
        await asyncio.to_thread(self.n1.kill)
        await self.cluster.open_epoch()
        await until(lambda: self.proxy.routing.epoch == 2)

    async def promote(self) -> None:
        """The standby becomes the primary of epoch 2 (and of timeline 2)."""
        await asyncio.to_thread(self.n2.promote)
        await self.cluster.serve(self.n2, 2)
        await until(lambda: self.proxy.routing.primary() is not None)

    async def fail_over(self) -> None:
        await self.lose_primary()
        await self.promote()


async def wait_until_active(server: Server, query: str) -> None:
    sql = f"select exists (select from pg_stat_activity where state = 'active' and query = '{query}')"
    await asyncio.to_thread(server.wait_for, sql)
