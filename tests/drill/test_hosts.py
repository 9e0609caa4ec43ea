"""A drill on hosts of its own, as a person runs it: whole host killed, nothing lost, nothing left behind."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import tempfile
from pathlib import Path
from typing import Any

import pytest

from holdfast.drill.hosted import DIRECTORY_PREFIX, LOCK
from holdfast.drill.hosts import processes_below
from tests.browser import find_browser, picture, shown


def directories_of(pid: int) -> list[Path]:
    return sorted(Path(tempfile.gettempdir()).glob(f"{DIRECTORY_PREFIX}{pid}-*"))


def start(report: Path, *arguments: str) -> subprocess.Popen[str]:
    return subprocess.Popen(
        [sys.executable, "-m", "holdfast.cli", "drill", "run", *arguments, "--plain", "--report", str(report)],
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        stdin=subprocess.DEVNULL,
        text=True,
    )


def check_retrospective(result: dict[str, Any], scratch: Path) -> None:
    """The failover is told beside the page of the drill, and a browser shows it."""
    page = scratch / "report-incident-2.html"
    assert result["retrospectives"] == [str(page)]
    assert page.name in Path(result["report"]).read_text()
    headline = f"{result['old_primary']} was lost, and {result['new_primary']} took over."
    assert headline in page.read_text()
    if (browser := find_browser()) is not None:
        document = shown(browser, page, scratch)
        assert headline in document
        assert "Nothing that was acknowledged is lost: that is proved." in document
        assert picture(browser, page, scratch).stat().st_size > 20_000


@pytest.mark.live
def test_a_host_is_lost(tmp_path: Path) -> None:
    found = tmp_path / "found.json"
    drill = start(tmp_path, "host-loss", "--seed", "3", "--json", str(found))
    try:
        said, errors = drill.communicate(timeout=350)
    finally:
        drill.kill()  # if it has not ended: the next drill clears up after it
    assert drill.returncode == 0, said + errors
    result = json.loads(found.read_text())
    assert (result["drill"], result["passed"], result["injected"]) == ("host-loss", True, True)
    assert (result["writes"]["lost"], result["writes"]["duplicated"], result["stale_reads"]) == (0, 0, 0)
    assert (result["two_leaders"], result["failovers"]) == (0, 1)
    assert (result["nothing_lost_proved"], result["lost_transactions"]) == (True, None)
    assert any("refused" in words for words in result["evidence"])
    assert directories_of(drill.pid) == []
    check_retrospective(result, tmp_path)
    listed = subprocess.run(
        [sys.executable, "-m", "holdfast.cli", "drill", "history", "--report", str(tmp_path)],
        capture_output=True,
        text=True,
        check=True,
    )
    assert "host-loss" in listed.stdout
    assert result["settings"][:19] in listed.stdout


@pytest.mark.live
def test_what_an_asynchronous_cluster_loses_is_listed_and_comes_back(tmp_path: Path) -> None:
    found = tmp_path / "found.json"
    drill = start(tmp_path, "asynchronous-crash", "--seed", "4", "--json", str(found))
    try:
        said, errors = drill.communicate(timeout=350)
    finally:
        drill.kill()
    assert drill.returncode == 0, said + errors
    result = json.loads(found.read_text())
    lost = result["lost_transactions"]
    assert lost["matched"] == lost["known"] >= result["writes"]["lost"] > 0
    assert lost["salvaged_rows"] >= lost["listed"] >= lost["known"]
    assert sum(lost["kinds"].values()) > 0
    assert (lost["wrong_rows"], lost["strangers"], lost["not_brought_back"]) == (0, 0, 0)
    assert result["nothing_lost_proved"] is False
    assert "each of them listed, and brought back by the script" in said


HOLDER = """
import fcntl, sys, time
lock = open(sys.argv[1], "w")
fcntl.flock(lock, fcntl.LOCK_EX)
print("held")
time.sleep(600)
"""


def remove_leftovers(below: Path) -> str:
    """As the next drill does it first of all."""
    clean = "from holdfast.drill.hosted import remove_leftovers; remove_leftovers(print)"
    environment = {**os.environ, "TMPDIR": str(below)}
    done = subprocess.run([sys.executable, "-c", clean], env=environment, capture_output=True, text=True, check=True)
    return done.stdout


def test_what_a_killed_drill_left_goes_and_what_a_living_one_owns_stays(tmp_path: Path) -> None:
    root = tmp_path / f"{DIRECTORY_PREFIX}1-00"
    root.mkdir()
    # One that was frozen and named the directory, one that only works in it.
    frozen = subprocess.Popen([sys.executable, "-c", "import time; time.sleep(600)", str(root / "n1" / "node.toml")])
    inside = subprocess.Popen([sys.executable, "-c", "import time; time.sleep(600)"], cwd=root)
    drill = subprocess.Popen([sys.executable, "-u", "-c", HOLDER, str(root / LOCK)], stdout=subprocess.PIPE)
    try:
        frozen.send_signal(signal.SIGSTOP)
        assert drill.stdout is not None
        drill.stdout.readline()
        assert remove_leftovers(tmp_path) == ""
        assert root.exists()
        assert frozen.poll() is inside.poll() is None
        drill.kill()
        drill.wait()
        assert str(root) in remove_leftovers(tmp_path)
        assert not root.exists()
        assert (frozen.wait(60), inside.wait(60)) == (-signal.SIGKILL, -signal.SIGKILL)
        assert processes_below(root) == ()
    finally:
        for process in (drill, frozen, inside):
            process.kill()
            process.wait()
            if process.stdout is not None:
                process.stdout.close()
