"""Looks from the clients' host at a machine that should be gone, cut off, frozen or there."""

from __future__ import annotations

import asyncio
import time
from collections.abc import Awaitable, Callable
from pathlib import Path

import aiohttp
import psycopg

from holdfast.drill.scenario import NotInjected
from holdfast.local.processes import Process

SILENCE_S = 0.7
"""A host on the same switch that has not answered by now does not answer."""


async def connects(address: str, port: int) -> str:
    """What a new TCP connection meets: ``connected``, ``refused``, or ``silence``."""
    try:
        async with asyncio.timeout(SILENCE_S):
            _, writer = await asyncio.open_connection(address, port)
    except ConnectionRefusedError:
        return "refused"
    except (TimeoutError, OSError):
        return "silence"
    writer.close()
    return "connected"


async def must_be(wanted: str, address: str, port: int) -> str:
    """A proof that a new connection meets that, at once or in a moment; raises NotInjected otherwise."""

    async def met_it() -> bool:
        return await connects(address, port) == wanted

    if not await until(met_it, 2.0):
        raise NotInjected(f"a new connection to {address}:{port} met {await connects(address, port)}, not {wanted}")
    return f"a new connection to {address}:{port} meets {wanted}"


def state_of(process: Process) -> str:
    """The letter of proc(5), "stat": R, S, D, T…; empty if it is gone."""
    try:
        stat = Path(f"/proc/{process.pid}/stat").read_text()
    except OSError:
        return ""
    return stat[stat.rindex(")") + 2]


async def must_be_stopped(processes: tuple[Process, ...]) -> str:
    """A proof that all of them stand still; raises NotInjected otherwise."""
    if not processes:
        raise NotInjected("there was no process to stop")
    if not await until(lambda: _value(all(state_of(p) in "TtDZ" for p in processes)), 2.0):
        running = [p.pid for p in processes if state_of(p) not in "TtDZ"]
        raise NotInjected(f"processes {running} were to stand still and run")
    return f"{len(processes)} processes are in state T (stopped)"


async def _value(value: bool) -> bool:
    return value


async def until(condition: Callable[[], Awaitable[bool]], timeout_s: float, every_s: float = 0.02) -> bool:
    """Whether the condition came true in time."""
    give_up_at = time.monotonic() + timeout_s
    while True:
        if await condition():
            return True
        if time.monotonic() >= give_up_at:
            return False
        await asyncio.sleep(every_s)


async def agent_answers(session: aiohttp.ClientSession, url: str) -> bool:
    """Whether an agent tells how its node does within SILENCE_S."""
    try:
        async with session.get(f"{url}/node", timeout=aiohttp.ClientTimeout(total=SILENCE_S)) as answer:
            return answer.status == 200
    except (aiohttp.ClientError, TimeoutError, OSError):
        return False


async def ask(dsn: str, query: str, timeout_s: float = 5.0) -> object:
    """The first value that a server answers; raises psycopg.Error, TimeoutError."""
    async with asyncio.timeout(timeout_s):
        async with await psycopg.AsyncConnection.connect(dsn, autocommit=True, connect_timeout=5) as connection:
            cursor = await connection.execute(query.encode())
            if cursor.description is None:
                return None
            row = await cursor.fetchone()
            return None if row is None else row[0]
