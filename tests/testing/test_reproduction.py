"""A seed says everything about a run."""

from __future__ import annotations

import json
import os
import re
import subprocess
import sys
from dataclasses import replace
from pathlib import Path

import pytest
from click.testing import CliRunner

import holdfast
from holdfast.cli import main
from holdfast.testing.breaks import RULES
from holdfast.testing.campaign import wiring_of
from holdfast.testing.faults import Fault
from holdfast.testing.plan import plan_of
from holdfast.testing.run import run
from holdfast.testing.shrink import shrink


def digest(seed: int, hash_seed: str) -> str:
    """Of a run in a process of its own, where sets are ordered otherwise and addresses are others."""
    done = subprocess.run(
        [sys.executable, "-m", "holdfast.cli", "sim", "run", "--seed", str(seed)],
        env={**os.environ, "PYTHONHASHSEED": hash_seed}, capture_output=True, text=True, check=True, timeout=380,
    )  # fmt: skip
    found = re.search(r"digest ([0-9a-f]{16})", done.stdout)
    assert found, done.stdout
    return found[1]


def test_nothing_that_is_simulated_waits_in_a_way_that_depends_on_the_version_of_python() -> None:
    """Since 3.12 `asyncio.wait_for` takes fewer turns of the loop; `asyncio.timeout` takes as many everywhere."""
    root = Path(holdfast.__file__).parent
    files = [file for part in ("core", "node", "store", "testing") for file in (root / part).rglob("*.py")]
    assert files
    assert [str(file) for file in files if "asyncio.wait_for(" in file.read_text()] == []


@pytest.mark.parametrize("seed", [3, 4, 200012])
def test_one_seed_is_one_run_whatever_the_order_of_sets(seed: int) -> None:
    assert digest(seed, "1") == digest(seed, "2") == run(plan_of(seed)).digest


def test_runs_do_not_influence_each_other() -> None:
    first = run(plan_of(7)).digest
    run(plan_of(8), wiring_of("barrier"))
    assert run(plan_of(7)).digest == first


def test_a_fault_is_read_as_it_is_written() -> None:
    for text in ("at 1500 kill-postgres n1", "at 20 part n1 store for 300", "at 7 store-down for 5"):
        assert str(Fault.parse(text)) == text
    for text in ("at 1500", "1500 kill-postgres n1", "at 5 no-such-fault n1"):
        with pytest.raises(ValueError, match="not a fault"):
            Fault.parse(text)


def test_a_failing_run_is_made_smaller() -> None:
    too_late = Fault(100_000, "delay", ("5",), 300)
    needless = (Fault(1400, "delay", ("5",), 300), Fault(1600, "loss", ("0.05",), 200), too_late)
    broken = plan_of(11)
    plan = replace(broken, faults=tuple(sorted((*needless, *broken.faults), key=lambda fault: fault.at_ms)))
    wiring = wiring_of("closed-until-serving")
    failed = next(r for seed in range(50) if (r := run(replace(plan, seed=seed), wiring)).violation is not None)
    small = shrink(failed, wiring)
    assert small.violation is not None
    assert failed.violation is not None
    assert small.violation.kind == failed.violation.kind
    assert len(small.plan.faults) < len(failed.plan.faults)
    assert too_late not in small.plan.faults


def test_figures_are_written_for_programs(tmp_path: Path) -> None:
    file = tmp_path / "figures.json"
    done = CliRunner().invoke(main, ["sim", "run", "--seeds", "4", "--jobs", "1", "--json", str(file)])
    assert done.exit_code == 0, done.output
    figures = json.loads(file.read_text())
    assert (figures["seeds"], figures["violations"]) == (4, [])
    assert figures["steps"] > 0
    assert figures["seeds_per_s"] > 0
    assert "failovers" in figures


def test_ranges_of_seeds_can_be_collected(tmp_path: Path) -> None:
    def steps(*args: str) -> int:
        file = tmp_path / "figures.json"
        done = CliRunner().invoke(main, ["sim", "run", *args, "--jobs", "1", "--json", str(file)])
        assert done.exit_code == 0, done.output
        figures = json.loads(file.read_text())
        assert figures["first"] == int(args[-1])
        return int(figures["steps"])

    assert steps("--seeds", "2", "--first", "7") == steps("--seed", "7") + steps("--seed", "8")
    for many in ("--seeds", "--first"):
        refused = CliRunner().invoke(main, ["sim", "run", "--seed", "7", many, "2"])
        assert refused.exit_code == 2
        assert "--first" in refused.output


def test_rules_can_be_listed_and_unknown_ones_are_refused() -> None:
    listed = json.loads(CliRunner().invoke(main, ["sim", "rules", "--json"]).output)
    assert [entry["rule"] for entry in listed] == list(RULES)
    refused = CliRunner().invoke(main, ["sim", "run", "--break", "none-such"])
    assert refused.exit_code == 2
    assert "none-such" in refused.output
