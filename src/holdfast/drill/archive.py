"""What drills found, kept: one line of JSON each, oldest first."""

from __future__ import annotations

import fcntl
import json
import os
from collections.abc import Iterable
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from holdfast.core.words import amount, duration
from holdfast.drill.result import DrillResult
from holdfast.model.errors import ConfigurationError, EnvironmentFault

NOT_RUN = "not run"


@dataclass(frozen=True, slots=True)
class Entry:
    """One run: its result, or why the fault could not be injected."""

    drill: str
    seed: int
    at: str
    result: DrillResult | None
    not_run: str | None = None

    def to_json(self) -> str:
        """One line."""
        whole = {**asdict(self), "result": None if self.result is None else self.result.model_dump(mode="json")}
        return json.dumps(whole)

    @classmethod
    def from_json(cls, line: str) -> Entry:
        """Read the stored form; raises ValueError, KeyError, TypeError."""
        raw = json.loads(line)
        found = raw["result"]
        result = None if found is None else DrillResult.model_validate(found)
        return cls(raw["drill"], int(raw["seed"]), raw["at"], result, raw["not_run"])

    def as_run(self) -> dict[str, Any]:
        """For the list of runs in a JSON file."""
        if self.result is not None:
            return self.result.model_dump(mode="json")
        return {"drill": self.drill, "seed": self.seed, "passed": False, "injected": False, "not_run": self.not_run}


class Archive:
    """A file of entries."""

    def __init__(self, path: Path) -> None:
        self.path = path

    def add(self, entry: Entry) -> None:
        """Append one; raises EnvironmentFault."""
        try:
            self.path.parent.mkdir(parents=True, exist_ok=True)
            with self.path.open("a", encoding="utf-8") as file:
                fcntl.flock(file, fcntl.LOCK_EX)
                file.write(entry.to_json() + "\n")
                file.flush()
                os.fsync(file.fileno())
        except OSError as error:
            raise EnvironmentFault(f"the drill's history cannot be written to {self.path}: {error.strerror}") from error

    def entries(self) -> list[Entry]:
        """All of them, oldest first; raises ConfigurationError if the file is none of ours."""
        try:
            lines = self.path.read_text(encoding="utf-8").splitlines()
        except FileNotFoundError:
            return []
        except (OSError, UnicodeDecodeError) as error:
            raise ConfigurationError(f"--report: {self.path} cannot be read: {error}") from error
        try:
            return [Entry.from_json(line) for line in lines if line.strip()]
        except (ValueError, KeyError, TypeError) as error:
            raise ConfigurationError(
                f"{self.path} is no history of drills that this version can read ({error}): move it away"
            ) from error


@dataclass(frozen=True, slots=True)
class Row:
    """What all runs of one drill under the same settings found."""

    drill: str
    settings: str
    runs: int
    passed: int
    not_run: int
    median_stall_ms: float | None
    worst_stall_ms: float | None
    lost: int | None
    duplicated: int | None
    stale: int | None
    errors: int
    dropped: int
    phases_ms: dict[str, float]
    """The median of each part."""


def summarize(entries: Iterable[Entry]) -> list[Row]:
    """One row for each drill and settings, in the order of their first run."""
    groups: dict[tuple[str, str], list[Entry]] = {}
    orphans: dict[str, int] = {}
    for entry in entries:
        if entry.result is None:
            orphans[entry.drill] = orphans.get(entry.drill, 0) + 1
        else:
            groups.setdefault((entry.drill, entry.result.settings), []).append(entry)
    rows = [_row(name, settings, group, orphans.pop(name, 0)) for (name, settings), group in groups.items()]
    return rows + [
        Row(name, "", 0, 0, count, None, None, None, None, None, 0, 0, {}) for name, count in orphans.items()
    ]


def _row(name: str, settings: str, group: list[Entry], not_run: int) -> Row:
    results = [entry.result for entry in group if entry.result is not None]
    stalls = [result.rto_ms for result in results]

    def total(values: Iterable[int | None]) -> int | None:
        known = list(values)
        return None if None in known else sum(value for value in known if value is not None)

    phases = {part: _median([dict(r.phases_ms.in_order())[part] for r in results]) for part, _ in _parts(results)}
    return Row(
        drill=name,
        settings=settings,
        runs=len(results),
        passed=sum(result.passed for result in results),
        not_run=not_run,
        median_stall_ms=_median(stalls),
        worst_stall_ms=max(stalls),
        lost=total(result.writes.lost for result in results),
        duplicated=total(result.writes.duplicated for result in results),
        stale=total(result.stale_reads for result in results),
        errors=sum(result.writes.errors + result.writes.unknown for result in results),
        dropped=sum(result.connections.dropped for result in results),
        phases_ms=phases,
    )


def _parts(results: list[DrillResult]) -> list[tuple[str, float]]:
    return results[0].phases_ms.in_order()


def _median(values: list[float]) -> float:
    ordered = sorted(values)
    middle = len(ordered) // 2
    return ordered[middle] if len(ordered) % 2 else (ordered[middle - 1] + ordered[middle]) / 2


HEADINGS = ("drill", "runs", "passed", "median", "worst", "lost", "dup.", "stale", "errors", "dropped")


def cells(row: Row) -> tuple[str, ...]:
    """A row of the table, as text."""

    def known(value: int | None) -> str:
        return "?" if value is None else amount(value)

    if not row.runs:
        return (row.drill, NOT_RUN, *("–",) * (len(HEADINGS) - 2))
    stalls = [duration(ms) for ms in (row.median_stall_ms, row.worst_stall_ms) if ms is not None]
    runs = f"{row.runs} (+{row.not_run} {NOT_RUN})" if row.not_run else str(row.runs)
    counts = (known(row.lost), known(row.duplicated), known(row.stale), amount(row.errors), amount(row.dropped))
    return (row.drill, runs, str(row.passed), *stalls, *counts)


def table(rows: Iterable[Row]) -> list[str]:
    """The table's lines for a terminal of 80 columns or more."""
    lines = [HEADINGS, *map(cells, rows)]
    widths = [max(len(line[i]) for line in lines) for i in range(len(HEADINGS))]

    def line_of(line: tuple[str, ...]) -> str:
        first, *rest = zip(line, widths, strict=True)
        return "  ".join([first[0].ljust(first[1]), *(text.rjust(width) for text, width in rest)]).rstrip()

    return [line_of(line) for line in lines]


def phase_table(rows: Iterable[Row]) -> list[str]:
    """Where the time of each failover went: medians of the parts."""
    shown = [row for row in rows if any(row.phases_ms.values())]
    if not shown:
        return []
    names = list(shown[0].phases_ms)
    lines = [("where the time went", *names)]
    lines += [(row.drill, *(duration(row.phases_ms[name]) for name in names)) for row in shown]
    widths = [max(len(line[i]) for line in lines) for i in range(len(names) + 1)]
    return [
        "  ".join([line[0].ljust(widths[0]), *(t.rjust(w) for t, w in zip(line[1:], widths[1:], strict=True))])
        for line in lines
    ]
