"""What an agent is made of: the parts that reach outside of it. A simulation puts its own in their place."""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Collection, Mapping
from dataclasses import dataclass
from typing import Literal, Protocol

from pydantic import JsonValue

from holdfast.model.capture import Capture, CaptureOrder
from holdfast.model.lost import LostLog, Unaccounted
from holdfast.model.lsn import History, Lsn, Position
from holdfast.model.register import Member, Quorum
from holdfast.model.server import ServerView, Upstream, WalSender
from holdfast.model.vitals import Room, Survey
from holdfast.node.promise import Names, PromiseKeeper
from holdfast.node.reach import PeerReach, SessionReach
from holdfast.store.contract import Store
from holdfast.store.journal import Journal


class LocalServer(Protocol):
    """What an agent asks of its PostgreSQL; `holdfast.postgres.server.Server` says what each call does and raises."""

    @property
    def exited(self) -> asyncio.Event: ...  # noqa: D102

    def incarnation(self) -> str | None: ...  # noqa: D102

    async def set_incarnation(self, incarnation: str) -> None: ...  # noqa: D102

    def system_identifier(self) -> str | None: ...  # noqa: D102

    async def initialize(self) -> None: ...  # noqa: D102

    async def start(self, *, standby: bool) -> None: ...  # noqa: D102

    async def adopt(self) -> bool: ...  # noqa: D102

    async def stop(self, mode: Literal["fast", "immediate"], deadline_ms: int) -> None: ...  # noqa: D102

    async def kill(self) -> None: ...  # noqa: D102

    async def hold_until(self, deadline_ms: int, about: str) -> None: ...  # noqa: D102

    async def held_until(self) -> tuple[int, str] | None: ...  # noqa: D102

    async def release(self) -> None: ...  # noqa: D102

    async def view(self) -> ServerView: ...  # noqa: D102

    async def end_of_log(self) -> Position: ...  # noqa: D102

    async def detach(self) -> Position: ...  # noqa: D102

    @property
    def heard_ms(self) -> int | None: ...  # noqa: D102

    async def follow(self, upstream: Upstream, member: Member) -> None: ...  # noqa: D102

    async def promote(self, epoch: int) -> None: ...  # noqa: D102

    async def set_quorum(self, quorum: Quorum | None) -> None: ...  # noqa: D102

    async def write_epoch_record(self, epoch: int) -> Lsn: ...  # noqa: D102

    async def heartbeat(self, epoch: int, deadline_ms: int | None = None) -> None: ...  # noqa: D102

    async def confirm(self, epoch: int) -> None: ...  # noqa: D102

    async def survey(self) -> Survey: ...  # noqa: D102

    async def touch_storage(self) -> None: ...  # noqa: D102

    def disk_writes(self) -> int | None: ...  # noqa: D102

    async def room(self) -> Room: ...  # noqa: D102

    async def flushed_lsn(self) -> Lsn: ...  # noqa: D102

    async def checkpoint(self) -> None: ...  # noqa: D102

    async def active_transactions(self) -> int: ...  # noqa: D102

    async def history_of(self, timeline: int) -> History: ...  # noqa: D102

    async def ensure_slots(self, nodes: Collection[str]) -> None: ...  # noqa: D102

    async def advance_slots(self, flushed: Mapping[str, Lsn]) -> None: ...  # noqa: D102

    async def walsenders(self) -> Mapping[str, WalSender]: ...  # noqa: D102

    async def end_walsender(self, node: str, sender: WalSender) -> None: ...  # noqa: D102

    async def note_moment(self, why: str) -> Mapping[str, JsonValue]: ...  # noqa: D102

    async def has_failed(self) -> bool: ...  # noqa: D102

    async def capture(  # noqa: D102
        self, order: CaptureOrder, progress: Callable[[str, float | None], None]
    ) -> Capture | None: ...

    async def rewind(  # noqa: D102
        self, source: Upstream, own_end: Position, progress: Callable[[str, float | None], None]
    ) -> LostLog | Unaccounted | None: ...

    async def clone(  # noqa: D102
        self, source: Upstream, member: Member, progress: Callable[[str, float | None], None]
    ) -> None: ...

    async def close(self) -> None: ...  # noqa: D102


class Gate(Protocol):
    """Whom PostgreSQL lets in; `holdfast.postgres.server.Server` says what each call does and raises."""

    def isolate(self, only: Collection[str] | None) -> None: ...  # noqa: D102

    async def settle_isolation(self) -> None: ...  # noqa: D102

    async def has_failed(self) -> bool: ...  # noqa: D102


@dataclass(frozen=True, slots=True)
class Parts:
    """Everything outside of one agent's own head."""

    server: LocalServer
    store: Store
    peers: PeerReach
    sessions: SessionReach
    promise: PromiseKeeper
    journal: Journal
    names: Names
    gate: Gate | None = None
    """None: this node is never cut off."""
