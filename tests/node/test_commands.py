"""Commands that people configure."""

from __future__ import annotations

from pathlib import Path

import psutil

from holdfast.node.commands import run_command


async def test_its_end_and_its_last_words_are_told() -> None:
    outcome = await run_command(["sh", "-c", "echo first; echo $WHO >&2; exit 3"], {"WHO": "n1"}, 10)
    assert (outcome.ok, outcome.words) == (False, "exit status 3; it said: n1")
    assert (await run_command(["true"], {}, 10)).ok


async def test_one_that_cannot_be_run_says_why() -> None:
    outcome = await run_command(["/nonexistent/fence"], {}, 10)
    assert (outcome.ok, outcome.words) == (False, "cannot be run: No such file or directory")


async def test_one_that_does_not_end_is_killed_with_all_it_started(tmp_path: Path) -> None:
    pids = tmp_path / "pids"
    script = f"sleep 600 & echo $! $$ > {pids}; wait"
    outcome = await run_command(["sh", "-c", script], {}, 0.5)
    assert outcome.words.startswith("killed after 0.5 s without an end")
    for pid in map(int, pids.read_text().split()):
        assert not psutil.pid_exists(pid) or psutil.Process(pid).status() == psutil.STATUS_ZOMBIE
