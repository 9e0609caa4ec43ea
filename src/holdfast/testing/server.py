"""A simulated PostgreSQL behind the face that agents use (`holdfast.postgres.server.Server`)."""

from __future__ import annotations

import asyncio
import math
from collections.abc import Callable, Collection, Mapping
from typing import Literal

from pydantic import JsonValue

from holdfast.model.capture import Capture, CaptureOrder
from holdfast.model.errors import PostgresError
from holdfast.model.lsn import History, Lsn, Position, is_on_history
from holdfast.model.register import Member, Quorum
from holdfast.model.server import ABSENT_SERVER, ServerStatus, ServerView, Upstream, WalSender
from holdfast.model.timeouts import Timeouts
from holdfast.model.vitals import Room, Survey
from holdfast.testing.directory import Directory, Record
from holdfast.testing.postgres import BARRIER, Outcome, Postgres, names_of

POLL_MS = 20.0
_COPY_MS = (150.0, 800.0)
_REWIND_MS = (80.0, 300.0)


class SimulatedServer:
    """What one agent holds of its server: the calls that take time, and the errors that they raise."""

    def __init__(self, postgres: Postgres, timeouts: Timeouts) -> None:
        self.postgres = postgres
        self._timeouts = timeouts
        self._exited = asyncio.Event()
        if not postgres.running:
            self._exited.set()
        self._heard_ms: int | None = None
        self._promoting_in: int | None = None
        """In which life of the process this agent told it to promote."""
        postgres.listeners[:] = [self._exited.set]

    @property
    def exited(self) -> asyncio.Event:
        """See `Server.exited`."""
        return self._exited

    # ---- the data directory -----------------------------------------------------------------------------------

    def incarnation(self) -> str | None:
        """See `Server.incarnation`."""
        directory = self.postgres.directory
        return directory.incarnation if directory is not None else None

    async def set_incarnation(self, incarnation: str) -> None:
        """See `Server.set_incarnation`."""
        if self.postgres.directory is not None:
            self.postgres.directory.incarnation = incarnation

    def system_identifier(self) -> str | None:
        """See `Server.system_identifier`."""
        directory = self.postgres.directory
        return directory.identifier if directory is not None and directory.complete else None

    async def initialize(self) -> None:
        """See `Server.initialize`."""
        await self._pause(200, 400)
        self.postgres.directory = first_directory(f"system-{self.postgres.host}")

    # ---- the process ------------------------------------------------------------------------------------------

    async def start(self, *, standby: bool) -> None:
        """See `Server.start`."""
        postgres = self.postgres
        await self._pause(5, 30)
        if postgres.running:
            raise PostgresError("the server runs already")
        if postgres.directory is None or not postgres.directory.complete:
            raise PostgresError("there is no complete data directory")
        self._exited.clear()
        postgres.begin(standby=standby)
        await self._pause(1, 10)

    async def adopt(self) -> bool:
        """See `Server.adopt`."""
        if self.postgres.running:
            self._exited.clear()
        return self.postgres.running

    async def stop(self, mode: Literal["fast", "immediate"], deadline_ms: int) -> None:
        """See `Server.stop`."""
        postgres = self.postgres
        if mode == "fast" and postgres.running:
            give_up_s = postgres.loop.time() + deadline_ms / 1000
            await self._stop_fast(give_up_s)
        await self.kill()

    async def _stop_fast(self, give_up_s: float) -> None:
        """Sessions end, a last checkpoint is written, and every walsender gets its log across."""
        postgres, life = self.postgres, self.postgres.life
        postgres.end_sessions()
        if postgres.status is ServerStatus.PRIMARY and not postgres.frozen:
            postgres.insert(0)
        while postgres.life == life and postgres.loop.time() < give_up_s:
            directory = postgres.directory
            done = directory is not None and directory.flushed == len(directory.log)
            if done and directory is not None and not postgres.frozen:
                ends = directory.position().lsn
                if all(s.flushed >= ends for s in postgres.senders if s.caught_up):
                    postgres.end(clean=True)
                    return
            await self._pause(POLL_MS, POLL_MS)

    async def kill(self) -> None:
        """See `Server.kill`."""
        if self.postgres.running:
            await self._pause(1, 10)
            self.postgres.end()

    async def close(self) -> None:
        """See `Server.close`."""

    # ---- the guard, a process of its own ----------------------------------------------------------------------

    async def hold_until(self, deadline_ms: int, about: str) -> None:
        """See `Server.hold_until`."""
        await self._pause(0.5, 3)
        if not self.postgres.running:
            raise PostgresError("there is no server to guard")
        self.postgres.guard_until(deadline_ms, about)

    async def held_until(self) -> tuple[int, str] | None:
        """See `Server.held_until`."""
        return self.postgres.guarded if self.postgres.running else None

    async def release(self) -> None:
        """See `Server.release`."""
        self.postgres.guarded = None

    # ---- looking ----------------------------------------------------------------------------------------------

    async def view(self) -> ServerView:
        """See `Server.view`."""
        postgres = self.postgres
        if not postgres.frozen:
            if postgres.running and postgres.random.random() < 0.25:
                await self._pause(0.5, 4)
            if not postgres.frozen:
                return postgres.view()
        life = postgres.life
        if await self._thawed(1000.0):
            return postgres.view()
        if postgres.life != life or not postgres.running:
            return postgres.view()
        if postgres.directory is None:
            return ABSENT_SERVER
        starting = postgres.status is ServerStatus.STARTING
        return ServerView(ServerStatus.STARTING if starting else ServerStatus.UNRESPONSIVE)

    async def end_of_log(self) -> Position:
        """See `Server.end_of_log`."""
        await self._pause(10, 60)
        postgres, directory = self.postgres, self.postgres.directory
        if postgres.running or directory is None or not directory.complete:
            raise PostgresError("the end of the log cannot be told")
        directory.flushed = len(directory.log)
        return directory.position()

    async def flushed_lsn(self) -> Lsn:
        """See `Server.flushed_lsn`."""
        directory = await self._statement()
        self._require(ServerStatus.PRIMARY)
        return directory.position().lsn

    async def active_transactions(self) -> int:
        """See `Server.active_transactions`."""
        await self._statement()
        return len(self.postgres.waiting) + len(self.postgres.commits)

    async def history_of(self, timeline: int) -> History:
        """See `Server.history_of`."""
        directory = self.postgres.directory
        if directory is None:
            raise PostgresError("there is no data directory")
        return directory.history_before(timeline)

    # ---- leading and following --------------------------------------------------------------------------------

    async def detach(self) -> Position:
        """See `Server.detach`."""
        postgres = self.postgres
        await self._statement()
        self._require(ServerStatus.STANDBY)
        if self._promoting_in == postgres.life:
            await self.kill()
            raise PostgresError("a standby that was told to promote cannot be told otherwise: it was stopped")
        postgres.follow(None, "")
        await self._statement()
        postgres.resume_replay()
        began_s = postgres.loop.time()
        while postgres.receiver is not None:
            waited_ms = (postgres.loop.time() - began_s) * 1000
            if waited_ms > self._timeouts.walreceiver_exit_ms + self._timeouts.statement_ms:
                raise PostgresError("a walreceiver goes on after SIGTERM: not detached")
            if waited_ms > self._timeouts.walreceiver_exit_ms and not postgres.frozen:
                postgres.end_receiver()
            await self._statement()
            self._require(ServerStatus.STANDBY)
        directory = await self._end_known(began_s)
        if postgres.receiver is not None:
            raise PostgresError("a walreceiver came back while the standby was being detached")
        directory.flushed = len(directory.log)
        self._heard_ms = int(postgres.heard_s * 1000)
        return directory.position()

    async def _end_known(self, began_s: float) -> Directory:
        """Until the startup process has come to the end of its own log."""
        postgres = self.postgres
        while True:
            directory = await self._statement()
            self._require(ServerStatus.STANDBY)
            if postgres.knows_its_end:
                return directory
            if (postgres.loop.time() - began_s) * 1000 > self._timeouts.recruit_phase_ms:
                raise PostgresError("the standby still replays its own log, so that its end is not known yet")

    @property
    def heard_ms(self) -> int | None:
        """See `Server.heard_ms`."""
        return self._heard_ms

    async def follow(self, upstream: Upstream, member: Member) -> None:
        """See `Server.follow`."""
        await self._statement()
        self._require(ServerStatus.STANDBY)
        self.postgres.follow(upstream, member.application_name)
        await self._statement()

    async def promote(self, epoch: int) -> None:
        """See `Server.promote`."""
        directory = await self._statement()
        postgres = self.postgres
        if postgres.status is ServerStatus.PRIMARY and directory.timeline == epoch:
            return
        self._require(ServerStatus.STANDBY)
        if directory.timeline >= epoch:
            raise PostgresError(f"cannot promote to epoch {epoch}: timeline {directory.timeline} exists already")
        if postgres.names != BARRIER:
            raise PostgresError("cannot promote: synchronous_standby_names is not the barrier")
        self._promoting_in = postgres.life
        postgres.promote(epoch)

    async def set_quorum(self, quorum: Quorum | None) -> None:
        """See `Server.set_quorum`."""
        await self._statement()
        self.postgres.reload(names_of(quorum))
        await self._pause(2, 12)
        await self._statement()

    async def write_epoch_record(self, epoch: int) -> Lsn:
        """See `Server.write_epoch_record`."""
        return await self._commit_locally()

    async def heartbeat(self, epoch: int, deadline_ms: int | None = None) -> None:
        """See `Server.heartbeat`."""
        await self._commit_locally(patient=deadline_ms is None)

    async def confirm(self, epoch: int) -> None:
        """See `Server.confirm`."""
        await self._statement(patient=True)
        self._require(ServerStatus.PRIMARY)
        answer: asyncio.Future[Outcome] = self.postgres.loop.create_future()

        def done(outcome: Outcome) -> None:
            if not answer.done():
                answer.set_result(outcome)

        self.postgres.insert(0, waits=True, done=done)
        if await answer is not Outcome.ACKNOWLEDGED:
            raise PostgresError("the connection was lost")

    async def survey(self) -> Survey:
        """See `Server.survey`."""
        await self._statement()
        postgres = self.postgres
        standby = postgres.status is ServerStatus.STANDBY
        age_ms = int((postgres.loop.time() - postgres.heard_s) * 1000) if standby and postgres.receiver else None
        row = str(postgres.replayed)
        return Survey(4, 1, 100, 0, upstream_age_ms=age_ms, heartbeats=(row, row))

    def disk_writes(self) -> int | None:
        """See `Server.disk_writes`: nothing is known of the device."""
        return None

    async def touch_storage(self) -> None:
        """See `Server.touch_storage`."""

    async def room(self) -> Room:
        """See `Server.room`."""
        return Room()

    async def _commit_locally(self, *, patient: bool = False) -> Lsn:
        await self._statement(patient=patient)
        self._require(ServerStatus.PRIMARY)
        record = self.postgres.insert(0).record
        await self._pause(2, 4)
        while (directory := await self._statement(patient=patient)).position().lsn < record.end:
            continue
        return directory.position().lsn

    async def checkpoint(self) -> None:
        """See `Server.checkpoint`."""
        await self._statement()
        await self._pause(20, 100)

    async def ensure_slots(self, nodes: Collection[str]) -> None:
        """See `Server.ensure_slots`."""
        directory = await self._statement()
        directory.slots = {node for node in nodes if node != self.postgres.host}

    async def advance_slots(self, flushed: Mapping[str, Lsn]) -> None:
        """See `Server.advance_slots`."""

    async def walsenders(self) -> dict[str, WalSender]:
        """See `Server.walsenders`."""
        await self._statement()
        return {s.receiver.server.host: WalSender(s.pid, str(s.replies)) for s in self.postgres.senders}

    async def end_walsender(self, node: str, sender: WalSender) -> None:
        """See `Server.end_walsender`."""
        await self._statement()
        for held in list(self.postgres.senders):
            if held.pid == sender.pid:
                held.close()

    # ---- evidence ---------------------------------------------------------------------------------------------

    async def note_moment(self, why: str) -> Mapping[str, JsonValue]:
        """See `Server.note_moment`: there is nothing to be seen."""
        return {}

    async def has_failed(self) -> bool:
        """See `Server.has_failed`: nothing is captured here before a start."""
        return False

    async def capture(self, order: CaptureOrder, progress: Callable[[str, float | None], None]) -> Capture | None:
        """See `Server.capture`: there are no files here that anybody would look at."""
        return None

    # ---- rejoin -----------------------------------------------------------------------------------------------

    async def rewind(self, source: Upstream, own_end: Position, progress: Callable[[str, float | None], None]) -> None:
        """See `Server.rewind`."""
        postgres, directory = self.postgres, self.postgres.directory
        if postgres.running or directory is None or not directory.complete:
            raise PostgresError("only a complete and stopped directory can be rewound")
        found = await self._primary(source)
        theirs = found.position()
        if own_end.timeline == theirs.timeline and own_end.lsn > theirs.lsn:
            raise PostgresError("the log ends beyond the source's: a clone is needed")
        if is_on_history(own_end, theirs.timeline, found.history_before(theirs.timeline)):
            return
        postgres.checks.gives_up(postgres.host, directory)
        directory.complete = False
        await self._pause(*_REWIND_MS)
        found = await self._primary(source)
        directory.truncate(directory.shared_with(found))
        for record in found.log[len(directory.log) : found.flushed]:
            directory.append(record)
        directory.flushed = len(directory.log)
        directory.slots = set()
        directory.incarnation = None
        directory.complete = True

    async def clone(self, source: Upstream, member: Member, progress: Callable[[str, float | None], None]) -> None:
        """See `Server.clone`."""
        if self.postgres.running:
            raise PostgresError("the server runs: stop it before it is cloned")
        found = await self._primary(source)
        await self._copy(found, source, member)
        found = await self._primary(source, same=found)
        self.postgres.checks.gives_up(self.postgres.host, self.postgres.directory)
        self.postgres.directory = Directory(found.identifier, found.log[: found.flushed], member.incarnation)

    async def _copy(self, found: Directory, source: Upstream, member: Member) -> None:
        """While the files travel, the log is streamed too, under a name that is nobody's."""
        await self._pause(*_COPY_MS)

    async def _primary(self, source: Upstream, same: Directory | None = None) -> Directory:
        """The directory of the running primary to copy from; raises PostgresError if it cannot be reached."""
        postgres = self.postgres
        upstream = postgres.servers[source.node]
        await self._pause(1, 5)
        directory = upstream.directory
        reachable = not postgres.network.is_apart(postgres.host, upstream.host) and not upstream.frozen
        if directory is None or not reachable or upstream.status is not ServerStatus.PRIMARY:
            raise PostgresError(f"{source.node} cannot be asked")
        if same is not None and directory is not same:
            raise PostgresError(f"{source.node} is another directory now")
        return directory

    # ---- statements -------------------------------------------------------------------------------------------

    async def _pause(self, least_ms: float, most_ms: float) -> None:
        postgres = self.postgres
        await asyncio.sleep(postgres.random.uniform(least_ms, most_ms) * postgres.slowness / 1000)

    async def _thawed(self, deadline_ms: float) -> bool:
        """Wait for a frozen server to go on."""
        postgres, life = self.postgres, self.postgres.life
        give_up_s = postgres.loop.time() + deadline_ms / 1000
        while postgres.frozen and postgres.life == life:
            if postgres.loop.time() >= give_up_s:
                return False
            await asyncio.sleep(POLL_MS * 5 / 1000)
        return postgres.life == life

    async def _statement(self, *, patient: bool = False) -> Directory:
        """One statement on a held session: its time, and every way in which it fails; ``patient`` has no deadline."""
        postgres, life = self.postgres, self.postgres.life
        if not postgres.running or postgres.status is ServerStatus.STARTING:
            raise PostgresError("the server does not accept sessions")
        await self._pause(0.5, 3)
        deadline_ms = math.inf if patient else self._timeouts.statement_ms
        if postgres.frozen and not await self._thawed(deadline_ms):
            raise PostgresError("the server does not answer in time")
        if postgres.life != life or postgres.directory is None:
            raise PostgresError("the connection was lost")
        return postgres.directory

    def _require(self, status: ServerStatus) -> None:
        if self.postgres.status is not status:
            raise PostgresError(f"the server is {self.postgres.status.value}, not {status.value}")


def first_directory(identifier: str, incarnation: str | None = None) -> Directory:
    """What initdb makes."""
    return Directory(identifier, [Record(Lsn(0), Lsn(0x1000000), 1, 0, 0.0)], incarnation)
