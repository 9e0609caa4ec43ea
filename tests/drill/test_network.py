"""Hosts and cables on the real kernel: silence is silence, a reset is a reset, and what was cut can be mended."""

from __future__ import annotations

import json
import os
import statistics
import subprocess
import sys
from pathlib import Path

import pytest

from holdfast.drill import hosts
from holdfast.model.errors import EnvironmentFault

ROOT = Path(__file__).parents[2]


@pytest.mark.live
def test_hosts_and_cables() -> None:
    environment = {**os.environ, "PYTHONPATH": f"{ROOT}"}
    trial = [sys.executable, str(Path(__file__).with_name("network_trial.py"))]
    done = subprocess.run(trial, env=environment, capture_output=True, text=True, timeout=150, check=False)
    assert done.returncode == 0, done.stderr
    found = json.loads(done.stdout)
    assert found["met"] == {
        "whole": "connected",
        "cut": "silence",
        "mended": "connected",
        "deaf in": "silence",
        "deaf out": "silence",
        "mended again": "connected",
        "killed": "refused",
        "off": "silence",
        "on": "refused",
        "booted": "connected",
    }
    assert found["killed"] == len(found["frozen"]) == 1
    assert set(found["frozen"]) <= set("Tt")
    delays_ms = found["round_trips_ms"]
    assert statistics.median(found["quick_ms"]) < statistics.median(delays_ms)
    assert 5 < statistics.median(delays_ms) < statistics.median(found["quick_ms"]) + 200
    assert max(delays_ms) > 1.2 * min(delays_ms)


def test_a_network_is_never_laid_among_others() -> None:
    assert not hosts.is_inside()
    with pytest.raises(EnvironmentFault, match="namespace of its own"):
        hosts.make_network()


def test_a_machine_without_the_programs_is_told(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(hosts, "NEEDED_PROGRAMS", ("unshare", "no-such-program"))
    with pytest.raises(EnvironmentFault, match=r"no-such-program.*primary-crash runs without"):
        hosts.enter([sys.executable])
