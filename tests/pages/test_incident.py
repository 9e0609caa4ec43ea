"""The retrospective: one file that needs nothing else, says what the journal says, and runs nobody's markup."""

from __future__ import annotations

import re
from pathlib import Path

import pytest
from pydantic import JsonValue

from holdfast.core.cost import Objectives
from holdfast.core.incident import Incident, incidents
from holdfast.model.errors import EnvironmentFault
from holdfast.model.event import Event
from holdfast.model.lost import LostLog, LostTransaction, Tuples
from holdfast.model.lsn import Lsn
from holdfast.model.register import Member
from holdfast.pages.incident import LISTED_MAX, UNTOLD, incident_markdown, incident_page
from holdfast.pages.page import write_whole
from tests.browser import picture, shown, the_browser
from tests.core.histories import CREATED, SERVING, event, failover

LOCAL = "ANY 0 (n2_00000002, n3_00000003)"
HOSTILE = "<script>alert(1)</script> | pipe"


def an_incident(*more: Event, quorum: str = "ANY 1 (n2_00000002, n3_00000003)") -> Incident:
    return incidents([CREATED, SERVING, *failover(0, "n1", "n2", 2, quorum=quorum), *more])[-1]


def an_account(transactions: int) -> LostLog:
    listed = tuple(
        LostTransaction(700 + n, Lsn(n), "2026-01-01 00:00:00", relations={"app.public.pay": Tuples(2, 0, 1)})
        for n in range(transactions)
    )
    return LostLog(Member("n1", "00000001"), 2, 1, Lsn(5), Lsn(9), "/evidence", listed)


HELD = event(
    230, "proxy 127.0.0.1:6432", "clients.held", 2, None, held=12, longest_ms=870, refused=1, unknown=0, undone=0
)


def test_the_page_says_what_the_incident_says() -> None:
    page = incident_page(an_incident(HELD), "shop", objectives=Objectives(500, 99.95))
    for words in (
        "n1 was lost, and n2 took over.",
        "12 statements had to wait, the longest for 870 ms; 1 refused.",
        "A stall of 870 ms against at most 500 ms: missed.",
        "its host, its network or its power failed",
        "holdfast drill run power-loss",
        "passed the barrier and serves",
        "verdict.silence",
    ):
        assert words in page, words
    assert "shop" in page


def test_each_class_is_in_the_page_and_in_the_markdown_with_what_it_took() -> None:
    figures: JsonValue = {"held": 12, "refused": 1, "unknown": 2, "undone": 3, "longest_ms": 870}
    told = event(230, "p1", "clients.held", 2, None, held=12, longest_ms=870, classes={"critical": figures})
    objectives = Objectives(500, 99.95, 0)
    page = incident_page(an_incident(told), "shop", objectives=objectives)
    assert "<tr><td>critical</td><td>12</td><td>1</td><td>5</td><td>870 ms (missed)</td><td>0.1 %</td></tr>" in page
    assert "Nothing that was acknowledged is lost, against nothing: kept." in page
    markdown = incident_markdown(an_incident(told), "shop", (), objectives)
    assert "| critical | 12 | 1 | 5 | 870 ms (missed) | 0.1 % |" in markdown
    assert "by class" not in incident_markdown(an_incident(HELD), "shop", (), objectives)


def counts(*values: int) -> list[JsonValue]:
    return [*values]


COURSE: JsonValue = {
    "since_ms": round(HELD.at_ms) - 2230,
    "step_ms": 100,
    "done": counts(*[40] * 20, *[0] * 9, 25, 180, 90, *[41] * 8),
    "held": counts(*[0] * 20, 4, 8, 12, 16, 20, 24, 28, 32, 36, 12, *[0] * 10),
    "failed": counts(*[0] * 29, 1, *[0] * 10),
}


def with_course(course: JsonValue) -> Incident:
    told = event(230, "p1", "clients.held", 2, None, held=36, longest_ms=870, course=course)
    return an_incident(told)


def test_how_it_went_for_clients_is_drawn_and_told_to_who_cannot_see_it() -> None:
    page = incident_page(with_course(COURSE), "shop")
    assert 'aria-label="statements and transactions done: at most 1,800 a second; none in 9 of 40 steps"' in page
    assert 'aria-label="statements that waited: at most 36 at once; none in 30 of 40 steps"' in page
    assert "at most 1 in 100 ms; 1 statement in all" in page
    assert "from 2.00 s before to 2.00 s after the first sign" in page
    assert page.count("<polygon") == 3
    assert page.count('class="moment"') == 3 * 4
    assert "How it went" not in incident_page(an_incident(HELD), "shop")
    assert "How it went" not in incident_page(with_course({"since_ms": 0, "step_ms": 1}), "shop")


