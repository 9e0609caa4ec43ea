"""The leadership table: what a node does, given what it is (situation) and what the register asks of it (duty).

One table for everything: the agent obeys it, the tests walk every pair of it, ``holdfast explain`` prints it and the
diagram in the docs is drawn from it. A pair that is not in it raises ProtocolViolation, and the agent fences itself.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from enum import StrEnum

from holdfast.core.actions import (
    Action,
    Alarm,
    AskPeers,
    CancelHandOver,
    Clone,
    CommitConfiguration,
    CreateRegister,
    Detach,
    Follow,
    HandOver,
    Initialize,
    Kill,
    OpenEpoch,
    PersistPromise,
    Promote,
    ReadEndOfLog,
    ReportRecruit,
    Rewind,
    Start,
    Stop,
    TellPostgres,
    WriteMarker,
)
from holdfast.core.observation import Observation
from holdfast.core.quorum import covered, default_k
from holdfast.model.errors import ProtocolViolation
from holdfast.model.lsn import is_on_history
from holdfast.model.register import BARRIER_NAME, Member, Phase, Quorum, Register
from holdfast.model.server import ServerStatus


class Situation(StrEnum):
    """What a node is."""

    ABSENT = "absent"
    """No data directory that could be started."""
    REBUILDING = "rebuilding"
    """A clone or a rewind is at work."""
    UNREAD = "unread"
    """Stopped, and where its log ends has not been read yet."""
    STOPPED = "stopped"
    STARTING = "starting"
    DETACHED = "detached"
    """A standby of nobody, proven so."""
    ATTACHED = "attached"
    """A standby of the one that the register names."""
    ASTRAY = "astray"
    """A standby of somebody else."""
    CLOSED = "closed"
    """A primary that waits for the barrier name: it can acknowledge nothing."""
    MARKED = "marked"
    """Closed, its marker written."""
    COVERED = "covered"
    """Closed, its marker flushed by the quorum."""
    OPEN = "open"
    """A primary that may acknowledge."""
    SILENT = "silent"
    """A postmaster that no longer answers its agent."""


class Duty(StrEnum):
    """What the register asks of a node."""

    CREATE = "create"
    """Nothing there, and a person asked for a new cluster here."""
    AWAIT = "await"
    """A new node, and no cluster yet."""
    ALARM = "alarm"
    """A register that must not be obeyed."""
    JOIN = "join"
    """An epoch is recruiting, and this node has not joined it."""
    HOLD = "hold"
    """An epoch is recruiting, and this node has joined it."""
    PROMOTE = "promote"
    """This node is the candidate."""
    SUPPORT = "support"
    """Another is the candidate, and this node's log fits."""
    LEAD = "lead"
    """This node leads."""
    YIELD = "yield"
    """This node leads and hands over."""
    FOLLOW = "follow"
    """Another leads, and this node's log fits."""
    EXAMINE = "examine"
    """Another leads (or is the candidate); whether the own log fits cannot be told yet."""
    LEAVE = "leave"
    """The own log does not fit, and the quorum still names this directory (or nobody serves yet)."""
    REJOIN = "rejoin"
    """The own log does not fit, and nobody counts on it any more."""


@dataclass(frozen=True, slots=True)
class Rule:
    """One row of the table: a stable id, what it is for, the actions it asks for, and where they may take the epoch."""

    id: str
    comment: str
    act: Callable[[Observation], tuple[Action, ...]]
    moves_to: Phase | None = None


@dataclass(frozen=True, slots=True)
class Decision:
    """What to do now, in order, and the rule that says so."""

    situation: Situation
    duty: Duty
    rule: Rule
    actions: tuple[Action, ...]


def _register(o: Observation) -> Register:
    if o.register is None:
        raise ProtocolViolation("a rule that needs the register fired without one")
    return o.register


def _led_by(o: Observation) -> Member:
    if o.led_by is None:
        raise ProtocolViolation("a rule that follows fired while nobody leads")
    return o.led_by


def _promise(o: Observation) -> tuple[Action, ...]:
    epoch = _register(o).epoch
    return (PersistPromise(epoch),) if o.promised < epoch else ()


