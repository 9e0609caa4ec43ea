"""The arithmetic of bench/proxy.py and the shape of what it writes."""

from __future__ import annotations

import json
from dataclasses import replace

import pytest
from cells import (
    COMPILED,
    HAPROXY,
    PGBOUNCER,
    PLAIN,
    Cell,
    Memory,
    Sample,
    as_json,
    latencies_ms,
    lines_of,
    percentile,
    ratios,
    summary_of,
)

CELL = Cell("select-only", "simple", 32, False, "transaction")


def sample(pooler: str, turn: int, tps: float, cpu_us: float, cell: Cell = CELL) -> Sample:
    return Sample(cell, pooler, turn, tps=tps, p50_ms=1.0, p99_ms=tps / 1000, cpu_us=cpu_us)


ROUNDS = [
    sample(PGBOUNCER, 0, 1000, 20),
    sample(COMPILED, 0, 1100, 10),
    sample(PLAIN, 0, 900, 30),
    sample(HAPROXY, 0, 1000, 25),
    sample(COMPILED, 1, 3000, 30),
    sample(PGBOUNCER, 1, 2000, 40),
    sample(COMPILED, 2, 700, 48),
    sample(PGBOUNCER, 2, 1000, 40),
]


def test_ratios_are_those_within_a_round() -> None:
    assert ratios(ROUNDS, "tps")[CELL, COMPILED] == [1.1, 1.5, 0.7]
    assert ratios(ROUNDS, "cpu_us")[CELL, COMPILED] == [0.5, 0.75, 1.2]
    assert ratios(ROUNDS, "cpu_us")[CELL, PGBOUNCER] == [1, 1, 1]


def test_rounds_and_cells_without_the_baseline_have_no_ratio() -> None:
    other = replace(CELL, tls=True)
    assert ratios([*ROUNDS, sample(COMPILED, 3, 1, 1), sample(COMPILED, 0, 1, 1, other)], "tps") == ratios(
        ROUNDS, "tps"
    )
    assert ratios([sample(PGBOUNCER, 0, 0, 0), sample(COMPILED, 0, 1, 1)], "tps") == {}


def test_medians_and_spreads() -> None:
    line = next(line for line in lines_of(ROUNDS) if line.pooler == COMPILED)
    assert (line.rounds, line.tps, line.cpu_us) == (3, 1100, 30)
    assert line.cpu_ratio is not None
    assert (line.cpu_ratio.median, line.cpu_ratio.spread) == (0.75, [0.5, 1.2])
    assert summary_of([]) is None


def test_percentiles_are_nearest_ranks() -> None:
    hundred = [float(number) for number in range(1, 101)]
    assert [percentile(hundred, share) for share in (0.0, 0.5, 0.99, 1.0)] == [1, 50, 99, 100]
    assert percentile([7.0], 0.99) == 7
    with pytest.raises(ValueError, match="nothing"):
        percentile([], 0.5)


def test_only_what_ended_in_the_window_counts() -> None:
    log = [
        "0 1 9000 0 100 0",  # at the window's beginning: still before it
        "0 2 2500 0 100 1",
        "1 1 1500 0 101 999999",
        "1 2 skipped 0 101 5",
        "1 3 3000 0 102 0 17",
        "1 4 8000 0 102 1",
    ]
    assert latencies_ms(log, 100.0, 102.0) == [1.5, 2.5, 3.0]


def test_what_is_written() -> None:
    memory = [Memory(PGBOUNCER, False, 10, 2000), Memory(COMPILED, False, 10, 6000), Memory(PLAIN, True, 10, 1)]
    written = json.loads(json.dumps(as_json(ROUNDS, memory)))
    keys = {
        "script",
        "mode",
        "clients",
        "tls",
        "compiled",
        "cpu_us",
        "cpu_ratio",
        "tps",
        "tps_ratio",
        "p99_ms",
        "rounds",
    }
    assert all(keys <= set(cell) for cell in written["cells"])
    assert [(cell["compiled"], cell["cpu_ratio"], cell["rounds"]) for cell in written["cells"]] == [
        (True, 0.75, 3),
        (False, 1.5, 1),
    ]
    assert [peer["pooler"] for peer in written["peers"]] == [PGBOUNCER, HAPROXY]
    assert [entry["ratio"] for entry in written["memory"]] == [1, 3, None]
    assert len(written["samples"]) == len(ROUNDS)
    alone = json.loads(json.dumps(as_json([sample(PLAIN, 0, 1, 1)], [])))
    assert alone["cells"][0]["cpu_ratio"] is None
