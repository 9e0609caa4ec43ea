"""Every drill is described, named once, and says what is to be seen."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import pytest

from holdfast.drill.catalogue import CATALOGUE
from holdfast.drill.scenario import Drill

TOOL = Path(__file__).parents[2] / "tools" / "drills.py"


def test_the_page_has_every_drill() -> None:
    done = subprocess.run([sys.executable, str(TOOL), "--check"], capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stdout + done.stderr


@pytest.mark.parametrize("drill", CATALOGUE.values(), ids=list(CATALOGUE))
def test_each_drill_is_a_value_that_says_what_it_does(drill: Drill) -> None:
    assert drill == CATALOGUE[drill.name]
    assert drill.title[0].isupper()
    assert not drill.title.endswith(".")
    assert drill.proves[0].islower()
    assert drill.fault
    assert drill.expect.stall_ms <= drill.expect.worst_stall_ms


def test_the_first_is_the_one_that_needs_nothing() -> None:
    assert next(iter(CATALOGUE)) == "primary-crash"
