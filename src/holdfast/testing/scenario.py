"""Scenarios as text: what is done to a cluster, and what happens then.

A file holds a title (lines that begin with ``#``), the script (``nodes 3``, ``seed 1``, ``at 1500 kill-postgres n1 for
500``), a line of dashes, and the expected events. Times and log positions are left out of what is expected, so that a
scenario says what happens in which order and no more.
"""

from __future__ import annotations

import re
from dataclasses import dataclass
from pathlib import Path

from holdfast.testing.faults import Fault
from holdfast.testing.plan import Plan
from holdfast.testing.run import Result, run

_RULE = "-" * 20
_NOISE = frozenset({"position", "end", "evidence", "reason", "again_in_ms", "error", "because"})
_UNTOLD = frozenset({"verdict.changed", "verdict", "action.failed"})


@dataclass(frozen=True, slots=True)
class Scenario:
    """One file."""

    title: tuple[str, ...]
    plan: Plan
    expected: tuple[str, ...]

    @classmethod
    def read(cls, path: Path) -> Scenario:
        """Read a file; raises ValueError for a line that means nothing."""
        text, _, expected = path.read_text().partition(_RULE + "\n")
        title: list[str] = []
        faults: list[Fault] = []
        numbers = {"nodes": 3, "witnesses": 0, "seed": 1}
        for line in text.splitlines():
            word, _, rest = line.partition(" ")
            if line.startswith("#"):
                title.append(line)
            elif word in numbers:
                numbers[word] = int(rest)
            elif line.strip():
                faults.append(Fault.parse(line))
        plan = Plan(numbers["seed"], numbers["nodes"], tuple(faults), witnesses=numbers["witnesses"])
        return cls(tuple(title), plan, tuple(expected.splitlines()))

    def write(self, path: Path, happened: tuple[str, ...]) -> None:
        """Write the file anew, with what happened as what is expected."""
        witnesses = [f"witnesses {self.plan.witnesses}"] if self.plan.witnesses else []
        script = [f"nodes {self.plan.nodes}", *witnesses, f"seed {self.plan.seed}", *map(str, self.plan.faults)]
        path.write_text("\n".join((*self.title, "", *script, _RULE, *happened)) + "\n")

    def play(self) -> tuple[Result, tuple[str, ...]]:
        """Run it; the result, and what happened in words."""
        result = run(self.plan)
        return result, tuple(told(result))


def told(result: Result) -> list[str]:
    """The timeline without times, positions and reasons; what is said twice in a row is said once."""
    lines: list[str] = []
    for note in result.timeline:
        kind = note.what.split(" ", 1)[0]
        if kind in _UNTOLD:
            continue
        detail = " ".join(f"{k}={v}" for k, v in note.detail.items() if v is not None and k not in _NOISE)
        line = re.sub(r"\s+$", "", f"{note.source:6}  {note.what}  {detail}")
        if not lines or lines[-1] != line:
            lines.append(line)
    return lines
