"""Which changes of mind reach the journal."""

from __future__ import annotations

from dataclasses import replace

import pytest

from holdfast.model.report import Verdict, VerdictKind
from holdfast.node import verdicts
from holdfast.node.verdicts import VerdictNotes
from holdfast.store.journal import Journal
from holdfast.store.memory import MemoryStore
from tests.core.builders import N2, TIMEOUTS, verdict

HEALTHY, SLOW, HUNG = (verdict(k) for k in (VerdictKind.HEALTHY, VerdictKind.OVERLOADED, VerdictKind.HUNG))


async def noted(*held: Verdict | None) -> list[object]:
    journal = Journal(MemoryStore("main"), "n2", TIMEOUTS)
    notes = VerdictNotes(journal)
    for each in held:
        notes.note(each)
    return [event.detail["verdict"] for event in journal.recent]


async def test_what_is_well_from_the_start_or_not_known_is_not_worth_an_entry() -> None:
    assert await noted(None, verdict(VerdictKind.UNKNOWN), HEALTHY, HEALTHY) == []


async def test_each_change_to_or_from_something_bad_is_noted_at_once() -> None:
    assert await noted(HEALTHY, HUNG, HUNG, HEALTHY, HUNG) == ["hung", "healthy", "hung"]
    assert await noted(HUNG, replace(HEALTHY, about=N2)) == ["hung"]


async def test_slow_and_well_in_turns_is_noted_now_and_then(monkeypatch: pytest.MonkeyPatch) -> None:
    assert await noted(HEALTHY, *[SLOW, HEALTHY] * 10) == ["overloaded"]
    monkeypatch.setattr(verdicts, "QUIET_MS", 0)
    assert await noted(HEALTHY, *[SLOW, HEALTHY] * 2) == ["overloaded", "healthy", "overloaded", "healthy"]
