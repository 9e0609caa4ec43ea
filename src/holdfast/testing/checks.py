"""What must hold at every step, whatever fails; the first breach ends a run."""

from __future__ import annotations

from collections import deque
from collections.abc import Callable, Iterable, Mapping
from typing import TYPE_CHECKING

from holdfast.core.quorum import recruits_suffice
from holdfast.model.register import Member, Phase, Register
from holdfast.testing.directory import Directory, Record

if TYPE_CHECKING:
    from holdfast.testing.loop import SimulatedLoop
    from holdfast.testing.postgres import Postgres

LOST = "acknowledged-write-lost"
UNSAFE = "acknowledged-write-not-on-its-quorum"
EXCLUSIVE = "two-configurations-acknowledge"
EARLY = "acknowledges-before-its-epoch-serves"
PROMISED = "streams-below-its-promise"
KEPT = "gives-up-what-is-needed"
FORWARD = "goes-backward"
DIVERGED = "logs-diverged"
STALE_READ = "stale-read"
HASTY = "epoch-opened-in-vain"
LIVENESS = "does-not-serve"
SILENT = "does-not-say-why"
SPINS = "goes-round-in-circles"
BUG = "agent-died-of-a-bug"

PROPERTIES = {
    LOST: "whoever is chosen, and whoever serves, has every acknowledged write",
    UNSAFE: "every acknowledged write is on k of the members that the register names",
    EXCLUSIVE: "no configuration acknowledges a write that was begun after a later one serves",
    EARLY: "nothing is acknowledged in an epoch that has not been committed",
    PROMISED: "a node that joined an epoch never streams from the leader of a lower one",
    KEPT: "no node gives up a log without which nobody could be recruited",
    FORWARD: "epochs, timelines, promises and the register only move forward",
    DIVERGED: "a standby's log is a prefix of the log that it streams",
    STALE_READ: "a read through a proxy sees what was acknowledged before it began",
    HASTY: "an epoch is opened only if it could have been recruited a moment ago",
    LIVENESS: "once faults end, the cluster serves and everybody is back within a bound, if what is left suffices",
    SILENT: "a cluster that cannot go on says why: who is missing for it, no more and no less, and what to do",
    SPINS: "time passes",
    BUG: "no agent ends of a bug",
}
"""Every property that is checked, by the name that a violation has."""

_MEMORY_S = 4.0
"""How old the answers may be that an epoch is opened upon."""

_ON_ITS_WAY_S = 8.0
"""How long what opens an epoch may be on its way to the store: longer than a cut keeps it back."""


class Violation(Exception):
    """A property does not hold; the first word names it."""

    def __init__(self, kind: str, words: str) -> None:
        super().__init__(f"{kind}: {words}")
        self.kind = kind
        self.words = words


