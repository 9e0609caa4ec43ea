"""A model of one PostgreSQL server: what of it the protocol rests on, and the ways in which it surprises.

The log is a list of records that are flushed a moment after they are written. Commits wait for standbys as the manual
says ("Synchronous Replication"), with what `syncrep.c` adds: each walsender judges by the names that it has read
itself, a report releases waiters also when its sender follows somebody else by now, and emptying the names releases
everybody. A crash loses what was not flushed in part or in whole; a freeze delays everything and loses nothing.
"""

from __future__ import annotations

import random
from collections.abc import Callable
from enum import Enum, auto
from typing import TYPE_CHECKING, Any

from holdfast.model.lsn import Lsn, Position, is_on_history
from holdfast.model.register import BARRIER_NAME, Member, Quorum
from holdfast.model.server import ABSENT_SERVER, Replica, ServerStatus, ServerView, Upstream
from holdfast.testing.directory import Directory, Record
from holdfast.testing.replication import Receiver, Sender

if TYPE_CHECKING:
    from holdfast.testing.checks import Checks
    from holdfast.testing.loop import SimulatedLoop
    from holdfast.testing.network import Network

Names = tuple[int, frozenset[str]]
BARRIER: Names = (1, frozenset({BARRIER_NAME}))
NOBODY: Names = (0, frozenset())
_ADDRESS_PORT = 5432
_REPLAY_POLL_MS = 5.0


def names_of(quorum: Quorum | None) -> Names:
    """What ``synchronous_standby_names`` is set to for a quorum; None is the barrier."""
    if quorum is None:
        return BARRIER
    return (quorum.k, frozenset(m.application_name for m in quorum.members)) if quorum.k else NOBODY


def spelt(names: Names) -> str:
    """The setting as text."""
    return f"ANY {names[0]} ({', '.join(sorted(names[1]))})" if names[0] else ""


class Outcome(Enum):
    """What a client learns of its commit."""

    ACKNOWLEDGED = auto()
    UNKNOWN = auto()
    """The connection was lost, or the wait was cancelled (success with a warning)."""


class Commit:
    """A commit under way."""

    __slots__ = ("done", "index", "record", "waits")

    def __init__(self, record: Record, index: int, waits: bool, done: Callable[[Outcome], None] | None) -> None:
        self.record = record
        self.index = index
        self.waits = waits
        """Whether it waits for standbys (``synchronous_commit = on``)."""
        self.done = done


