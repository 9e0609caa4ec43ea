"""Every rule that is left out is noticed: one seed for each variant that is known to catch it."""

from __future__ import annotations

import pytest

from holdfast.testing.breaks import RULES
from holdfast.testing.campaign import wiring_of
from holdfast.testing.checks import PROPERTIES
from holdfast.testing.plan import plan_of
from holdfast.testing.run import run

CAUGHT = {
    "intersect": 7539,
    "revoke-first": 44,
    "best-log": 5,
    "barrier": 188,
    "closed-until-serving": 11,
    "promise": 2535,
    "implied": 118,
    "caught-up": 56,
    "incarnation": 92,
    "pre-vote": 123,
    "back-off": 14449,
    "drop-silent": 644,
}


def test_every_rule_has_a_seed() -> None:
    assert set(CAUGHT) == set(RULES)


@pytest.mark.parametrize("rule", RULES)
def test_it_is_noticed_when_left_out(rule: str) -> None:
    broken = run(plan_of(CAUGHT[rule]), wiring_of(rule))
    assert broken.violation is not None
    assert broken.violation.kind in PROPERTIES
    assert run(plan_of(CAUGHT[rule])).violation is None, "the seed fails without a rule being left out"
