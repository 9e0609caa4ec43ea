"""What an incident cost is held against what was promised; what is not known is not called kept."""

from __future__ import annotations

import pytest
from pydantic import JsonValue

from holdfast.core.cost import (
    CLASS_HEAD,
    MONTH_MS,
    ClassImpact,
    Losses,
    Objectives,
    class_rows,
    cost,
    impact_by_class,
    in_words,
    reach_back_ms,
)

ALL = Objectives(rto_ms=2000, availability_percent=99.9, rpo_ms=500)
BUDGET_MS = MONTH_MS / 1000
NOTHING = Losses(True, 0, (), 0)


def test_a_stall_and_a_loss_take_their_parts_of_the_budget() -> None:
    found = cost(ALL, 2592, Losses(False, 3, ("a doubt",), 25_920))
    assert (found.rto_kept, found.rpo_kept) == (False, False)
    assert found.budget_ms == pytest.approx(BUDGET_MS)
    assert (found.stall_percent, found.loss_percent) == (0.1, 1.0)
    assert in_words(ALL, found) == (
        "A stall of 2.59 s against at most 2.00 s: missed.",
        "What is lost reaches 25.92 s back, against at most 500 ms: missed.",
        "99.9 % of 30 days leave 43 min 12 s a month; this took 0.1 % of it, and the time whose writes are lost 1.0 %.",
    )


def test_what_was_kept_is_called_so() -> None:
    found = cost(Objectives(2000, None, 0), 1999, NOTHING)
    assert (found.rto_kept, found.rpo_kept, found.budget_ms, found.stall_percent) == (True, True, None, None)
    words = in_words(Objectives(2000, None, 0), found)
    assert words[1] == "Nothing that was acknowledged is lost, against nothing: kept."


def test_what_is_not_known_is_neither_kept_nor_missed() -> None:
    found = cost(ALL, None, Losses(False, 0, ("a doubt",)))
    assert (found.rto_kept, found.rpo_kept, found.stall_percent, found.loss_percent) == (None,) * 4
    assert in_words(ALL, found) == ()
    told = in_words(ALL, cost(ALL, 5, Losses(False, 0, ("a doubt",))))
    assert told[1] == "How far back what is lost reaches is not known; promised was at most 500 ms."
    assert in_words(Objectives(), cost(Objectives(), 5, NOTHING)) == ()


def test_what_is_lost_reaches_back_to_the_oldest_commit() -> None:
    commits = ["2026-11-21 11:06:53.519278 UTC", "2026-11-21 11:06:53.019278 UTC"]
    assert reach_back_ms(commits, 1795259213019.278 + 1500) == 1500
    assert reach_back_ms(["2026-11-21 11:06:54 UTC"], 1795259213000) == 1  # later: lost all the same
    assert reach_back_ms([], 1.0) is None
    assert reach_back_ms([*commits, "then"], 1795259214000) is None


def test_classes_add_up_over_the_proxies() -> None:
    first: JsonValue = {"critical": {"held": 3, "refused": 1, "unknown": 1, "undone": 2, "longest_ms": 800}}
    second: JsonValue = {"critical": {"held": 2, "longest_ms": 900}, "background": {"refused": 7}, "broken": 5}
    found = impact_by_class([first, None, second])
    assert found == (ClassImpact("background", refused=7), ClassImpact("critical", 5, 1, 1, 2, 900))
    assert found[1].failed == 3


def test_each_class_bears_its_own_part_of_the_budget() -> None:
    classes = (ClassImpact("background", 1234, 56, 0, 0, 25_920), ClassImpact("critical", 5, 0, 1, 2, 1000))
    found = cost(ALL, 25_920, NOTHING, classes)
    assert [(c.name, c.rto_kept, c.budget_percent) for c in found.classes] == [
        ("background", False, 1.0),
        ("critical", True, 0.039),
    ]
    rows = class_rows(classes, found)
    assert rows[0] == ("background", "1,234", "56", "0", "25.92 s (missed)", "1.0 %")
    assert rows[1] == ("critical", "5", "0", "3", "1.00 s", "0.0 %")
    assert all(len(row) == len(CLASS_HEAD) for row in rows)
    assert class_rows(classes, cost(Objectives(), 5, NOTHING, classes))[1][4:] == ("1.00 s", "–")
