"""What a policy promises is what incidents are held against."""

from __future__ import annotations

import pytest

from holdfast.core.cost import Objectives
from holdfast.local.incidents import objectives_of
from holdfast.model.errors import ConfigurationError
from holdfast.model.policy import DEFAULT_POLICY


def test_each_objective_of_the_policy_is_one_of_the_reports() -> None:
    assert objectives_of(DEFAULT_POLICY) == Objectives()
    changes = {"objective_rto_ms": 2000, "objective_rpo_ms": 0, "objective_availability_percent": 99.95}
    assert objectives_of(DEFAULT_POLICY.changed(changes)) == Objectives(2000, 99.95, 0)


@pytest.mark.parametrize("availability", [100, -1])
def test_an_availability_leaves_a_budget(availability: float) -> None:
    with pytest.raises(ConfigurationError, match="policy objective_availability_percent"):
        DEFAULT_POLICY.changed({"objective_availability_percent": availability})
