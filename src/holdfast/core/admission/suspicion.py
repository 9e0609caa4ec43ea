"""Which statements may have killed a primary: those that were in flight and are not what always is.

A look, about once a second, says what is in flight in ordinary times. When a primary is lost, what was in flight when
it last answered is compared with that. What came later only piled up before a server that was gone already.

Pure: ids stand for fingerprints, times are in milliseconds.
"""

from __future__ import annotations

import math
from collections import Counter, deque
from collections.abc import Collection, Iterable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from statistics import median, median_low
from typing import Final

from holdfast.model.suspect import Standing, Suspect, Verdict

LOOKS: Final = 600
"""What is usual is what was so in as many looks: about ten minutes."""
LOOKS_MIN: Final = 10
"""Fewer say nothing; then only what ran for long is suspected."""
SUSPECTS_MAX: Final = 8
"""At one loss; those that ran longest, in all their sessions together, come first."""
LONG_MS: Final = 1000
LONG_FACTOR: Final = 10.0
"""A usual statement is suspected if it ran so many times longer than it usually has when it is seen, as compared with
the others: if all are slow it is the server."""
SHARE_MORE: Final = 0.25
SHARE_FACTOR: Final = 2.0
"""Or if its share of all that was in flight was so many times the usual one, and higher by so much: if there is more of
everything it is the load."""
PRESENT_MS: Final = 50
"""What began so shortly after the last answer may still be the cause."""
AGES: Final = 50
"""Of each statement it is kept how long it had run when it was seen, so many times."""

RULES: Final = {
    "suspect.unusual": "it was in flight when the primary was lost, and hardly ever before",
    "suspect.long": "it had run far longer than usual when the primary was lost, and others had not",
    "suspect.share": "it was a far greater part than usual of what was in flight when the primary was lost",
    "suspect.again": "a second primary was lost while it was let in on trial",
    "suspect.harmless": "it ran to its end on the new primary, alone and then with others, while that stayed healthy",
    "suspect.person": "a person said so",
}
"""What each rule is for."""


@dataclass(frozen=True, slots=True)
class InFlight:
    """One session's statement; ``ran_ms`` is negative if it began after the primary's last answer."""

    id: str
    ran_ms: float


@dataclass(slots=True)
class Usual:
    """What is in flight in ordinary times."""

    looks: deque[Counter[str]] = field(default_factory=lambda: deque(maxlen=LOOKS))
    _ages: dict[str, deque[float]] = field(default_factory=dict)

    def look(self, seen: Collection[InFlight]) -> None:
        """What is in flight now, or an even sample of it; a look that sees nothing counts for nothing."""
        if not seen:
            return
        self.looks.append(Counter(one.id for one in seen))
        for one in seen:
            self._ages.setdefault(one.id, deque(maxlen=AGES)).append(one.ran_ms)
        if len(self._ages) > 2 * LOOKS:
            known = set().union(*self.looks)
            self._ages = {key: ages for key, ages in self._ages.items() if key in known}

    @property
    def is_known(self) -> bool:
        """Whether there were looks enough."""
        return len(self.looks) >= LOOKS_MIN

    def is_usual(self, key: str) -> bool:
        """Whether it was seen in half of the looks or more."""
        return self.is_known and 2 * sum(key in look for look in self.looks) >= len(self.looks)

    def share(self, key: str) -> float:
        """Its median part of what is in flight."""
        return median(look[key] / look.total() for look in self.looks) if self.looks else 0.0

    def age_ms(self, key: str) -> float:
        """How long it has usually run when it is seen."""
        ages = self._ages.get(key)
        return median(ages) if ages else 0.0


@dataclass(frozen=True, slots=True)
class Accusation:
    """Why one is suspected, with the evidence."""

    id: str
    rule: str
    sessions: int
    ran_ms: int


