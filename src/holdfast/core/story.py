"""What happened in each change of leadership, told from the journal: who saw what, who did what, by which rule."""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field

from pydantic import JsonValue

from holdfast.core.causality import in_order
from holdfast.core.explain import comment_of
from holdfast.core.symptoms import signs_of
from holdfast.model.event import Event
from holdfast.model.report import VerdictKind

SUSPICION_MAX_MS = 600_000
"""How long before an epoch was opened a verdict or a hand-over may have begun and still belong to it."""

_HEALTHY = {VerdictKind.HEALTHY.value, VerdictKind.UNKNOWN.value}


@dataclass(frozen=True, slots=True)
class Line:
    """One thing that happened. ``offset_ms`` counts from the first line; ``why`` is what its rule is for."""

    at_ms: float
    offset_ms: int
    who: str
    kind: str
    says: str
    rule: str | None
    why: str | None
    evidence: tuple[str, ...] = ()


@dataclass(frozen=True, slots=True)
class Story:
    """One change of leadership. Times are milliseconds after its first sign; None: it has not come to that."""

    switchover: bool
    epoch: int
    old: str | None
    new: str | None
    began_at_ms: float
    opened_ms: int | None
    chosen_ms: int | None
    promoted_ms: int | None
    serving_ms: int | None
    old_back_ms: int | None
    lines: tuple[Line, ...] = field(default=())

    @property
    def headline(self) -> str:
        """The story in one sentence."""
        what = "switchover" if self.switchover else "failover"
        if self.new is None or self.serving_ms is None:
            return f"A {what} away from {self.old or 'a lost primary'} has not ended yet (epoch {self.epoch})."
        took = f"{self.serving_ms} ms after its first sign"
        return f"The last {what}: {self.new} took over from {self.old or '?'} in epoch {self.epoch}, {took}."


def tell(events: Sequence[Event]) -> Story | None:
    """The last change of leadership in a journal (oldest first); None if there has been none."""
    told = stories(events)
    return told[-1] if told else None


def stories(events: Sequence[Event]) -> tuple[Story, ...]:
    """Every change of leadership in a journal, oldest first."""
    return tuple(story for story, _ in chapters(events))


def chapters(events: Sequence[Event]) -> tuple[tuple[Story, tuple[Event, ...]], ...]:
    """The stories, each with its part of the journal: from its first sign until that of the next."""
    ordered = in_order(events)
    begun = list(_beginnings(ordered))
    ends = [*(onset for _, _, onset in begun[1:]), len(ordered)][: len(begun)]
    found = []
    for (led, opened, onset), end in zip(begun, ends, strict=True):
        told = [e for i, e in enumerate(ordered[onset:end], onset) if _belongs(e, early=i < opened)]
        found.append((_story(told, led), tuple(ordered[onset:end])))
    return tuple(found)


def _beginnings(ordered: Sequence[Event]) -> Iterator[tuple[Event | None, int, int]]:
    """Of each change: who served before, where an epoch was opened for it, and where its first sign is.

    An epoch that had to be replaced before it served belongs to the change that it began.
    """
    led: Event | None = None
    start, is_open = 0, False
    for i, event in enumerate(ordered):
        if event.kind in ("epoch.serving", "cluster.created"):
            led, start, is_open = event, i + 1, False
        elif event.kind == "epoch.opened" and not is_open:
            is_open = True
            yield led, i, _onset(ordered, start, i)


def _onset(events: Sequence[Event], start: int, opened: int) -> int:
    """The first sign: where the row of doubts began that ended in the opening; else the opening itself."""
    onset, doubt_max_ms = opened, float(SUSPICION_MAX_MS)
    for i in range(opened - 1, start - 1, -1):
        event = events[i]
        if events[opened].time_ms - event.time_ms > doubt_max_ms or event.kind == "node.rejoined":
            break
        if event.kind == "failover.approved":
            doubt_max_ms = math.inf  # a person may take any time
        if event.kind == "verdict.changed" and event.detail.get("verdict") in _HEALTHY:
            break
        if event.kind in ("verdict.changed", "handover.begun"):
            onset = i
    return onset


_BEFORE_THE_EPOCH = ("verdict.changed", "handover.begun", "failover.approved", "postgres.stopped", "postgres.killed")


def _belongs(event: Event, *, early: bool) -> bool:
    if early:
        return event.kind in _BEFORE_THE_EPOCH
    if event.kind == "verdict.changed" and event.detail.get("verdict") in _HEALTHY:
        return False
    return event.kind in _WORDS


