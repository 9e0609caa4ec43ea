"""The tables, as people read them: printed by ``holdfast explain``, drawn in the docs."""

from __future__ import annotations

from dataclasses import dataclass

from holdfast.core.coordination import COORDINATION
from holdfast.core.leadership import RULES, TABLE, Duty, Situation


@dataclass(frozen=True, slots=True)
class Row:
    """One legal pair."""

    table: str
    state: str
    input: str
    rule: str
    comment: str


def rows() -> tuple[Row, ...]:
    """Every legal pair of both tables, in a stable order."""
    node = [
        Row("node", situation.value, duty.value, rule.id, rule.comment)
        for duty in Duty
        for situation in Situation
        if (rule := TABLE.get((situation, duty))) is not None
    ]
    cluster = [
        Row("cluster", phase.value, signal.value, rule.id, rule.comment)
        for (phase, signal), rule in COORDINATION.items()
    ]
    return (*cluster, *node)


def comment_of(rule_id: str) -> str | None:
    """What a rule is for."""
    if rule_id in RULES:
        return RULES[rule_id].comment
    return next((rule.comment for rule in COORDINATION.values() if rule.id == rule_id), None)


def diagram() -> str:
    """The life of an epoch as a Mermaid state diagram, from the second table."""
    moves = {
        ("serving", "recruiting"): "epoch.suspect, handover.open",
        ("recruiting", "promoting"): "epoch.choose",
        ("recruiting", "recruiting"): "epoch.replace",
        ("promoting", "recruiting"): "epoch.replace",
        ("promoting", "serving"): "barrier.commit",
    }
    lines = ["stateDiagram-v2", "    [*] --> promoting: create.register"]
    lines += [f"    {a} --> {b}: {rule}" for (a, b), rule in moves.items()]
    return "\n".join(lines) + "\n"
