"""An incident, for those who were asleep: what happened, what clients met, what was lost, why, and what to change.

Everything here is read from the journal and from the lists of lost transactions, so that it can be told again at any
time; what they do not say is said to be unknown. Nobody is blamed: a person's deed is a fact among others.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field, replace

from holdfast.core.causes import Candidate, Guardrail, causes_of, guardrails_for
from holdfast.core.cost import (
    ClassImpact,
    Cost,
    Losses,
    Objectives,
    cost,
    impact_by_class,
    in_words,
    reach_back_ms,
)
from holdfast.core.course import Course, together
from holdfast.core.losses import proof
from holdfast.core.phases import APPROVAL_MEANING, PHASE_MEANING, PHASES, approval_wait_ms, phase_durations
from holdfast.core.playbook import Scene, Standing, playbook
from holdfast.core.story import Story, chapters
from holdfast.core.whose import Whose, whose
from holdfast.core.words import amount, duration, plural
from holdfast.model.event import Event
from holdfast.model.lost import LostLog

_EVIDENCE = ("capture.done", "capture.partial", "capture.failed", "snapshot.done")


@dataclass(frozen=True, slots=True)
class Part:
    """One part of the way from the first sign to the first epoch that served."""

    name: str
    ms: float
    meaning: str


@dataclass(frozen=True, slots=True)
class Impact:
    """What clients met at the proxies, all of them together; ``longest_ms`` is the longest wait of one statement."""

    proxies: tuple[str, ...]
    held: int
    longest_ms: int
    refused: int
    unknown: int
    undone: int
    classes: tuple[ClassImpact, ...] = ()
    """By the class of the sessions; empty if the proxies did not tell."""
    course: Course | None = None
    """How it went, of all proxies that told."""


@dataclass(frozen=True, slots=True)
class Incident:
    """One change of leadership; its number is the epoch that ended it, or that has not ended it yet."""

    number: int
    story: Story
    parts: tuple[Part, ...]
    impact: Impact | None
    """None: no proxy has told."""
    losses: Losses
    causes: tuple[Candidate, ...]
    guardrails: tuple[Guardrail, ...]
    whose: Whose = field(default_factory=Whose)
    """The clients of transactions that a lost server took with it."""
    evidence: tuple[str, ...] = ()
    """What was taken of the failed node before anything touched it, and where it is; what could not be."""
    steps: tuple[Standing, ...] = ()
    """How far each step of the playbook is."""

    @property
    def stall_ms(self) -> int | None:
        """The stall: the longest wait of a client that is known, else from the first sign until writes were served."""
        waited_ms = self.impact.longest_ms if self.impact is not None else 0
        return waited_ms or self.story.serving_ms

    @property
    def summary(self) -> tuple[str, ...]:
        """The five lines to read."""
        return (_what(self.story), _time(self), _clients(self.impact), _lost(self.losses), _whole(self.story))


def incidents(
    events: Sequence[Event],
    accounts: Sequence[LostLog] = (),
    silent: Sequence[str] = (),
    now_ms: float | None = None,
) -> tuple[Incident, ...]:
    """Every change of leadership that the journal knows, oldest first; ``silent``: agents that gave no account.

    ``now_ms`` is Unix time; None: the time of the last entry.
    """
    told = chapters(events)
    now_ms = max((e.time_ms for e in events), default=0.0) if now_ms is None else now_ms
    ends = [*(story.began_at_ms for story, _ in told[1:]), now_ms]
    found = []
    for n, ((story, own), end_ms) in enumerate(zip(told, ends, strict=False)):
        incident = _incident(story, own, events, accounts, silent, _served_before([s for s, _ in told[:n]]))
        scene = Scene(story, own, events, incident.losses.proved, incident.losses.transactions, end_ms)
        found.append(replace(incident, steps=playbook(scene)))
    return tuple(found)


def _served_before(earlier: Sequence[Story]) -> int:
    return earlier[-1].epoch if earlier else 1


def _incident(
    story: Story,
    own: Sequence[Event],
    events: Sequence[Event],
    accounts: Sequence[LostLog],
    silent: Sequence[str],
    before: int,
) -> Incident:
    parts = _parts(story, own, before)
    impact = _impact(own, before)
    losses = _losses(story, events, accounts, silent, {e.epoch for e in own if e.kind == "epoch.opened"})
    earlier = [e for e in events if e.time_ms < story.began_at_ms]
    return Incident(
        number=story.epoch,
        story=story,
        parts=parts,
        impact=impact,
        losses=losses,
        causes=causes_of(story, own, earlier),
        guardrails=guardrails_for(
            story,
            own,
            earlier,
            refused=impact.refused if impact is not None else 0,
            unknown=impact.unknown if impact is not None else 0,
        ),
        whose=whose(own),
        evidence=tuple(f"{line.who} {line.says}." for line in story.lines if line.kind in _EVIDENCE),
    )


def _parts(story: Story, own: Sequence[Event], before: int) -> tuple[Part, ...]:
    durations = phase_durations(own, began_at_ms=story.began_at_ms, epoch_before=before)
    parts = [Part(name, durations[name], PHASE_MEANING[name]) for name in PHASES if name != "reroute"]
    waited_ms = min(approval_wait_ms(own, epoch_before=before), durations["detect"])
    if waited_ms:
        detect = replace(parts[0], ms=round(parts[0].ms - waited_ms, 3))
        parts[:1] = [detect, Part("approve", round(waited_ms, 3), APPROVAL_MEANING)]
    return tuple(parts)


def _impact(own: Sequence[Event], before: int) -> Impact | None:
    told = [e for e in own if e.kind == "clients.held" and e.epoch >= before]  # also who gave up before it was over
    if not told:
        return None

    def figures(name: str) -> list[int]:
        found = [e.detail.get(name) for e in told]
        return [int(value) for value in found if isinstance(value, int | float)]

    return Impact(
        proxies=tuple(sorted({e.source for e in told})),
        held=sum(figures("held")),
        longest_ms=max(figures("longest_ms"), default=0),
        refused=sum(figures("refused")),
        unknown=sum(figures("unknown")),
        undone=sum(figures("undone")),
        classes=impact_by_class(e.detail.get("classes") for e in told),
        course=together(c for e in told if (c := Course.from_detail(e.detail.get("course"))) is not None),
    )


def _losses(
    story: Story, events: Sequence[Event], accounts: Sequence[LostLog], silent: Sequence[str], opened: set[int]
) -> Losses:
    found = proof(events, accounts, silent, max(opened), only=opened)
    replaced = [a for a in accounts if not opened.isdisjoint(a.replaced_by)]
    lost = [t for a in replaced for t in a.of_clients]
    reach_ms = 0 if found.nothing_lost else reach_back_ms([t.committed_at for t in lost], story.began_at_ms)
    return Losses(found.nothing_lost, len(lost), found.doubts, reach_ms)


# ---- the five lines -----------------------------------------------------------------------------------------------


def _what(story: Story) -> str:
    old = story.old or "the primary"
    if story.switchover:
        return f"Somebody asked {old} to hand over; {story.new or 'nobody'} leads since."
    if story.new is None:
        return f"{old} was lost, and nobody has taken over yet."
    if story.new == old:
        return f"{old} was lost for a while, and leads again."
    return f"{old} was lost, and {story.new} took over."


def _time(incident: Incident) -> str:
    story = incident.story
    if story.serving_ms is None:
        return "It has not ended: no epoch has served since."
    slowest = max(incident.parts, key=lambda part: part.ms)
    served = f"From its first sign to an epoch that serves it took {duration(story.serving_ms)}"
    return f"{served}; the longest part was {slowest.name}, {duration(slowest.ms)}."


def _clients(impact: Impact | None) -> str:
    if impact is None:
        return "What clients met is not known: no proxy has told of statements that had to wait."
    said = f"{plural(impact.held, 'statement')} had to wait, the longest for {duration(impact.longest_ms)}"
    failed = [
        f"{amount(count)} {words}"
        for count, words in (
            (impact.refused, "refused"),
            (impact.unknown, "with an unknown outcome"),
            (impact.undone, "in transactions that were undone"),
        )
        if count
    ]
    return f"{said}; {', '.join(failed)}." if failed else f"{said}; none failed."


def _lost(losses: Losses) -> str:
    if losses.proved:
        return "Nothing that was acknowledged is lost: that is proved."
    if losses.transactions:
        return (
            f"{plural(losses.transactions, 'transaction')} did not make it; their clients may have been told of them."
        )
    return f"It is not proved that nothing is lost: {losses.doubts[0]}."


def _whole(story: Story) -> str:
    if story.old is None or story.new in (None, story.old):
        return "There is no other old primary to come back."
    if story.old_back_ms is None:
        return f"{story.old} is not back yet."
    return f"{story.old} was back as a standby after {duration(story.old_back_ms)}."


def against(objectives: Objectives, incident: Incident) -> tuple[str, ...]:
    """What stall and loss are worth, held against what was promised."""
    return in_words(objectives, cost_of(objectives, incident))


def cost_of(objectives: Objectives, incident: Incident) -> Cost:
    """What the incident took of what was promised."""
    classes = () if incident.impact is None else incident.impact.classes
    return cost(objectives, incident.stall_ms, incident.losses, classes)
