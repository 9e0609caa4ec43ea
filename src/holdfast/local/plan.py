"""What the supervisor is told (plan.json) and what it tells (state.json). Both are replaced as a whole.

Only the standard library: the supervisor starts before anything else can, so it must start quickly.
"""

from __future__ import annotations

import json
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

from holdfast.local.processes import Process

STEADY_S = 10.0
"""A process that ran this long is not in a crash loop: its next restart is quick again."""
LOOPING_ENDS = 3
"""A process that ended this often without being steady in between will not come up by itself."""
WRONG_INPUT = 2
"""Exit status of a process of ours whose settings or environment are wrong: the next one will end so, too."""


@dataclass(frozen=True, slots=True)
class ProcessSpec:
    """One process to keep alive. ``command`` tells it from all others; ``extra`` is only added to it at a start.

    ``stage``: processes of a lower stage are stopped first. ``data_dir`` is the PostgreSQL that an agent owns.
    ``may_kill``: whether SIGKILL is allowed when it does not stop in ``stop_ms`` although its data are to be kept.
    Variables whose name begins with ``hidden_environment`` are not passed on. The first start waits for ``delay_ms``.
    """

    name: str
    command: tuple[str, ...]
    log_file: str
    stage: int = 0
    stop_ms: int = 10_000
    user: str | None = None
    data_dir: str | None = None
    may_kill: bool = True
    hidden_environment: str | None = None
    delay_ms: int = 0
    extra: tuple[str, ...] = ()


@dataclass(frozen=True, slots=True)
class Plan:
    """Everything that a supervisor needs to know. It is read again before each start of a process."""

    processes: tuple[ProcessSpec, ...]
    restart_min_ms: int
    restart_max_ms: int
    postgres_stop_ms: int

    def to_json(self) -> str:
        """The stored form."""
        return json.dumps(asdict(self), indent=2) + "\n"

    @classmethod
    def load(cls, path: Path) -> Plan:
        """Read the stored form."""
        raw = json.loads(path.read_text())
        specs = tuple(
            ProcessSpec(**{**p, "command": tuple(p["command"]), "extra": tuple(p["extra"])})
            for p in raw.pop("processes")
        )
        return cls(processes=specs, **raw)

    def spec(self, name: str) -> ProcessSpec | None:
        """One process's part."""
        return next((s for s in self.processes if s.name == name), None)


@dataclass(slots=True)
class ProcessState:
    """How a process does: its number now (None: not running), how often it was started again, how it ended last."""

    process: Process | None = None
    restarts: int = 0
    last_status: int | None = None
    adopted: bool = False
    quick_ends: int = 0
    """How often it ended since it last ran for `STEADY_S` and then ended for another reason than wrong input."""

    def keeps_ending(self) -> bool:
        """Whether it has ended again and again, and has not yet run for long since."""
        steady = self.process is not None and self.process.is_alive() and self.process.age_s() >= STEADY_S
        enough = LOOPING_ENDS - 1 if self.last_status == WRONG_INPUT else LOOPING_ENDS
        return self.quick_ends >= enough and not steady

    def to_dict(self) -> dict[str, Any]:
        """A form for JSON."""
        return {
            "process": self.process.to_dict() if self.process else None,
            "restarts": self.restarts,
            "last_status": self.last_status,
            "adopted": self.adopted,
            "quick_ends": self.quick_ends,
        }

    @property
    def is_alive(self) -> bool:
        """Whether it runs."""
        return self.process is not None and self.process.is_alive()


@dataclass(slots=True)
class SupervisorState:
    """What state.json says; ``supervisor`` is None if the file is not there or cannot be read."""

    supervisor: Process | None = None
    stopping: bool = False
    processes: dict[str, ProcessState] = field(default_factory=dict)

    def to_json(self) -> str:
        """The stored form."""
        return json.dumps(
            {
                "supervisor": self.supervisor.to_dict() if self.supervisor else None,
                "stopping": self.stopping,
                "processes": {name: state.to_dict() for name, state in self.processes.items()},
            },
            indent=2,
        )

    @classmethod
    def load(cls, path: Path) -> SupervisorState:
        """Read the stored form; an absent or unreadable file is a supervisor that does not run."""
        try:
            raw = json.loads(path.read_text())
            processes = {
                name: ProcessState(
                    Process.from_dict(p["process"]),
                    int(p["restarts"]),
                    p["last_status"],
                    bool(p["adopted"]),
                    int(p.get("quick_ends", 0)),
                )
                for name, p in raw["processes"].items()
            }
            return cls(Process.from_dict(raw["supervisor"]), bool(raw["stopping"]), processes)
        except (OSError, ValueError, KeyError, TypeError, AttributeError):
            return cls()

    @property
    def is_alive(self) -> bool:
        """Whether that supervisor runs."""
        return self.supervisor is not None and self.supervisor.is_alive()


class RunFiles:
    """The files in ``run/``."""

    def __init__(self, run: Path) -> None:
        self.lock = run / "lock"
        self.plan = run / "plan.json"
        self.state = run / "state.json"
        self.log = run / "supervisor.log"
