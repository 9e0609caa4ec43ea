"""What one observer knows of the primary, as one value, and how it is told to people (docs/protocol.md, "Verdicts")."""

from __future__ import annotations

from dataclasses import dataclass

from holdfast.core.observation import Peer
from holdfast.model.report import ProxySight, Reading, Source
from holdfast.model.thresholds import Thresholds
from holdfast.model.timeouts import Timeouts
from holdfast.model.vitals import Commits, Vitals

MEGABYTE = 1024 * 1024
_SOON_MS = 200
"""A heartbeat row that has been under way for less is not worth a word."""
_DEFAULTS = Thresholds()
_NOTHING_HEARD = Peer()


@dataclass(frozen=True, slots=True)
class Probe:
    """What the observer's own sessions on the primary met, and when (monotonic)."""

    answered_ms: int | None = None
    refused_ms: int | None = None
    latency_ms: int | None = None
    """What the last fresh session that was answered took."""
    tried_ms: int | None = None
    held_ms: int | None = None
    """When a session that was opened earlier last answered."""
    held_latency_ms: int | None = None


_NOTHING_TRIED = Probe()


@dataclass(frozen=True, slots=True)
class Sight:
    """Everything that one observer has on the one that leads. ``since_ms``: when it began to observe it."""

    now_ms: int
    since_ms: int
    timeouts: Timeouts
    thresholds: Thresholds = _DEFAULTS
    agent: Peer = _NOTHING_HEARD
    sql: Probe = _NOTHING_TRIED
    own: Vitals | None = None
    """What the observer measures on its own node: of a standby, what it receives."""
    proxies: tuple[ProxySight, ...] = ()
    room_elsewhere: bool = False
    is_candidate: bool = False
    awake_since_ms: int = 0
    """When the observer last went on after a sleep in which it could hear nobody; 0 if it never slept."""

    @property
    def agent_age_ms(self) -> int | None:
        """Since the primary's agent last answered."""
        return None if self.agent.answered_ms is None else self.now_ms - self.agent.answered_ms

    @property
    def agent_is_fresh(self) -> bool:
        """Whether the agent's word is one of now."""
        age_ms = self.agent_age_ms
        return self.agent.report is not None and age_ms is not None and age_ms <= fresh_ms(self.timeouts)

    @property
    def vitals(self) -> Vitals | None:
        """What the agent measured, while its word is one of now."""
        return self.agent.report.vitals if self.agent_is_fresh and self.agent.report is not None else None

    @property
    def replication_age_ms(self) -> int | None:
        """Since the observer's own standby heard of the primary."""
        return self.own.upstream_age_ms if self.own is not None else None


def fresh_ms(timeouts: Timeouts) -> int:
    """How old a peer's answer may be and still count as its word of now."""
    return 2 * timeouts.heartbeat_interval_ms + timeouts.peer_timeout_ms


def pending_ms(commits: Commits, word_age_ms: int) -> int:
    """For how long a heartbeat row has been waiting, given the age of the report that says so; 0 if none is."""
    return 0 if commits.pending_ms is None else commits.pending_ms + word_age_ms


def readings_of(sight: Sight) -> tuple[Reading, ...]:
    """All evidence there is, in the order in which people want it."""
    found = [_agent(sight), _fresh(sight), _held(sight)]
    vitals, age_ms = sight.vitals, sight.agent_age_ms or 0
    if vitals is not None:
        found += own_readings(vitals, age_ms, sight.thresholds)
    if sight.own is not None and sight.own.upstream_age_ms is not None:
        found.append(_replication(sight.own))
    for proxy in sight.proxies:
        waiting = f", {proxy.clients_waiting} clients wait" if proxy.clients_waiting else ""
        found.append(Reading(Source.PROXY, max(0, sight.now_ms - proxy.heard_ms), f"{proxy.outcome.value}{waiting}"))
    return tuple(r for r in found if r is not None)


def own_readings(vitals: Vitals, age_ms: int, thresholds: Thresholds) -> list[Reading | None]:
    """What the primary's own agent measures."""
    return [
        _commits(Source.LOCAL_COMMIT, vitals.local, age_ms),
        _commits(Source.QUORUM_COMMIT, vitals.quorum, age_ms),
        _disk(vitals, age_ms, thresholds),
        _load(vitals, age_ms),
    ]


