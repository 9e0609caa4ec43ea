"""From evidence to a verdict on the one that leads (docs/protocol.md, "Verdicts on the primary").

One table, read from the top: the first rule that finds what it looks for decides. Slowness that still makes progress
never calls for a failover, and neither do standbys that confirm nothing.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

from holdfast.core.evidence import Probe, Sight, own_readings, pending_ms, readings_of
from holdfast.model.register import Member
from holdfast.model.report import Reading, Verdict, VerdictKind
from holdfast.model.server import ServerStatus
from holdfast.model.thresholds import Thresholds
from holdfast.model.timeouts import Timeouts
from holdfast.model.vitals import Space, Vitals

__all__ = ["Probe", "Sight", "VerdictRule", "has_room_elsewhere", "judge", "judge_own", "verdict_rules"]

YIELDING = "yield"
"""The duty (core.leadership) of a leader that hands over."""
_NO_SPACE = ("No space left on device", "Disk quota exceeded")


@dataclass(frozen=True, slots=True)
class Case:
    """One observer's evidence on one member. ``vitals`` are of now, ``age_ms`` old."""

    about: Member
    sight: Sight
    vitals: Vitals | None
    age_ms: int

    @property
    def timeouts(self) -> Timeouts:
        """The times."""
        return self.sight.timeouts


Finding = Callable[[Case], str | None]
"""The evidence in words, or None if it is not there."""


@dataclass(frozen=True, slots=True)
class VerdictRule:
    """One row: which evidence leads to which verdict."""

    id: str
    kind: VerdictKind
    comment: str
    find: Finding


def judge(about: Member, epoch: int, sight: Sight) -> Verdict:
    """The verdict of an observer on another node."""
    case = Case(about, sight, sight.vitals, sight.agent_age_ms or 0)
    return _first(OTHERS, case, epoch, readings_of(sight))


def judge_own(
    about: Member, epoch: int, status: ServerStatus, seen_alive: bool, sight: Sight, *, yielding: bool = False
) -> Verdict:
    """The leader's own agent knows first when its process is gone. Not started yet, or stopped on purpose, is not."""

    def verdict(rule: str, kind: VerdictKind, evidence: str) -> Verdict:
        return Verdict(about, epoch, kind, evidence, rule, readings)

    case = Case(about, sight, sight.own, 0)
    found = own_readings(sight.own, 0, sight.thresholds) if sight.own is not None else []
    readings = tuple(r for r in found if r is not None)
    if status is ServerStatus.STOPPED and not seen_alive:
        return verdict("verdict.not-started", VerdictKind.UNKNOWN, "the own PostgreSQL has not been started yet")
    if status is ServerStatus.STOPPED and yielding:
        return verdict("verdict.handing-over", VerdictKind.UNKNOWN, "the own PostgreSQL was stopped for a switchover")
    if status in (ServerStatus.STOPPED, ServerStatus.ABSENT):
        return verdict("verdict.process-gone", VerdictKind.DEAD, "the own PostgreSQL is gone")
    return _first(INSIDE, case, epoch, readings)


def _first(rules: tuple[VerdictRule, ...], case: Case, epoch: int, readings: tuple[Reading, ...]) -> Verdict:
    for rule in rules:
        words = rule.find(case)
        if words is not None:
            room = rule.kind is VerdictKind.DISK_FULL and case.sight.room_elsewhere
            return Verdict(case.about, epoch, rule.kind, words, rule.id, readings, room)
    raise AssertionError("the last rule always finds something")


def has_room_elsewhere(leader: Vitals | None, others: list[Vitals | None], thresholds: Thresholds) -> bool:
    """Whether a standby is known to have room on a disk that is not the leader's.

    A disk that two machines share over a network looks like two: only what is on one machine can be told.
    """
    taken = {s.file_system for s in _spaces(leader)}
    return any(
        spaces and all(s.file_system not in taken and s.free_bytes >= thresholds.disk_low_bytes for s in spaces)
        for spaces in map(_spaces, others)
    )


def verdict_rules() -> tuple[VerdictRule, ...]:
    """All rules, each once, in the order in which they are tried."""
    return tuple({rule.id: rule for rule in (*OTHERS, *INSIDE)}.values())


# ---- what is looked for -----------------------------------------------------------------------------------------


def _other_directory(case: Case) -> str | None:
    report = case.sight.agent.report
    if not case.sight.agent_is_fresh or report is None or report.member in (None, case.about):
        return None
    return "its agent has another data directory"


def _says_stopped(case: Case) -> bool:
    report = case.sight.agent.report
    stopped = (ServerStatus.STOPPED, ServerStatus.ABSENT)
    return case.sight.agent_is_fresh and report is not None and report.status in stopped


def _not_started(case: Case) -> str | None:
    s = case.sight
    seen_alive = max(s.agent.primary_ms or 0, s.sql.answered_ms or 0) >= s.since_ms
    if _says_stopped(case) and not seen_alive and s.now_ms - s.since_ms < case.timeouts.hung_ms:
        return "its PostgreSQL has not been started yet"
    return None


