"""Everything a decision may look at, as one value. ``now_ms`` is monotonic; nothing here is a call."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from enum import StrEnum

from holdfast.model.lease import LeaseRecord
from holdfast.model.lsn import History, Lsn, Position, TimelineSwitch, is_on_history
from holdfast.model.policy import DEFAULT_POLICY, Policy
from holdfast.model.register import Member, Phase, Recruit, Register, RegisterAge
from holdfast.model.report import NodeReport, Verdict
from holdfast.model.server import ServerView
from holdfast.model.timeouts import Timeouts


class RegisterTrouble(StrEnum):
    """Why the register cannot be obeyed."""

    MISSING = "there is no register although this node has promised an epoch"
    FOREIGN = "the register belongs to another cluster"
    OTHER_SYSTEM = "the register names another system identifier than this data directory has"
    OLDER_THAN_PROMISE = "the register is older than this node's promise"
    OLDER_THAN_SEEN = "the register is older than the one that this node has seen before"
    UNREADABLE = "the register cannot be read"
    STRANGER_DIRECTORY = "there is a data directory, but neither a promise nor a register"

    @property
    def explained(self) -> str:
        """What is wrong, and what a person can do about it."""
        return f"{self.value}: {_REMEDIES[self]}"


_OLD_STORE = (
    "the store was restored from a backup, or store.endpoints names an old one: correct the setting, or run "
    "`holdfast recover`"
)
_REMEDIES = {
    RegisterTrouble.MISSING: "if store.endpoints and cluster.name name another store or cluster, correct them; if the "
    "store has lost its data, run `holdfast recover`",
    RegisterTrouble.FOREIGN: "correct store.endpoints or cluster.name; a node that is to change to that cluster must "
    "begin with an empty node.state_dir and without postgres.data_dir",
    RegisterTrouble.OTHER_SYSTEM: "correct postgres.data_dir, store.endpoints or cluster.name; if nobody needs the "
    "data, move postgres.data_dir away, and the node clones",
    RegisterTrouble.OLDER_THAN_PROMISE: _OLD_STORE,
    RegisterTrouble.OLDER_THAN_SEEN: _OLD_STORE,
    RegisterTrouble.UNREADABLE: "run the same version of Holdfast everywhere; if it is damaged, run `holdfast recover`",
    RegisterTrouble.STRANGER_DIRECTORY: "correct store.endpoints, cluster.name, node.state_dir or postgres.data_dir; "
    "to begin a new cluster, move postgres.data_dir away",
}


@dataclass(frozen=True, slots=True)
class Peer:
    """What is known of a peer: when it last answered, was last found closed, and what it said."""

    report: NodeReport | None = None
    answered_ms: int | None = None
    refused_ms: int | None = None
    asked_ms: int | None = None
    primary_ms: int | None = None
    """When it last said that its PostgreSQL runs as a primary."""


@dataclass(frozen=True, slots=True)
class Observation:
    """One look at the world by one node's agent."""

    now_ms: int
    node: str
    timeouts: Timeouts
    member: Member | None
    promised: int
    cluster_id: str | None
    server: ServerView
    remembered: RegisterAge = (0, 0)
    """The newest register that is written down here."""
    rebuilding: bool = False
    own_end: Position | None = None
    """End of log of a stopped directory, once it was read."""
    stopped_ms: int | None = None
    """Since when the own PostgreSQL is known to be stopped."""
    seen_alive: bool = False
    """Whether this agent has seen the own PostgreSQL run."""
    silent_since_ms: int | None = None
    """Since when the own PostgreSQL has not answered."""
    lead_address: str | None = None
    """``host:port`` of the one that the register wants followed."""
    condemned: bool = False
    """Whether the directory was rewound, or started once more, and yet does not stream: only a clone helps."""
    stuck: bool = False
    """Whether it follows the right one and yet has not streamed for its time: a new start may help."""
    marker: Lsn | None = None
    """End of the marker that this leadership wrote after the server's start; None until it is written."""
    settled_lsn: Lsn | None = None
    """A position of the own log taken after the quorum last told to PostgreSQL took effect."""
    create: bool = False
    """Whether a person asked to create the cluster on this node."""
    register: Register | None = None
    register_revision: int = 0
    """The revision of ``register``: a swap that a decision asks for must be of exactly this one."""
    trouble: RegisterTrouble | None = None
    recruits: tuple[Recruit, ...] = ()
    phase_since_ms: int = 0
    progress_ms: int = 0
    """When the current phase last advanced: its start, a recruit, replay or the barrier moving."""
    enough_since_ms: int | None = None
    """Since when the recruits of this epoch suffice."""
    last_failover_ms: int | None = None
    suspected_since_ms: int | None = None
    """Since when, in this phase, enough voters suspect the one that leads."""
    peers: Mapping[str, Peer] = field(default_factory=dict)
    verdict: Verdict | None = None
    last_streamed_ms: Mapping[Member, int] = field(default_factory=dict)
    """For a leader: when each member was last seen streaming."""
    obeying: Mapping[str, int] = field(default_factory=dict)
    """The newest epoch that each living proxy has obeyed."""
    policy: Policy = DEFAULT_POLICY
    approved_epoch: int | None = None
    """The epoch whose end a person has approved."""
    lease: LeaseRecord | None = None
    lease_renewed_ms: int | None = None
    """When this agent saw the lease's last renewal; one that it may have missed counts from when it looked again."""
    leased_until_ms: int | None = None
    """For a leader: until when it may acknowledge alone, the time to kill it taken off; None without a lease."""
    pledged_until_ms: int | None = None
    """Until when this node has promised a leader cut off from the store to join no epoch."""

    @property
    def led_by(self) -> Member | None:
        """Whom the register wants followed: the candidate while promoting, the leader while serving."""
        if self.register is None:
            return None
        return self.register.candidate if self.register.phase is Phase.PROMOTING else self.register.leader

    @property
    def flushed(self) -> Mapping[Member, Lsn]:
        """For a primary: what its members have flushed."""
        return {r.member: r.flush_lsn for r in self.server.replicas if r.flush_lsn is not None}

    def recruit(self, member: Member | None) -> Recruit | None:
        """The record with which a member joined the current epoch."""
        return next((r for r in self.recruits if r.member == member), None)

    def has_log_of_epoch(self, member: Member) -> bool:
        """Whether a node's agent says that its log has come to the timeline of this epoch, and so is the leader's log.

        That it streams does not show it: PostgreSQL lets one in whose log goes beyond the fork within a segment, and
        takes its word that it has flushed what the leader writes there. Such a one never gets to the new timeline.
        """
        peer = self.peers.get(member.node)
        report = peer.report if peer is not None else None
        if report is None or report.member != member or report.position is None or self.register is None:
            return False
        return report.position.timeline == self.register.epoch

    def leading_log(self) -> tuple[int, History] | None:
        """Timeline and history of the log to follow, as far as known.

        A serving leader tells its own history. Of a candidate the record with which it joined tells enough, also
        before it is promoted: its new timeline branches off where its log ended.
        """
        led_by = self.led_by
        if led_by is None or self.register is None:
            return None
        peer = self.peers.get(led_by.node)
        report = peer.report if peer is not None else None
        if (
            report is not None
            and report.member == led_by
            and report.position is not None
            and report.position.timeline == self.register.epoch
        ):
            return report.position.timeline, report.history
        joined = self.recruit(led_by)
        if joined is not None and joined.epoch == self.register.epoch:
            branch = TimelineSwitch(joined.position.timeline, joined.position.lsn)
            return self.register.epoch, (*joined.history, branch)
        return None

    def own_log_end(self) -> Position | None:
        """Where the own complete records end: replayed by a standby, read from the files of a stopped directory."""
        if self.own_end is not None:
            return self.own_end
        position, replayed = self.server.position, self.server.replay_lsn
        if position is None:
            return None
        return Position(position.timeline, replayed) if replayed is not None else position

    def fits(self) -> bool | None:
        """Whether the own log is a prefix of the one to follow; None while that cannot be told."""
        end, leading = self.own_log_end(), self.leading_log()
        if end is None or leading is None:
            return None
        return is_on_history(end, *leading)
