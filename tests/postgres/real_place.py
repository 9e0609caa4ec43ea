"""Where contracts are tried on the real PostgreSQL: servers of a laboratory."""

from __future__ import annotations

import asyncio
import contextlib
import re
from collections.abc import Callable, Coroutine
from typing import Any

import psycopg

from holdfast.model.server import Upstream
from holdfast.postgres import config
from holdfast.postgres.config import BARRIER, Runtime
from holdfast.postgres.process import processes_in
from holdfast.postgres.server import Server
from tests.postgres.holding import HoldingRelay
from tests.postgres.lab import DEADLINE_S, Lab
from tests.postgres.places import Face, Line, Place, Write

_WAITING = "SELECT 1 FROM pg_stat_activity WHERE pid = %s AND wait_event = 'SyncRep'"
_REFUSED = re.compile("forked off current database system timeline|slot .* is active for PID")


class RealPlace(Place):
    """Servers of a laboratory."""

    def __init__(self, lab: Lab, runner: asyncio.Runner) -> None:
        super().__init__()
        self._lab = lab
        self._runner = runner
        self._relays: list[HoldingRelay] = []
        assert isinstance(config._FIXED, dict)
        self._fixed: dict[str, str] = config._FIXED

    def run(self, contract: Coroutine[Any, Any, None]) -> None:
        self._runner.run(contract)

    async def close(self) -> None:
        """End everything, also what is frozen."""
        self._fixed["recovery_min_apply_delay"] = "0"
        for relay in self._relays:
            await relay.close()
        await self._lab.close()

    def upstream(self, node: str) -> Upstream:
        return self._lab.upstream(node)

    def _face(self, node: str) -> Face:
        return self._lab.server(node)

    async def _initialize(self, node: str) -> None:
        await self._lab.make(node, self._real(node))

    async def _make(self, node: str) -> None:
        await super()._make(node)
        await self._lab.execute(node, "CREATE TABLE t (i int)")

    async def _fill(self, node: str, source: str) -> None:
        """A copy of what the leader began with; the leader still has all its log."""
        await self._initialize(node)
        await self.faces[node].set_incarnation(self.members[node].incarnation)

    async def session(self, node: str) -> Callable[[int], Write]:
        connection = await self._lab.connect(node)
        return lambda number: RealWrite(connection, number)

    async def waits(self, node: str, write: Write) -> bool:
        assert isinstance(write, RealWrite)
        watcher = await self._lab.connect(node)
        async with watcher, asyncio.timeout(DEADLINE_S):
            while not write.is_done():
                if (await watcher.execute(_WAITING, (write.pid,))).rowcount:
                    return True
                await asyncio.sleep(0.005)
        return False

    async def rows(self, node: str) -> set[int]:
        return {i for (i,) in await self._lab.execute(node, "SELECT i FROM t")}

    async def pause_replay(self, node: str) -> None:
        await self._lab.execute(node, "SELECT pg_wal_replay_pause()")
        await self._lab.until_rows(node, "SELECT 1 WHERE pg_get_wal_replay_pause_state() = 'paused'")

    async def resume_replay(self, node: str) -> None:
        await self._lab.execute(node, "SELECT pg_wal_replay_resume()")

    async def slow_replay(self, node: str) -> None:
        await self._delay(node, "1h")

    async def hurry_replay(self, node: str) -> None:
        await self._delay(node, "0")

    async def _delay(self, node: str, delay: str) -> None:
        """A setting that the product allows nobody, so that it has to write it itself."""
        self._fixed["recovery_min_apply_delay"] = delay
        await self._real(node)._instance.change()

    async def reload_without_upstream(self, node: str) -> None:
        await self._real(node)._instance.apply(Runtime(BARRIER, None, None, quick_replay=True))

    async def receiver(self, node: str) -> object:
        return await self._lab.execute(node, "SELECT pid FROM pg_stat_wal_receiver")

    async def was_refused(self, node: str, times: int) -> None:
        async with asyncio.timeout(DEADLINE_S):
            while self.refusals(node) < times:  # noqa: ASYNC110  # a log file tells nobody that it grows
                await asyncio.sleep(0.01)

    def refusals(self, node: str) -> int:
        return len(_REFUSED.findall(self._lab.server_log(node)))

    def freeze(self, node: str) -> None:
        for process in processes_in(self._lab.data_dir(node)):
            process.suspend()

    def thaw(self, node: str) -> None:
        for process in processes_in(self._lab.data_dir(node)):
            process.resume()

    async def follow_by_line(self, node: str) -> Line:
        there = self.upstream(self.leader)
        self._relays.append(relay := HoldingRelay(there.host, there.port))
        port = await relay.start()
        await self.faces[node].follow(Upstream(there.node, there.host, port), self.members[node])
        await self.until(node, lambda view: view.streaming)
        return RealLine(relay)

    def _real(self, node: str) -> Server:
        face = self.faces[node]
        assert isinstance(face, Server)
        return face


class RealLine(Line):
    """A relay between the two."""

    def __init__(self, relay: HoldingRelay) -> None:
        self._relay = relay

    def hold(self) -> None:
        self._relay.hold()

    def let_go(self) -> None:
        self._relay.let_go()


class RealWrite(Write):
    """An INSERT of its own, and what was said with it."""

    def __init__(self, connection: psycopg.AsyncConnection[tuple[Any, ...]], number: int) -> None:
        self._connection = connection
        self.pid = connection.info.backend_pid
        self._warnings: list[str | None] = []
        connection.add_notice_handler(lambda notice: self._warnings.append(notice.severity))
        statement = f"INSERT INTO t VALUES ({number})".encode()
        self._task = asyncio.ensure_future(connection.execute(statement))

    def is_done(self) -> bool:
        return self._task.done()

    async def acknowledged(self) -> bool:
        with contextlib.suppress(psycopg.Error):
            await self._task
            return not self._warnings
        return False

    async def cancel(self) -> None:
        await self._connection.cancel_safe()
