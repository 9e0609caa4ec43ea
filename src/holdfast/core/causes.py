"""Why it may have happened, with the evidence for it, and what would make the next time better.

Candidates, not verdicts: the evidence is what observers saw before the primary was lost, and it is shown beside each.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import NamedTuple

from pydantic import JsonValue

from holdfast.core.story import Story, changes_in_words
from holdfast.core.symptoms import Sign, signs_of
from holdfast.core.words import duration
from holdfast.model.event import Event
from holdfast.model.register import Quorum
from holdfast.model.report import VerdictKind

RECENT_MS = 15 * 60 * 1000
"""A change of settings counts as a candidate for this long."""
CPU_WAITS_PERCENT, IO_WAITS_PERCENT, MEMORY_WAITS_PERCENT = 60.0, 50.0, 10.0
"""Of ten seconds, in which something waited (/proc/pressure, "some"): from here on it is worth a look."""
SESSIONS_PERCENT = 90.0
_EVIDENCE_MAX = 6


@dataclass(frozen=True, slots=True)
class Candidate:
    """One thing that may have caused it. ``evidence`` says who saw what; ``look_at`` is where to find out more."""

    what: str
    evidence: tuple[str, ...]
    look_at: str = ""


@dataclass(frozen=True, slots=True)
class Guardrail:
    """Something to change or to prove; ``command`` can be typed as it stands, if there is one."""

    what: str
    command: str = ""


class _Reason(NamedTuple):
    what: str
    look_at: str
    drill: str


_REASONS = {
    "verdict.process-gone": _Reason(
        "its PostgreSQL ended: a crash, the kernel's out-of-memory killer, or a person",
        "the end of PostgreSQL's log on {old}, and `journalctl -k` there for killed processes",
        "primary-crash",
    ),
    "verdict.refused": _Reason(
        "its PostgreSQL and its agent were gone while the host was there: a reboot, or processes that were ended",
        "`last -x` and `journalctl -b -1` on {old}",
        "host-loss",
    ),
    "verdict.other-directory": _Reason(
        "its data directory was replaced by another one", "who changed disks or directories on {old}", "lost-disk"
    ),
    "verdict.silence": _Reason(
        "its host, its network or its power failed: nothing was heard of it on any path",
        "the console of {old}, its switch ports, and `journalctl -k -b -1` there",
        "power-loss",
    ),
    "verdict.disk-full": _Reason(
        "there was no room left on its disk",
        "what grew there: log kept for a standby or an archive that is stuck, temporary files, data",
        "disk-full",
    ),
    "verdict.storage-stall": _Reason(
        "its disk took no more writes",
        "`journalctl -k` on {old} for its device, and the storage below it (limits of a volume, a path that failed)",
        "storage-stall",
    ),
    "verdict.no-commit": _Reason(
        "its PostgreSQL committed nothing, and its disk was not seen to be why",
        "what PostgreSQL's processes on {old} waited for, in its log",
        "database-freeze",
    ),
    "verdict.no-session": _Reason(
        "its PostgreSQL let nobody in any more, though its host answered",
        "PostgreSQL's log on {old}; a stopped or starved postmaster",
        "postmaster-freeze",
    ),
}
_LESS = {VerdictKind.OVERLOADED.value, VerdictKind.STANDBYS_AT_FAULT.value, VerdictKind.DISK_FULL.value}
"""Verdicts that open no epoch, or need not, and may tell why a later one did."""


def causes_of(story: Story, own: Sequence[Event], before: Sequence[Event]) -> tuple[Candidate, ...]:
    """Candidates, the likeliest first; ``own`` is the incident's part of the journal, ``before`` what precedes it."""
    opened = [e for e in own if e.kind == "epoch.opened"]
    against = [e for e in own if e.kind == "verdict.changed" and e.time_ms <= opened[0].time_ms]
    return (
        *_asked_for(story, own),
        *_by_verdict(story, against),
        *_by_symptoms(story, (*before, *own)),
        *_by_load(against),
        *_slow_before(story, (*before, *own), against),
        *_changed_before(story, before),
    )


def _asked_for(story: Story, own: Sequence[Event]) -> Iterator[Candidate]:
    if story.switchover:
        begun = next(e for e in own if e.kind == "handover.begun")
        yield Candidate("it was asked for", (f"{begun.source} was told to hand over to {begun.detail.get('target')}",))


def _by_verdict(story: Story, against: Sequence[Event]) -> Iterator[Candidate]:
    by_rule: dict[str, list[Event]] = {}
    for event in against:
        if event.rule in _REASONS and event.detail.get("about") == story.old:
            by_rule.setdefault(event.rule, []).append(event)
    for rule, events in sorted(by_rule.items(), key=lambda item: -len(item[1])):
        reason = _REASONS[rule]
        evidence = tuple(f"{e.source}: {e.detail.get('evidence')}" for e in events)
        yield Candidate(reason.what, evidence, reason.look_at.format(old=story.old))


