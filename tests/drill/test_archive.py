"""The history of drills: kept line by line, and summed up so that only like is compared with like."""

from __future__ import annotations

from datetime import UTC, datetime
from pathlib import Path

import pytest

from holdfast.drill.archive import Archive, Entry, phase_table, summarize, table
from holdfast.drill.campaign import Campaign, turns_of
from holdfast.drill.catalogue import CATALOGUE
from holdfast.drill.result import Cluster, Connections, DrillResult, Phases, Writes
from holdfast.model.errors import ConfigurationError

AT = "2026-01-02T03:04:05Z"


def result(rto_ms: float, *, drill: str = "host-loss", settings: str = "sha256:a", lost: int | None = 0) -> DrillResult:
    return DrillResult(
        drill=drill,
        seed=1,
        passed=lost == 0,
        settings=settings,
        cluster=Cluster(nodes=3, durability="ANY 1", postgresql="17.1", etcd="3.5.1"),
        rto_ms=rto_ms,
        phases_ms=Phases(detect=rto_ms / 2),
        writes=Writes(acknowledged=10, lost=lost, duplicated=0, unknown=1, errors=2),
        connections=Connections(clients=8, idle=200, dropped=3),
        old_primary="n1",
        new_primary="n2",
        rejoined=True,
        rejoin_ms=10,
        report=None,
        started_at=datetime.now(UTC),
        fault_at=datetime.now(UTC),
        stale_reads=0,
    )


def entry(found: DrillResult | None, drill: str = "host-loss") -> Entry:
    return Entry(drill, 1, AT, found, None if found else "no fsfreeze here")


def test_what_was_added_is_read_again(tmp_path: Path) -> None:
    archive = Archive(tmp_path / "deeper" / "history.jsonl")
    assert archive.entries() == []
    entries = [entry(result(100)), entry(None, "disk-full")]
    for each in entries:
        archive.add(each)
    assert archive.entries() == entries
    assert entries[1].as_run() == {
        "drill": "disk-full",
        "seed": 1,
        "passed": False,
        "injected": False,
        "not_run": "no fsfreeze here",
    }


def test_a_file_that_is_none_of_ours_is_said(tmp_path: Path) -> None:
    path = tmp_path / "history.jsonl"
    path.write_text('{"something": 1}\n')
    with pytest.raises(ConfigurationError, match="move it away"):
        Archive(path).entries()


def test_only_runs_under_the_same_settings_are_summed_up() -> None:
    entries = [
        *(entry(result(ms)) for ms in (900, 100, 300)),
        entry(result(5000, settings="sha256:b")),
        entry(result(50, drill="agent-crash", lost=None), "agent-crash"),
        entry(None, "agent-crash"),
        entry(None, "disk-full"),
    ]
    first, second, third, fourth = summarize(entries)
    assert (first.runs, first.median_stall_ms, first.worst_stall_ms, first.errors, first.dropped) == (3, 300, 900, 9, 9)
    assert (second.settings, second.median_stall_ms) == ("sha256:b", 5000)
    assert (third.runs, third.not_run, third.lost, third.passed) == (1, 1, None, 0)
    assert (fourth.runs, fourth.not_run) == (0, 1)
    lines = table([first, second, third, fourth])
    assert "not run" in lines[-1]
    assert "?" in lines[-2]
    assert len(phase_table([first, second, third, fourth])) == 4


def test_a_campaign_goes_on_where_it_ended(tmp_path: Path) -> None:
    drills = list(CATALOGUE.values())[:2]
    turns = turns_of(drills, runs=2, seed=5)
    assert [(turn.drill.name, turn.seed) for turn in turns] == [(d.name, seed) for seed in (5, 6) for d in drills]
    place = tmp_path / "unfinished.json"
    campaign = Campaign.resume(place, turns, afresh=False)
    campaign.finished(turns[0])
    again = Campaign.resume(place, turns, afresh=False)
    assert again.left == turns[1:]
    assert Campaign.resume(place, turns, afresh=True).left == turns
    assert Campaign.resume(place, turns_of(drills, runs=3, seed=5), afresh=False).done == []
    for turn in turns[1:]:
        again.finished(turn)
    assert not place.exists()


def test_an_estimate_believes_what_was_measured(tmp_path: Path) -> None:
    turns = turns_of([CATALOGUE["host-loss"]], runs=1, seed=1)
    campaign = Campaign.resume(tmp_path / "unfinished.json", turns, afresh=False)
    lasted = result(100).model_copy(update={"duration_ms": 300_000.0})
    assert campaign.estimate_s([]) < 120 < campaign.estimate_s([entry(lasted)])
