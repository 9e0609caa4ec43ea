"""Whose the cut off transactions were, read from the proxies' entries of the journal."""

from __future__ import annotations

from typing import Any

from holdfast.core.outcome import NAMED_MAX, OutcomeEvidence, decide_outcome
from holdfast.core.whose import of_unknown, whose
from holdfast.model.event import Event
from holdfast.model.outcome import Outcome, XactStatus
from holdfast.model.owner import Owner, Unanswered
from tests.core.histories import event


def entry(n: int, told: str = "unknown", epoch: int = 1, **more: Any) -> dict[str, Any]:
    who = {"user": f"u{n}", "database": "app", "application": "shop", "address": f"10.0.0.7:{n}"}
    return {**who, "node": "n1", "epoch": epoch, "at_ms": 1000 - n, "outcome": told, **more}


def entries(*clients: Any, unnamed: int = 0) -> Event:
    return event(5, "proxy p", "outcomes.unknown", 2, None, unknown=1, undone=1, unnamed=unnamed, clients=list(clients))


def test_clients_are_told_oldest_first_with_how_many_are_not_named() -> None:
    found = whose(
        [event(1, "n1", "alarm", 1, None), entries(entry(1), unnamed=2), entries(entry(2, "undone"), unnamed=3)]
    )
    assert [(c.owner.user, c.told, c.at_ms) for c in found.clients] == [
        ("u2", Unanswered.UNDONE, 998),
        ("u1", Unanswered.UNKNOWN, 999),
    ]
    assert found.unnamed == 5
    assert [c.owner.user for c in of_unknown(found.clients)] == ["u1"]
    assert whose([]).clients == ()


def test_what_cannot_be_read_is_left_out() -> None:
    odd = [None, "text", {}, entry(1, "committed?"), entry(1, epoch="x"), entry(1, at_ms=None)]  # type: ignore[arg-type]
    assert whose([entries(*odd)]).clients == ()
    assert whose([event(5, "proxy p", "outcomes.unknown", 2, None, clients="none", unnamed=None)]).unnamed == 0


def test_a_client_in_words() -> None:
    assert Owner("alice", "app", "billing", "10.0.0.7:5").in_words == "alice@app (billing) from 10.0.0.7:5"
    assert Owner("alice", "app").in_words == "alice@app from an unknown address"


def test_an_unknown_outcome_names_the_clients_that_have_no_answer() -> None:
    journal = (entries(*(entry(n) for n in range(NAMED_MAX + 2)), entry(50, "undone"), entry(51, epoch=2)),)
    evidence = OutcomeEvidence(2, XactStatus.ABORTED, False, (), (), events=journal)
    answer = decide_outcome(800, 1, evidence)
    assert answer.outcome is Outcome.UNKNOWN
    named = [words for words in answer.evidence if "has no answer" in words]
    assert len(named) == NAMED_MAX
    assert f"a client of epoch 1 that has no answer: u{NAMED_MAX + 1}@app (shop) from 10.0.0.7:{NAMED_MAX + 1}" in named
    assert "and 2 more: `holdfast lost show` has them all" in answer.evidence
