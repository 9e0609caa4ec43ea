"""Incidents, told from journals: what clients met, what was lost, why, and what to change."""

from __future__ import annotations

import dataclasses

from pydantic import JsonValue

from holdfast.core.causes import _REASONS
from holdfast.core.cost import Objectives
from holdfast.core.detection import verdict_rules
from holdfast.core.incident import Incident, against, incidents
from holdfast.core.phases import PHASES
from holdfast.drill.catalogue import CATALOGUE
from holdfast.model.event import Event
from holdfast.model.lost import LostLog, LostTransaction, Tuples
from holdfast.model.lsn import Lsn
from holdfast.model.register import Member
from tests.core.histories import CREATED, SERVING, event, failover, verdict


def held(at: int, proxy: str, epoch: int, **figures: int) -> Event:
    zero = {"held": 0, "longest_ms": 0, "refused": 0, "unknown": 0, "undone": 0}
    return event(at, proxy, "clients.held", epoch, None, **{**zero, **figures})


def lost(epoch: int, transactions: int) -> LostLog:
    listed = tuple(
        LostTransaction(n, Lsn(n), "2026-01-01 00:00:00", relations={"app.public.t": Tuples(inserted=1)})
        for n in range(transactions)
    )
    return LostLog(Member("n1", "00000001"), epoch, epoch - 1, Lsn(5), Lsn(9), "/evidence", listed)


def only(events: list[Event], *accounts: LostLog, silent: tuple[str, ...] = ()) -> Incident:
    (incident,) = incidents(events, accounts, silent)
    return incident


LOCAL = "ANY 0 (n2_00000002, n3_00000003)"
BEFORE = [CREATED, SERVING]
PLAIN = [*BEFORE, *failover(0, "n1", "n2", 2)]


def test_a_cluster_that_never_changed_its_leader_had_no_incident() -> None:
    assert incidents([]) == ()
    assert incidents(BEFORE) == ()


def test_the_parts_add_up_to_the_time_until_an_epoch_served() -> None:
    incident = only(PLAIN)
    assert incident.number == 2
    assert [(p.name, p.ms) for p in incident.parts] == [
        *(("detect", 50.0), ("recruit", 10.0), ("choose", 30.0), ("promote", 60.0), ("barrier", 40.0)),
    ]
    assert sum(p.ms for p in incident.parts) == incident.story.serving_ms == incident.stall_ms == 190
    assert {p.name for p in incident.parts} == set(PHASES) - {"reroute"}


def test_the_time_that_a_person_took_is_a_part_of_its_own() -> None:
    first_sign, *rest = failover(0, "n1", "n2", 2)
    asks = [event(ms, who, "waiting", 1, None, reason="asks", what="approval") for ms, who in ((40, "n2"), (55, "n3"))]
    approved = event(60_000, "n3", "failover.approved", 1, None, by="alice as root on db1")
    later = [e for e in failover(60_000, "n1", "n2", 2) if e.kind != "verdict.changed"]
    incident = only([*BEFORE, first_sign, rest[0], *asks, approved, *later])
    assert [(p.name, p.ms) for p in incident.parts][:3] == [("detect", 40.0), ("approve", 60_010.0), ("recruit", 10.0)]
    assert sum(p.ms for p in incident.parts) == incident.stall_ms == 60_190
    for_nodes = dataclasses.replace(asks[0], detail={"reason": "asks", "what": "nodes"})
    assert "approve" not in {p.name for p in only([*BEFORE, first_sign, for_nodes, *rest]).parts}


def test_what_clients_met_is_what_all_proxies_say() -> None:
    told = [held(250, "p1", 2, held=7, longest_ms=240, undone=2), held(260, "p2", 2, held=3, longest_ms=900, unknown=1)]
    incident = only([*PLAIN, *told])
    assert incident.impact is not None
    assert (incident.impact.held, incident.impact.longest_ms, incident.stall_ms) == (10, 900, 900)
    assert incident.impact.proxies == ("p1", "p2")
    assert incident.summary[2] == (
        "10 statements had to wait, the longest for 900 ms; "
        "1 with an unknown outcome, 2 in transactions that were undone."
    )
    assert "is not known" in only(PLAIN).summary[2]


def test_five_lines_say_it() -> None:
    incident = only([*PLAIN, held(250, "p1", 2, held=1, longest_ms=240)])
    assert incident.summary == (
        "n1 was lost, and n2 took over.",
        "From its first sign to an epoch that serves it took 190 ms; the longest part was promote, 60 ms.",
        "1 statement had to wait, the longest for 240 ms; none failed.",
        "Nothing that was acknowledged is lost: that is proved.",
        "n1 was back as a standby after 900 ms.",
    )


