"""From one look at server, store and peers to an `Observation`; remembers since when things are as they are."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field, replace

from holdfast.core.coordination import best_choice, suspected
from holdfast.core.detection import has_room_elsewhere, judge, judge_own
from holdfast.core.evidence import Probe, Sight
from holdfast.core.observation import Observation, Peer, RegisterTrouble
from holdfast.model.lease import LeaseRecord
from holdfast.model.lsn import Lsn, Position
from holdfast.model.policy import DEFAULT_POLICY, Policy
from holdfast.model.register import Member, NodeRecord, Phase, Recruit, Register, RegisterAge
from holdfast.model.report import ProxySight, Verdict
from holdfast.model.server import ServerStatus, ServerView
from holdfast.model.thresholds import Thresholds
from holdfast.model.timeouts import Timeouts
from holdfast.model.vitals import Vitals
from holdfast.node.promise import Promise


@dataclass(frozen=True, slots=True)
class Look:
    """The raw material of one observation."""

    now_ms: int
    server: ServerView
    system_identifier: str | None
    promise: Promise | None
    creating: bool
    rebuilding: bool
    register: Register | None
    register_revision: int
    unreadable: bool
    recruits: tuple[Recruit, ...]
    nodes: dict[str, NodeRecord]
    peers: dict[str, Peer]
    probe: Probe
    vitals: Vitals | None = None
    """What the agent measures on its own node."""
    proxies: tuple[ProxySight, ...] = ()
    obeying: Mapping[str, int] = field(default_factory=dict)
    policy: Policy = DEFAULT_POLICY
    approved_epoch: int | None = None
    lease: LeaseRecord | None = None
    lease_renewed_ms: int | None = None
    leased_until_ms: int | None = None
    pledged_until_ms: int | None = None


@dataclass(slots=True)
class Observer:
    """What an agent remembers from look to look. It is lost with the process: nothing here matters for safety."""

    node: str
    timeouts: Timeouts
    thresholds: Thresholds = field(default_factory=Thresholds)
    own_end: Position | None = None
    marker: Lsn | None = None
    _is_rewound: bool = False
    """And has not streamed since."""
    _tried_ms: int | None = None
    """When it was first to start after that."""
    _names: str | None = None
    _told_ms: int | None = None
    _settled_lsn: Lsn | None = None
    _seen_alive: bool = False
    _unstreamed_ms: int | None = None
    _started_for_stream: bool = False
    _stopped_ms: int | None = None
    _silent_since_ms: int | None = None
    _looked_ms: int | None = None
    _awake_since_ms: int = 0
    _newest: RegisterAge = (0, 0)
    _phase: tuple[int, Phase] | None = None
    _phase_since_ms: int = 0
    _progress_ms: int = 0
    _progress_mark: object = None
    _enough_since_ms: int | None = None
    _suspected_since_ms: int | None = None
    _last_failover_ms: int | None = None
    _last_streamed_ms: dict[Member, int] = field(default_factory=dict)

    def rewound(self) -> None:
        """The log was taken back; whether that helped is yet to be seen."""
        self.own_end = self._tried_ms = None
        self._is_rewound = True

    def starts(self, now_ms: int) -> None:
        """The server is about to be started."""
        if self._is_rewound and self._tried_ms is None:
            self._tried_ms = now_ms

    def started(self) -> None:
        """The server was started: what was known of the stopped directory is old."""
        self.own_end = None
        self.marker = None
        self._settled_lsn = None
        if self._unstreamed_ms is not None:
            self._started_for_stream, self._unstreamed_ms = True, None

    def cloned(self) -> None:
        """The directory is another one: nothing of the former counts."""
        self.own_end = None
        self._has_helped()

    def _has_helped(self) -> None:
        self._tried_ms = self._unstreamed_ms = None
        self._is_rewound = self._started_for_stream = False

    def told_postgres(self, now_ms: int) -> None:
        """PostgreSQL was told a quorum; commits that began before may still use the former one for a moment."""
        self._told_ms, self._settled_lsn = now_ms, None

    def observe(self, look: Look) -> Observation:
        """One look, with everything remembered brought up to date."""
        self._remember_sleep(look.now_ms)
        self._remember_server(look)
        self._remember_phase(look)
        self._remember_streaming(look)
        unstreamed = self._is_late(self._unstreamed_ms, look.now_ms)
        member = self._member(look)
        o = Observation(
            now_ms=look.now_ms,
            node=self.node,
            timeouts=self.timeouts,
            member=member,
            promised=look.promise.epoch if look.promise else 0,
            cluster_id=look.promise.cluster_id if look.promise else None,
            remembered=(look.promise.epoch, look.promise.generation) if look.promise else (0, 0),
            server=look.server,
            rebuilding=look.rebuilding,
            own_end=self.own_end,
            stopped_ms=self._stopped_ms,
            seen_alive=self._seen_alive,
            silent_since_ms=self._silent_since_ms,
            lead_address=_address(look),
            stuck=unstreamed and not self._started_for_stream,
            condemned=self._is_condemned(look, unstreamed=unstreamed),
            marker=self.marker,
            settled_lsn=self._settled_lsn,
            create=look.creating,
            register=look.register,
            register_revision=look.register_revision,
            trouble=self._trouble(look),
            recruits=look.recruits,
            phase_since_ms=self._phase_since_ms,
            progress_ms=self._progress_ms,
            last_failover_ms=self._last_failover_ms,
            peers=look.peers,
            verdict=self._verdict(look, member),
            last_streamed_ms=self._last_streamed_ms,
            obeying=look.obeying,
            policy=look.policy,
            approved_epoch=look.approved_epoch,
            lease=look.lease,
            lease_renewed_ms=look.lease_renewed_ms,
            leased_until_ms=look.leased_until_ms,
            pledged_until_ms=look.pledged_until_ms,
        )
        return self._with_onsets(o)

    def _trouble(self, look: Look) -> RegisterTrouble | None:
        trouble = _trouble(look, self._newest)
        if trouble is None and look.register is not None:
            self._newest = look.register.age
        return trouble

    def _remember_sleep(self, now_ms: int) -> None:
        """A frozen process, or a suspended machine, has heard nobody meanwhile; that says nothing of the others."""
        if self._looked_ms is not None and now_ms - self._looked_ms >= self.timeouts.silence_ms:
            self._awake_since_ms = now_ms
        self._looked_ms = now_ms

    def _member(self, look: Look) -> Member | None:
        if look.promise is None or look.promise.incarnation is None or look.server.status is ServerStatus.ABSENT:
            return None
        return Member(self.node, look.promise.incarnation)

    def _remember_server(self, look: Look) -> None:
        status, now_ms = look.server.status, look.now_ms
        stopped = status is ServerStatus.STOPPED
        self._stopped_ms = (self._stopped_ms or now_ms) if stopped else None
        silent = status is ServerStatus.UNRESPONSIVE
        self._silent_since_ms = (self._silent_since_ms or now_ms) if silent else None
        if not stopped:
            self.own_end = None
        self._seen_alive |= status in (ServerStatus.PRIMARY, ServerStatus.STANDBY)
        if status is not ServerStatus.PRIMARY:
            if status is not ServerStatus.UNRESPONSIVE:
                self.marker, self._settled_lsn = None, None
            self._last_streamed_ms.clear()
            return
        for replica in look.server.replicas:
            if replica.state == "streaming":
                self._last_streamed_ms[replica.member] = now_ms
        if look.register is not None:
            for member in look.register.committed.quorum.members:
                self._last_streamed_ms.setdefault(member, now_ms)
        if look.server.synchronous_names != self._names:
            # Whoever changed it, and whether or not we were told that it succeeded: what was settled is not any more.
            self._names = look.server.synchronous_names
            self.told_postgres(now_ms)
        if self._told_ms is None:
            self._told_ms = now_ms
        if self._settled_lsn is None and now_ms - self._told_ms >= self.timeouts.reload_settle_ms:
            self._settled_lsn = look.server.position.lsn if look.server.position else None

    def _remember_phase(self, look: Look) -> None:
        register = look.register
        phase = (register.epoch, register.phase) if register is not None else None
        if phase != self._phase:
            if register is not None and self._phase is not None and register.phase is Phase.SERVING:
                self._last_failover_ms = look.now_ms
            self._phase, self._phase_since_ms = phase, look.now_ms
            self._enough_since_ms = self._suspected_since_ms = None
        revoked = look.lease is not None and look.lease.revoked
        handover = register.handover if register else None
        mark = (phase, handover, len(look.recruits), revoked, _candidate_progress(look))
        if mark != self._progress_mark:
            self._progress_mark, self._progress_ms = mark, look.now_ms

    def _remember_streaming(self, look: Look) -> None:
        if look.server.streaming:
            self._has_helped()
        elif look.server.status is ServerStatus.STANDBY:
            about = _leading(look.register)
            peer = look.peers.get(about.node) if about is not None else None
            leads = peer is not None and peer.primary_ms is not None and peer.primary_ms == peer.answered_ms
            leads = leads and self._is_fresh(peer, look.now_ms)
            attached = leads and look.server.upstream_host is not None and look.server.upstream_host == _address(look)
            self._unstreamed_ms = (self._unstreamed_ms or look.now_ms) if attached else None

    def _is_condemned(self, look: Look, *, unstreamed: bool) -> bool:
        """Whether a rewind, or a new start, has not helped.

        A standby is given its time from when it is up: before that it replays what the rewind made it replay, from the
        last checkpoint before the fork, however long that takes. One that is stopped again did not get so far; one that
        was not to start yet, as epochs came and went meanwhile, has not been tried.
        """
        if unstreamed and (self._started_for_stream or self._is_rewound):
            return True
        return look.server.status is not ServerStatus.STANDBY and self._is_late(self._tried_ms, look.now_ms)

    def _is_fresh(self, peer: Peer | None, now_ms: int) -> bool:
        """Whether the peer still answers: of one that fell silent the last word says nothing of now."""
        fresh_ms = 2 * self.timeouts.heartbeat_interval_ms + self.timeouts.peer_timeout_ms
        return peer is not None and peer.answered_ms is not None and now_ms - peer.answered_ms <= fresh_ms

    def _is_late(self, since_ms: int | None, now_ms: int) -> bool:
        return since_ms is not None and now_ms - since_ms >= self.timeouts.rejoin_stream_ms

    def _verdict(self, look: Look, member: Member | None) -> Verdict | None:
        about = _leading(look.register)
        if about is None or look.register is None:
            return None
        epoch = look.register.epoch
        sight = Sight(
            now_ms=look.now_ms,
            since_ms=self._phase_since_ms,
            timeouts=self.timeouts,
            thresholds=self.thresholds,
            agent=look.peers.get(about.node, Peer()),
            sql=look.probe,
            own=look.vitals,
            proxies=tuple(p for p in look.proxies if (p.node, p.epoch) == (about.node, epoch)),
            room_elsewhere=self._room_elsewhere(look, about),
            is_candidate=look.register.phase is Phase.PROMOTING,
            awake_since_ms=self._awake_since_ms,
        )
        if about.node == self.node:
            status = look.server.status if member == about else ServerStatus.ABSENT
            yielding = look.register.handover is not None
            return judge_own(about, epoch, status, self._seen_alive, sight, yielding=yielding)
        return judge(about, epoch, sight)

    def _room_elsewhere(self, look: Look, about: Member) -> bool:
        """Whether somebody who could take over from ``about`` has room on a disk of their own."""
        vitals = {name: p.report.vitals for name, p in look.peers.items() if p.report is not None}
        vitals[self.node] = look.vitals
        following = {name for name, p in look.peers.items() if p.report is not None and p.report.streaming}
        if look.server.streaming:
            following.add(self.node)
        others = [vitals[name] for name in following if name != about.node]
        return has_room_elsewhere(vitals.get(about.node), others, self.thresholds)

    def _with_onsets(self, o: Observation) -> Observation:
        if o.register is not None:
            if suspected(o, o.register) or self._stands_still(o):
                self._suspected_since_ms = self._suspected_since_ms or o.now_ms
            else:
                self._suspected_since_ms = None
            if o.register.phase is Phase.RECRUITING and best_choice(o, o.register) is not None:
                self._enough_since_ms = self._enough_since_ms or o.now_ms
        if self._enough_since_ms is None and self._suspected_since_ms is None:
            return o
        return replace(o, enough_since_ms=self._enough_since_ms, suspected_since_ms=self._suspected_since_ms)

    def _stands_still(self, o: Observation) -> bool:
        if o.register is None or o.register.phase is Phase.SERVING:
            return False
        return o.now_ms - o.progress_ms >= min(o.timeouts.recruit_phase_ms, o.timeouts.promote_phase_ms)


def _leading(register: Register | None) -> Member | None:
    if register is None:
        return None
    return register.candidate if register.phase is Phase.PROMOTING else register.leader


def _address(look: Look) -> str | None:
    about = _leading(look.register)
    record = look.nodes.get(about.node) if about is not None else None
    return None if record is None else f"{record.postgres_host}:{record.postgres_port}"


def _candidate_progress(look: Look) -> object:
    if look.register is None or look.register.phase is not Phase.PROMOTING or look.register.candidate is None:
        return None
    peer = look.peers.get(look.register.candidate.node)
    if peer is None or peer.report is None:
        return (look.server.status, look.server.replay_lsn)
    return (peer.report.situation, peer.report.replay_lsn)


def _trouble(look: Look, newest: RegisterAge) -> RegisterTrouble | None:
    """Why the register cannot be obeyed; ``newest`` is the age of the newest one obeyed so far."""
    promise, register = look.promise, look.register
    if look.unreadable:
        return RegisterTrouble.UNREADABLE
    if register is None:
        if look.creating:
            return None
        if promise is not None and promise.epoch > 0:
            return RegisterTrouble.MISSING
        return RegisterTrouble.STRANGER_DIRECTORY if look.system_identifier is not None else None
    if promise is not None and promise.cluster_id != register.cluster_id:
        return RegisterTrouble.FOREIGN
    if look.system_identifier is not None and look.system_identifier != register.system_identifier:
        return RegisterTrouble.OTHER_SYSTEM
    if promise is not None and promise.epoch > register.epoch:
        return RegisterTrouble.OLDER_THAN_PROMISE
    remembered = (promise.epoch, promise.generation) if promise is not None else newest
    return RegisterTrouble.OLDER_THAN_SEEN if register.age < max(newest, remembered) else None
