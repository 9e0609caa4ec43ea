"""One PostgreSQL server: its data directory, its process, what it says, and what the protocol makes it do."""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Collection, Mapping
from pathlib import Path
from typing import Literal

from holdfast.model.lsn import History, Lsn, Position
from holdfast.model.register import Member, Quorum
from holdfast.model.server import ServerView, Upstream
from holdfast.model.settings import PostgresSettings
from holdfast.model.timeouts import Timeouts
from holdfast.postgres.installation import Installation


class Server:
    """The one server that an agent owns."""

    def __init__(
        self, settings: PostgresSettings, node: str, installation: Installation, timeouts: Timeouts, state_dir: Path
    ) -> None:
        self._exited = asyncio.Event()

    def incarnation(self) -> str | None:
        """The incarnation of the data directory, or None if there is none or it cannot be read."""
        raise NotImplementedError

    def set_incarnation(self, incarnation: str) -> None:
        """Give the data directory a new incarnation, durably."""
        raise NotImplementedError

    def system_identifier(self) -> str | None:
        """The system identifier in the control file, or None if there is no data directory."""
        raise NotImplementedError

    async def initialize(self) -> None:
        """Make a new cluster in the data directory and leave it stopped; interrupted, it leaves ABSENT."""
        raise NotImplementedError

    async def start(self, *, standby: bool) -> None:
        """Start the postmaster, closed by the barrier name and without an upstream; returns when it exists."""
        raise NotImplementedError

    async def adopt(self) -> bool:
        """Pick up a postmaster that a former agent left running; False if there is none."""
        raise NotImplementedError

    async def stop(self, mode: Literal["fast", "immediate"], deadline_ms: int, *, escalate: bool = True) -> None:
        """Stop the server; past the deadline kill everything, or raise PostgresError if not ``escalate``."""
        raise NotImplementedError

    async def kill(self) -> None:
        """SIGKILL the postmaster and all its children; returns when none is left."""
        raise NotImplementedError

    @property
    def exited(self) -> asyncio.Event:
        """Set at once when the postmaster ends; cleared by ``start`` and ``adopt``."""
        return self._exited

    async def view(self, deadline_ms: int = 1000) -> ServerView:
        """Look at the server; never raises for a sick one, the status says it."""
        raise NotImplementedError

    async def end_of_log(self) -> Position:
        """Where the log of a stopped data directory ends; raises PostgresError if it cannot be told."""
        raise NotImplementedError

    async def detach(self) -> Position:
        """The recruit step: stop streaming for certain, then read the position. Idempotent; raises PostgresError."""
        raise NotImplementedError

    async def follow(self, upstream: Upstream, member: Member) -> None:
        """Point a running standby at ``upstream``, streaming as ``member``."""
        raise NotImplementedError

    async def promote(self, epoch: int) -> None:
        """Promote a standby so that its new timeline is ``epoch``; returns at once."""
        raise NotImplementedError

    async def set_quorum(self, quorum: Quorum | None) -> None:
        """Set the synchronous names, None for the barrier; returns when new sessions use them."""
        raise NotImplementedError

    async def write_epoch_record(self, epoch: int) -> Lsn:
        """Write the record of an epoch's start (idempotent); returns an LSN that covers its commit."""
        raise NotImplementedError

    async def heartbeat(self, epoch: int) -> None:
        """Commit the heartbeat row, locally."""
        raise NotImplementedError

    async def flushed_lsn(self) -> Lsn:
        """What a primary has flushed."""
        raise NotImplementedError

    async def checkpoint(self) -> None:
        """CHECKPOINT."""
        raise NotImplementedError

    async def active_transactions(self) -> int:
        """How many clients are in a transaction; our own sessions are left out."""
        raise NotImplementedError

    async def history_of(self, timeline: int) -> History:
        """The history of a timeline, from the local history file; raises PostgresError if there is none."""
        raise NotImplementedError

    async def ensure_slots(self, nodes: Collection[str]) -> None:
        """Make the physical slots that keep log for ``nodes``, and drop those of nodes no longer listed."""
        raise NotImplementedError

    async def advance_slots(self, flushed: Mapping[str, Lsn]) -> None:
        """On a standby, move slots up to what each node has flushed; never backwards."""
        raise NotImplementedError

    async def rewind(self, source: Upstream, own_end: Position, progress: Callable[[str, float | None], None]) -> None:
        """Rewind the stopped directory to ``source``; raises PostgresError when a clone is needed."""
        raise NotImplementedError

    async def clone(self, source: Upstream, member: Member, progress: Callable[[str, float | None], None]) -> None:
        """Replace the data directory with a copy of ``source``; cancelled, it leaves ABSENT."""
        raise NotImplementedError

    async def close(self) -> None:
        """Release what the agent holds; the server goes on running."""
        raise NotImplementedError