_SIGNS: dict[str, tuple[str, str]] = {
    Sign.LOCKS.value: (
        "sessions waited for each other's locks",
        "what that session does between its statements; idle_in_transaction_session_timeout and lock_timeout",
    ),
    Sign.LONG.value: ("statements ran for long", "`EXPLAIN` of them on {new}, and pg_stat_statements"),
    Sign.ALIKE.value: (
        "most of what was under way was one statement",
        "`EXPLAIN` of it on {new}; who sends it, and whether all of them at once",
    ),
    Sign.WHOLE_SCAN.value: (
        "a large table was read from end to end: an index may be missing",
        "`EXPLAIN` on {new} of the statements that name it",
    ),
    Sign.CHECKPOINT.value: (
        "a checkpoint kept the disk busy",
        "the lines of log_checkpoints in its log; max_wal_size and checkpoint_completion_target",
    ),
    Sign.MEMORY.value: ("memory ran out", "`free`, work_mem times sessions, swap, the limit of its cgroup"),
    Sign.RESTART.value: (
        "settings wait for a restart: they are in force since, if it came back",
        "pg_settings where pending_restart, and who changed them",
    ),
}
"""What a sign of `core.symptoms` may mean, and where to look."""


def _by_symptoms(story: Story, events: Sequence[Event]) -> Iterator[Candidate]:
    """What the old primary noted of itself when its trouble began."""
    said: dict[str, dict[str, None]] = {}
    for sign, words in _signs_before(story, events):
        said.setdefault(sign, {})[words] = None
    for sign, (what, look_at) in _SIGNS.items():
        if sign in said:
            yield Candidate(what, tuple(said[sign])[:_EVIDENCE_MAX], look_at.format(new=story.new or "a standby"))


def _signs_before(story: Story, events: Sequence[Event]) -> Iterator[tuple[str, str]]:
    """Signs with who saw what and when, of the old primary, until another one served."""
    since_ms, until_ms = story.began_at_ms - RECENT_MS, story.began_at_ms + (story.serving_ms or RECENT_MS)
    for event in events:
        if event.kind == "primary.troubled" and event.source == story.old and since_ms <= event.time_ms <= until_ms:
            ago = _before(story.began_at_ms - event.time_ms)
            for sign, says in signs_of(event.detail.get("symptoms")):
                yield sign, f"{event.source}, {ago}: {says}"


def _before(ms: float) -> str:
    return f"{duration(ms)} before" if ms > 0 else f"{duration(-ms)} after the first sign"


_PRESSURES = (
    ("cpu_waits_percent", CPU_WAITS_PERCENT, "the processor was short", "what ran there: `ps`, pg_stat_statements"),
    ("io_waits_percent", IO_WAITS_PERCENT, "the disk was busy", "`iostat -x`, checkpoints and vacuum in the log"),
    ("memory_waits_percent", MEMORY_WAITS_PERCENT, "memory was short", "`free`, work_mem times sessions, swap"),
    ("sessions_percent", SESSIONS_PERCENT, "nearly all sessions were taken", "pools of the applications"),
)


def _by_load(against: Sequence[Event]) -> Iterator[Candidate]:
    for name, limit, what, look_at in _PRESSURES:
        seen = [(e, reading) for e in against for reading in _readings(e) if _figure(reading, name) >= limit]
        if seen:
            event, reading = max(seen, key=lambda pair: _figure(pair[1], name))
            yield Candidate(what, (f"{event.source}: {reading.get('says')}",), look_at)


def _slow_before(story: Story, events: Sequence[Event], against: Sequence[Event]) -> Iterator[Candidate]:
    since_ms, until_ms = story.began_at_ms - RECENT_MS, max((e.time_ms for e in against), default=story.began_at_ms)
    seen = [
        e
        for e in events
        if e.kind == "verdict.changed"
        and since_ms <= e.time_ms <= until_ms
        and e.detail.get("verdict") in _LESS
        and e.detail.get("about") == story.old
        and e.rule not in {a.rule for a in against if a.rule in _REASONS}
    ]
    if seen:
        said = tuple(
            f"{e.source}, {duration(max(0.0, story.began_at_ms - e.time_ms))} before: {e.detail.get('evidence')}"
            for e in seen[-3:]
        )
        yield Candidate("it was not well before it was lost", said, "what began at that time")