class Postgres:
    """The server of one host: a directory, and a process that comes and goes."""

    def __init__(self, host: str, loop: SimulatedLoop, network: Network, rng: random.Random, checks: Checks) -> None:
        self.host = host
        self.address = f"{host}:{_ADDRESS_PORT}"
        self.loop = loop
        self.network = network
        self.random = rng
        self.checks = checks
        self.directory: Directory | None = None
        self.status = ServerStatus.STOPPED
        """STOPPED, STARTING, STANDBY or PRIMARY; what a freeze or a missing directory makes of it, `view` says."""
        self.stopping = False
        self.frozen = False
        self.life = 0
        self.slowness = 1.0
        """How many times slower than usual its disk and its replay are."""
        self.names = BARRIER
        self.real_names: Names | None = None
        """For variants that break a rule: what is in force while `names` is what is shown."""
        self.waits_in_force = True
        """What the checkpointer has told backends: whether there are any names to wait for."""
        self.senders: list[Sender] = []
        self.commits: list[Commit] = []
        self.waiting: list[Commit] = []
        self.released = Lsn(0)
        self.forks = 0
        """How many walsenders there have been; the number stands for a process id."""
        self.upstream: Upstream | None = None
        self.streams_as = ""
        self.receiver: Receiver | None = None
        self.replay_paused = False
        self.replay_ms = 0.0
        """How long one record takes to be replayed; 0: no time at all."""
        self.promoting = False
        self.heard_s = 0.0
        """When the walreceiver's last message came, or this life began."""
        self.guarded: tuple[int, str] | None = None
        """Until when the guard lets the process live (ms), and whose lease that is."""
        self.listeners: list[Callable[[], None]] = []
        """Called when the process ends."""
        self.servers: dict[str, Postgres] = {}
        """All servers by host; the same mapping for everybody."""
        self._backlog: list[tuple[Callable[..., object], tuple[Any, ...]]] = []
        self._flush_due = False
        self._replayed: int | None = None
        """How many records have been replayed; None: all that have been flushed."""
        self._replay_due = False
        self._own_log = 0
        """How many records a standby has to replay before it asks for more."""

    # ---- the process ------------------------------------------------------------------------------------------

    @property
    def running(self) -> bool:
        """Whether there is a postmaster."""
        return self.status is not ServerStatus.STOPPED

    def soon(self, delay_ms: float, callback: Callable[..., object], *args: object) -> None:
        """Do something in this life of the process; a freeze delays it, the end of the process prevents it."""
        self.loop.after(delay_ms, self._run, self.life, callback, args)

    def _run(self, life: int, callback: Callable[..., object], args: tuple[Any, ...]) -> None:
        if life != self.life:
            return
        if self.frozen:
            self._backlog.append((callback, args))
        else:
            callback(*args)

    def begin(self, *, standby: bool) -> None:
        """The postmaster starts: closed by the barrier, following nobody."""
        directory = self.directory
        assert directory is not None
        self.life += 1
        self.guarded = None
        self.heard_s = self.loop.time()
        self.status = ServerStatus.STARTING
        self.frozen = self.stopping = self.promoting = self.replay_paused = False
        self.names, self.waits_in_force = BARRIER, True
        self.released = Lsn(0)
        self.real_names = None
        self.upstream = self.receiver = None
        self._flush_due = self._replay_due = False
        self.soon(self.random.uniform(10, 60) * self.slowness, self._recovered, standby)

    def _recovered(self, standby: bool) -> None:
        directory = self.directory
        assert directory is not None
        directory.flushed = self._own_log = len(directory.log)
        if standby:
            self.status = ServerStatus.STANDBY
            # What it had replayed is on its pages, and a part of that it may have to do again.
            done = min(directory.flushed, self._replayed if self._replayed is not None else directory.flushed)
            self._replayed = self.random.randint(max(1, done - 3), done) if self.replay_ms else None
            self.replay_soon()
            self._follow()
        else:
            self.status = ServerStatus.PRIMARY
            self._replayed = None
            self.insert(0)  # the end-of-recovery checkpoint

    def end(self, *, power: bool = False, clean: bool = False) -> None:
        """The process ends; without ``clean`` as by SIGKILL, with ``power`` the whole machine goes down."""
        if not self.running:
            return
        directory = self.directory
        if directory is not None and not clean:
            written = len(directory.log)
            if directory.flushed < written:
                kept = directory.flushed if power else self.random.randint(directory.flushed, written)
                self.checks.never_written(directory.log[kept:])
                directory.truncate(kept)
            if not power:
                directory.flushed = len(directory.log)
        self.life += 1
        self.status = ServerStatus.STOPPED
        self.frozen = self.stopping = False
        self._backlog.clear()
        commits, self.commits, self.waiting = self.commits + self.waiting, [], []
        for commit in commits:
            if commit.done is not None and not power:
                commit.done(Outcome.UNKNOWN)
        for sender in list(self.senders):
            sender.close(silently=power)
        if self.receiver is not None:
            self.receiver.close(silently=power)
            self.receiver = None
        for listener in self.listeners:
            listener()

    def freeze(self) -> None:
        """Stop every process of the server (SIGSTOP)."""
        self.frozen = self.running

    def thaw(self) -> None:
        """Let them go on: everything that came in meanwhile is handled now."""
        if self.frozen:
            self.frozen = False
            backlog, self._backlog = self._backlog, []
            for callback, args in backlog:
                self.soon(0, callback, *args)

    def guard_until(self, deadline_ms: int, about: str) -> None:
        """A guard of its own kills this process at that time, unless it is told of a later one."""
        self.guarded = deadline_ms, about
        self.loop.after(deadline_ms - self.loop.time() * 1000, self._guard, self.life)

    def _guard(self, life: int) -> None:
        if life == self.life and self.guarded is not None and round(self.loop.time() * 1000) >= self.guarded[0]:
            self.end()

    # ---- commits ----------------------------------------------------------------------------------------------

    def insert(self, write: int, *, waits: bool = False, done: Callable[[Outcome], None] | None = None) -> Commit:
        """Write a commit record of a primary; ``done`` is called when the client would be answered."""
        directory = self.directory
        assert directory is not None
        start = directory.end()
        length = 64 + 8 * (len(directory.log) % 5)
        record = Record(start, Lsn(start + length), directory.timeline, write, self.loop.time())
        directory.append(record)
        commit = Commit(record, len(directory.log), waits, done)
        self.commits.append(commit)
        self.flush_soon()
        return commit

    def flush_soon(self) -> None:
        """What is written by then reaches the disk."""
        if not self._flush_due:
            self._flush_due = True
            self.soon(self.random.uniform(0.5, 2.0) * self.slowness, self._flush)

    def _flush(self) -> None:
        directory = self.directory
        assert directory is not None
        self._flush_due = False
        directory.flushed = count = len(directory.log)
        if self.commits:
            flushed = [c for c in self.commits if c.index <= count]
            self.commits = [c for c in self.commits if c.index > count]
            for commit in flushed:
                if commit.waits and self.waits_in_force and commit.record.end > self.released:
                    self.waiting.append(commit)
                else:
                    self._finish(commit)
        for sender in self.senders:
            sender.pump()
        if self.receiver is not None:
            self.receiver.report()
        if self.replay_ms and self.status is ServerStatus.STANDBY:
            self.replay_soon()

    def _finish(self, commit: Commit) -> None:
        if commit.waits and commit.record.write:
            self.checks.acknowledged(self, commit.record)
        if commit.done is not None:
            commit.done(Outcome.ACKNOWLEDGED)

    def shows(self, write: int) -> bool:
        """Whether a session here sees a write: its commit has ended, waiting included, and it has been replayed."""
        directory = self.directory
        count = directory.writes.get(write) if directory is not None else None
        if directory is None or count is None or count > self.replayed:
            return False
        return not any(commit.record.write == write for commit in (*self.commits, *self.waiting))

    def cancel(self, commit: Commit) -> None:
        """The client cancels: success with a warning, the row visible and nowhere else."""
        if commit in self.waiting and not self.frozen:
            self.waiting.remove(commit)
            if commit.done is not None:
                commit.done(Outcome.UNKNOWN)

    def end_sessions(self) -> None:
        """As a fast shutdown does: waits are given up, and their clients do not learn what happened."""
        self.stopping = True
        commits, self.waiting = self.waiting, []
        for commit in commits:
            if commit.done is not None:
                commit.done(Outcome.UNKNOWN)

    def release(self, by: Sender) -> None:
        """A report came in: release whom the quorum has confirmed, by the names that this walsender knows.

        PostgreSQL counts connections, also two of the same name.
        """
        k, names = by.names
        if not self.waiting or k == 0 or by.name not in names:
            return
        flushed = sorted((s.flushed for s in self.senders if s.name in names and s.flushed), reverse=True)
        if len(flushed) < k:
            return
        self.released = max(self.released, flushed[k - 1])
        waiting, self.waiting = self.waiting, []
        for commit in waiting:
            if commit.record.end <= self.released:
                self._finish(commit)
            else:
                self.waiting.append(commit)

    def reload(self, names: Names) -> None:
        """New names: the checkpointer and every walsender take them when they get round to it."""
        self.names = names
        if self.real_names is not None and names == BARRIER:
            return
        self.real_names = None
        self.soon(self.random.uniform(0, 8), self._reloaded, names[0] > 0)
        for sender in self.senders:
            self.soon(self.random.uniform(0, 8), sender.take_names, names)

    def _reloaded(self, waits: bool) -> None:
        self.waits_in_force = waits
        if not waits:
            waiting, self.waiting = self.waiting, []
            for commit in waiting:
                self._finish(commit)

    # ---- following and leading --------------------------------------------------------------------------------

    def follow(self, upstream: Upstream | None, name: str) -> None:
        """New ``primary_conninfo``; the startup process sees to the walreceiver once it has replayed what there is."""
        self.upstream, self.streams_as = upstream, name
        self.soon(self.random.uniform(1, 6), self._follow)

    def _follow(self) -> None:
        if self.status is not ServerStatus.STANDBY or self.is_replaying or self.promoting:
            return
        wanted = (self.upstream.node if self.upstream else None, self.streams_as)
        if self.receiver is not None and (self.receiver.upstream.host, self.receiver.name) == wanted:
            return
        self.end_receiver()
        if self.upstream is not None:
            self.receiver = Receiver(self, self.servers[self.upstream.node], self.streams_as)
            self.receiver.connect()

    def end_receiver(self) -> None:
        """The walreceiver gets SIGTERM."""
        if self.receiver is not None:
            self.receiver.close()
            self.receiver = None

    # ---- replay -----------------------------------------------------------------------------------------------

    @property
    def replayed(self) -> int:
        """How many records of the log sessions see: on a standby, those that are replayed."""
        directory = self.directory
        assert directory is not None
        if self._replayed is not None:
            return self._replayed
        return directory.flushed if self.status is ServerStatus.STANDBY else len(directory.log)

    @property
    def knows_its_end(self) -> bool:
        """Whether the startup process has come to the end of what was there when it began: only then it asks for more.

        Before that, nobody can ask a running server where its log ends.
        """
        return self._replayed is None or self._replayed >= self._own_log

    @property
    def is_replaying(self) -> bool:
        """Whether the startup process has log left to replay: before that, it starts and ends no walreceiver."""
        if self._replayed is None:
            return False
        return self.replay_paused or (self.directory is not None and self._replayed < self.directory.flushed)

    def slow_replay(self, replay_ms: float) -> None:
        """Each record takes so long to be replayed from now on; 0: what is left is replayed at once."""
        self.replay_ms = replay_ms
        if self.status is ServerStatus.STANDBY and self.directory is not None:
            self._replayed = self.replayed
            self._replay_due = False
            self.replay_soon()

    def pause_replay(self) -> None:
        """Somebody pauses replay on a standby."""
        if self.status is ServerStatus.STANDBY and self.directory is not None and not self.replay_paused:
            self.replay_paused = True
            self._replayed = self.replayed

    def resume_replay(self) -> None:
        """Replay goes on, and with it what waited for the startup process."""
        if self.replay_paused:
            self.replay_paused = False
            self.replay_soon()
            self.soon(0, self._follow)

    def replay_soon(self) -> None:
        """The next record is replayed when its time has come, unless replay is paused."""
        behind = self._replayed is not None and not self.replay_paused
        if behind and not self._replay_due:
            self._replay_due = True
            self.soon(self.replay_ms * self.slowness, self._replay)

    def _replay(self) -> None:
        self._replay_due = False
        directory = self.directory
        if self._replayed is None or directory is None or self.replay_paused:
            return
        if self.replay_ms:
            self._replayed = min(self._replayed + 1, directory.flushed)
            if self._replayed < directory.flushed:
                self.replay_soon()
        else:
            self._replayed = None
        self._follow()

    # ---- promotion --------------------------------------------------------------------------------------------

    def promote(self, timeline: int) -> None:
        """Leave recovery on a new timeline."""
        if not self.promoting:
            self.promoting = True
            self.replay_paused = False
            self.replay_soon()
            self.soon(self.random.uniform(20, 150) * self.slowness, self._promoted, timeline)

    def _promoted(self, timeline: int) -> None:
        directory = self.directory
        assert directory is not None
        if self.replayed < directory.flushed:
            self.soon(_REPLAY_POLL_MS, self._promoted, timeline)
            return
        self.end_receiver()
        self.promoting, self._replayed = False, None
        start = directory.end()
        first = Record(start, Lsn(start + 48), timeline, 0, self.loop.time())
        self.checks.promoted(self, timeline, first)
        directory.append(first)
        directory.flushed = len(directory.log)  # the record of the new timeline is on the disk before recovery ends
        self.status = ServerStatus.PRIMARY
        if self.real_names is not None:
            self.waits_in_force = self.real_names[0] > 0
        self.flush_soon()

    # ---- looking ----------------------------------------------------------------------------------------------

    def view(self) -> ServerView:
        """What the agent's look says."""
        directory = self.directory
        if directory is None or not directory.complete:
            return ABSENT_SERVER
        status = self.status
        if status is ServerStatus.STOPPED or status is ServerStatus.STARTING:
            return ServerView(status)
        position = directory.position()
        standby = status is ServerStatus.STANDBY
        replayed = directory.log[self.replayed - 1].end if standby else None
        if not self.knows_its_end:
            return ServerView(ServerStatus.STARTING, replay_lsn=replayed)
        if not standby:
            position = Position(directory.timeline, position.lsn)  # a primary's timeline is new before its log is
        receiver = self.receiver
        return ServerView(
            status=status,
            position=position,
            replay_lsn=replayed,
            history=directory.history_before(position.timeline),
            upstream_host=f"{self.upstream.host}:{self.upstream.port}" if standby and self.upstream else None,
            walreceiver=receiver is not None,
            streaming=receiver is not None and receiver.streams,
            synchronous_names=spelt(self.names),
            replicas=self._replicas() if self.senders else (),
        )

    def _replicas(self) -> tuple[Replica, ...]:
        found = []
        for sender in self.senders:
            member = Member.parse(sender.name)
            if member is not None:
                flushed = sender.flushed or None
                state = "streaming" if sender.caught_up else "catchup"
                found.append(Replica(member, state, flushed, sender.name in sender.names[1]))
        return tuple(found)

    def lets_in(self, host: str) -> bool:
        """Whether a host's slot is there, and no connection holds it."""
        there = self.directory is not None and host in self.directory.slots
        return there and all(sender.receiver.server.host != host for sender in self.senders)

    def accepts(self, position: Position) -> bool:
        """Whether a standby whose log ends there can stream from here."""
        directory = self.directory
        if directory is None:
            return False
        own = directory.position()
        if position.timeline == own.timeline:
            return position.lsn <= own.lsn
        return is_on_history(position, own.timeline, directory.history_before(own.timeline))
