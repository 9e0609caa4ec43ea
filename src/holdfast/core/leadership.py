"""The leadership table: what a node does, given what it is (situation) and what the register asks of it (duty).

One table for everything: the agent obeys it, the tests walk every pair of it, ``holdfast explain`` prints it and the
diagram in the docs is drawn from it. A pair that is not in it raises ProtocolViolation, and the agent fences itself.
"""

from __future__ import annotations

from dataclasses import dataclass
from enum import StrEnum

from holdfast.core.actions import Action
from holdfast.core.durability import acknowledges_alone, holds_lease
from holdfast.core.giving_up import gives_up
from holdfast.core.observation import Observation
from holdfast.core.quorum import covered
from holdfast.core.rules import RULES, Rule, expected_quorum
from holdfast.model.errors import ProtocolViolation
from holdfast.model.register import BARRIER_NAME, Phase, Register
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
    """A standby of somebody else, or one that streams through no slot."""
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
    LAPSED = "lapsed"
    """This node leads, its commits are local, and it does not hold the lease."""
    YIELD = "yield"
    """This node leads and hands over."""
    FOLLOW = "follow"
    """Another leads, and this node's log fits."""
    EXAMINE = "examine"
    """Another leads (or is the candidate); whether the own log fits cannot be told yet."""
    LEAVE = "leave"
    """The own log does not fit, and it may still be needed: the quorum names this directory, or nobody serves yet."""
    REJOIN = "rejoin"
    """The own log does not fit, and nobody needs it any more."""
    PLEDGED = "pledged"
    """An epoch is recruiting, and this node's word to its leader still binds it."""
    PAUSED = "paused"
    """By policy: hands off."""


@dataclass(frozen=True, slots=True)
class Decision:
    """What to do now, in order, and the rule that says so."""

    situation: Situation
    duty: Duty
    rule: Rule
    actions: tuple[Action, ...]


_S, _D = Situation, Duty
_PRIMARIES = (_S.CLOSED, _S.MARKED, _S.COVERED, _S.OPEN)
_COULD_ACKNOWLEDGE = (_S.COVERED, _S.OPEN, _S.SILENT)


_ROWS: dict[Duty, dict[Situation, str]] = {
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
    _D.LAPSED: {_S.COVERED: "lease.await", _S.OPEN: "lease.lost", _S.SILENT: "lease.lost"},
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
    _D.PLEDGED: dict.fromkeys(_S, "pledge.wait"),
    _D.PAUSED: dict.fromkeys(_S, "pause.look"),
}  # fmt: skip

TABLE = {(situation, duty): RULES[rule] for duty, row in _ROWS.items() for situation, rule in row.items()}


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
    attached = o.server.upstream_host == o.lead_address and o.server.through_slot
    return Situation.ATTACHED if attached else Situation.ASTRAY


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
    leads = me is not None and o.led_by == me
    serving = register.phase is Phase.SERVING
    if leads and serving and situation in _COULD_ACKNOWLEDGE and acknowledges_alone(o) and not holds_lease(o):
        return Duty.LAPSED
    if o.policy.paused:
        return Duty.PAUSED
    if register.phase is Phase.RECRUITING:
        return _recruits_duty(o, register)
    if leads:
        if register.phase is Phase.PROMOTING:
            return Duty.PROMOTE
        return Duty.LEAD if register.handover is None else Duty.YIELD
    return _following_duty(o, register, situation)


def _recruits_duty(o: Observation, register: Register) -> Duty:
    if o.recruit(o.member) is not None and o.promised >= register.epoch:
        return Duty.HOLD
    pledged = o.pledged_until_ms is not None and o.now_ms < o.pledged_until_ms
    return Duty.PLEDGED if pledged and o.promised < register.epoch else Duty.JOIN


def _following_duty(o: Observation, register: Register, situation: Situation) -> Duty:
    follow = Duty.SUPPORT if register.phase is Phase.PROMOTING else Duty.FOLLOW
    if o.led_by is not None and o.led_by.node == o.node:
        return Duty.EXAMINE  # the directory that leads was lost here: the others must find a new leader
    if situation in (Situation.ABSENT, Situation.REBUILDING):
        return follow
    if situation is Situation.ATTACHED and o.server.streaming:
        return follow
    fits = o.fits()
    if fits is None:
        return Duty.EXAMINE
    is_stuck = o.stuck and situation is not Situation.STOPPED  # one that is stopped is to be started anyway
    if fits and not (o.condemned or is_stuck):
        return follow
    if follow is Duty.SUPPORT:
        return Duty.REJOIN if not fits and gives_up(o, register) else Duty.LEAVE
    return Duty.LEAVE if o.member in register.committed.quorum.members else Duty.REJOIN


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
