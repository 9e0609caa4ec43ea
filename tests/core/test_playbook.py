"""The steps of an incident: each leaves evidence, or says why not, and none goes back to where it was."""

from __future__ import annotations

from pathlib import Path

import pytest

from holdfast.cli.playbook import WIDTH, drawn
from holdfast.core.incident import incidents
from holdfast.core.playbook import (
    STEPS,
    UNTOLD_MS,
    Captured,
    Eased,
    FailedOver,
    Isolated,
    LoadShed,
    PoolsShed,
    Reported,
    Standing,
    State,
    Verified,
    Why,
    beside,
    needed_by,
)
from holdfast.model.event import Event
from tests.core.histories import CREATED, SERVING, T0, event, failover

BEFORE = [CREATED, SERVING]
PROXY = "proxy 127.0.0.1:6432"
WHOLE = [
    *failover(0, "n1", "n2", 2),
    event(55, "n1", "postgres.killed", 2, "fence.kill"),
    event(210, PROXY, "ramp.begun", 2, None, percent=10, limit=5, usual=50),
    event(
        700, "n1", "capture.done", 2, "follow.rewind", files=40, bytes=9000, took_ms=500, directory="/c/1", missing=""
    ),
    event(800, "n1", "log.accounted", 2, None, transactions=0, lost_bytes=400, fork="0/5000"),
    event(1300, PROXY, "clients.held", 2, None, held=9, longest_ms=240, refused=0, unknown=1, undone=0),
    event(5200, PROXY, "ramp.step", 2, "ramp.healthy", percent=50, limit=25, usual=50, waited=0),
    event(9200, PROXY, "ramp.ended", 2, "ramp.full", took_ms=8990),
    event(
        20_000, "commands", "parity.checked", 2, None, outcome="n1 has what n2 has", holds=True, by="eve", address="db1"
    ),
    event(30_000, "commands", "incident.reported", 2, None, incident=2, files=["a.html"], by="eve", address="db1"),
]
ORDERED = sorted(WHOLE, key=lambda e: e.at_ms)


def steps(events: list[Event], after_ms: float | None = None) -> dict[str, Standing]:
    (incident,) = incidents([*BEFORE, *events], now_ms=None if after_ms is None else T0 + after_ms)
    assert [s.step for s in incident.steps] == list(STEPS)
    return {s.step.letter: s for s in incident.steps}


def test_every_step_of_a_whole_incident_has_its_evidence() -> None:
    found = steps(WHOLE)
    assert {s.state for s in found.values()} == {State.DONE}
    assert {letter: s.evidence for letter, s in found.items()} == {
        "F": FailedOver("n2", 2, 190),
        "A": PoolsShed((PROXY,), 9, 1, 240),
        "I": Isolated(("n2",), True, False, None),
        "L": LoadShed((PROXY,), 5, 10),
        "O": Captured("/c/1", 40, 9000, ""),
        "V": Verified(True, 0, 400, "0/5000", 0, ("n1 has what n2 has",)),
        "E": Eased(1, 8990),
        "R": Reported("eve", ("a.html",)),
    }
    assert {letter: (s.began_ms, s.ended_ms) for letter, s in found.items()} == {
        "F": (0, 190), "A": (50, 1300), "I": (50, 90), "L": (190, 210), "O": (200, 700), "V": (700, 20_000),
        "E": (210, 9200), "R": (30_000, 30_000),
    }  # fmt: skip


def test_isolation_says_what_was_done_what_failed_and_when_it_ended() -> None:
    measures = "pg_hba, nftables"
    events = [
        *WHOLE,
        event(200, "n1", "isolation.begun", 2, None, measures="pg_hba", kept_out="clients", resumed=False),
        event(210, "n1", "isolation.failed", 2, None, measure="nftables", order="begin", reason="nft exit status 1"),
        event(220, "n2", "isolation.command", 2, None, node="n1", order="begin", ok=True, outcome="exit status 0"),
        event(230, "n2", "isolation.command", 2, None, node="n3", order="begin", ok=True, outcome="about another"),
        event(240, "n1", "isolation.begun", 2, None, measures="nftables", kept_out="clients and peers", resumed=False),
    ]
    begun = steps(events)["I"]
    kept_out = f"clients and peers (by {measures})"
    failed = ("nftables (nft exit status 1)",)
    assert begun.evidence == Isolated(("n2",), True, False, None, kept_out, "exit status 0", failed, None)
    events += [
        event(890, "n1", "isolation.lifted", 2, None, measures=measures, reason="it streams from n2", for_ms=690),
        event(910, "n2", "isolation.command", 2, None, node="n1", order="lift", ok=True, outcome="exit status 0"),
    ]
    assert steps(events)["I"].says == (
        "n2 listen to it no more; it was stopped; kept out: clients and peers (by pg_hba, nftables); cut off "
        "from outside: exit status 0; failed: nftables (nft exit status 1); lifted: it streams from n2, from outside, "
        "exit status 0"
    )


def test_no_step_goes_back_while_the_journal_grows() -> None:
    order = [State.WAITING, State.RUNNING, State.DONE]
    seen = dict.fromkeys([s.letter for s in STEPS], State.WAITING)
    first = next(i for i, e in enumerate(ORDERED) if e.kind == "epoch.opened") + 1
    for end in range(first, len(ORDERED) + 1):
        for letter, standing in steps(ORDERED[:end]).items():
            if letter == "R" and standing.why is Why.UNWRITTEN:
                continue
            assert order.index(standing.state) >= order.index(seen[letter]), (letter, ORDERED[end - 1])
            seen[letter] = standing.state
    assert set(seen.values()) == {State.DONE}