def expected_quorum(o: Observation) -> Quorum | None:
    """The quorum that this candidate is to commit, or None if nobody could confirm a commit.

    Everybody who joined the epoch and can follow, and every voter that already streams.
    """
    register, me = _register(o), o.member
    leading = o.leading_log()
    joined = {
        r.member for r in o.recruits if leading is not None and r.member != me and is_on_history(r.position, *leading)
    }
    streaming = {r.member for r in o.server.replicas if r.state == "streaming" and r.member.node in register.voters}
    by_node = {m.node: m for m in (*joined, *streaming)}  # a directory made anew replaces the one that joined
    members = frozenset(m for m in by_node.values() if me is None or m.node != me.node)
    return Quorum(members, default_k(len(members))) if members else None


def _commit(o: Observation) -> tuple[Action, ...]:
    quorum = expected_quorum(o)
    if quorum is None:
        raise ProtocolViolation("a barrier was passed without a quorum")
    return (CommitConfiguration(quorum),)


def _restart(o: Observation) -> tuple[Action, ...]:
    grace_ms = o.timeouts.leader_restart_grace_ms if o.seen_alive else 0
    if o.stopped_ms is not None and o.now_ms - o.stopped_ms < grace_ms:
        return ()
    return (Start(standby=False),)


def _start_candidate(o: Observation) -> tuple[Action, ...]:
    promoted_before = o.own_end is not None and o.own_end.timeline == _register(o).epoch
    return (Start(standby=not promoted_before),)


def _promote(o: Observation) -> tuple[Action, ...]:
    register, position = _register(o), o.server.position
    if position is not None and position.timeline >= register.epoch:
        return (Stop(immediate=False),)  # it was promoted before and came back as a standby: start it as what it is
    return (*_promise(o), Promote(register.epoch))


def _yield_epoch(o: Observation) -> tuple[Action, ...]:
    register = _register(o)
    target = o.peers.get(register.handover or "")
    report = target.report if target is not None else None
    has_all = (
        report is not None
        and report.position is not None
        and o.own_end is not None
        and report.position.timeline == o.own_end.timeline
        and report.position.lsn >= o.own_end.lsn
    )
    if has_all:
        return (OpenEpoch(f"switchover to {register.handover}"),)
    if o.now_ms - (o.stopped_ms or o.now_ms) > o.timeouts.handover_drain_ms:
        return (CancelHandOver(),)
    return (AskPeers(),)


def _clone(o: Observation) -> tuple[Action, ...]:
    register = _register(o)
    if register.phase is Phase.PROMOTING and register.committed.quorum.members:
        return ()  # the failover comes first; only a new cluster needs its copies before it can serve
    source = o.peers.get(_led_by(o).node)
    if source is None or source.report is None or source.report.status is not ServerStatus.PRIMARY:
        return ()
    return (*_promise(o), Clone(_led_by(o)))


def _silent(o: Observation) -> tuple[Action, ...]:
    return (*_promise(o), Kill())


def _silent_for_long(o: Observation) -> tuple[Action, ...]:
    if o.silent_since_ms is None or o.now_ms - o.silent_since_ms < o.timeouts.hung_ms:
        return ()
    return _silent(o)


def _rejoin(o: Observation) -> tuple[Action, ...]:
    source = _led_by(o)
    return (*_promise(o), Clone(source) if o.condemned else Rewind(source))


def _nothing(o: Observation) -> tuple[Action, ...]:
    return ()


def _join(o: Observation) -> tuple[Action, ...]:
    return (*_promise(o), Detach(), ReportRecruit(_register(o).epoch))


def _join_stopped(o: Observation) -> tuple[Action, ...]:
    return (*_promise(o), ReportRecruit(_register(o).epoch))


