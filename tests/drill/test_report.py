"""The page: one file that needs nothing else, says the figures, and lets nobody put markup into it."""

from __future__ import annotations

import json
import re
from datetime import UTC, datetime
from html.parser import HTMLParser
from pathlib import Path

import pytest

from holdfast.core.words import duration
from holdfast.drill.history import Attempt, History, Outcome
from holdfast.drill.report import render_report, write_report
from holdfast.drill.result import Cluster, Connections, DrillResult, LostTransactions, Phases, Reads, Writes
from holdfast.drill.series import Samples
from holdfast.drill.words import figures, headline
from holdfast.model.errors import EnvironmentFault
from holdfast.model.event import Event

FAULT_MS = 1_700_000_000_000.0
AT = datetime.fromtimestamp(FAULT_MS / 1000, UTC)


def a_result(**changes: object) -> DrillResult:
    result = DrillResult(
        drill="primary-crash",
        seed=7,
        passed=True,
        settings="sha256:5e77135e",
        cluster=Cluster(nodes=3, durability="ANY 1", postgresql="17.10", etcd="3.5.1"),
        rto_ms=431.5,
        phases_ms=Phases(detect=12, recruit=120, choose=3, promote=210, barrier=60, reroute=26.5),
        writes=Writes(acknowledged=12_345, lost=0, duplicated=0, unknown=5, errors=2, sqlstates={"08007": 7}),
        connections=Connections(clients=8, idle=100, dropped=0),
        old_primary="n1",
        new_primary="n2",
        rejoined=True,
        rejoin_ms=3210.0,
        report="report.html",
        reads=Reads(answered=999, errors=0),
        started_at=AT,
        fault_at=AT,
    )
    return result.model_copy(update=changes)


def some_samples() -> Samples:
    history = History()
    for n in range(600):
        at_ms = FAULT_MS - 2000 + 5 * n + (430 if n > 400 else 0)
        history.record(Attempt(0, n, Outcome.ACKNOWLEDGED, at_ms - 2, at_ms))
        history.record_read(at_ms - 1, at_ms, (0, n))
    history.record(Attempt(1, 1, Outcome.UNKNOWN, FAULT_MS - 1, FAULT_MS + 4))
    return Samples.of(history, fault_at_ms=FAULT_MS, stopped_at_ms=FAULT_MS + 1430)


def some_events() -> list[Event]:
    return [
        Event(FAULT_MS + 12, "n2", "epoch.opened", 2, "suspect.postmaster-died"),
        Event(FAULT_MS + 345, "n2", "something.new", 2, None, {"why": "<script>alert(1)</script>", "n": [1, 2]}),
    ]


class Outside(HTMLParser):
    """Collects whatever would make a browser ask somebody else."""

    def __init__(self) -> None:
        super().__init__()
        self.found: list[str] = []

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        if tag in ("link", "img", "iframe", "object", "embed", "audio", "video", "source", "base", "form", "image"):
            self.found.append(tag)
        self.found += [f"{tag} {name}" for name, _ in attrs if name in ("src", "href", "srcset", "action", "data")]


def test_the_page_is_self_contained() -> None:
    page = render_report(a_result(), some_samples(), some_events())
    outside = Outside()
    outside.feed(page)
    assert outside.found == []
    for way_out in ("@import", "url(", "fetch(", "XMLHttpRequest", "importScripts", "import("):
        assert way_out not in page, way_out
    # The only address is the name of the chart library, in a comment of its own.
    assert re.findall(r"(?:https?:)?//[a-z][\w.-]+\.[a-z]{2,}[^\s\"')]*", page) == ["https://github.com/leeoniya/uPlot"]
    assert "default-src 'none'" in page
    assert "Permission is hereby granted, free of charge" in page


