"""What `proxy.py` has measured, and the arithmetic on it: percentiles, ratios within a round, medians and spreads."""

from __future__ import annotations

import math
import statistics
from collections.abc import Iterable, Sequence
from dataclasses import asdict, dataclass
from typing import Any

COMPILED, PLAIN, PGBOUNCER, HAPROXY, DIRECT = "compiled", "plain", "pgbouncer", "haproxy", "direct"
"""Who is measured: Holdfast compiled and not, its peers, and no proxy at all."""
OURS = (COMPILED, PLAIN)
BASELINE = PGBOUNCER
"""Whose figures all others are divided by."""


@dataclass(frozen=True, slots=True, order=True)
class Cell:
    """One load."""

    script: str
    mode: str
    clients: int
    tls: bool
    pooling: str


@dataclass(frozen=True, slots=True)
class Sample:
    """One load through one pooler in one round."""

    cell: Cell
    pooler: str
    round: int
    tps: float
    p50_ms: float
    p99_ms: float
    cpu_us: float
    """Of the pooler's processes, for a transaction."""


@dataclass(frozen=True, slots=True)
class Memory:
    """Of one pooler, for one idle client connection."""

    pooler: str
    tls: bool
    connections: int
    bytes_each: float


@dataclass(frozen=True, slots=True)
class Summary:
    """A median and what it lies between."""

    median: float
    low: float
    high: float

    @property
    def spread(self) -> list[float]:
        """The lowest and the highest."""
        return [self.low, self.high]


def summary_of(values: Iterable[float]) -> Summary | None:
    """None of no values."""
    known = sorted(values)
    return Summary(statistics.median(known), known[0], known[-1]) if known else None


def percentile(ordered: Sequence[float], share: float) -> float:
    """The nearest rank: the smallest value that at least that share (0 to 1) does not exceed; raises ValueError."""
    if not ordered:
        raise ValueError("nothing was measured")
    return ordered[max(0, math.ceil(share * len(ordered)) - 1)]


def latencies_ms(log: Iterable[str], begin_s: float, end_s: float) -> list[float]:
    """The latencies, in order of size, of pgbench's log (``--log``) that ended after ``begin_s`` and until ``end_s``.

    Both in seconds of Unix time. Lines of transactions that failed have no latency and are left out.
    """
    found = []
    for line in log:
        _client, _number, latency_us, _script, second_s, microsecond, *_ = line.split()
        if latency_us.isdigit() and begin_s < int(second_s) + int(microsecond) / 1e6 <= end_s:
            found.append(int(latency_us) / 1000)
    return sorted(found)


def ratios(samples: Iterable[Sample], figure: str) -> dict[tuple[Cell, str], list[float]]:
    """Each pooler's ``figure`` (a field of `Sample`) divided by the baseline's in the same round of the same cell.

    Rounds in which the baseline has no figure, or 0, are left out.
    """
    samples = list(samples)
    bases = {(s.cell, s.round): float(getattr(s, figure)) for s in samples if s.pooler == BASELINE}
    found: dict[tuple[Cell, str], list[float]] = {}
    for sample in samples:
        base = bases.get((sample.cell, sample.round))
        if base:
            found.setdefault((sample.cell, sample.pooler), []).append(getattr(sample, figure) / base)
    return found


@dataclass(frozen=True, slots=True)
class Line:
    """One pooler's medians in one cell, over its rounds; ratios are None without the baseline."""

    cell: Cell
    pooler: str
    rounds: int
    tps: float
    p50_ms: float
    p99_ms: float
    cpu_us: float
    tps_ratio: Summary | None
    p50_ratio: Summary | None
    p99_ratio: Summary | None
    cpu_ratio: Summary | None


def lines_of(samples: Sequence[Sample]) -> list[Line]:
    """One for each cell and pooler, in the order in which they were met first."""
    figures = ("tps", "p50_ms", "p99_ms", "cpu_us")
    by_figure = {figure: ratios(samples, figure) for figure in figures}
    lines = []
    for cell, pooler in dict.fromkeys((s.cell, s.pooler) for s in samples):
        mine = [s for s in samples if (s.cell, s.pooler) == (cell, pooler)]
        medians = [statistics.median(getattr(s, figure) for s in mine) for figure in figures]
        compared = [summary_of(by_figure[figure].get((cell, pooler), ())) for figure in figures]
        lines.append(Line(cell, pooler, len(mine), *medians, *compared))
    return lines


def as_json(samples: Sequence[Sample], memory: Sequence[Memory]) -> dict[str, Any]:
    """``cells`` are Holdfast's, ``peers`` the others'; of ratios the median, and in ``…_spread`` lowest and highest."""
    lines = lines_of(samples)
    bases = {entry.tls: entry.bytes_each for entry in memory if entry.pooler == BASELINE}
    return {
        "cells": [{**_figures(line), "compiled": line.pooler == COMPILED} for line in lines if line.pooler in OURS],
        "peers": [{**_figures(line), "pooler": line.pooler} for line in lines if line.pooler not in OURS],
        "memory": [
            {**asdict(entry), "ratio": entry.bytes_each / bases[entry.tls] if bases.get(entry.tls) else None}
            for entry in memory
        ],
        "samples": [{**asdict(s.cell), **{k: v for k, v in asdict(s).items() if k != "cell"}} for s in samples],
    }


def _figures(line: Line) -> dict[str, Any]:
    figures: dict[str, Any] = {
        **asdict(line.cell),
        "rounds": line.rounds,
        "tps": line.tps,
        "p50_ms": line.p50_ms,
        "p99_ms": line.p99_ms,
        "cpu_us": line.cpu_us,
    }
    for name in ("tps_ratio", "p50_ratio", "p99_ratio", "cpu_ratio"):
        summary: Summary | None = getattr(line, name)
        figures[name] = None if summary is None else summary.median
        figures[f"{name}_spread"] = None if summary is None else summary.spread
    return figures