def test_what_has_not_begun_says_what_it_waits_for() -> None:
    found = steps(ORDERED[:4])  # an epoch is open, a recruit has joined
    assert [found[letter].state for letter in "FAI"] == [State.RUNNING] * 3
    assert {letter: found[letter].waits_for for letter in "LOVER"} == {
        "L": ("F",), "O": ("I",), "V": ("F", "O"), "E": ("L",), "R": ("F", "A", "V", "E"),
    }  # fmt: skip
    assert found["V"].says == "waits for F and O"


def test_a_failover_that_is_stuck_says_on_what() -> None:
    stuck = event(60, "n3", "waiting", 2, "epoch.recruit", reason="2 of 3 members do not answer")
    assert steps([*ORDERED[:3], stuck])["F"].says == "2 of 3 members do not answer"


@pytest.mark.parametrize(
    ("events", "letter", "why", "words"),
    [
        ([event(700, "n1", "capture.failed", 2, None, reason="no space")], "O", Why.FAILED, "failed: no space"),
        ([], "O", Why.TOUCHED, "brought back without it"),
        ([event(800, "n1", "log.unaccounted", 2, None, reason="no waldump")], "V", Why.FAILED, "failed: no waldump"),
    ],
)
def test_what_was_not_done_says_why(events: list[Event], letter: str, why: Why, words: str) -> None:
    found = steps([*failover(0, "n1", "n2", 2), *events])[letter]
    assert (found.state, found.why) == (State.NOT_DONE, why)
    assert words in found.says


def test_proxies_that_have_nothing_to_tell_are_not_waited_for_for_ever() -> None:
    plain = failover(0, "n1", "n2", 2)
    early, late = steps(plain, 1000), steps(plain, 190 + UNTOLD_MS + 1)
    assert {letter: early[letter].state for letter in "ALE"} == {
        "A": State.RUNNING, "L": State.RUNNING, "E": State.WAITING,
    }  # fmt: skip
    assert {letter: late[letter].why for letter in "ALER"} == {
        "A": Why.UNTOLD, "L": Why.NO_RAMP, "E": Why.NO_RAMP, "R": Why.UNWRITTEN,
    }  # fmt: skip


def test_a_planned_hand_over_has_nothing_to_capture() -> None:
    begun = event(0, "n1", "handover.begun", 1, None, target="n2")
    rest = [e for e in failover(500, "n1", "n2", 2) if e.kind != "verdict.changed"]
    found = steps([begun, *rest])
    assert (found["O"].why, found["V"].state) == (Why.PLANNED, State.DONE)


def test_a_node_that_leads_again_has_nothing_to_compare() -> None:
    again = [e for e in failover(0, "n1", "n1", 2) if e.kind != "node.rejoined"]
    found = steps(again)
    assert (found["O"].why, found["V"].why) == (Why.SAME_LEADER, Why.SAME_LEADER)


def test_a_node_that_does_not_come_back_is_waited_for() -> None:
    found = steps(failover(0, "n1", "n2", 2)[:-1], 3_600_000)
    assert (found["O"].state, found["V"].state) == (State.WAITING, State.WAITING)
    assert found["O"].says == "n1's agent has noted nothing since"


def test_a_report_belongs_to_its_incident_also_if_another_has_begun() -> None:
    report = event(99_000, "commands", "incident.reported", 3, None, incident=2, files=["a.html"], by="eve")
    first, second = incidents([*BEFORE, *failover(0, "n1", "n2", 2), *failover(90_000, "n2", "n1", 3), report])
    assert [i.steps[-1].state for i in (first, second)] == [State.DONE, State.WAITING]


def test_the_table_can_be_walked() -> None:
    letters = [step.letter for step in STEPS]
    assert sorted(letters) == sorted("FAILOVER")
    for n, step in enumerate(STEPS):
        assert set(step.needs) <= set(letters[:n])  # so that none waits for itself
    assert needed_by("R") == set(letters) - {"R"}
    assert beside("F") == ("A", "I", "O")
    assert beside("R") == ()
    assert all(one in beside(other) for one in letters for other in beside(one))


def test_the_page_has_the_table() -> None:
    page = (Path(__file__).parents[2] / "docs" / "incidents.md").read_text()
    for step in STEPS:
        needs, others = (", ".join(letters) or "–" for letters in (step.needs, beside(step.letter)))
        assert f"| {step.letter} {step.name} | {step.does} | {needs} | {others} | {step.proves} |" in page


def test_the_timeline_fills() -> None:
    (incident,) = incidents([*BEFORE, *ORDERED[:4]], now_ms=T0 + 75)
    early = list(drawn(incident.steps, 75))
    assert early[0].startswith("▸ F failover          " + "▒" * WIDTH)
    assert early[5].startswith("· V verify parity     " + " " * WIDTH)
    assert early[5].endswith("waiting: waits for F and O")
    (incident,) = incidents([*BEFORE, *WHOLE])
    late = list(drawn(incident.steps, 1_000_000))
    assert all(line[0] == "✓" for line in late)
    assert late[5].count("█") > WIDTH * 0.9
    assert {len(line.split("done: ")[0]) for line in late} == {len(late[0].split("done: ")[0])}
