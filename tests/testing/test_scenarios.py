"""Scenarios as text, one or more for each paragraph of docs/protocol.md; HOLDFAST_REWRITE=1 writes what happens now."""

from __future__ import annotations

import os
from pathlib import Path

import pytest

from holdfast.testing.scenario import Scenario

FILES = sorted((Path(__file__).parent / "scenarios").glob("*.txt"))


@pytest.mark.parametrize("file", FILES, ids=lambda file: file.stem)
def test_it_happens_as_it_is_written(file: Path) -> None:
    scenario = Scenario.read(file)
    result, happened = scenario.play()
    assert result.violation is None
    if os.environ.get("HOLDFAST_REWRITE") == "1":
        scenario.write(file, happened)
    assert Scenario.read(file).expected == happened, "explain the difference, then run it with HOLDFAST_REWRITE=1"