class Checks:
    """Sees every acknowledgement, every register, every promise and every record that is streamed."""

    def __init__(self, loop: SimulatedLoop) -> None:
        self._loop = loop
        self.servers: Mapping[str, Postgres] = {}
        self.acknowledged_writes: list[Record] = []
        self.newest_begun_s = -1.0
        """When the write that was acknowledged last was begun."""
        self.acknowledged_alone = 0
        """Writes acknowledged while policy let commits be local: a failover may lose the last of them."""
        self.register: Register | None = None
        self.is_older = False
        """Whether the store was put back, and nobody has swapped the register since."""
        self._put_back_s = -1.0
        self.restored = False
        self.serving_since_s: dict[int, float] = {}
        self._newest_epoch = 0
        self._recruited: dict[str, int] = {}
        self._promised: dict[str, int] = {}
        self._timelines: dict[int, tuple[str, Record]] = {}
        self._held: dict[Member, set[int]] = {}
        self._able: deque[tuple[float, frozenset[Member]]] = deque()
        self.able_now: Callable[[], frozenset[Member]] = frozenset
        """Who could join an epoch now, in truth: what a pre-vote tries to find out."""
        self.kept_now: Callable[[], frozenset[Member]] = frozenset
        """The directories that there are, also where nothing runs now."""
        self.local_allowed: Callable[[], bool] = lambda: False
        """Whether policy lets a primary acknowledge alone."""

    # ---- servers ----------------------------------------------------------------------------------------------

    def acknowledged(self, server: Postgres, record: Record) -> None:
        """A server tells a client that its write is safe."""
        self.newest_begun_s = record.begun_s
        newest = max(self.serving_since_s, default=0)
        if newest > record.timeline and record.begun_s > self.serving_since_s[newest]:
            raise Violation(
                EXCLUSIVE,
                f"{server.host} acknowledges write {record.write}, begun in epoch {record.timeline}, while epoch "
                f"{newest} serves",
            )
        if not server.waits_in_force and self.register is not None and self.register.committed.quorum.k == 0:
            self.acknowledged_alone += 1
            return  # by policy it may be on this server only
        self.acknowledged_writes.append(record)
        if record.timeline not in self.serving_since_s:
            raise Violation(
                EARLY, f"{server.host} acknowledges write {record.write} in epoch {record.timeline}, which never served"
            )
        self._require([record], f"{server.host} acknowledges write {record.write} of epoch {record.timeline}")

    def _require(self, records: Iterable[Record], what: str) -> None:
        """Acknowledged writes are where they must be, by the register as it is now."""
        register = self.register
        if register is None or self.is_older:
            return
        leading = self.leading_directory()
        quorum = register.committed.quorum
        members = [self._writes_of(member) for member in sorted(quorum.members)]
        for record in records:
            if leading is not None and record.write not in leading.writes:
                about = register.candidate or register.committed.leader
                raise Violation(
                    LOST, f"{what}, and {about.node}, {register.phase.value} in epoch {register.epoch}, lacks {record}"
                )
            lacking = sum(record.write not in writes for writes in members)
            if lacking > len(quorum.members) - quorum.k:
                raise Violation(UNSAFE, f"{what}, and {lacking} members of {quorum} lack {record}")

    def promoted(self, server: Postgres, timeline: int, first: Record) -> None:
        """A server begins a timeline with this record."""
        former = self._timelines.get(timeline)
        if former is not None:
            raise Violation(FORWARD, f"{server.host} begins timeline {timeline}, which {former[0]} has begun before")
        self._timelines[timeline] = server.host, first

    def never_written(self, records: Iterable[Record]) -> None:
        """A server's end took these before they reached a disk: nobody was sent them, and nobody ever will be."""
        for record in records:
            begun = self._timelines.get(record.timeline)
            if begun is not None and begun[1] is record:
                del self._timelines[record.timeline]

    def connected(self, upstream: Postgres, standby: Postgres, count: int) -> None:
        """A standby, with ``count`` records, begins to stream."""
        ours, theirs = upstream.directory, standby.directory
        if ours is None or theirs is None:
            return
        if count <= len(ours.log) and ours.log[count - 1] is not theirs.log[count - 1]:
            raise Violation(DIVERGED, f"{standby.host} streams from {upstream.host} with a log that is not a prefix")

    def received(self, standby: Postgres, upstream: Postgres, records: list[Record]) -> None:
        """A standby writes what it was sent."""
        directory = standby.directory
        if directory is not None and records[0].start != directory.end():
            raise Violation(DIVERGED, f"{standby.host} is sent {records[0].start} after {directory.end()}")
        promised = self._recruited.get(standby.host, 0)
        leads = upstream.directory.timeline if upstream.directory is not None else 0
        candidate = self.register.candidate if self.register is not None else None
        if candidate is not None and candidate.node == upstream.host:
            return  # its log is the one to follow, whatever it has to do before it leads
        if (
            leads < promised
            and records[-1].timeline == leads
            and self._timelines.get(leads, (None,))[0] == upstream.host
        ):
            raise Violation(
                PROMISED,
                f"{standby.host} joined epoch {promised}, and streams from {upstream.host}, which leads {leads}",
            )

    def directory_of(self, member: Member) -> Directory | None:
        """A member's directory; None if it is gone."""
        server = self.servers.get(member.node)
        directory = server.directory if server is not None else None
        if directory is None or not directory.complete or directory.incarnation != member.incarnation:
            return None
        return directory

    def _writes_of(self, member: Member) -> set[int]:
        """What a member's directory holds, or held when it was lost."""
        directory = self.directory_of(member)
        return directory.durable() if directory is not None else self._held.get(member, set())

    def lost_directory(self, host: str, directory: Directory | None) -> None:
        """A directory goes, or is about to be made over: what it held, others may have been told."""
        if directory is not None and directory.incarnation is not None:
            self._held[Member(host, directory.incarnation)] = directory.durable()

    def gives_up(self, host: str, directory: Directory | None) -> None:
        """A node is about to make its directory over, of its own will."""
        register = self.register
        if register is not None and not self.is_older and directory is not None and directory.incarnation is not None:
            member, kept = Member(host, directory.incarnation), self.kept_now()
            if recruits_suffice(register.committed, kept) and not recruits_suffice(register.committed, kept - {member}):
                raise Violation(KEPT, f"{host} gives up {member}, and nobody can be recruited without it")
        self.lost_directory(host, directory)

    def leading_directory(self) -> Directory | None:
        """The directory of the leader or the candidate; None while nobody is, or it is gone."""
        register = self.register
        if register is None:
            return None
        about = register.candidate if register.phase is Phase.PROMOTING else register.leader
        return None if about is None else self.directory_of(about)

    # ---- agents and store -------------------------------------------------------------------------------------

    def promised(self, host: str, epoch: int) -> None:
        """An agent makes its promise durable."""
        if epoch < self._promised.get(host, 0):
            raise Violation(FORWARD, f"{host} lowers its promise from {self._promised[host]} to {epoch}")
        self._promised[host] = epoch

    def recruited(self, host: str, epoch: int) -> None:
        """A node has joined an epoch, so that others count on it."""
        self._recruited[host] = max(epoch, self._recruited.get(host, 0))

    def lost_disk(self, host: str) -> None:
        """Nothing is left of what a host promised."""
        self._promised.pop(host, None)
        self._recruited.pop(host, None)

    def sample(self) -> None:
        """Remember who could join an epoch now."""
        now_s = self._loop.time()
        self._able.append((now_s, self.able_now()))
        while self._able[0][0] < now_s - _MEMORY_S - _ON_ITS_WAY_S:
            self._able.popleft()

    def put_back(self, register: Register | None) -> None:
        """The store was restored from a backup."""
        self.restored = True
        self._put_back_s = self._loop.time()
        self.is_older = self.is_older or register != self.register

    def registered(self, new: Register, sent_s: float) -> None:
        """The register is swapped, as somebody has asked for at ``sent_s``."""
        is_behind = new.epoch < self._newest_epoch or max(self.serving_since_s, default=0) > new.committed.epoch
        if sent_s < self._put_back_s and self.is_older and is_behind:
            return  # asked for before the store was put back to where it fits again, and late: it stays older
        old, self.register = self.register, new
        self.is_older = False
        order = (Phase.RECRUITING, Phase.PROMOTING, Phase.SERVING)
        if is_behind:
            raise Violation(FORWARD, f"the register says epoch {new.epoch} after {self._newest_epoch}")
        if old is not None and new.epoch == old.epoch and order.index(new.phase) < order.index(old.phase):
            raise Violation(FORWARD, f"epoch {new.epoch} goes from {old.phase.value} back to {new.phase.value}")
        if old is not None and new.epoch > old.epoch:
            self._require_recruits(new, sent_s)
        self._newest_epoch = new.epoch
        if new.phase is Phase.SERVING:
            self.serving_since_s.setdefault(new.epoch, self._loop.time())
        self._require(self.acknowledged_writes, f"epoch {new.epoch} is {new.phase.value}")

    def _require_recruits(self, new: Register, sent_s: float) -> None:
        committed = new.committed
        self.sample()
        sampled = self._loop.time() >= _MEMORY_S / 2
        alone = self.local_allowed()
        anybody, least = alone and committed.quorum.k == 0, 1 if alone else 2  # anybody: who is near enough

        def could(able: frozenset[Member]) -> bool:
            return (anybody or recruits_suffice(committed, able)) and len(able) >= least

        known = [able for seen_s, able in self._able if seen_s >= sent_s - _MEMORY_S]
        if sampled and not any(could(able) for able in known):
            raise Violation(HASTY, f"epoch {new.epoch} is opened, and nobody could have recruited it")