def _handing_over(case: Case) -> str | None:
    report = case.sight.agent.report
    if _says_stopped(case) and report is not None and report.duty == YIELDING:
        return "its agent has stopped it for a switchover"
    return None


def _process_gone(case: Case) -> str | None:
    return "its agent says that PostgreSQL is gone" if _says_stopped(case) else None


def _refused(case: Case) -> str | None:
    agent, sql = case.sight.agent, case.sight.sql
    if _closed(agent.refused_ms, agent.answered_ms) and _closed(sql.refused_ms, sql.answered_ms):
        return "its host refuses connections to PostgreSQL and to the agent"
    return None


def _silence(case: Case) -> str | None:
    s = case.sight
    heard_ms = s.now_ms - s.replication_age_ms if s.replication_age_ms is not None else 0
    signs_ms = (s.agent.answered_ms, s.sql.answered_ms, s.sql.held_ms, heard_ms, s.since_ms, s.awake_since_ms)
    silent_ms = s.now_ms - max(ms or 0 for ms in signs_ms)
    return f"no answer on any path for {silent_ms} ms" if silent_ms >= case.timeouts.silence_ms else None


def _starting(case: Case) -> str | None:
    report = case.sight.agent.report
    if case.sight.is_candidate and report is not None and report.status is ServerStatus.STARTING:
        return "is starting; the phase's time-out decides"
    return None


def _disk_full(case: Case) -> str | None:
    v = case.vitals
    if v is None:
        return None
    for error in (v.local.error, v.quorum.error):
        if error is not None and any(words in error for words in _NO_SPACE):
            return f"a write fails: {error}"
    for what, space in (("data", v.data_space), ("log", v.log_space)):
        if space is not None and space.free_bytes < case.sight.thresholds.disk_full_bytes:
            return f"{space.free_bytes // 1024:,} kB are left for its {what}"
    return None


def _waits_ms(case: Case) -> int:
    return 0 if case.vitals is None else pending_ms(case.vitals.local, case.age_ms)


def _log_moves(case: Case, within_ms: int) -> bool:
    v = case.vitals
    return v is not None and v.log_age_ms is not None and v.log_age_ms + case.age_ms < within_ms


def _storage_stands_still(case: Case, v: Vitals) -> str | None:
    """Commit, the agent's own write and the device itself: none of them moves. A slow disk moves one of them.

    Of the device counts only what was watched; its next write may have been completed since the report.
    """
    limit_ms = case.timeouts.storage_certain_ms
    if min(_waits_ms(case), v.disk_still_ms or 0) < limit_ms or v.storage_pending_ms is None:
        return None
    written_ms = v.storage_pending_ms + case.age_ms
    if written_ms < limit_ms or _log_moves(case, limit_ms):
        return None
    return (
        f"no commit for {_waits_ms(case)} ms, nor a small write to its disk for {written_ms} ms, "
        f"and the device has completed no write for {v.disk_still_ms} ms"
    )


def _storage_stalled(case: Case) -> str | None:
    v, waits_ms, limit_ms = case.vitals, _waits_ms(case), case.timeouts.storage_stall_ms
    if v is None:
        return None
    still = _storage_stands_still(case, v)
    if still is not None:
        return still
    if waits_ms < limit_ms or _log_moves(case, limit_ms):
        return None
    if v.storage_ms is not None and v.storage_ms + case.age_ms >= limit_ms:
        return f"no commit for {waits_ms} ms, and a small write to its disk has taken {v.storage_ms + case.age_ms} ms"
    if v.log_waits:
        return f"no commit for {waits_ms} ms, and {v.log_waits} sessions wait for its disk to take the log"
    return None


def _no_commit(case: Case) -> str | None:
    waits_ms = _waits_ms(case)
    if waits_ms < case.timeouts.hung_ms or _log_moves(case, case.timeouts.hung_ms):
        return None
    return f"PostgreSQL has committed nothing for {waits_ms} ms"


def _no_session_ms(case: Case) -> int:
    s = case.sight
    return s.now_ms - max(s.sql.answered_ms or 0, s.since_ms, s.awake_since_ms)


def _commits_go_on(case: Case) -> bool:
    """Whether the primary is known to commit, from whatever side."""
    v, own, limit_ms = case.vitals, case.sight.own, case.timeouts.hung_ms
    ages_ms = [v.local.age_ms + case.age_ms] if v is not None and v.local.age_ms is not None else []
    ages_ms += [own.local_seen_age_ms] if own is not None and own.local_seen_age_ms is not None else []
    return _log_moves(case, limit_ms) or any(ms < limit_ms for ms in ages_ms)


