"""What an incident cost: its stall and its loss against what was promised, and for each class of sessions. Pure."""

from __future__ import annotations

import calendar
import re
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from typing import Final

from pydantic import JsonValue

from holdfast.core.words import amount, duration

MONTH_MS: Final = 30 * 24 * 3600 * 1000
"""What an availability objective is counted over."""
CLASS_HEAD: Final = ("class", "held", "refused", "failed", "longest wait", "of the error budget")
_AT: Final = re.compile(r"\A(\d+)-(\d\d)-(\d\d) (\d\d):(\d\d):(\d\d)(\.\d+)? UTC\Z")
_FIGURES: Final = frozenset(("held", "refused", "unknown", "undone", "longest_ms"))


@dataclass(frozen=True, slots=True)
class ClassImpact:
    """What the sessions of one class of traffic met at the proxies; ``longest_ms``: the longest wait of a statement."""

    name: str
    held: int = 0
    refused: int = 0
    unknown: int = 0
    undone: int = 0
    longest_ms: int = 0

    @property
    def failed(self) -> int:
        """Statements and transactions that were cut off."""
        return self.unknown + self.undone


@dataclass(frozen=True, slots=True)
class Losses:
    """``proved``: nothing that was acknowledged is lost; else ``doubts`` say why that is not proved.

    ``transactions``: how many the lists name, whose clients may have been told of them. ``reach_ms``: how long before
    the first sign the oldest of them was committed; None if that is not known.
    """

    proved: bool
    transactions: int
    doubts: tuple[str, ...] = ()
    reach_ms: int | None = None


@dataclass(frozen=True, slots=True)
class Objectives:
    """What was promised; None: nothing.

    ``rto_ms``: no stall is longer. ``rpo_ms``: what is lost reaches no further back. ``availability_percent``: the
    share of each 30 days without a stall and without writes that are lost afterwards; what it leaves is the budget.
    """

    rto_ms: int | None = None
    availability_percent: float | None = None
    rpo_ms: int | None = None


@dataclass(frozen=True, slots=True)
class ClassCost:
    """``budget_percent``: the part of the budget that the longest wait of the class took; None without a budget."""

    name: str
    rto_kept: bool | None
    budget_percent: float | None


@dataclass(frozen=True, slots=True)
class Cost:
    """Kept or not is None where nothing was promised, or it is not known; percentages are parts of ``budget_ms``.

    The stall is counted once, and the time whose writes are lost on top: they were acknowledged, and are not there.
    """

    stall_ms: int | None
    rto_kept: bool | None
    reach_ms: int | None
    rpo_kept: bool | None
    budget_ms: float | None
    stall_percent: float | None
    loss_percent: float | None
    classes: tuple[ClassCost, ...] = ()


def impact_by_class(told: Iterable[JsonValue]) -> tuple[ClassImpact, ...]:
    """The sum of what the proxies told of each class, by its name; what is no such account is passed over."""
    found: dict[str, ClassImpact] = {}
    for classes in told:
        for name, figures in classes.items() if isinstance(classes, dict) else ():
            if not isinstance(figures, dict):
                continue
            own = {k: int(v) for k, v in figures.items() if k in _FIGURES and isinstance(v, int | float)}
            one, sofar = ClassImpact(name, **own), found.get(name, ClassImpact(name))
            found[name] = ClassImpact(
                name,
                sofar.held + one.held,
                sofar.refused + one.refused,
                sofar.unknown + one.unknown,
                sofar.undone + one.undone,
                max(sofar.longest_ms, one.longest_ms),
            )
    return tuple(found[name] for name in sorted(found))


def reach_back_ms(committed_at: Sequence[str], first_sign_ms: float) -> int | None:
    """How long before the first sign the oldest of the lost commits was; None if there is none, or one cannot be read.

    ``committed_at`` are times as PostgreSQL wrote them, ``first_sign_ms`` is Unix time. One that is later than the
    first sign (clocks differ, and a cut-off primary goes on) reaches back by a millisecond: it is lost nevertheless.
    """
    times_ms = [_unix_ms(text) for text in committed_at]
    known = [ms for ms in times_ms if ms is not None]
    return max(1, round(first_sign_ms - min(known))) if known and len(known) == len(times_ms) else None


def _unix_ms(text: str) -> float | None:
    match = _AT.match(text)
    if match is None:
        return None
    return 1000 * (calendar.timegm(tuple(map(int, match.groups()[:6]))) + float(match[7] or 0))


def cost(objectives: Objectives, stall_ms: int | None, losses: Losses, classes: Sequence[ClassImpact] = ()) -> Cost:
    """What an incident took of what was promised."""
    availability = objectives.availability_percent
    budget_ms = None if availability is None else MONTH_MS * (100 - availability) / 100
    return Cost(
        stall_ms,
        _kept(stall_ms, objectives.rto_ms),
        losses.reach_ms,
        _kept(losses.reach_ms, objectives.rpo_ms),
        budget_ms,
        _percent(stall_ms, budget_ms),
        _percent(losses.reach_ms, budget_ms),
        tuple(
            ClassCost(c.name, _kept(c.longest_ms, objectives.rto_ms), _percent(c.longest_ms, budget_ms))
            for c in classes
        ),
    )


def _kept(ms: int | None, most_ms: int | None) -> bool | None:
    return None if ms is None or most_ms is None else ms <= most_ms


def _percent(ms: int | None, budget_ms: float | None) -> float | None:
    return None if ms is None or budget_ms is None else round(100 * ms / budget_ms, 3)


def in_words(objectives: Objectives, found: Cost) -> tuple[str, ...]:
    """The same for people: a line for each objective that there is and that something is known of."""
    said = []
    if found.rto_kept is not None and found.stall_ms is not None and objectives.rto_ms is not None:
        most = duration(objectives.rto_ms)
        said.append(f"A stall of {duration(found.stall_ms)} against at most {most}: {_verdict(found.rto_kept)}.")
    if objectives.rpo_ms is not None and found.stall_ms is not None:
        said.append(_loss_in_words(objectives.rpo_ms, found))
    if objectives.availability_percent is not None and found.budget_ms is not None and found.stall_ms is not None:
        took = f"this took {found.stall_percent:.1f} % of it"
        if found.reach_ms:
            took += f", and the time whose writes are lost {found.loss_percent:.1f} %"
        left = duration(found.budget_ms)
        said.append(f"{objectives.availability_percent:g} % of 30 days leave {left} a month; {took}.")
    return tuple(said)


def _loss_in_words(most_ms: int, found: Cost) -> str:
    promised = f"at most {duration(most_ms)}" if most_ms else "nothing"
    if found.reach_ms is None:
        return f"How far back what is lost reaches is not known; promised was {promised}."
    if found.reach_ms == 0:
        return f"Nothing that was acknowledged is lost, against {promised}: kept."
    reach = duration(found.reach_ms)
    return f"What is lost reaches {reach} back, against {promised}: {_verdict(bool(found.rpo_kept))}."


def _verdict(kept: bool) -> str:
    return "kept" if kept else "missed"


def class_rows(classes: Sequence[ClassImpact], found: Cost) -> list[tuple[str, str, str, str, str, str]]:
    """A table of what each class met, under CLASS_HEAD."""
    costs = {each.name: each for each in found.classes}
    return [
        (
            c.name,
            amount(c.held),
            amount(c.refused),
            amount(c.failed),
            duration(c.longest_ms) + ("" if costs[c.name].rto_kept is not False else " (missed)"),
            "–" if (percent := costs[c.name].budget_percent) is None else f"{percent:.1f} %",
        )
        for c in classes
    ]
