"""Connections to a standby to read on: who gets one, and when another one is opened."""

from __future__ import annotations

import asyncio
import itertools
import socket
from collections.abc import AsyncIterator

import pytest

from holdfast.proxy.pools import PoolKey, PoolLimits, key_of
from holdfast.proxy.readers import PAUSE_MAX_S, PAUSE_S, SPARE_S, Readers
from holdfast.proxy.routing import Target
from holdfast.proxy.server import ServerConnection, ServerRefused
from holdfast.wire import messages as m
from tests.proxy.sinks import Sink

SIZE = 3


class Run:
    """All that is asked is answered at once."""

    def __init__(self, moments: itertools.count[int]) -> None:
        self.moments = moments
        self.born = next(moments)
        self.proved = self.born

    def want(self) -> None:
        self.proved = next(self.moments)


class Standby:
    """It lets in whoever comes, or nobody."""

    def __init__(self) -> None:
        self.sock, self.other = socket.socketpair()
        self.logins: list[ServerConnection | None] = []
        self.is_full = False
        self.now_s = 0.0
        moments = itertools.count(1)
        limits = PoolLimits(size=SIZE, idle_s=600, lifetime_s=3600, wait_s=0)
        self.readers = Readers(Run(moments), limits, moments, self.connect, lambda: None, lambda: self.now_s)

    async def connect(self, parameters: dict[str, str]) -> ServerConnection:
        if self.is_full:
            self.logins.append(None)
            raise ServerRefused(m.fatal("53300", "sorry, too many clients already"))
        server = ServerConnection(Target("n2", "127.0.0.1", 1, 1, False))
        server.connection_made(Sink(self.sock))
        self.logins.append(server)
        return server

    async def borrow(self, key: PoolKey) -> ServerConnection | None:
        """One attempt, and whatever it has begun is done."""
        server = self.readers.borrow(key, "test")
        while self.readers._opening:
            await asyncio.gather(*self.readers._opening)
        return server

    def end(self) -> None:
        """What was closed has ended."""
        for server in self.logins:
            if server is not None and not (server.is_open or server.has_ended):
                server.connection_lost(None)

    @property
    def open(self) -> int:
        return sum(server is not None and server.is_open for server in self.logins)


@pytest.fixture
async def standby() -> AsyncIterator[Standby]:
    made = Standby()
    yield made
    made.readers.close()
    made.sock.close()
    made.other.close()


def key(options: str = "", database: str = "app") -> PoolKey:
    return key_of("app", database, (("options", options),))


async def test_a_standby_that_lets_nobody_in_is_asked_again_after_a_pause(standby: Standby) -> None:
    standby.is_full = True
    for _ in range(50):
        assert await standby.borrow(key()) is None
    assert len(standby.logins) == 1
    standby.now_s += PAUSE_S
    for _ in range(50):
        await standby.borrow(key())
    assert len(standby.logins) == 2
    standby.now_s += PAUSE_S  # the second pause is longer
    await standby.borrow(key())
    assert len(standby.logins) == 2
    standby.now_s += PAUSE_MAX_S
    standby.is_full = False
    assert await standby.borrow(key()) is None
    assert await standby.borrow(key()) is standby.logins[-1]
    await standby.borrow(key())
    assert len(standby.logins) == 4


async def test_others_are_let_in_meanwhile(standby: Standby) -> None:
    standby.is_full = True
    await standby.borrow(key())
    standby.is_full = False
    await standby.borrow(key(database="other"))
    assert standby.open == 1


async def test_all_startup_options_of_a_user_have_one_cap(standby: Standby) -> None:
    for n in range(20):
        await standby.borrow(key(f"-c a={n}"))
    assert standby.open == len(standby.logins) == SIZE
    await standby.borrow(key(database="other"))
    assert standby.open == SIZE + 1


async def test_a_session_with_options_of_its_own_gets_the_place_of_what_is_unused(standby: Standby) -> None:
    used = []
    for n in range(SIZE - 1):
        await standby.borrow(key(f"-c a={n}"))
        used.append(await standby.borrow(key(f"-c a={n}")))
    await standby.borrow(key("idle"))
    standby.now_s += SPARE_S
    for _ in range(3):
        got = await standby.borrow(key("new"))
        standby.end()
    assert got is not None
    assert all(server is not None and server.is_open for server in used)
    assert standby.open == SIZE


async def test_pools_that_nobody_uses_are_forgotten(standby: Standby) -> None:
    standby.is_full = True
    for n in range(10):
        await standby.borrow(key(f"-c a={n}"))
    standby.is_full = False
    await standby.borrow(key())
    standby.now_s += 2 * PAUSE_MAX_S
    standby.readers.expire()
    assert len(standby.readers._pools) == 1
    server = await standby.borrow(key())
    standby.now_s += 601
    standby.readers.expire()
    assert server is not None
    standby.readers.give_back(key(), server, is_fit=False)
    standby.end()
    standby.readers.expire()
    assert not standby.readers._pools
