"""One PostgreSQL server: its data directory, its process, what it says, and what the protocol makes it do."""

from __future__ import annotations

import asyncio
import os
import time
from collections.abc import Callable, Collection, Mapping
from functools import partial
from pathlib import Path
from typing import Literal

import structlog
from pydantic import JsonValue

from holdfast.core.own_token import OwnFound
from holdfast.core.token import Found, Stretch
from holdfast.model.capture import Capture, CaptureOrder
from holdfast.model.errors import HoldfastError, PostgresError
from holdfast.model.lost import LostLog, Unaccounted
from holdfast.model.lsn import History, Lsn, Position
from holdfast.model.outcome import EpochStart, XactStatus
from holdfast.model.register import Member, Quorum
from holdfast.model.server import ABSENT_SERVER, ServerStatus, ServerView, Upstream, WalSender
from holdfast.model.settings import CaptureSettings, PostgresSettings
from holdfast.model.timeouts import Timeouts
from holdfast.model.vitals import Room, Survey
from holdfast.postgres import bootstrap, rejoin, replication, survey, tokens, transactions
from holdfast.postgres.capture.taking import Captures
from holdfast.postgres.disk import Disk, pressure, space_of, write_probe, writes_completed
from holdfast.postgres.installation import Installation
from holdfast.postgres.instance import Instance
from holdfast.postgres.look import position_of, take_look, view_of
from holdfast.postgres.session import NotAccepting
from holdfast.postgres.timelines import read_history

_log = structlog.get_logger(__name__)


