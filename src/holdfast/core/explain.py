"""The tables, as people read them: printed by ``holdfast explain``, drawn in the docs."""

from __future__ import annotations

from dataclasses import dataclass

from holdfast.core.admission.ramp import RULES as RAMP_RULES
from holdfast.core.coordination import COORDINATION
from holdfast.core.detection import verdict_rules
from holdfast.core.leadership import TABLE, Duty, Situation
from holdfast.core.outcome import RULES as OUTCOME_RULES
from holdfast.core.own_token import OWN_TOKEN_RULES
from holdfast.core.rules import RULES
from holdfast.core.token import TOKEN_RULES
from holdfast.model.register import Phase

_OF_OUTCOMES = {**OUTCOME_RULES, **OWN_TOKEN_RULES, **TOKEN_RULES}


@dataclass(frozen=True, slots=True)
class Row:
    """One legal pair."""

    table: str
    state: str
    input: str
    rule: str
    comment: str


def rows() -> tuple[Row, ...]:
    """Every legal pair of both tables, and every rule of a verdict or an outcome, in a stable order."""
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
    verdicts = [
        Row("verdict", str(n), rule.kind.value, rule.id, rule.comment) for n, rule in enumerate(verdict_rules(), 1)
    ]
    outcomes = [
        Row("outcome", str(n), outcome.value, rule, comment)
        for n, (rule, (outcome, comment)) in enumerate(_OF_OUTCOMES.items(), 1)
    ]
    return (*cluster, *node, *verdicts, *outcomes)


def comment_of(rule_id: str) -> str | None:
    """What a rule is for."""
    if rule_id in RULES:
        return RULES[rule_id].comment
    found = {rule.id: rule.comment for rule in COORDINATION.values()} | {r.id: r.comment for r in verdict_rules()}
    outcomes = {rule: comment for rule, (_, comment) in _OF_OUTCOMES.items()}
    return (found | outcomes | RAMP_RULES).get(rule_id)


_BEGINS = {Duty.CREATE: "[*]", Duty.PROMOTE: Phase.PROMOTING.value, Duty.YIELD: Phase.SERVING.value}
"""In which phase the duties are whose rules move an epoch."""


def diagram() -> str:
    """The life of an epoch as a Mermaid state diagram: every rule of the tables that moves it."""
    moves: dict[tuple[str, str], list[str]] = {}
    for (_, duty), node_rule in TABLE.items():
        if node_rule.moves_to is not None:
            moves.setdefault((_BEGINS[duty], node_rule.moves_to.value), []).append(node_rule.id)
    for (phase, _), rule in COORDINATION.items():
        if rule.moves_to is not None:
            moves.setdefault((phase.value, rule.moves_to.value), []).append(rule.id)
    lines = [f"    {a} --> {b}: {', '.join(dict.fromkeys(ids))}" for (a, b), ids in moves.items()]
    return "\n".join(["stateDiagram-v2", *lines]) + "\n"