def test_the_page_needs_nothing_from_elsewhere_and_runs_nothing() -> None:
    page = incident_page(an_incident(event(300, "n2", "alarm", 2, None, reason=HOSTILE)), HOSTILE)
    assert "<script" not in page
    assert not re.search(r"""(src|href)\s*=|url\(|@import""", page)
    assert "default-src 'none'" in page


def test_what_was_lost_is_listed_up_to_a_bound() -> None:
    account = an_account(LISTED_MAX + 3)
    incident = incidents([CREATED, SERVING, *failover(0, "n1", "n2", 2, quorum=LOCAL)], [account])[-1]
    page = incident_page(incident, "shop", [account])
    assert page.count("app.public.pay: 2 inserted 1 deleted") == LISTED_MAX
    assert "And 3 more" in page
    assert "up to 203" in page


def test_transactions_that_nobody_was_told_of_are_called_so() -> None:
    account = an_account(2)
    proved = incidents([CREATED, SERVING, *failover(0, "n1", "n2", 2)], [account])[-1]
    doubted = incidents([CREATED, SERVING, *failover(0, "n1", "n2", 2, quorum=LOCAL)], [account])[-1]
    for tell in (incident_page, incident_markdown):
        assert UNTOLD in tell(proved, "shop", [account])
        assert UNTOLD not in tell(doubted, "shop", [account])
        assert UNTOLD not in tell(proved, "shop")


def test_markdown_keeps_its_tables_whatever_the_journal_holds() -> None:
    text = incident_markdown(an_incident(HELD, event(300, "n2", "alarm", 2, None, reason=HOSTILE)), "shop")
    rows = [line for line in text.splitlines() if line.startswith("|")]
    assert {len(re.findall(r"(?<!\\)\|", row)) for row in rows} == {4, 5, 6}
    assert "- n1 was lost, and n2 took over." in text
    assert "`holdfast drill run power-loss`" in text


def test_the_steps_are_shown_with_their_evidence() -> None:
    for tell in (incident_page, incident_markdown):
        text = tell(an_incident(HELD), "shop")
        assert "n2 leads in epoch 2; it served after 190 ms" in text
        assert "12 statements waited, at most 870 ms; 1 failed" in text
        assert "waits for F" not in text
        assert "this is it" in text
        assert "nobody has written it" not in text
    (early,) = incidents([CREATED, SERVING, *failover(0, "n1", "n2", 2)[:4]])
    assert "waits for F and O" in incident_page(early, "shop")


def test_one_that_goes_on_can_be_told_too() -> None:
    (incident,) = incidents([CREATED, SERVING, *failover(0, "n1", "n2", 2)[:4]])
    assert "Not over" in incident_page(incident, "shop")
    assert "nobody has taken over yet" in incident_markdown(incident, "shop")


def test_a_page_that_cannot_be_written_leaves_nothing(tmp_path: Path) -> None:
    (tmp_path / "taken").mkdir()
    with pytest.raises(EnvironmentFault, match="cannot be written"):
        write_whole(tmp_path / "taken", "text")
    assert [p.name for p in tmp_path.iterdir()] == ["taken"]


@pytest.mark.live
def test_a_browser_shows_it_whole(tmp_path: Path) -> None:
    browser = the_browser()
    page = tmp_path / "incident.html"
    page.write_text(incident_page(with_course(COURSE), "shop", objectives=Objectives(500, 99.95)))
    assert "n1 was lost, and n2 took over." in shown(browser, page, tmp_path)
    assert picture(browser, page, tmp_path).stat().st_size > 20_000


def test_the_clients_whose_transactions_were_cut_off_are_named() -> None:
    client: dict[str, JsonValue] = {
        "user": "shop",
        "database": "app",
        "application": HOSTILE,
        "address": "10.0.0.7:51234",
        "node": "n1",
        "epoch": 1,
        "at_ms": 1_700_000_000_000,
        "outcome": "unknown",
    }
    told = event(240, "proxy p", "outcomes.unknown", 2, None, unknown=4, undone=0, unnamed=3, clients=[client])
    incident = an_incident(told)
    for text in (incident_page(incident, "shop"), incident_markdown(incident, "shop")):
        assert "Whose transactions were cut off" in text
        assert "10.0.0.7:51234" in text
        assert "outcome unknown" in text
        assert "And 3 more" in text
    assert "<script" not in incident_page(incident, "shop")
    assert "Whose transactions" not in incident_page(an_incident(), "shop")
    assert "Whose transactions" not in incident_markdown(an_incident(), "shop")
