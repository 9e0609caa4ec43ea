"""Phases out of the journal, and the object that --json writes."""

from __future__ import annotations

import json
from datetime import UTC, datetime

from holdfast.core.phases import PHASES, phase_durations
from holdfast.drill.result import (
    Cluster,
    Connections,
    DrillResult,
    Phases,
    Writes,
    rejoined_at_ms,
)
from holdfast.model.event import Event

FAULT_MS = 10_000.0


def event(after_ms: float, kind: str, *, epoch: int = 2, node: str = "n2") -> Event:
    return Event(FAULT_MS + after_ms, node, kind, epoch, detail={"node": node})


def phases(events: list[Event], acknowledged_after_ms: list[float]) -> Phases:
    acknowledged_at_ms = [FAULT_MS + ms for ms in acknowledged_after_ms]
    return Phases(
        **phase_durations(events, began_at_ms=FAULT_MS, epoch_before=1, acknowledged_at_ms=acknowledged_at_ms)
    )


FAILOVER = [
    event(5, "epoch.opened"),
    event(60, "recruit.joined"),
    event(90, "recruit.joined", node="n3"),
    event(100, "candidate.chosen"),
    event(95_000, "recruit.joined", node="n1"),
    event(250, "primary.promoted"),
    event(300, "epoch.serving"),
]


def test_the_phases_follow_each_other_and_add_up() -> None:
    found = phases(FAILOVER, [-3, 1, 310, 320])
    assert found == Phases(detect=5, recruit=85, choose=10, promote=150, barrier=50, reroute=10)
    assert sum(ms for _, ms in found.in_order()) == 310


def test_events_of_older_epochs_do_not_count() -> None:
    older = [event(-9000, "epoch.opened", epoch=1), event(1, "epoch.serving", epoch=1)]
    assert phases([*older, *FAILOVER], [310]) == phases(FAILOVER, [310])


def test_missing_events_take_no_time_and_nothing_is_negative() -> None:
    assert phases([], [310]) == Phases()
    for kind in {e.kind for e in FAILOVER}:
        found = phases([e for e in FAILOVER if e.kind != kind], [310])
        assert all(ms >= 0 for _, ms in found.in_order()), kind
    without_chosen = phases([e for e in FAILOVER if e.kind != "candidate.chosen"], [310])
    assert without_chosen.choose == 0
    assert sum(ms for _, ms in without_chosen.in_order()) == 310


def test_clocks_that_disagree_give_no_negative_phase() -> None:
    skewed = [event(-4, "epoch.opened"), event(120, "recruit.joined"), event(100, "candidate.chosen")]
    skewed += [event(90, "primary.promoted"), event(300, "epoch.serving")]
    found = phases(skewed, [299, 305])
    assert found.detect == 0
    assert found.promote == 0
    assert sum(ms for _, ms in found.in_order()) == 305


def test_the_time_of_an_epoch_that_was_given_up_goes_to_the_part_that_did_not_end() -> None:
    given_up = [
        event(5, "epoch.opened"),
        event(20, "recruit.joined"),
        event(30, "candidate.chosen"),
        event(40, "recruit.joined"),
    ]
    later = [
        event(1000, "epoch.opened", epoch=3),
        event(1050, "recruit.joined", epoch=3),
        event(1060, "candidate.chosen", epoch=3),
        event(1100, "primary.promoted", epoch=3),
        event(1150, "epoch.serving", epoch=3),
        event(9000, "epoch.opened", epoch=4),
    ]
    found = phases([*given_up, *later], [1155])
    assert found == Phases(detect=5, recruit=15 + 50, choose=20, promote=970 + 40, barrier=50, reroute=5)


def test_nobody_served() -> None:
    assert phases(FAILOVER[:4], [-3]) == Phases(detect=5, recruit=85, choose=10)


def test_rejoined_names_the_node() -> None:
    events = [
        event(-50, "node.rejoined", epoch=1, node="n1"),
        event(500, "node.rejoined", node="n3"),
        event(700, "node.rejoined", node="n1"),
    ]
    assert rejoined_at_ms(events, "n1", epoch_before=1) == FAULT_MS + 700
    assert rejoined_at_ms(events, "n2", epoch_before=1) is None


def test_the_json_has_the_fixed_keys() -> None:
    result = DrillResult(
        drill="primary-crash",
        seed=1,
        passed=True,
        settings="sha256:00",
        cluster=Cluster(nodes=3, durability="ANY 1", postgresql="17.10", etcd="3.5.1"),
        rto_ms=870,
        phases_ms=Phases(),
        writes=Writes(acknowledged=1, lost=0, duplicated=0, unknown=0, errors=0),
        connections=Connections(clients=8, idle=100, dropped=0),
        old_primary="n1",
        new_primary="n2",
        rejoined=True,
        rejoin_ms=0,
        report="report.html",
        started_at=datetime(2024, 5, 1, tzinfo=UTC),
        fault_at=datetime(2024, 5, 1, tzinfo=UTC),
    )
    loaded = json.loads(result.to_json())
    assert list(loaded)[:14] == [
        *("drill", "seed", "passed", "settings", "cluster", "rto_ms", "phases_ms", "writes", "connections"),
        *("old_primary", "new_primary", "rejoined", "rejoin_ms", "report"),
    ]
    assert tuple(loaded["phases_ms"]) == PHASES
    assert list(loaded["writes"])[:5] == ["acknowledged", "lost", "duplicated", "unknown", "errors"]
    assert list(loaded["connections"])[:3] == ["clients", "idle", "dropped"]
    assert list(loaded["cluster"]) == ["nodes", "durability", "postgresql", "etcd"]
    assert DrillResult.model_validate_json(result.to_json()) == result