def accuse(in_flight: Iterable[InFlight], usual: Usual, on_trial: Collection[str] = ()) -> list[Accusation]:
    """Those to be suspected of a loss, the most suspicious first.

    ``on_trial`` are those that were suspects already and had been let in: they come first, and beyond the bound.
    """
    ran: dict[str, list[float]] = {}
    for one in in_flight:
        if one.ran_ms >= -PRESENT_MS:
            ran.setdefault(one.id, []).append(max(one.ran_ms, 0.0))
    total = sum(map(len, ran.values()))
    slowness = {key: max(times) / (usual.age_ms(key) + 1) for key, times in ran.items() if usual.is_usual(key)}
    typical = median_low(slowness.values()) if slowness else 1.0
    found: list[tuple[float, Accusation]] = []
    for key, times in ran.items():
        rule = _rule_for(key, times, len(times) / total, usual, slowness.get(key, 0.0), typical)
        if key in on_trial:
            rule = "suspect.again"
        if rule is not None:
            weight = math.inf if key in on_trial else sum(times)
            found.append((weight, Accusation(key, rule, len(times), round(max(times)))))
    found.sort(key=lambda pair: (-pair[0], pair[1].id))
    again = sum(accusation.rule == "suspect.again" for _, accusation in found)
    return [accusation for _, accusation in found[: again + SUSPECTS_MAX]]


def _rule_for(
    key: str, times: Sequence[float], share: float, usual: Usual, slowness: float, typical: float
) -> str | None:
    if not usual.is_usual(key):
        return "suspect.unusual" if usual.is_known or max(times) >= LONG_MS else None
    if max(times) >= LONG_MS and slowness >= LONG_FACTOR * max(typical, 1.0):
        return "suspect.long"
    usual_share = usual.share(key)
    return "suspect.share" if share >= max(SHARE_FACTOR * usual_share, usual_share + SHARE_MORE) else None


def accused(known: Suspect | None, text: str, by: Accusation, epoch: int, standing: Standing, at_ms: float) -> Suspect:
    """The record of a suspect after one proxy's accusation for the loss of ``epoch``'s primary.

    Several proxies may accuse the same one, in any order: the harder standing stays.
    """
    if known is None:
        known = Suspect(by.id, text, (), Standing.RELEASED, by.rule, 0, 0, at_ms)
    is_new = epoch not in known.epochs
    is_harder = is_new or (standing is Standing.REFUSED and known.standing is Standing.ALONE)
    stays_refused = known.standing is Standing.REFUSED
    sessions, ran_ms = (0, 0) if is_new else (known.sessions, known.ran_ms)
    known = replace(
        known,
        epochs=tuple(sorted({*known.epochs, epoch})),
        sessions=max(sessions, by.sessions),
        ran_ms=max(ran_ms, by.ran_ms),
    )
    if stays_refused or not is_harder:
        return known
    return replace(known, standing=standing, rule=by.rule, at_ms=at_ms)


def judged(known: Suspect, verdict: Verdict, at_ms: float) -> Suspect:
    """The record after a person's word."""
    standing = Standing.RELEASED if verdict is Verdict.RELEASE else Standing.REFUSED
    return replace(known, standing=standing, rule="suspect.person", at_ms=at_ms)


def proven(known: Suspect, at_ms: float) -> Suspect:
    """The record after one proxy has seen that it does no harm; what a person or a second loss said stays."""
    if known.standing is not Standing.ALONE:
        return known
    return replace(known, standing=Standing.RELEASED, rule="suspect.harmless", at_ms=at_ms)


def is_over(suspect: Suspect, at_ms: float, lasts_ms: float) -> bool:
    """Whether the record may be forgotten: nobody asked for the statement, or it was released, for so long."""
    return suspect.standing is not Standing.REFUSED and at_ms - suspect.at_ms >= lasts_ms


def held(suspects: Mapping[str, Suspect]) -> dict[str, Suspect]:
    """Those that may not simply run."""
    return {key: suspect for key, suspect in suspects.items() if suspect.is_held}
