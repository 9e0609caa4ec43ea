"""Every rule that is left out is noticed: one seed for each variant that is known to catch it."""

from __future__ import annotations

from dataclasses import replace

import pytest

from holdfast.testing.breaks import RULES
from holdfast.testing.campaign import wiring_of
from holdfast.testing.checks import PROPERTIES
from holdfast.testing.plan import plan_of
from holdfast.testing.run import run

CAUGHT = {
    "intersect": 7539,
    "revoke-first": 44,
    "best-log": 211,
    "barrier": 188,
    "closed-until-serving": 11,
    "promise": 261,
    "generation": 261,
    "implied": 84,
    "caught-up": 56,
    "incarnation": 92,
    "log-kept": 1662,
    "slot": 170,
    "lease": 2444,
    "lease-first": 379,
    "pre-vote": 123,
    "back-off": 1154,
    "drop-silent": 644,
    "give-up": 1662,
    "say-why": 2,
}


def test_every_rule_has_a_seed() -> None:
    assert set(CAUGHT) == set(RULES)


@pytest.mark.parametrize("rule", CAUGHT)
def test_it_is_noticed_when_left_out(rule: str) -> None:
    """The faults of the seed, under as many other orders of events as it takes when the product has changed since."""
    plan = plan_of(CAUGHT[rule])
    tried = (replace(plan, seed=seed) for seed in (plan.seed, *range(40)))
    caught = next((run_ for p in tried if (run_ := run(p, wiring_of(rule))).violation is not None), None)
    assert caught is not None
    assert caught.violation is not None
    assert caught.violation.kind in PROPERTIES
    assert run(caught.plan).violation is None, "it fails without a rule being left out"