def test_the_page_says_what_happened() -> None:
    page = render_report(a_result(), some_samples(), some_events())
    assert "<h1>Writes stood still for 432 ms. Nothing acknowledged was lost.</h1>" in page
    assert f"The primary n1 was killed at {AT:%H:%M:%S} UTC, while 8 clients wrote." in page
    for said in ("12,345", "3.21 s", "sha256:5e77135e", "17.10", "suspect.postmaster-died", "08007: 7", "All 100 idle"):
        assert said in page, said
    for name in ("detect", "recruit", "choose", "promote", "barrier", "reroute"):
        assert f"<span>{name}</span>" in page
    assert "<script>alert" not in page
    found = re.search(r'<script type="application/json" id="data">(.*?)</script>', page, re.DOTALL)
    assert found is not None
    data = json.loads(found[1])
    assert data["phases"][0]["name"] == "detect"
    assert data["phases"][-1]["to_s"] == pytest.approx(0.4315)
    assert sum(data["close"]["failed"]) == 1
    assert min(data["close"]["writes_per_s"]) == 0
    assert data["stall"] == pytest.approx([0.0, 0.435])


def test_a_failed_run_says_so_first() -> None:
    lost = a_result().writes.model_copy(update={"lost": 3})
    failed = a_result(passed=False, writes=lost, problems=("3 acknowledged writes are lost",))
    page = render_report(failed, some_samples(), [])
    assert "<h1>Writes stood still for 432 ms. 3 acknowledged writes are lost.</h1>" in page
    assert "Failed" in page
    assert "are there, once each" not in page
    nobody = a_result(passed=False, new_primary=None, rejoined=False, rejoin_ms=None, phases_ms=Phases())
    assert headline(nobody) == "No primary came back. Nobody can write."
    assert "No primary came back" in render_report(nobody, some_samples(), [])


def test_losses_that_came_back_are_told_apart_from_others() -> None:
    writes = a_result().writes.model_copy(update={"lost": 3})
    whole = LostTransactions(known=3, listed=4, matched=3, salvaged_rows=9, wrong_rows=0)
    back = a_result(writes=writes, lost_transactions=whole, nothing_lost_proved=False)
    told = "3 acknowledged writes are lost, each of them listed, and brought back by the script."
    assert headline(back).endswith(told)
    rows = dict(figures(back))
    assert rows["  their transactions / listed"] == "3 / 3, 4 with those in flight"
    assert rows["  rows of these"] == "9, 0 wrong, 0 not brought back"
    assert rows["  that nothing is lost"] == "not proved by the cluster itself"
    for name, value in (("matched", 2), ("wrong_rows", 1), ("not_brought_back", 1)):
        found = whole.model_copy(update={name: value})
        assert headline(a_result(writes=writes, lost_transactions=found)).endswith("3 acknowledged writes are lost.")


def test_a_run_without_any_answer_still_has_a_page() -> None:
    samples = Samples.of(History(), fault_at_ms=FAULT_MS, stopped_at_ms=FAULT_MS + 1)
    assert "<h1>" in render_report(a_result(phases_ms=Phases()), samples, [])


def test_it_is_written_whole_or_not_at_all(tmp_path: Path) -> None:
    path = tmp_path / "new" / "report.html"
    write_report(path, a_result(), some_samples(), some_events())
    assert path.read_text().startswith("<!doctype html>")
    assert [p.name for p in path.parent.iterdir()] == ["report.html"]
    (tmp_path / "file").write_text("")
    with pytest.raises(EnvironmentFault, match="report cannot be written"):
        write_report(tmp_path / "file" / "report.html", a_result(), some_samples(), [])


@pytest.mark.parametrize(
    ("ms", "text"),
    [
        (0, "0 ms"),
        (0.01, "<0.1 ms"),
        (1.04, "1.0 ms"),
        (9.97, "10 ms"),
        (999.4, "999 ms"),
        (999.6, "1.00 s"),
        (59_990, "59.99 s"),
        (59_999, "1 min 0 s"),
        (125_000, "2 min 5 s"),
    ],
)
def test_durations_read_well(ms: float, text: str) -> None:
    assert duration(ms) == text
