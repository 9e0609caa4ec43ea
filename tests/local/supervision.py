"""A supervisor over small stand-in commands."""

from __future__ import annotations

import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path

from holdfast.local.plan import Plan, ProcessSpec, RunFiles, SupervisorState
from holdfast.local.processes import Process

DEADLINE_S = 60

OBEDIENT = """
import signal, sys
name, journal = sys.argv[1:3]
def end(number, frame):
    with open(journal, "a") as file:
        file.write(name + "\\n")
    sys.exit(0)
signal.signal(signal.SIGTERM, end)
print("ready", flush=True)
while True:
    signal.pause()
"""
DEAF = """
import signal
signal.signal(signal.SIGTERM, signal.SIG_IGN)
print("ready", flush=True)
while True:
    signal.pause()
"""
SHORT_LIVED = "import sys; sys.exit(7)"


def until(condition: Callable[[], bool], what: str, deadline_s: float = DEADLINE_S) -> None:
    """Wait for something that can only be looked at."""
    give_up_at = time.monotonic() + deadline_s
    while not condition():
        assert time.monotonic() < give_up_at, f"waited in vain until {what}"
        time.sleep(0.01)


def stand_in(place: Path, name: str, code: str = OBEDIENT, *, stage: int = 0, stop_ms: int = 10_000) -> ProcessSpec:
    """A process of the plan that runs ``code``; an obedient one writes its name into ``place/ended`` as it ends."""
    command = (sys.executable, "-S", "-E", "-c", code, name, str(place / "ended"))
    return ProcessSpec(name, command, log_file=str(place / f"{name}.log"), stage=stage, stop_ms=stop_ms)


class Supervised:
    """A running supervisor, as a test sees it."""

    def __init__(self, place: Path, *specs: ProcessSpec) -> None:
        self.place = place
        self.root = place / "cluster"
        (self.root / "run").mkdir(parents=True, exist_ok=True)
        self.files = RunFiles(self.root / "run")
        self.names = {spec.name for spec in specs}
        plan = Plan(specs, restart_min_ms=10, restart_max_ms=50, postgres_stop_ms=10_000)
        self.files.plan.write_text(plan.to_json())

    def start(self, *options: str, ready: bool = True) -> subprocess.Popen[bytes]:
        """Start it; returns when every process runs and, if they are stand-ins, is ready."""
        command = [sys.executable, "-m", "holdfast.cli", "supervise", str(self.root), *options]
        with self.files.log.open("ab") as log:
            process = subprocess.Popen(command, stdin=subprocess.PIPE, stdout=log, stderr=log, start_new_session=True)
        until(lambda: self.state().supervisor == Process.of(process.pid) and self.all_run(), "all run")
        if ready:
            until(
                lambda: all("ready" in (self.place / f"{name}.log").read_text() for name in self.names), "all are ready"
            )
        return process

    def state(self) -> SupervisorState:
        return SupervisorState.load(self.files.state)

    def all_run(self) -> bool:
        processes = self.state().processes
        return processes.keys() == self.names and all(p.is_alive for p in processes.values())

    def process(self, name: str) -> Process:
        process = self.state().processes[name].process
        assert process is not None
        return process

    def ended(self) -> list[str]:
        """Who ended on SIGTERM, in order."""
        path = self.place / "ended"
        return path.read_text().split() if path.exists() else []