def _rules() -> dict[str, Rule]:
    rules = [
        Rule("create.initialize", "make the first data directory", lambda o: (Initialize(),)),
        Rule(
            "create.register",
            "create the register: epoch 1, promoting this node",
            lambda o: (CreateRegister(),),
            Phase.PROMOTING,
        ),
        Rule("await.register", "a new node waits for a cluster to be created", _nothing),
        Rule(
            "alarm.raise",
            "a register that must not be obeyed: touch nothing, tell people",
            lambda o: (Alarm(o.trouble.value if o.trouble else "the register is not to be obeyed"),),
        ),
        Rule("wait.busy", "something is under way that must end first", _nothing),
        Rule("wait.evidence", "not enough is known yet", _nothing),
        Rule("read.end", "read where the log of the stopped directory ends", lambda o: (ReadEndOfLog(),)),
        Rule("recruit.nothing", "a node without data has nothing to offer an epoch", _nothing),
        Rule(
            "recruit.promise-first",
            "promise, so that the old leader is never followed again; then look at the log",
            lambda o: (*_promise(o), ReadEndOfLog()),
        ),
        Rule("recruit.detach", "promise, stop following, prove it, and only then report the position", _join),
        Rule("recruit.stopped", "a stopped directory streams from nobody: promise and report", _join_stopped),
        Rule(
            "recruit.fence", "the old leader joins by stopping at once", lambda o: (*_promise(o), Stop(immediate=True))
        ),
        Rule("recruit.silent", "what does not answer is killed: only then is its log known to stand still", _silent),
        Rule("recruit.wait", "joined; the choice is another's", _nothing),
        Rule("recruit.again", "joined, and yet it follows somebody: stop that", lambda o: (Detach(),)),
        Rule("promote.start", "the candidate stopped: start it as what it was", _start_candidate),
        Rule("promote.promote", "leave recovery on the timeline of the epoch, closed by the barrier", _promote),
        Rule("barrier.mark", "write the epoch's record", lambda o: (WriteMarker(_register(o).epoch),)),
        Rule("barrier.wait", "wait until the quorum has flushed the record", _nothing),
        Rule("barrier.commit", "the record is on the quorum: commit the new configuration", _commit, Phase.SERVING),
        Rule("promote.silent", "the candidate does not answer: the phase's time-out decides", _nothing),
        Rule("follow.start", "start as a standby of nobody", lambda o: (*_promise(o), Start(standby=True))),
        Rule(
            "follow.attach", "stream from the one that the register names", lambda o: (*_promise(o), Follow(_led_by(o)))
        ),
        Rule("follow.steady", "streams from the one that the register names", _promise),
        Rule(
            "follow.fence",
            "another leads: stop being a primary, at once",
            lambda o: (*_promise(o), Stop(immediate=True)),
        ),
        Rule("follow.clone", "copy the leader's data", _clone),
        Rule("follow.silent", "a server that no longer answers is killed and started again", _silent_for_long),
        Rule("lead.lost", "the leader's server died: others take over, or it restarts, closed", _restart),
        Rule("serve.mark", "after a start, write a marker", lambda o: (WriteMarker(_register(o).epoch),)),
        Rule("serve.wait", "closed until the marker is on the committed quorum", _nothing),
        Rule(
            "serve.open",
            "the configuration is committed and the marker on its quorum: acknowledge",
            lambda o: (TellPostgres(_register(o).committed.quorum),),
        ),
        Rule("serve.steady", "leads", _promise),
        Rule("serve.silent", "the leader's server does not answer: the observers' verdict decides", _nothing),
        Rule("handover.stop", "drain, then stop fast while the target streams", lambda o: (HandOver(),)),
        Rule(
            "handover.open",
            "open the epoch once the target has the shutdown checkpoint; else go on",
            _yield_epoch,
            Phase.RECRUITING,
        ),
        Rule("handover.cancel", "the hand-over cannot go on: lead again", lambda o: (CancelHandOver(),)),
        Rule("leave.wait", "the log goes beyond the fork; wait until nobody counts on this directory", _nothing),
        Rule(
            "rejoin.stop",
            "the log goes beyond the fork: stop before it is taken back",
            lambda o: (*_promise(o), Stop(immediate=False)),
        ),
        Rule("rejoin.rewind", "take the log beyond the fork back; clone what a rewind did not mend", _rejoin),
    ]
    return {rule.id: rule for rule in rules}


RULES = _rules()

_S, _D = Situation, Duty
_PRIMARIES = (_S.CLOSED, _S.MARKED, _S.COVERED, _S.OPEN)