class Server:
    """The one server that an agent owns. Made inside a running event loop; one task at a time changes it."""

    def __init__(
        self,
        settings: PostgresSettings,
        node: str,
        installation: Installation,
        timeouts: Timeouts,
        state_dir: Path,
        capture: CaptureSettings | None = None,
    ) -> None:
        """Raises ConfigurationError for settings that cannot be, and EnvironmentFault if nobody can run PostgreSQL."""
        self._instance = Instance(settings, node, installation, timeouts, state_dir)
        self._captures = Captures(self._instance, capture or CaptureSettings())
        self._device: int | None = None
        """What the data directory is on, as of the last look at it that came back."""

    # -- data directory ----------------------------------------------------------------------------------------------

    def incarnation(self) -> str | None:
        """The incarnation of the data directory; None if there is none or it cannot be read."""
        return self._instance.layout.incarnation()

    async def set_incarnation(self, incarnation: str) -> None:
        """Give the data directory a new incarnation, durably; raises ValueError for what is none, DiskSilent."""
        instance = self._instance
        write = partial(instance.layout.set_incarnation, incarnation)
        await instance.disk.call("incarnation", write, instance.timeouts.statement_ms)

    def system_identifier(self) -> str | None:
        """The system identifier in the control file, as of the last look; None without a complete data directory."""
        return self._instance.identifier

    @property
    def disk(self) -> Disk:
        """What touches the node's file systems."""
        return self._instance.disk

    async def initialize(self) -> None:
        """Make a new cluster and leave it stopped: roles postgres and holdfast_replication, schema holdfast.

        Raises ConfigurationError if the data directory is not empty. Interrupted, it leaves nothing (ABSENT). The
        new directory has no incarnation yet.
        """
        await bootstrap.initialize(self._instance)
        await self._instance.look_at_directory()

    # -- process -----------------------------------------------------------------------------------------------------

    async def start(self, *, standby: bool) -> None:
        """Start the postmaster, closed by the barrier name and without an upstream; returns when it exists.

        Removes placeholders, writes or removes standby.signal, rewrites every setting that Holdfast owns. Raises
        ConfigurationError or EnvironmentFault for what a person must correct, PostgresError for anything else.
        """
        await self._instance.start(standby=standby)

    async def adopt(self) -> bool:
        """Pick up a postmaster that a former agent left running, with the settings it has; False if there is none."""
        return await self._instance.adopt()

    async def stop(self, mode: Literal["fast", "immediate"], deadline_ms: int, *, escalate: bool = True) -> None:
        """Stop the server; past the deadline kill everything, or raise PostgresError if not ``escalate``.

        A fast shutdown that was not escalated goes on; the server can only be killed or end by itself then.
        """
        await self._instance.stop(mode, deadline_ms, escalate=escalate)

    async def kill(self) -> None:
        """SIGKILL the postmaster and every process of it; returns when none is left. Raises PostgresError."""
        await self._instance.kill()

    async def hold_until(self, deadline_ms: int, about: str) -> None:
        """Have the server killed at this time on the loop's clock, whatever becomes of the agent.

        ``about`` is for `held_until`. Raises PostgresError if there is no server, or nobody to see to it.
        """
        instance = self._instance
        pid = instance.postmaster_pid
        if pid is None:
            raise PostgresError("there is no server to guard")
        await instance.guard.hold(pid, deadline_ms + _ahead_ms(), about, instance.timeouts.statement_ms)

    async def held_until(self) -> tuple[int, str] | None:
        """The deadline that a former agent left for the running server, and what it was about."""
        instance = self._instance
        pid = instance.postmaster_pid
        hold = None if pid is None else await instance.guard.held(pid, instance.timeouts.statement_ms)
        return None if hold is None else (hold.deadline_ms - _ahead_ms(), hold.about)

    async def release(self) -> None:
        """Nobody is to kill the server any more."""
        await self._instance.guard.release(self._instance.timeouts.statement_ms)

    @property
    def exited(self) -> asyncio.Event:
        """Set at once when the postmaster ends; cleared by ``start`` and ``adopt``. Set before the first start."""
        return self._instance.exited

    @property
    def pid(self) -> int | None:
        """The postmaster's process id; None while there is none."""
        return self._instance.postmaster_pid

    def why_it_ended(self) -> HoldfastError | None:
        """What the server complained of in its log since its start, translated; None if it did not complain."""
        return self._instance.why_it_ended()

    async def allow_peers(self, addresses: Collection[str]) -> None:
        """Let the replication role in from these addresses too (pg_hba.conf), beside the server's own subnets."""
        self._instance.configuration.peer_addresses = tuple(addresses)
        if self._instance.running:
            await self._instance.change()

    def isolate(self, only: Collection[str] | None) -> None:
        """Let in whom these lines of pg_hba.conf name instead of those of ``postgres.hba``; None: those again.

        Counts from the next start or change of settings on; `settle_isolation` does not wait for one. Replication, and
        the agent's own sessions, are let in all the same.
        """
        self._instance.configuration.only = None if only is None else tuple(only)

    async def settle_isolation(self) -> None:
        """Bring a running server to what `isolate` was told last; sessions that are there stay. Raises PostgresError.

        May run beside whatever else is done with the server. Does nothing if it has all of that already.
        """
        if self._instance.running:
            await self._instance.reload_hba()

    # -- looking -----------------------------------------------------------------------------------------------------

    async def view(self, deadline_ms: int = 1000) -> ServerView:
        """Look at the server in one statement; never raises for a sick one, the status says it.

        A postmaster of a former agent is seen only after ``adopt``.
        """
        instance = self._instance
        if not instance.running:
            return ServerView(ServerStatus.STOPPED) if await instance.look_at_directory() else ABSENT_SERVER
        try:
            return await asyncio.wait_for(self._look(deadline_ms), deadline_ms / 1000 + 0.1)
        except NotAccepting as refusal:
            first = refusal.starting or not instance.accepted
            status = ServerStatus.STARTING if first else ServerStatus.UNRESPONSIVE
        except (PostgresError, TimeoutError) as error:
            _log.debug("the server does not answer", node=instance.node, reason=str(error))
            status = ServerStatus.UNRESPONSIVE
        return ServerView(status if instance.running else ServerStatus.STOPPED)

    async def accepts_sessions(self, deadline_ms: int) -> bool:
        """Whether a fresh session gets an answer: with only the postmaster frozen, the held one still does."""
        session = self._instance.new_session()
        try:
            await session.fetch("SELECT 1", deadline_ms=deadline_ms)
        except PostgresError:
            return False
        finally:
            await session.close()
        return True

    async def end_of_log(self) -> Position:
        """Where the log of a stopped directory ends, the way a start would find it, brought to the disk.

        Raises PostgresError if the server runs or it cannot be told.
        """
        return await self._instance.end_of_log()

    # -- leading and following ---------------------------------------------------------------------------------------

    async def detach(self) -> Position:
        """The recruit step: stop streaming for certain, resume replay, then read where the log ends.

        Idempotent. Raises PostgresError if the server is no standby, a walreceiver stays, or the end is not known;
        a standby that was told to promote has been killed then.
        """
        return await replication.detach(self._instance)

    @property
    def heard_ms(self) -> int | None:
        """When the detached standby last can have received log, on the loop's clock; None before the first `detach`."""
        return None if self._instance.heard_s is None else int(self._instance.heard_s * 1000)

    async def follow(self, upstream: Upstream, member: Member) -> None:
        """Point a running standby at ``upstream``, streaming as ``member``. Raises PostgresError."""
        await replication.follow(self._instance, upstream, member)

    async def promote(self, epoch: int) -> None:
        """Promote a standby so that its new timeline is ``epoch``; returns at once, poll ``view``. Idempotent.

        Raises PostgresError if the timeline exists already or the barrier name is not in force.
        """
        await replication.promote(self._instance, epoch)

    async def set_quorum(self, quorum: Quorum | None) -> None:
        """Set the synchronous names: None is the barrier, k = 0 none at all; returns when new sessions use them.

        A commit begun up to ``reload_settle_ms`` later may still use the former names. Raises PostgresError.
        """
        await replication.set_quorum(self._instance, quorum)

    async def write_epoch_record(self, epoch: int) -> Lsn:
        """Write the record of an epoch's start (idempotent); returns an LSN that covers its commit."""
        return await replication.write_epoch_record(self._instance, epoch)

    async def heartbeat(self, epoch: int, deadline_ms: int | None = None) -> None:
        """Commit the heartbeat row, locally. Raises PostgresError.

        Without a deadline it waits for as long as it takes: how long that is, is evidence.
        """
        await replication.heartbeat(self._instance, epoch, deadline_ms)

    async def confirm(self, epoch: int) -> None:
        """Commit the heartbeat row that the quorum confirms; waits for as long as it takes. Raises PostgresError."""
        await survey.confirm(self._instance, epoch)

    async def transaction_status(self, xid: int) -> XactStatus:
        """What the server says of a transaction id of 64 bits, whichever epoch it is from. Raises PostgresError."""
        return await transactions.transaction_status(self._instance, xid)

    async def epoch_starts(self) -> tuple[EpochStart, ...]:
        """The records of all epochs in the server's log, oldest first. Raises PostgresError."""
        return await transactions.epoch_starts(self._instance)

    async def running_sessions(self, pids: Collection[int]) -> frozenset[int]:
        """Which of these server processes are there. Raises PostgresError."""
        return await tokens.running_sessions(self._instance, pids)

    async def find_tokens(self, stretch: Stretch, wanted: Collection[str]) -> Found:
        """Read a stretch of the log for tokens of guarded commits. Raises PostgresError if it cannot be read."""
        return await tokens.find_tokens(self._instance, stretch, wanted)

    async def find_own_token(self, stretch: Stretch, token: str) -> OwnFound:
        """Read a stretch of the log for an application's own token. Raises PostgresError if it cannot be read."""
        return await tokens.find_own_token(self._instance, stretch, token)

    async def next_xid(self) -> int:
        """The next transaction id of 64 bits, or a little less. Raises PostgresError."""
        return await transactions.next_xid(self._instance)

    async def survey(self) -> Survey:
        """How busy the server is, and what it has of the heartbeat rows. Raises PostgresError."""
        return await survey.take_survey(self._instance)

    async def touch_storage(self) -> None:
        """A small write, brought to the disk of the data directory; waits for as long as it takes. Raises OSError."""
        side_dir = self._instance.layout.side_dir
        await self._instance.disk.call("probe", partial(write_probe, side_dir), None)

    def disk_writes(self) -> int | None:
        """How many writes the device below the data directory has completed; None if it does not tell."""
        device = self._device
        return None if device is None else writes_completed(device)

    async def room(self) -> Room:
        """Room on the file systems of data and log, and the machine's load. Raises PostgresError."""
        layout, deadline_ms = self._instance.layout, self._instance.timeouts.statement_ms

        def look() -> Room:
            self._device = os.stat(layout.side_dir).st_dev if layout.side_dir.exists() else None
            return Room(space_of(layout.data_dir), space_of(layout.wal_dir), pressure())

        return await self._instance.disk.call("room", look, deadline_ms)

    async def flushed_lsn(self) -> Lsn:
        """What a primary has flushed. Raises PostgresError."""
        return await replication.flushed_lsn(self._instance)

    async def checkpoint(self) -> None:
        """CHECKPOINT; raises PostgresError if it takes longer than ``start_ms``."""
        session = self._instance.session("checkpoint")
        await session.fetch("CHECKPOINT", deadline_ms=self._instance.timeouts.start_ms)

    async def active_transactions(self) -> int:
        """How many clients are in a transaction, or were within ``handover_calm_ms``; Holdfast's own are left out."""
        return await replication.active_transactions(self._instance)

    async def history_of(self, timeline: int) -> History:
        """The history of a timeline, from the local history file; raises PostgresError if there is none."""
        instance = self._instance
        find = partial(read_history, instance.layout.wal_dir, timeline)
        history = await instance.disk.call("history", find, instance.timeouts.statement_ms)
        if history is None:
            raise PostgresError(f"there is no history file of timeline {timeline} in {self._instance.layout.wal_dir}")
        return history

    # -- slots that keep log for every member ------------------------------------------------------------------------

    async def ensure_slots(self, nodes: Collection[str]) -> None:
        """Make the physical slots ``holdfast_<node>``, on a primary or a standby; drop those of nodes not listed.

        A node streams through its own slot on its upstream, and cannot without: one connection holds a slot at a time,
        so that PostgreSQL never counts two of one node. The own node needs none. A slot that was invalidated
        (max_slot_wal_keep_size) is made anew. One more slot, on a primary, keeps log back to the last checkpoint that
        all of them have, from which a rewind would begin. Raises PostgresError.
        """
        await replication.ensure_slots(self._instance, nodes)

    async def advance_slots(self, flushed: Mapping[str, Lsn]) -> None:
        """Move slots up to what each node has flushed; never backwards, and what cannot be is ignored.

        A walsender advances the slot that it holds. On a standby, whose slots nobody holds, only this call lets log go;
        it holds them for a moment itself.
        """
        await replication.advance_slots(self._instance, flushed)

    async def walsenders(self) -> dict[str, WalSender]:
        """Who holds the slots of which nodes. Raises PostgresError."""
        return await replication.walsenders(self._instance)

    async def end_walsender(self, node: str, sender: WalSender) -> None:
        """End a walsender if it still holds the node's slot. Raises PostgresError.

        One that is stuck in sending its last word to a host that is gone ends when it is told a second time.
        """
        await replication.end_walsender(self._instance, node, sender)

    # -- evidence ----------------------------------------------------------------------------------------------------

    @property
    def captures_dir(self) -> Path:
        """Where captures of this server go."""
        return self._captures.base

    async def note_moment(self, why: str) -> Mapping[str, JsonValue]:
        """Write down what sessions, locks, processes and kernel say now, for the next capture; returns it.

        Takes up to ``moment_ms``, whether or not the server answers. Raises EnvironmentFault.
        """
        return await self._captures.note_moment(why)

    async def has_failed(self) -> bool:
        """Whether the stopped directory is that of a primary that was not shut down."""
        return await self._captures.has_failed()

    async def capture(self, order: CaptureOrder, progress: Callable[[str, float | None], None]) -> Capture | None:
        """Take the stopped directory as it is, before it is touched; None if nothing failed here or nothing is there.

        Ended or killed half-way, the same order resumes it. Raises EnvironmentFault, and may be ordered again then.
        """
        return await self._captures.take(order, progress)

    # -- rejoin ------------------------------------------------------------------------------------------------------

    async def rewind(
        self, source: Upstream, own_end: Position, progress: Callable[[str, float | None], None]
    ) -> LostLog | Unaccounted | None:
        """Rewind the stopped directory, whose log ends at ``own_end``, to the primary ``source``.

        What lies beyond the fork is copied and listed first, and returned. Afterwards the directory has no
        incarnation. Does nothing (None) if the log is a prefix of the source's. Raises PostgresError when a clone is
        needed (the directory may be ABSENT then), ConfigurationError for another cluster's.
        """
        return await rejoin.rewind(self._instance, source, own_end, progress)

    async def clone(self, source: Upstream, member: Member, progress: Callable[[str, float | None], None]) -> None:
        """Replace the data directory with a copy of ``source`` that has the incarnation of ``member``.

        Cancelled or failed, it leaves no new directory; a former one stays as it was until the new one is complete.
        Raises PostgresError, EnvironmentFault (disk full) or ConfigurationError (another cluster's).
        """
        try:
            await rejoin.clone(self._instance, source, member, progress)
        finally:
            await self._instance.look_at_directory()

    async def close(self) -> None:
        """Release what the agent holds; the server goes on running."""
        await self._instance.close()

    async def _look(self, deadline_ms: int) -> ServerView:
        instance = self._instance
        look = await take_look(instance.session("look"), deadline_ms)
        instance.accepted = True
        if look.standby:
            if look.walreceivers:
                instance.hearing.somebody()
            else:
                instance.hearing.nobody(asyncio.get_running_loop().time(), look.end)
            instance.end_known = instance.end_known or look.shows_end
            if not instance.end_known:
                return ServerView(ServerStatus.STARTING, replay_lsn=look.replayed)
        await instance.prune_logs_sometimes()
        position, history = await position_of(look, instance)
        return view_of(look, position, history)


def _ahead_ms() -> int:
    """How far CLOCK_BOOTTIME is ahead of the running loop's clock; nothing, on an agent's own loop."""
    return time.clock_gettime_ns(time.CLOCK_BOOTTIME) // 1_000_000 - int(asyncio.get_running_loop().time() * 1000)