def test_each_incident_has_its_own_losses() -> None:
    local = [*BEFORE, *failover(0, "n1", "n2", 2, quorum=LOCAL), *failover(90_000, "n2", "n1", 3)]
    first, second = incidents(local, [lost(2, 4)])
    assert (first.losses.proved, first.losses.transactions) == (False, 4)
    assert first.summary[3] == "4 transactions did not make it; their clients may have been told of them."
    assert (second.losses.proved, second.losses.transactions, second.losses.doubts) == (True, 0, ())
    assert any("durability=strict" in g.command for g in first.guardrails)
    assert not any("durability=strict" in g.command for g in second.guardrails)


def test_without_a_list_nothing_is_proved() -> None:
    incident = only([*BEFORE, *failover(0, "n1", "n2", 2, quorum=LOCAL)])
    assert incident.summary[3].startswith("It is not proved that nothing is lost: ")


def test_the_likeliest_cause_comes_first_with_who_saw_it_and_where_to_look() -> None:
    incident = only(PLAIN)
    first = incident.causes[0]
    assert first.what.startswith("its host, its network or its power failed")
    assert first.evidence == ("n2: as the test says", "n3: as the test says")
    assert "n1" in first.look_at
    assert incident.guardrails[-1].command == "holdfast drill run power-loss"


def test_what_was_short_before_is_named_with_its_figures() -> None:
    busy = verdict(-60_000, "n3", "overloaded", "n1")
    figures: JsonValue = {"cpu_waits_percent": 97.0, "io_waits_percent": 3.0}
    reading: JsonValue = {"source": "load", "age_ms": 40, "says": "waits for cpu 97 %, io 3 %", "figures": figures}
    signs = [
        dataclasses.replace(busy, at_ms=busy.at_ms, rule="verdict.slow", detail={**busy.detail, "readings": [reading]})
    ]
    names = [c.what for c in only([*BEFORE, *signs, *failover(0, "n1", "n2", 2)]).causes]
    assert names[1:] == ["the processor was short", "it was not well before it was lost"]


def test_a_change_of_policy_shortly_before_is_a_candidate_and_one_of_yesterday_is_none() -> None:
    def changed(at: int) -> Event:
        return event(at, "n1", "policy.changed", 1, None, changes={"durability": "asynchronous"})

    recent = only([*BEFORE, changed(-60_000), *failover(0, "n1", "n2", 2)])
    assert recent.causes[-1].evidence == ("1 min 0 s before: durability = asynchronous",)
    old = only([CREATED, changed(-86_400_000), SERVING, *failover(0, "n1", "n2", 2)])
    assert not any("policy" in c.what for c in old.causes)


def test_a_switchover_was_asked_for() -> None:
    begun = event(0, "n1", "handover.begun", 1, None, target="n2")
    rest = [e for e in failover(500, "n1", "n2", 2) if e.kind != "verdict.changed"]
    incident = only([*BEFORE, begun, *rest])
    assert [c.what for c in incident.causes] == ["it was asked for"]
    assert incident.guardrails == ()
    assert incident.summary[0] == "Somebody asked n1 to hand over; n2 leads since."


def test_one_that_goes_on_says_so() -> None:
    incident = only(PLAIN[:5])
    assert incident.stall_ms is None
    assert incident.summary[:2] == (
        "n1 was lost, and nobody has taken over yet.",
        "It has not ended: no epoch has served since.",
    )
    assert against(Objectives(1000, 99.9), incident) == ()


def test_a_stall_is_held_against_what_was_promised() -> None:
    incident = only([*PLAIN, held(250, "p1", 2, held=1, longest_ms=2592)])
    assert against(Objectives(2000, 99.9), incident) == (
        "A stall of 2.59 s against at most 2.00 s: missed.",
        "99.9 % of 30 days leave 43 min 12 s a month; this took 0.1 % of it.",
    )
    assert against(Objectives(), incident) == ()


def test_every_reason_is_a_rule_of_the_verdicts_and_names_a_drill_that_there_is() -> None:
    assert set(_REASONS) <= {rule.id for rule in verdict_rules()}
    assert {reason.drill for reason in _REASONS.values()} <= {*CATALOGUE, "primary-crash"}


def test_who_gave_up_before_anybody_took_over_is_told_of() -> None:
    """A failover may wait for a person for longer than a statement is held."""
    early = held(20, "p1", 1, held=1, longest_ms=30_001, refused=1)
    first, *later = failover(0, "n1", "n2", 2)
    incident = only([*BEFORE, first, early, *later, held(400, "p1", 2, held=1, longest_ms=2980)])
    assert incident.impact is not None
    assert (incident.impact.held, incident.impact.refused, incident.stall_ms) == (2, 1, 30_001)


def test_where_nobody_had_to_wait_the_stall_is_the_time_until_an_epoch_served() -> None:
    incident = only([*PLAIN, held(230, "p1", 2, unknown=1)])
    assert incident.stall_ms == incident.story.serving_ms == 190