def _changed_before(story: Story, before: Sequence[Event]) -> Iterator[Candidate]:
    said: list[str] = []
    for event in before:
        if event.kind == "policy.changed" and story.began_at_ms - event.time_ms <= RECENT_MS:
            changes = event.detail.get("changes")
            words = changes_in_words(changes) if isinstance(changes, dict) else str(changes)
            words += f", by {event.detail['by']}" if "by" in event.detail else ""
            ago = duration(story.began_at_ms - event.time_ms)
            said.append(f"{ago} before: {words}")
    if said:
        yield Candidate("the policy was changed shortly before", tuple(said[-_EVIDENCE_MAX:]), "`holdfast history`")


def _readings(event: Event) -> list[Mapping[str, JsonValue]]:
    readings = event.detail.get("readings")
    return [r for r in readings if isinstance(r, dict)] if isinstance(readings, list) else []


def _figure(reading: Mapping[str, JsonValue], name: str) -> float:
    figures = reading.get("figures")
    value = figures.get(name) if isinstance(figures, dict) else None
    return float(value) if isinstance(value, int | float) else 0.0


# ---- what to change -----------------------------------------------------------------------------------------------


def guardrails_for(
    story: Story, own: Sequence[Event], before: Sequence[Event] = (), *, refused: int, unknown: int = 0
) -> tuple[Guardrail, ...]:
    """What would make the next time better.

    ``refused`` statements waited in vain, of ``unknown`` ones their clients do not know what became.
    """
    return (
        *_for_commits(own),
        *_for_clients(refused, unknown),
        *_for_load(story, (*before, *own)),
        *_for_standbys(story, own),
        *_to_be_proved(story, own),
    )


def _for_commits(own: Sequence[Event]) -> Iterator[Guardrail]:
    opened = [Quorum.parse(str(e.detail.get("quorum", ""))) for e in own if e.kind == "epoch.opened"]
    if any(quorum is not None and quorum.k == 0 for quorum in opened):
        yield Guardrail(
            "Commits were local, so that what was acknowledged last could be lost: let a standby confirm them",
            "holdfast policy set durability=strict",
        )


def _for_clients(refused: int, unknown: int) -> Iterator[Guardrail]:
    if refused:
        yield Guardrail("Statements were refused that could have waited: raise `timeouts.hold_max_ms` of the proxies")
    if unknown:
        yield Guardrail(
            "Clients were not told what became of their commits: let the proxies find out for them, if they do not yet",
            "holdfast policy set commit_guard=true",
        )


_TOO_MUCH = {Sign.LONG.value, Sign.ALIKE.value, Sign.WHOLE_SCAN.value}


def _for_load(story: Story, events: Sequence[Event]) -> Iterator[Guardrail]:
    signs = {sign for sign, _ in _signs_before(story, events)}
    verdicts = {e.detail.get("verdict") for e in events if _is_recent_verdict(story, e)}
    if signs & _TOO_MUCH or VerdictKind.OVERLOADED.value in verdicts:
        yield Guardrail(
            "More came at once than the server bears: let the proxies find how much that is, if they do not yet",
            "holdfast policy set statements_adaptive=true",
        )
    if Sign.LOCKS.value in signs:
        yield Guardrail(
            "A session kept locks that others waited for: set `idle_in_transaction_session_timeout` and `lock_timeout` "
            "for its role (ALTER ROLE … SET)"
        )


def _is_recent_verdict(story: Story, event: Event) -> bool:
    is_about_old = event.kind == "verdict.changed" and event.detail.get("about") == story.old
    return is_about_old and story.began_at_ms - event.time_ms <= RECENT_MS


def _for_standbys(story: Story, own: Sequence[Event]) -> Iterator[Guardrail]:
    kinds = {e.kind for e in own}
    if "rewind.failed" in kinds:
        yield Guardrail(
            "The old primary could not be rewound and was copied anew: keep more log (`wal_keep_size` in "
            "`postgres.parameters`)"
        )
    if story.old is not None and story.new not in (None, story.old) and story.old_back_ms is None:
        yield Guardrail(f"{story.old} is not back: until it is, there is one standby less", "holdfast status")
    served = [Quorum.parse(str(e.detail.get("quorum", ""))) for e in own if e.kind == "epoch.serving"]
    if served and served[-1] is not None and 0 < len(served[-1].members) == served[-1].k and not story.old_back_ms:
        yield Guardrail("No standby could be spared afterwards: have one more of them", "holdfast forecast")


def _to_be_proved(story: Story, own: Sequence[Event]) -> Iterator[Guardrail]:
    if story.switchover:
        return
    rules = [e.rule for e in own if e.kind == "verdict.changed" and e.rule in _REASONS]
    drill = _REASONS[rules[0]].drill if rules and rules[0] is not None else "primary-crash"
    yield Guardrail("Prove that it goes as well the next time, on a cluster of its own", f"holdfast drill run {drill}")
