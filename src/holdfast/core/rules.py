"""The rules of the leadership table: what each is for, and what it asks for. Which one applies is in `leadership`."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

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
    RememberRegister,
    ReportRecruit,
    Rewind,
    Start,
    Stop,
    TellPostgres,
    WriteMarker,
)
from holdfast.core.durability import confirmations
from holdfast.core.observation import Observation
from holdfast.core.reads import old_reads_are_over
from holdfast.model.errors import ProtocolViolation
from holdfast.model.lsn import is_on_history
from holdfast.model.register import Member, Phase, Quorum, Register
from holdfast.model.server import ServerStatus


@dataclass(frozen=True, slots=True)
class Rule:
    """One row of the table: a stable id, what it is for, the actions it asks for, and where they may take the epoch."""

    id: str
    comment: str
    act: Callable[[Observation], tuple[Action, ...]]
    moves_to: Phase | None = None


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


def _remember(o: Observation) -> tuple[Action, ...]:
    """Once it is quiet: nobody waits for this write, and until it is done the running agent remembers by itself."""
    register = _register(o)
    return (RememberRegister(register.age),) if o.remembered < register.age else ()


def expected_quorum(o: Observation) -> Quorum | None:
    """The quorum that this candidate is to commit, or None if too few could confirm a commit."""
    streaming = frozenset(r.member for r in o.server.replicas if r.state == "streaming")
    return None if o.member is None else planned_quorum(o, _register(o), o.member, streaming)


def planned_quorum(
    o: Observation, register: Register, candidate: Member, streaming: frozenset[Member]
) -> Quorum | None:
    """What a candidate is to commit, given who streams from it; None if too few could confirm a commit.

    Everybody promotable who joined the epoch and can follow, and every such voter that streams log of the epoch.
    """
    leading = o.leading_log()
    joined = {
        r.member
        for r in o.recruits
        if leading is not None and r.member != candidate and is_on_history(r.position, *leading)
    }
    follows = {m for m in streaming if m.node in register.voters and o.has_log_of_epoch(m)}
    by_node = {
        m.node: m for m in (*sorted(joined), *sorted(follows))
    }  # a directory made anew replaces the one that joined
    members = frozenset(m for m in by_node.values() if m.node != candidate.node and o.policy.promotable(m.node))
    k = confirmations(o.policy, len(members))
    return None if k is None else Quorum(members, k)


def _ask_again(o: Observation) -> tuple[Action, ...]:
    """Each answer wakes the agent: without a pause it would ask as fast as the network allows."""
    asked_ms = max((p.asked_ms or 0 for p in o.peers.values()), default=0)
    return (AskPeers(),) if o.now_ms - asked_ms >= o.timeouts.busy_tick_interval_ms else ()


def _wait_for_quorum(o: Observation) -> tuple[Action, ...]:
    """Who streams and has not joined confirms nothing before it has said that its log fits: ask it."""
    register = _register(o)
    joined = {r.member for r in o.recruits}
    streaming = {r.member for r in o.server.replicas if r.state == "streaming" and r.member.node in register.voters}
    return _ask_again(o) if any(not o.has_log_of_epoch(m) for m in streaming - joined) else ()


def _commit(o: Observation) -> tuple[Action, ...]:
    quorum = expected_quorum(o)
    if quorum is None:
        raise ProtocolViolation("a barrier was passed without a quorum")
    return (CommitConfiguration(quorum),) if old_reads_are_over(o, _register(o)) else _ask_again(o)


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


def _mark(o: Observation) -> tuple[Action, ...]:
    register, position = _register(o), o.server.position
    if position is not None and position.timeline != register.epoch:
        return (Stop(immediate=True),)  # promoted for an epoch that was replaced meanwhile: begin anew, as a standby
    return (WriteMarker(register.epoch), AskPeers())


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
        # Given up only once it runs again: until then the voters know that it was stopped on purpose.
        return (Start(standby=False),)
    return (AskPeers(),)


def _clone(o: Observation) -> tuple[Action, ...]:
    register = _register(o)
    promoting_ms = o.now_ms - o.phase_since_ms if register.phase is Phase.PROMOTING else None
    if promoting_ms is not None and register.committed.quorum.members and promoting_ms < o.timeouts.recruit_phase_ms:
        return ()  # the failover comes first, unless it waits for just this copy
    source = o.peers.get(_led_by(o).node)
    if source is None or source.report is None or source.report.status is not ServerStatus.PRIMARY:
        return ()
    return (*_promise(o), Clone(_led_by(o)))


def _silent(o: Observation) -> tuple[Action, ...]:
    return (Kill(), *_promise(o))


def _silent_for_long(o: Observation) -> tuple[Action, ...]:
    if o.silent_since_ms is None or o.now_ms - o.silent_since_ms < o.timeouts.hung_ms:
        return ()
    return _silent(o)


def _start_following(o: Observation) -> tuple[Action, ...]:
    """A leader that handed over is in no hurry if others can confirm the barrier: its start would take from them."""
    register = _register(o)
    handed_over = register.handover is not None and o.member == register.committed.leader
    if handed_over and register.phase is Phase.PROMOTING:
        joined = {r.member for r in o.recruits if r.epoch == register.epoch} - {o.member, register.candidate}
        others = joined | (register.committed.quorum.members - {register.candidate})
        needed = max(1, register.committed.quorum.k)
        grace_ms = o.timeouts.leader_restart_grace_ms if len(joined) >= needed else o.timeouts.recruit_grace_ms
        if len(others) >= needed and o.now_ms - o.phase_since_ms < grace_ms:
            return ()
    return (*_promise(o), Start(standby=True))


def _rejoin(o: Observation) -> tuple[Action, ...]:
    source = _led_by(o)
    if o.condemned:
        return (*_promise(o), Clone(source))
    return (*_promise(o), Start(standby=True) if o.fits() else Rewind(source))


def _nothing(o: Observation) -> tuple[Action, ...]:
    return ()


def _alarm(o: Observation) -> tuple[Action, ...]:
    told = Alarm(o.trouble.explained if o.trouble else "the register is not to be obeyed")
    unread = o.server.status is ServerStatus.STOPPED and o.own_end is None
    return (told, ReadEndOfLog()) if unread else (told,)  # whoever recovers the register has to know


def _join(o: Observation) -> tuple[Action, ...]:
    return (*_promise(o), Detach(), ReportRecruit(_register(o).epoch))


def _join_stopped(o: Observation) -> tuple[Action, ...]:
    return (*_promise(o), ReportRecruit(_register(o).epoch))


_ALL = (
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
        _alarm,
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
    Rule("recruit.fence", "the old leader joins by stopping at once", lambda o: (Stop(immediate=True), *_promise(o))),
    Rule("recruit.silent", "what does not answer is killed: only then is its log known to stand still", _silent),
    Rule("recruit.wait", "joined; the choice is another's", _nothing),
    Rule("recruit.again", "joined, and yet it follows somebody: stop that", lambda o: (Detach(),)),
    Rule("promote.start", "the candidate stopped: start it as what it was", _start_candidate),
    Rule("promote.promote", "leave recovery on the timeline of the epoch, closed by the barrier", _promote),
    Rule(
        "barrier.mark",
        "write the epoch's record, on its timeline only; meanwhile ask whether the old leader is stopped",
        _mark,
    ),
    Rule("barrier.wait", "wait until the quorum has flushed the record", _wait_for_quorum),
    Rule(
        "barrier.commit",
        "the record is on the quorum, and nobody reads from the old leader: commit the new configuration",
        _commit,
        Phase.SERVING,
    ),
    Rule("promote.silent", "the candidate does not answer: the phase's time-out decides", _nothing),
    Rule("follow.start", "start as a standby of nobody, unless that would hold a switchover up", _start_following),
    Rule("follow.attach", "stream from the one that the register names", lambda o: (*_promise(o), Follow(_led_by(o)))),
    Rule("follow.steady", "streams from the one that the register names", _remember),
    Rule(
        "follow.fence",
        "another leads: stop being a primary, at once",
        lambda o: (Stop(immediate=True), *_promise(o)),
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
    Rule("serve.steady", "leads", _remember),
    Rule("serve.silent", "the leader's server does not answer: the observers' verdict decides", _nothing),
    Rule("lease.await", "commits would be local: opens only with the lease", _nothing),
    Rule(
        "lease.lost",
        "acknowledges alone and holds no lease any more: killed before anybody else may take over",
        lambda o: (Kill(),),
    ),
    Rule("pledge.wait", "has promised a leader cut off from the store to join no epoch for a moment", _nothing),
    Rule("pause.look", "paused by policy: look on, touch nothing", _nothing),
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
)

RULES = {rule.id: rule for rule in _ALL}