def _story(told: Sequence[Event], led: Event | None) -> Story:
    began_at_ms = told[0].time_ms
    opened = next(e for e in told if e.kind == "epoch.opened")
    served = next((e for e in told if e.kind == "epoch.serving" and e.time_ms >= opened.time_ms), None)
    old = str(led.detail.get("leader") or led.detail.get("node") or led.source) if led is not None else None

    def offset(kind: str, who: str | None = None) -> int | None:
        found = [e for e in told if e.kind == kind and who in (None, e.source) and e.time_ms >= opened.time_ms]
        return None if not found else round(found[0].time_ms - began_at_ms)

    return Story(
        switchover=any(e.kind == "handover.begun" for e in told if e.time_ms <= opened.time_ms),
        epoch=served.epoch if served is not None else max(e.epoch for e in told),
        old=old,
        new=str(served.detail.get("leader") or served.source) if served is not None else None,
        began_at_ms=began_at_ms,
        opened_ms=offset("epoch.opened"),
        chosen_ms=offset("candidate.chosen"),
        promoted_ms=offset("primary.promoted"),
        serving_ms=None if served is None else round(served.time_ms - began_at_ms),
        old_back_ms=offset("node.rejoined", old) if old is not None else None,
        lines=tuple(_line(e, began_at_ms) for e in told),
    )


def _line(event: Event, began_at_ms: float) -> Line:
    readings = event.detail.get("readings")
    evidence = map(_reading, readings) if isinstance(readings, list) else ()
    return Line(
        at_ms=event.time_ms,
        offset_ms=round(event.time_ms - began_at_ms),
        who=event.source,
        kind=event.kind,
        says=sentence_of(event),
        rule=event.rule,
        why=comment_of(event.rule) if event.rule is not None else None,
        evidence=(*evidence, *(says for _, says in signs_of(event.detail.get("symptoms")))),
    )


def sentence_of(event: Event) -> str:
    """An entry of the journal as a sentence without its subject; of a kind that has none, its details."""
    words = _Words(event)
    sentence = _WORDS.get(event.kind) or _WORDS_BESIDE.get(event.kind)
    if sentence is not None:
        return sentence.format_map(words)
    left_out = ("by", "address", "origin", "readings", "symptoms", "course")
    said = ", ".join(f"{name} {value}" for name, value in event.detail.items() if name not in left_out)
    return f"{said}{words['by_whom']}".strip()


def told(event: Event) -> str:
    """The same, where nothing else names the kind."""
    said = sentence_of(event)
    if event.kind in _WORDS or event.kind in _WORDS_BESIDE:
        return said
    return f"{event.kind}: {said}" if said else event.kind


def _reading(reading: JsonValue) -> str:
    if not isinstance(reading, dict):
        return str(reading)
    age = reading.get("age_ms")
    when = "" if age is None else f" ({age} ms before)"
    return f"{reading.get('source')}: {reading.get('says')}{when}"


def changes_in_words(changes: Mapping[str, JsonValue], before: str = "") -> str:
    """A change of the policy: ``durability = degrading, nodes.n2.priority = 10``."""
    said = []
    for name, value in changes.items():
        if isinstance(value, dict):
            said.append(changes_in_words(value, f"{before}{name}."))
        else:
            said.append(f"{before}{name} = {_as_typed(value)}")
    return ", ".join(said)


def _as_typed(value: JsonValue) -> str:
    """As people set it."""
    if isinstance(value, bool):
        return str(value).lower()
    return "unset" if value is None else str(value)


class _Words(dict[str, str]):
    """What an entry of the journal has, for the sentences below; what it lacks reads as "?"."""

    def __init__(self, event: Event) -> None:
        super().__init__({k: str(v) for k, v in event.detail.items() if not isinstance(v, list | dict)})
        self["epoch"] = str(event.epoch)
        self["started_as"] = "a standby" if event.detail.get("standby") else "a primary, closed"
        origin = f", from {self['origin']}" if "origin" in self else ""
        self["by_whom"] = f" by {self['by']}{origin} ({self['address']})" if "by" in self else ""
        changes = event.detail.get("changes")
        self["changed"] = changes_in_words(changes) if isinstance(changes, dict) else "?"
        self["how"] = "at once (fenced)" if event.detail.get("immediate") else "in good order"

    def __missing__(self, key: str) -> str:
        return "?"


