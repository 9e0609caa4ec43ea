"""The demo: what it prints, what it writes, and that it leaves nothing behind however it ends."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
from pathlib import Path

import pytest

from tests.cli.running import DEADLINE_S, holdfast
from tests.local.conftest import processes_below
from tests.local.supervision import until

pytestmark = [pytest.mark.live, pytest.mark.timeout(600)]


def start_demo(place: Path, *arguments: str) -> subprocess.Popen[bytes]:
    """A demo whose temporary files are in ``place``, its output in ``place/output``."""
    with (place / "output").open("wb") as output:
        return subprocess.Popen(
            [sys.executable, "-m", "holdfast.cli", "demo", "--report", str(place / "report"), *arguments],
            stdin=subprocess.DEVNULL,
            stdout=output,
            stderr=output,
            env={**os.environ, "TMPDIR": str(place), "PYTHONUNBUFFERED": "1"},
            start_new_session=True,
        )


def clusters(place: Path) -> list[Path]:
    return list(place.glob("holdfast-demo-*"))


def test_a_demo_passes_and_can_be_kept(place: Path) -> None:
    demo = start_demo(place, "--keep", "--seed", "3", "--json", str(place / "result.json"))
    assert demo.wait(DEADLINE_S) == 0, (place / "output").read_text()
    output = (place / "output").read_text()
    assert "PostgreSQL" in output
    assert "etcd" in output
    result = json.loads((place / "result.json").read_text())
    assert result["passed"] is True
    assert result["cluster"]["nodes"] == 3
    assert (result["writes"]["lost"], result["writes"]["duplicated"]) == (0, 0)
    assert result["rejoined"] is True
    assert Path(result["report"]).is_file()
    (root,) = clusters(place)
    assert json.loads(holdfast("status", "--dir", root, "--json").stdout)["running"] is True
    assert f"holdfast down --dir {root}" in output
    assert holdfast("down", "--dir", root).returncode == 0
    assert processes_below(place) == []


@pytest.mark.parametrize(
    ("number", "moment", "status"),
    [
        (signal.SIGINT, "n1: is making its data directory", 130),
        (signal.SIGTERM, "n1: is primary", 143),
        (signal.SIGKILL, "n1: is making its data directory", -signal.SIGKILL),
        (signal.SIGINT, "writes acknowledged", 130),
        (signal.SIGKILL, "writes acknowledged", -signal.SIGKILL),
    ],
)
def test_a_demo_that_is_ended_leaves_nothing_behind(
    place: Path, number: signal.Signals, moment: str, status: int
) -> None:
    demo = start_demo(place)
    output = place / "output"
    until(lambda: moment in output.read_text() or demo.poll() is not None, moment, deadline_s=DEADLINE_S)
    demo.send_signal(number)
    assert demo.wait(DEADLINE_S) == status, output.read_text()
    if number != signal.SIGKILL:
        assert processes_below(place) == []
        assert clusters(place) == []
    until(lambda: processes_below(place) == [], "nothing runs")
    until(lambda: clusters(place) == [], "the files are gone")
    assert "Traceback" not in output.read_text()
