"""Standbys that fall behind, and clients that read what they have just written."""

from __future__ import annotations

import asyncio
from dataclasses import dataclass
from typing import Final

import psycopg

from holdfast.drill.pairs import Count, Pairs
from holdfast.drill.scenario import Action, NotInjected, Role, Scene

PAIRS: Final = "pairs"
"""Under this name the clients are kept for later steps."""


@dataclass(frozen=True, slots=True)
class WriteAndRead(Action):
    """Clients with ``route=auto`` begin to write and to read what they wrote."""

    clients: int = 8

    @property
    def words(self) -> str:
        """See `Action`."""
        return f"{self.clients} clients write and read it, with route=auto, in the same session and in others by token"

    async def perform(self, scene: Scene) -> None:
        """See `Action`."""
        ways = scene.hosted.write_dsn, scene.hosted.write_dsn_turned  # a token of one proxy is read through the other
        pairs = Pairs(ways, clients=self.clients, schema=f"{scene.workload.schema}_pairs")
        await pairs.setup()
        scene.undo.append(pairs.close)
        scene.keep(PAIRS, pairs)
        pairs.start()


@dataclass(frozen=True, slots=True)
class FallBehind(Action):
    """``pg_wal_replay_pause()`` on one standby, which goes on receiving."""

    role: Role

    @property
    def words(self) -> str:
        """See `Action`."""
        return f"{self.role} replays nothing any more"

    async def perform(self, scene: Scene) -> None:
        """See `Action`."""
        await _ask(scene, await scene.node(self.role), "SELECT pg_wal_replay_pause()")

    async def proof(self, scene: Scene) -> str:
        """Its position stands still although the primary's does not."""
        node = await scene.node(self.role)
        state = await _ask(scene, node, "SELECT pg_get_wal_replay_pause_state()")
        before = await _ask(scene, node, "SELECT pg_last_wal_replay_lsn()::text")
        await asyncio.sleep(1.0)
        after = await _ask(scene, node, "SELECT pg_last_wal_replay_lsn()::text")
        if state == "not paused" or before != after:
            raise NotInjected(f"{node} replays on: it was at {before}, then at {after}, and says {state}")
        return f"{node} stays at {after} while it receives more"


@dataclass(frozen=True, slots=True)
class CatchUp(Action):
    """``pg_wal_replay_resume()``."""

    role: Role

    @property
    def words(self) -> str:
        """See `Action`."""
        return f"{self.role} replays again"

    async def perform(self, scene: Scene) -> None:
        """See `Action`."""
        await _ask(scene, await scene.node(self.role), "SELECT pg_wal_replay_resume()")


@dataclass(frozen=True, slots=True)
class JudgeReads(Action):
    """The clients end, and nobody may have been shown less than what he had written."""

    @property
    def words(self) -> str:
        """See `Action`."""
        return "the clients end and are asked what they saw"

    async def perform(self, scene: Scene) -> None:
        """See `Action`."""
        pairs = scene.kept[PAIRS]
        assert isinstance(pairs, Pairs)
        await pairs.stop()
        on_standbys = await pairs.read_on([await scene.cluster.direct_dsn(node) for node in scene.standbys])
        for name, count in (("in the session that wrote", pairs.session), ("by token", pairs.token)):
            _judge(scene, name, count)
        share = 100 * on_standbys / pairs.made if pairs.made else 0.0
        scene.keep("reads", {"pairs": pairs.made, "on_standbys": on_standbys})
        scene.note(f"{pairs.made} pairs of a write and a read; standbys answered {on_standbys} reads ({share:.0f} %)")
        if not on_standbys:
            scene.problem("no standby answered a read, although one was up to date all the time")


def _judge(scene: Scene, name: str, count: Count) -> None:
    scene.note(f"{name}: {count.pairs} pairs, {count.stale} stale, {count.errors} errors")
    if not count.pairs:
        scene.problem(f"{name}: no pair was made")
    if count.stale or count.errors:
        scene.problem(f"{name}: {count.stale} stale reads, {count.errors} errors: {'; '.join(count.examples)}")


async def _ask(scene: Scene, node: str, statement: str) -> str:
    """The first column of the first row, as text."""
    dsn = await scene.cluster.direct_dsn(node)
    async with await psycopg.AsyncConnection.connect(dsn, autocommit=True) as connection:
        row = await (await connection.execute(statement.encode())).fetchone()
    return str(row[0]) if row is not None else ""
