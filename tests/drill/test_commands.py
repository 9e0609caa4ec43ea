"""`holdfast drill` as it is typed: what is refused, and what an empty history says."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from tests.cli.running import holdfast


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        (("host-loss", "--hard"), "primary-crash on loopback"),
        (("host-loss", "--nodes", "5"), "primary-crash on loopback"),
        (("host-loss", "--on", "loopback"), "needs hosts of its own"),
        (("all", "--dir", "somewhere"), "needs hosts of its own"),
        (("primary-crash", "--runs", "2", "--on", "loopback"), "--runs is for hosts"),
        (("primary-crash", "--runs", "0"), "--runs"),
        (("flood",), "there are primary-crash, host-loss"),
    ],
)
def test_what_makes_no_sense_is_refused(arguments: tuple[str, ...], words: str) -> None:
    done = holdfast("drill", "run", *arguments)
    assert done.returncode == 2
    assert words in " ".join(done.stderr.split())


def test_a_history_without_runs(tmp_path: Path) -> None:
    assert "drill run all" in holdfast("drill", "history", "--report", tmp_path).stdout
    assert json.loads(holdfast("drill", "history", "--report", tmp_path, "--json").stdout) == {"runs": []}


def test_the_list_says_what_each_proves() -> None:
    drills = json.loads(holdfast("drill", "list", "--json").stdout)
    assert len({drill["name"] for drill in drills}) == len(drills) > 30
    assert all(drill["fault"] and drill["proves"] and drill["title"] for drill in drills)
