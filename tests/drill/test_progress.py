"""What a drill says on the terminal, as lines and live."""

from __future__ import annotations

import io

import pytest
from rich.console import Console

from holdfast.drill.observer import Observer, Plan, Step
from holdfast.drill.progress import LiveProgress, PlainProgress, observer_for
from holdfast.drill.workload import Counters
from holdfast.model.event import Event
from tests.drill.test_report import FAULT_MS, a_result

PLAN = Plan(
    drill="primary-crash",
    title="The primary's PostgreSQL is killed under load",
    cluster="main",
    nodes=("n1", "n2", "n3"),
    primary="n1",
    durability="ANY 1",
    writers=8,
    readers=2,
    idle=100,
    rate_per_s=400,
    seed=1,
    variants=("a checkpoint under way",),
)


def counters(after_ms: float, acknowledged: int, unknown: int = 0) -> Counters:
    return Counters(
        at_ms=FAULT_MS + after_ms,
        acknowledged=acknowledged,
        errors=0,
        unknown=unknown,
        reads=0,
        read_errors=0,
        dropped=0,
    )


def a_run(observer: Observer) -> None:
    observer.step(Step.WAITING)
    observer.begin(PLAN)
    observer.step(Step.WARM_UP)
    for n in range(12):
        observer.sample(counters(-1200 + 100 * n, 40 * n))
    observer.step(Step.FAULT, "kill -9 of the whole PostgreSQL of n1")
    observer.fault(FAULT_MS, "PostgreSQL of n1 killed", 1)
    for after_ms, kind in [
        (8, "epoch.opened"),
        (60, "recruit.joined"),
        (90, "recruit.joined"),
        (95, "candidate.chosen"),
        (300, "primary.promoted"),
        (340, "epoch.serving"),
    ]:
        observer.event(Event(FAULT_MS + after_ms, "n2", kind, 2))
    observer.first_write(FAULT_MS + 351)
    observer.sample(counters(1400, 850, unknown=3))
    observer.end(a_result())
    observer.close()


def test_plain_lines_tell_the_story_in_order() -> None:
    stream = io.StringIO()
    a_run(PlainProgress(stream))
    said = stream.getvalue()
    expected = [
        "waiting until the cluster is whole",
        "Drill primary-crash: the primary's PostgreSQL is killed under load",
        "harder by a checkpoint under way",
        "warming up under load",
        "   +0 ms  PostgreSQL of n1 killed",
        " +8.0 ms  detect",
        "  +90 ms  recruit",
        "  +95 ms  choose",
        " +300 ms  promote",
        " +340 ms  barrier",
        " +351 ms  reroute",
        "3 unknown",
        "PASSED: Writes stood still for 432 ms. Nothing acknowledged was lost.",
        "12,345",
        "yes, after 3.21 s",
    ]
    at = -1
    for text in expected:
        found = said.find(text, at + 1)
        assert found > at, f"{text!r} is missing or out of order in:\n{said}"
        at = found
    assert "\x1b" not in said


@pytest.mark.parametrize("width", [60, 120])
def test_the_live_display_says_the_same_without_colour(width: int) -> None:
    stream = io.StringIO()
    console = Console(file=stream, force_terminal=True, no_color=True, width=width, legacy_windows=False)
    a_run(LiveProgress(console))
    said = stream.getvalue()
    for text in ("warming up under load", "█", "+90 ms", "✓", "recruit", "✓ Passed", "12,345"):
        assert text in said, text
    assert "\x1b[31m" not in said
    assert "\x1b[?25h" in said  # the cursor is given back


def test_a_problem_is_told() -> None:
    stream = io.StringIO()
    PlainProgress(stream).end(a_result(passed=False, problems=("n1 does not have the rows of the primary",)))
    assert "FAILED" in stream.getvalue()
    assert "problem: n1 does not have" in stream.getvalue()


def test_lines_unless_somebody_watches() -> None:
    terminal = Console(file=io.StringIO(), force_terminal=True, legacy_windows=False, _environ={"TERM": "xterm"})
    assert isinstance(observer_for(terminal, plain=False), LiveProgress)
    assert isinstance(observer_for(terminal, plain=True), PlainProgress)
    dumb = Console(file=io.StringIO(), force_terminal=True, _environ={"TERM": "dumb"})
    assert isinstance(observer_for(dumb, plain=False), PlainProgress)
    assert isinstance(observer_for(Console(file=io.StringIO()), plain=False), PlainProgress)