def _table() -> dict[tuple[Situation, Duty], Rule]:
    rows: dict[Duty, dict[Situation, str]] = {
        _D.CREATE: {
            _S.ABSENT: "create.initialize", _S.REBUILDING: "wait.busy",
            _S.UNREAD: "create.register", _S.STOPPED: "create.register",
        },
        _D.AWAIT: {_S.ABSENT: "await.register"},
        _D.ALARM: dict.fromkeys(_S, "alarm.raise"),
        _D.JOIN: {
            _S.ABSENT: "recruit.nothing", _S.REBUILDING: "wait.busy", _S.UNREAD: "recruit.promise-first",
            _S.STOPPED: "recruit.stopped", _S.STARTING: "wait.busy", _S.DETACHED: "recruit.detach",
            _S.ATTACHED: "recruit.detach", _S.ASTRAY: "recruit.detach", _S.SILENT: "recruit.silent",
            **dict.fromkeys(_PRIMARIES, "recruit.fence"),
        },
        _D.HOLD: {
            _S.UNREAD: "recruit.wait", _S.STOPPED: "recruit.wait", _S.STARTING: "recruit.wait",
            _S.DETACHED: "recruit.wait", _S.ATTACHED: "recruit.again", _S.ASTRAY: "recruit.again",
            _S.SILENT: "recruit.silent",
        },
        _D.PROMOTE: {
            _S.UNREAD: "read.end", _S.STOPPED: "promote.start", _S.STARTING: "wait.busy",
            _S.DETACHED: "promote.promote", _S.CLOSED: "barrier.mark", _S.MARKED: "barrier.wait",
            _S.COVERED: "barrier.commit", _S.SILENT: "promote.silent",
        },
        _D.SUPPORT: {
            _S.ABSENT: "follow.clone", _S.REBUILDING: "wait.busy", _S.UNREAD: "read.end", _S.STOPPED: "follow.start",
            _S.STARTING: "wait.busy", _S.DETACHED: "follow.attach", _S.ATTACHED: "follow.steady",
            _S.ASTRAY: "follow.attach", _S.SILENT: "follow.silent", **dict.fromkeys(_PRIMARIES, "follow.fence"),
        },
        _D.LEAD: {
            _S.UNREAD: "lead.lost", _S.STOPPED: "lead.lost", _S.STARTING: "wait.busy", _S.CLOSED: "serve.mark",
            _S.MARKED: "serve.wait", _S.COVERED: "serve.open", _S.OPEN: "serve.steady", _S.SILENT: "serve.silent",
        },
        _D.YIELD: {
            _S.UNREAD: "read.end", _S.STOPPED: "handover.open", _S.STARTING: "wait.busy",
            _S.CLOSED: "handover.cancel", _S.MARKED: "handover.cancel", _S.COVERED: "handover.cancel",
            _S.OPEN: "handover.stop", _S.SILENT: "wait.busy",
        },
        _D.FOLLOW: {
            _S.ABSENT: "follow.clone", _S.REBUILDING: "wait.busy", _S.UNREAD: "read.end", _S.STOPPED: "follow.start",
            _S.STARTING: "wait.busy", _S.DETACHED: "follow.attach", _S.ATTACHED: "follow.steady",
            _S.ASTRAY: "follow.attach", _S.SILENT: "follow.silent", **dict.fromkeys(_PRIMARIES, "follow.fence"),
        },
        _D.EXAMINE: {
            _S.ABSENT: "wait.evidence",
            _S.REBUILDING: "wait.busy", _S.UNREAD: "read.end", _S.STOPPED: "wait.evidence", _S.STARTING: "wait.busy",
            _S.DETACHED: "wait.evidence", _S.ATTACHED: "wait.evidence", _S.ASTRAY: "recruit.again",
            _S.SILENT: "follow.silent", **dict.fromkeys(_PRIMARIES, "follow.fence"),
        },
        _D.LEAVE: {
            _S.STOPPED: "leave.wait", _S.STARTING: "wait.busy", _S.DETACHED: "leave.wait",
            _S.ATTACHED: "recruit.again", _S.ASTRAY: "recruit.again", _S.SILENT: "follow.silent",
            **dict.fromkeys(_PRIMARIES, "follow.fence"),
        },
        _D.REJOIN: {
            _S.STOPPED: "rejoin.rewind", _S.STARTING: "wait.busy", _S.DETACHED: "rejoin.stop",
            _S.ATTACHED: "rejoin.stop", _S.ASTRAY: "rejoin.stop", _S.SILENT: "follow.silent",
            **dict.fromkeys(_PRIMARIES, "follow.fence"),
        },
    }  # fmt: skip
    return {(situation, duty): RULES[rule] for duty, row in rows.items() for situation, rule in row.items()}