def _agent(sight: Sight) -> Reading:
    report, age_ms = sight.agent.report, sight.agent_age_ms
    if report is None or age_ms is None:
        refused = sight.agent.refused_ms
        said = "has not answered yet" if refused is None else "refuses connections"
        return Reading(Source.AGENT, None if refused is None else sight.now_ms - refused, said)
    if (sight.agent.refused_ms or 0) > (sight.agent.answered_ms or 0):
        return Reading(Source.AGENT, sight.now_ms - (sight.agent.refused_ms or 0), "refuses connections")
    return Reading(Source.AGENT, age_ms, f"says that PostgreSQL is {report.status.value}")


def _fresh(sight: Sight) -> Reading:
    sql = sight.sql
    if sql.refused_ms is not None and sql.refused_ms > (sql.answered_ms or 0):
        return Reading(Source.FRESH_SESSION, sight.now_ms - sql.refused_ms, "refused")
    if sql.answered_ms is None:
        return Reading(Source.FRESH_SESSION, None, "none has been answered yet")
    took = f" in {sql.latency_ms} ms" if sql.latency_ms is not None else ""
    return Reading(Source.FRESH_SESSION, sight.now_ms - sql.answered_ms, f"answered{took}")


def _held(sight: Sight) -> Reading | None:
    if sight.sql.held_ms is None:
        return None
    took = f" in {sight.sql.held_latency_ms} ms" if sight.sql.held_latency_ms is not None else ""
    return Reading(Source.HELD_SESSION, sight.now_ms - sight.sql.held_ms, f"answered{took}")


def _commits(source: Source, commits: Commits, age_ms: int) -> Reading | None:
    waiting_ms = pending_ms(commits, age_ms)
    if commits.error is not None:
        return Reading(source, age_ms, f"fails: {commits.error}")
    if waiting_ms > max(_SOON_MS, commits.latency_ms or 0):
        return Reading(source, age_ms, f"waiting for {waiting_ms} ms")
    if commits.age_ms is None:
        return None
    return Reading(source, commits.age_ms + age_ms, f"took {commits.latency_ms} ms")


def _replication(own: Vitals) -> Reading:
    seen = [
        f"{what} row {age_ms} ms old"
        for what, age_ms in (("local", own.local_seen_age_ms), ("quorum", own.quorum_seen_age_ms))
        if age_ms is not None
    ]
    return Reading(Source.REPLICATION, own.upstream_age_ms, "; ".join(["heard of the primary", *seen]))


def _disk(vitals: Vitals, age_ms: int, thresholds: Thresholds) -> Reading | None:
    parts, figures = [], {}
    for what, space in (("data", vitals.data_space), ("log", vitals.log_space)):
        if space is not None and (what == "data" or space != vitals.data_space):
            low = ", low" if space.free_bytes < thresholds.disk_low_bytes else ""
            parts.append(f"{what} {space.free_bytes // MEGABYTE:,} MB free{low}")
            figures[f"{what}_free_bytes"] = float(space.free_bytes)
    if vitals.storage_ms is not None:
        parts.append(f"a small write took {vitals.storage_ms} ms")
        figures["write_ms"] = float(vitals.storage_ms)
    return Reading(Source.DISK, age_ms, "; ".join(parts), figures) if parts else None


def _load(vitals: Vitals, age_ms: int) -> Reading | None:
    parts, figures = [], {}
    if vitals.sessions is not None:
        of = f" of {vitals.sessions_max}" if vitals.sessions_max else ""
        parts.append(f"{vitals.sessions}{of} sessions, {vitals.active_sessions or 0} active")
        figures["sessions_percent"] = 100 * vitals.sessions / vitals.sessions_max if vitals.sessions_max else 0.0
    if vitals.pressure is not None:
        p = vitals.pressure
        parts.append(f"waits for cpu {p.cpu:.0f} %, io {p.io:.0f} %, memory {p.memory:.0f} %")
        figures |= {"cpu_waits_percent": p.cpu, "io_waits_percent": p.io, "memory_waits_percent": p.memory}
    return Reading(Source.LOAD, age_ms, "; ".join(parts), figures) if parts else None
