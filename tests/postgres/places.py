"""Where a contract is tried: the simulator's model of PostgreSQL, and the real one, behind one face.

A place keeps three servers, a, b and c. Whoever leads, and what the contract before has left, it knows; `Place.trio`
makes them whole again.
"""

from __future__ import annotations

import asyncio
from abc import ABC, abstractmethod
from collections.abc import Callable, Coroutine
from typing import Any

from holdfast.model.register import NO_QUORUM, Member
from holdfast.model.server import ServerStatus, ServerView, Upstream
from holdfast.postgres.server import Server
from holdfast.testing.server import SimulatedServer
from tests.postgres.lab import DEADLINE_S, new_incarnation

NODES = ("a", "b", "c")
Face = Server | SimulatedServer


class Write(ABC):
    """A commit under way in a session of its own."""

    @abstractmethod
    def is_done(self) -> bool:
        """Whether the client has heard."""

    @abstractmethod
    async def acknowledged(self) -> bool:
        """Wait for the client's answer: whether it is a success without a warning."""

    @abstractmethod
    async def cancel(self) -> None:
        """Cancel the wait, as a client or an administrator can."""


class Line(ABC):
    """A standby's way to its upstream: what the standby says can be held back, and arrives late."""

    @abstractmethod
    def hold(self) -> None:
        """Keep back what the standby says from now on, its end included."""

    @abstractmethod
    def let_go(self) -> None:
        """What was held back arrives."""


class Place(ABC):
    """Three servers and what can be done to them."""

    def __init__(self) -> None:
        self.faces: dict[str, Face] = {}
        self.members: dict[str, Member] = {}
        self.leader = ""
        self.epoch = 0
        self._number = 0

    # ---- what a contract begins with --------------------------------------------------------------------------

    async def trio(self) -> tuple[str, str, str]:
        """Leader and two standbys that stream and have everything; commits are local."""
        if not self.leader:
            await self._make("a")
            for node in ("b", "c"):
                await self._copy(node, "a")
        first, second = (node for node in NODES if node != self.leader)
        await self.faces[self.leader].set_quorum(NO_QUORUM)
        for node in (first, second):
            await self.caught_up(node)
        return self.leader, first, second

    async def _make(self, node: str) -> None:
        face = self.faces[node] = self._face(node)
        await self._initialize(node)
        self.members[node] = Member(node, new_incarnation())
        await face.set_incarnation(self.members[node].incarnation)
        await face.start(standby=False)
        await self.until(node, lambda view: view.status is ServerStatus.PRIMARY)
        await face.set_quorum(NO_QUORUM)
        await face.write_epoch_record(1)
        self.leader, self.epoch = node, 1

    async def _copy(self, node: str, source: str) -> None:
        self.faces[node] = self._face(node)
        self.members[node] = Member(node, new_incarnation())
        await self._fill(node, source)
        await self.join(node)

    async def join(self, node: str) -> None:
        """Start a stopped server as a standby of the leader; returns when it streams."""
        await self.faces[node].start(standby=True)
        await self.until(node, lambda view: view.status is ServerStatus.STANDBY)
        await self.follow(node)

    async def follow(self, node: str, upstream: str | None = None) -> None:
        """Let a running standby follow the leader, or another; returns when it streams."""
        await self.faces[upstream or self.leader].ensure_slots(NODES)
        await self.faces[node].follow(self.upstream(upstream or self.leader), self.members[node])
        await self.until(node, lambda view: view.streaming)

    async def caught_up(self, node: str) -> None:
        """Until a standby, and the leader's walsender of it, have all that the leader has flushed."""
        end, member = await self.faces[self.leader].flushed_lsn(), self.members[node]
        await self.until(node, lambda v: v.streaming and v.replay_lsn is not None and v.replay_lsn >= end)
        await self.until(
            self.leader,
            lambda v: any(
                r.member == member and r.state == "streaming" and (r.flush_lsn or 0) >= end for r in v.replicas
            ),
        )

    async def until(self, node: str, wanted: Callable[[ServerView], bool]) -> ServerView:
        """Look until the view is as wanted."""
        async with asyncio.timeout(DEADLINE_S):
            while True:
                if wanted(view := await self.faces[node].view()):
                    return view
                await asyncio.sleep(0.005)

    def next_number(self) -> int:
        """A row that nobody has written yet."""
        self._number += 1
        return self._number

    # ---- what differs -----------------------------------------------------------------------------------------

    @abstractmethod
    def run(self, contract: Coroutine[Any, Any, None]) -> None:
        """Run a contract to its end."""

    @abstractmethod
    def upstream(self, node: str) -> Upstream:
        """How a server is reached."""

    @abstractmethod
    async def session(self, node: str) -> Callable[[int], Write]:
        """A session that is open from now on; it writes a row by its number. It lives through a promotion."""

    @abstractmethod
    async def waits(self, node: str, write: Write) -> bool:
        """Until the commit waits for standbys; False if it has ended without."""

    @abstractmethod
    async def rows(self, node: str) -> set[int]:
        """What a session there sees."""

    @abstractmethod
    async def pause_replay(self, node: str) -> None:
        """Somebody pauses replay."""

    @abstractmethod
    async def resume_replay(self, node: str) -> None:
        """Somebody resumes it."""

    @abstractmethod
    async def slow_replay(self, node: str) -> None:
        """Replay stands still at the next commit, for as long as it takes."""

    @abstractmethod
    async def hurry_replay(self, node: str) -> None:
        """Replay is as fast as usual again."""

    @abstractmethod
    def freeze(self, node: str) -> None:
        """Stop every process of the server."""

    @abstractmethod
    def thaw(self, node: str) -> None:
        """Let them go on."""

    @abstractmethod
    async def follow_by_line(self, node: str) -> Line:
        """Let a detached standby follow the leader in such a way that what it says can be held back; it streams."""

    @abstractmethod
    async def reload_without_upstream(self, node: str) -> None:
        """Empty ``primary_conninfo`` and reload: less than a detach does."""

    @abstractmethod
    async def receiver(self, node: str) -> object:
        """What tells one connection of a walreceiver from another."""

    @abstractmethod
    async def was_refused(self, node: str, times: int) -> None:
        """Until a standby has been turned away that often: its log goes beyond the fork, or its slot is taken."""

    @abstractmethod
    def refusals(self, node: str) -> int:
        """How often it has been."""

    @abstractmethod
    def _face(self, node: str) -> Face: ...

    @abstractmethod
    async def _initialize(self, node: str) -> None: ...

    @abstractmethod
    async def _fill(self, node: str, source: str) -> None:
        """Make a stopped directory that a new standby begins with."""