TABLE = _table()


def situation_of(o: Observation) -> Situation:
    """What this node is."""
    server = o.server
    if o.rebuilding:
        return Situation.REBUILDING
    match server.status:
        case ServerStatus.ABSENT:
            return Situation.ABSENT
        case ServerStatus.STOPPED:
            return Situation.UNREAD if o.own_end is None else Situation.STOPPED
        case ServerStatus.STARTING:
            return Situation.STARTING
        case ServerStatus.UNRESPONSIVE:
            return Situation.SILENT
        case ServerStatus.STANDBY:
            return _standby_situation(o)
        case ServerStatus.PRIMARY:
            return _primary_situation(o)


def _standby_situation(o: Observation) -> Situation:
    if o.server.upstream_host is None:
        return Situation.ASTRAY if o.server.walreceiver else Situation.DETACHED
    return Situation.ATTACHED if o.server.upstream_host == o.lead_address else Situation.ASTRAY


def _primary_situation(o: Observation) -> Situation:
    if BARRIER_NAME not in (o.server.synchronous_names or ""):
        return Situation.OPEN
    if o.marker is None or o.register is None:
        return Situation.CLOSED
    promoting = o.register.phase is Phase.PROMOTING
    quorum = expected_quorum(o) if promoting else o.register.committed.quorum
    if quorum is not None and covered(quorum, o.flushed, o.marker):
        return Situation.COVERED
    return Situation.MARKED


def duty_of(o: Observation, situation: Situation) -> Duty:
    """What the register asks of this node."""
    if o.trouble is not None:
        return Duty.ALARM
    register = o.register
    if register is None:
        return Duty.CREATE if o.create else Duty.AWAIT
    me = o.member
    if register.phase is Phase.RECRUITING:
        joined = o.recruit(me) is not None and o.promised >= register.epoch
        return Duty.HOLD if joined else Duty.JOIN
    if me is not None and o.led_by == me:
        if register.phase is Phase.PROMOTING:
            return Duty.PROMOTE
        return Duty.LEAD if register.handover is None else Duty.YIELD
    return _following_duty(o, register, situation)


def _following_duty(o: Observation, register: Register, situation: Situation) -> Duty:
    follow = Duty.SUPPORT if register.phase is Phase.PROMOTING else Duty.FOLLOW
    if _led_by(o).node == o.node:
        return Duty.EXAMINE  # the directory that leads was lost here: the others must find a new leader
    if situation in (Situation.ABSENT, Situation.REBUILDING):
        return follow
    if situation is Situation.ATTACHED and o.server.streaming:
        return follow
    fits = o.fits()
    if fits is None:
        return Duty.EXAMINE
    if fits and not o.condemned:
        return follow
    counted_on = o.member in register.committed.quorum.members
    return Duty.LEAVE if counted_on or follow is Duty.SUPPORT else Duty.REJOIN


def rule_for(situation: Situation, duty: Duty) -> Rule:
    """The row of the table; raises ProtocolViolation for a pair that must not happen."""
    rule = TABLE.get((situation, duty))
    if rule is None:
        raise ProtocolViolation(f"no rule for a node that is {situation.value} and asked to {duty.value}")
    return rule


def decide(o: Observation) -> Decision:
    """What this node does now; raises ProtocolViolation as `rule_for` does."""
    situation = situation_of(o)
    duty = duty_of(o, situation)
    rule = rule_for(situation, duty)
    return Decision(situation, duty, rule, rule.act(o))