def _is_slow(case: Case) -> str | None:
    """What is slow about a primary that answers."""
    v, sql, t = case.vitals, case.sight.sql, case.timeouts
    if v is not None:
        if _waits_ms(case) >= t.slow_commit_ms:
            return f"a commit has been under way for {_waits_ms(case)} ms"
        if (v.local.latency_ms or 0) >= t.slow_commit_ms:
            return f"a commit took {v.local.latency_ms} ms"
        full = v.sessions is not None and v.sessions_max
        if full and 100 * (v.sessions or 0) >= case.sight.thresholds.sessions_percent * (v.sessions_max or 0):
            return f"{v.sessions} of {v.sessions_max} sessions are taken"
    if (sql.held_latency_ms or 0) >= t.slow_session_ms:
        return f"a session answered after {sql.held_latency_ms} ms"
    if sql.latency_ms is not None and sql.latency_ms >= t.slow_session_ms:
        return f"a new session took {sql.latency_ms} ms"
    return None


def _crowded_out(case: Case) -> str | None:
    if _no_session_ms(case) < case.timeouts.hung_ms or not _commits_go_on(case):
        return None
    slow = _is_slow(case)
    return None if slow is None else f"no new session for {_no_session_ms(case)} ms, but it commits; {slow}"


def _no_session(case: Case) -> str | None:
    ms = _no_session_ms(case)
    return f"PostgreSQL accepts no session for {ms} ms" if ms >= case.timeouts.hung_ms else None


def _standbys_at_fault(case: Case) -> str | None:
    v = case.vitals
    waits_ms = 0 if v is None else pending_ms(v.quorum, case.age_ms)
    if v is None or waits_ms < case.timeouts.standbys_fault_ms or v.local.age_ms is None:
        return None
    if v.local.age_ms + case.age_ms >= case.timeouts.standbys_fault_ms:
        return None
    return f"it commits by itself, but its standbys have confirmed nothing for {waits_ms} ms"


def _unseen(case: Case) -> str | None:
    unseen = case.sight.sql.answered_ms is None and case.sight.agent.answered_ms is None
    return "not observed yet" if unseen else None


def _answers(case: Case) -> str:
    sql, heard_ms = case.sight.sql, case.sight.replication_age_ms
    session = None if sql.latency_ms is None else f"a new session took {sql.latency_ms} ms"
    heard = None if heard_ms is None else f"heard through replication {heard_ms} ms ago"
    return "; ".join(words for words in ("answers", session, heard) if words is not None)


def _runs(case: Case) -> str:
    latency_ms = case.vitals.local.latency_ms if case.vitals is not None else None
    return "the own PostgreSQL runs" + ("" if latency_ms is None else f"; its last commit took {latency_ms} ms")


def _closed(refused_ms: int | None, answered_ms: int | None) -> bool:
    return refused_ms is not None and refused_ms > (answered_ms or 0)


def _spaces(vitals: Vitals | None) -> list[Space]:
    return [s for s in (vitals.data_space, vitals.log_space) if s is not None] if vitals is not None else []


_K = VerdictKind
_MEASURED = (
    VerdictRule("verdict.disk-full", _K.DISK_FULL, "a write fails for want of room, or hardly any is left", _disk_full),
    VerdictRule(
        "verdict.storage-stall", _K.STORAGE_STALLED, "nothing is committed, and the disk holds it up", _storage_stalled
    ),
    VerdictRule("verdict.no-commit", _K.HUNG, "nothing is committed, and the log does not move", _no_commit),
)
_SICK = (
    VerdictRule("verdict.standbys", _K.STANDBYS_AT_FAULT, "local commits go on; none is confirmed", _standbys_at_fault),
    VerdictRule("verdict.slow", _K.OVERLOADED, "slow, but it makes progress", _is_slow),
)

OTHERS: tuple[VerdictRule, ...] = (
    VerdictRule("verdict.other-directory", _K.DEAD, "the directory that led is gone", _other_directory),
    VerdictRule("verdict.not-started", _K.UNKNOWN, "its agent is about to start it", _not_started),
    VerdictRule("verdict.handing-over", _K.UNKNOWN, "stopped on purpose, for a switchover", _handing_over),
    VerdictRule("verdict.process-gone", _K.DEAD, "its own agent says so", _process_gone),
    VerdictRule("verdict.refused", _K.DEAD, "the host is there, PostgreSQL and agent are not", _refused),
    VerdictRule("verdict.silence", _K.UNREACHABLE, "nothing heard on any path", _silence),
    VerdictRule("verdict.starting", _K.HEALTHY, "a candidate may take its time to recover", _starting),
    *_MEASURED,
    VerdictRule("verdict.crowded-out", _K.OVERLOADED, "no new session, but slow commits go on", _crowded_out),
    VerdictRule("verdict.no-session", _K.HUNG, "no new session gets an answer", _no_session),
    *_SICK,
    VerdictRule("verdict.unseen", _K.UNKNOWN, "not observed for long enough", _unseen),
    VerdictRule("verdict.answers", _K.HEALTHY, "it answers", _answers),
)
"""What an observer holds of another node."""

INSIDE: tuple[VerdictRule, ...] = (
    *_MEASURED,
    *_SICK,
    VerdictRule("verdict.runs", _K.HEALTHY, "the leader's own agent sees it run", _runs),
)
"""What the leader's own agent holds of it."""