_WORDS = {
    "verdict.changed": "holds {about} for {verdict}: {evidence}",
    "primary.troubled": "noted what its PostgreSQL did, because {why}",
    "handover.begun": "was asked to hand over to {target}{by_whom}",
    "policy.changed": "was given another policy{by_whom}: {changed}",
    "handover.cancelled": "gave the hand-over up",
    "epoch.opened": "opened epoch {epoch}: {reason}",
    "recruit.joined": "joined epoch {epoch}, following nobody; its log ends at {position} of timeline {timeline}",
    "candidate.chosen": "chose {candidate}: {reason}",
    "primary.promoted": "has left recovery on timeline {epoch}; it acknowledges nothing yet",
    "epoch.serving": "passed the barrier and serves: commits need {quorum}",
    "postgres.stopped": "stopped its PostgreSQL {how}",
    "postgres.killed": "killed its PostgreSQL",
    "postgres.started": "started its PostgreSQL as {started_as}",
    "upstream.set": "follows {upstream}",
    "rewind.begun": "takes back its log beyond the fork (it ended at {end}), with {source} as the source",
    "rewind.failed": "could not rewind: {reason}",
    "rewind.done": "has rewound its directory, and is the new member {incarnation}",
    "clone.begun": "copies the data of {source}",
    "clone.done": "has a copy of {source}'s data, and is the new member {incarnation}",
    "walsender.ended": "ended a broken connection of {node}, which kept it from connecting again",
    "node.rejoined": "is back: it streams from {upstream}",
    "clients.held": "had {held} statements wait, the longest for {longest_ms} ms; {refused} of them were refused, "
    "{unknown} have an unknown outcome, and {undone} transactions were undone",
    "suspect.accused": "suspects {suspect} of it, in flight in {sessions} sessions, for {ran_ms} ms at most "
    "({standing} from now on): {statement}",
    "suspect.released": "lets everybody run {suspect} again: {statement}",
    "suspect.judged": "passes a word on suspect {suspect} on{by_whom}: {verdict}",
    "breaker.opened": "only probes {node} now: {failures} connections in a row came to nothing",
    "breaker.closed": "uses {node} again, after {took_ms} ms",
    "outcomes.unknown": "names the clients of transactions that their server took with it: {unknown} with an unknown "
    "outcome, {undone} undone",
    "ramp.begun": "lets {limit} statements in at once, {percent} % of the usual {usual}: the new primary is cold",
    "ramp.step": "lets {limit} statements in at once, {percent} % of the usual {usual}; {waited} had to wait before",
    "ramp.ended": "lets everybody in again, after {took_ms} ms",
    "ramp.ordered": "passes an order for the ramp on{by_whom}: {order}",
    "log.accounted": "found {transactions} transactions ({lost_bytes} bytes) in its log beyond the fork at {fork}",
    "capture.done": "was captured before it was touched: {files} files, {bytes} bytes, in {took_ms} ms ({directory})",
    "capture.partial": "was captured before it was touched, and not all of it: {files} files, {bytes} bytes, in "
    "{took_ms} ms ({directory}); missing is {missing}",
    "capture.failed": "could not be captured before it was touched: {reason}",
    "capture.sent": "sent its capture to {to}: {files} files in {took_ms} ms",
    "capture.unsent": "could not send its capture to {to}, and tries again later: {reason}",
    "snapshot.done": "ran the command for a snapshot of its volume: {outcome}",
    "log.unaccounted": "could not list what lies in its log beyond the fork: {reason}",
    "rows.salvaged": "read {rows} rows of lost transactions",
    "rows.salvaged-in-part": "read {rows} rows of lost transactions, and not all: {missing}",
    "failover.approved": "has a person's approval for the failover{by_whom}",
    "isolation.begun": "let {kept_out} into its PostgreSQL no more, by {measures}",
    "isolation.lifted": "lets others in again ({measures}): {reason}",
    "isolation.failed": "could not {order} its isolation by {measure}: {reason}",
    "isolation.command": "ran the command to {order} the isolation of {node}: {outcome}",
    "fence.done": "ran the fencing command against {node}: {outcome}",
    "parity.checked": "compared what standbys have with the primary's{by_whom}: {outcome}",
    "incident.reported": "wrote the report of incident {incident}{by_whom}",
    "cluster.started": "started the cluster{by_whom}",
    "cluster.stopped": "stopped the cluster{by_whom}",
    "hook.done": "ran the hook for {role}: {outcome}",
    "alarm": "raises an alarm: {reason}",
    "violation": "met what no rule covers, and fenced itself: {reason}",
}
"""What each kind of entry means, to somebody who has not read the protocol. Kinds that are not here are left out."""
_WORDS_BESIDE = {
    "waiting": "waits: {reason}",
    "cluster.created": "made the cluster, with {node} as its first primary",
    "handover.planned": "was told to plan a hand-over to {target}{by_whom}",
    "handover.unplanned": "gave the planned hand-over up{by_whom}",
    "handover.missed": "did not hand over as planned: {reason}",
    "handover.refused": "did not hand over as planned: {reason}",
    "quorum.register": "put into the register that commits need {quorum}",
    "lease.revoked": "took back the lease of {holder}",
    "quorum.postgres": "waits for {quorum} before it acknowledges",
    "agent.stopped": "stopped",
}
"""The same of entries that are part of no story, for those who read the whole journal."""
