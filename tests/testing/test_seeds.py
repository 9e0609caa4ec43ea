"""3,000 seeds of the product as it is; `holdfast sim run --seeds N` runs as many as one likes."""

from __future__ import annotations

import pytest

from holdfast.testing.campaign import run_seeds

SEEDS, CHUNK = 3000, 100


@pytest.mark.parametrize("first", range(0, SEEDS, CHUNK), ids=lambda first: f"seeds{first}")
def test_no_property_is_violated(first: int) -> None:
    tally = run_seeds(first, CHUNK)
    assert tally.violations == []
    assert tally.seeds == CHUNK
    assert tally.failovers > CHUNK // 5, "the faults hardly harm anybody: nothing is tried"
    assert tally.acknowledged > CHUNK * 5
    assert tally.recovered > CHUNK // 2
