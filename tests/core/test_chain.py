"""Whatever is done to a journal is seen, and named."""

from __future__ import annotations

import json
from collections.abc import Sequence
from dataclasses import replace
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from holdfast.core.causality import in_order
from holdfast.core.chain import Break, Ends, Entry, Harm, check, head_of, seal, without_gaps
from holdfast.model.errors import RegisterError
from holdfast.model.event import Event, Head, Stamp


def written(count: int, source: str = "n1", head: Head | None = None) -> list[Event]:
    events: list[Event] = []
    for i in range(count):
        event = Event(1000.0 + i, source, f"test.{i}", 1, "rule", {"i": i, "π": [1.5, None]}, Stamp(1_000_000 + i))
        events.append(seal(event, head))
        head = head_of(events[-1])
    return events


def ends(events: Sequence[Event], base: Head | None = None) -> Ends:
    source = events[0].source
    return Ends({source: head_of(events[-1])}, {} if base is None else {source: base})


def entries(events: Sequence[Event]) -> list[Entry]:
    return [Entry.read(event.to_json()) for event in events]


def breaks(
    events: Sequence[Event], known: Ends | None, remembered: Sequence[Event] = ()
) -> list[tuple[Harm, int, int]]:
    return [(b.harm, b.number, b.until) for chain in check(entries(events), known, remembered) for b in chain.breaks]


def the_break(events: Sequence[Event], known: Ends | None, remembered: Sequence[Event] = ()) -> Break:
    (chain,) = check(entries(events), known, remembered)
    (found,) = chain.breaks
    return found


def relinked(events: Sequence[Event], at: int, **changes: object) -> list[Event]:
    """What somebody writes who changes an entry and makes its digest, and no other, anew."""
    changed = replace(events[at], **changes, link=None)  # type: ignore[arg-type]
    before = head_of(events[at - 1]) if at else None
    return [*events[:at], seal(changed, before), *events[at + 1 :]]


def test_what_nobody_touched_is_intact() -> None:
    events = written(5)
    for known in (ends(events), None):
        (chain,) = check(entries(list(reversed(events))), known, events)
        assert (chain.first, chain.last, chain.entries, chain.unlinked, chain.intact) == (1, 5, 5, 0, True)


def test_the_chain_goes_on_after_what_was_dropped() -> None:
    events = written(8)
    assert breaks(events[3:], ends(events, head_of(events[2]))) == []
    assert breaks(events[3:], ends(events)) == [(Harm.REMOVED, 1, 3)]
    assert breaks(events[4:], ends(events, head_of(events[2]))) == [(Harm.REMOVED, 4, 4)]
    assert breaks(events[3:], ends(events, Head(3, "0" * 64))) == [(Harm.CHANGED, 4, 4)]
    assert breaks([], Ends({"n1": head_of(events[7])}, {"n1": head_of(events[7])})) == []


@settings(deadline=None)
@given(st.data())
def test_every_change_of_one_entry_is_found_at_it(data: st.DataObject) -> None:
    events = written(6)
    at = data.draw(st.integers(0, 5))
    change: dict[str, Any] = data.draw(
        st.sampled_from(
            [
                {"at_ms": 1.0},
                {"kind": "other"},
                {"epoch": 2},
                {"rule": None},
                {"detail": {"i": at}},
                {"detail": {**events[at].detail, "more": 1}},
                {"stamp": Stamp(5)},
                {"stamp": None},
            ]
        )
    )
    edited = [*events[:at], replace(events[at], **change), *events[at + 1 :]]
    assert breaks(edited, ends(events)) == [(Harm.CHANGED, at + 1, at + 1)]
    assert breaks(edited, None) == [(Harm.CHANGED, at + 1, at + 1)]
    sealed_again = relinked(events, at, **change)
    assert breaks(sealed_again, ends(events)) == [(Harm.CHANGED, at + 1, at + 1)]


@settings(deadline=None)
@given(st.sets(st.integers(1, 9), min_size=1, max_size=8))
def test_whatever_is_removed_is_missed(numbers: set[int]) -> None:
    events = written(9)
    left = [event for event in events if event.link and event.link.number not in numbers]
    found = breaks(left, ends(events))
    assert {n for harm, first, last in found for n in range(first, last + 1) if harm is Harm.REMOVED} == numbers
    assert {harm for harm, _, _ in found} == {Harm.REMOVED}


def test_what_is_put_in_between_is_named_and_what_was_there_is_not() -> None:
    events = written(5)
    forged = seal(Event(1002.5, "n1", "forged", 1), head_of(events[1]))
    found = the_break([*events, forged], ends(events))
    assert (found.harm, found.number, found.event and found.event.kind) == (Harm.INSERTED, 3, "forged")
    loose = Event(1002.5, "n1", "forged", 1, stamp=Stamp(1_000_002, 5))
    found = the_break([*events, loose], ends(events))
    assert (found.harm, found.number, found.event and found.event.kind) == (Harm.INSERTED, 3, "forged")
    after = seal(Event(1009.0, "n1", "forged", 1), head_of(events[4]))
    assert breaks([*events, after], ends(events)) == [(Harm.INSERTED, 6, 6)]


def test_a_chain_made_anew_from_an_entry_on_differs_from_what_its_writer_remembers() -> None:
    events = written(5)
    anew = events[:2]
    head = head_of(events[1])
    for event in (replace(events[2], detail={"i": 99}), *events[3:]):
        anew.append(seal(replace(event, link=None), head))
        head = head_of(anew[-1])
    assert breaks(anew, ends(anew)) == []  # whoever may write everything can make everything anew
    first = check(entries(anew), ends(anew), events[2:])[0].breaks[0]
    assert (first.harm, first.number) == (Harm.CHANGED, 3)
    assert "detail.i was 2, is 99" in first.says
    assert "detail.π was [1.5, null], is missing" in first.says


def test_what_was_removed_is_told_by_who_remembers_it() -> None:
    events = written(5)
    found = the_break([*events[:2], *events[3:]], ends(events), events)
    assert (found.harm, found.event and found.event.kind) == (Harm.REMOVED, "test.2")
    assert found.says == "is missing, after test.1 (2) and before test.3 (4); n1 remembers test.2 (3)"
    assert breaks(events[:3], ends(events[:3]), events) == [(Harm.REMOVED, 4, 5)]
    assert breaks([], Ends({}, {}), events) == [(Harm.REMOVED, 1, 5)]


def test_a_head_that_is_gone_is_missed() -> None:
    events = written(3)
    assert breaks(events, Ends({}, {})) == [(Harm.REMOVED, 3, 3)]


def test_entries_from_before_there_were_chains_are_read_and_counted() -> None:
    old = b'{"at_ms":1.0,"source":"n1","kind":"epoch.opened","epoch":2,"rule":null,"detail":{"reason":"x"}}'
    events = written(2)
    (chain,) = check([Entry.read(old), *entries(events)], ends(events))
    assert (chain.unlinked, chain.intact) == (1, True)
    (alone,) = check([Entry.read(old)], Ends({}, {}))
    assert (alone.first, alone.unlinked, alone.intact) == (None, 1, True)


def test_members_that_a_newer_agent_writes_are_part_of_what_is_checked() -> None:
    plain = json.loads(written(1)[0].to_json())
    with_more = {**plain, "severity": "high"}
    raw = json.dumps(with_more)
    assert check([Entry.read(raw)])[0].breaks[0].harm is Harm.CHANGED
    assert Entry.read(json.dumps({**plain, "note": None})).digest == plain["link"]["digest"]


def test_each_writer_has_its_own_chain() -> None:
    one, other = written(3, "n1"), written(3, "n2")
    known = Ends({"n1": head_of(one[2]), "n2": head_of(other[2])}, {})
    first, second = check(entries([*one, other[0], other[2]]), known)
    assert (first.source, first.intact) == ("n1", True)
    assert (second.source, [b.number for b in second.breaks]) == ("n2", [2])


@settings(deadline=None)
@given(st.sets(st.integers(0, 11)), st.randoms(use_true_random=False))
def test_a_part_is_exported_without_gaps(chosen: set[int], random: object) -> None:
    journal = in_order([*written(6, "n1"), *written(6, "n2")])
    part = [event for i, event in enumerate(journal) if i in chosen]
    whole = without_gaps(part, journal)
    assert set(map(id, part)) <= set(map(id, whole))
    assert breaks(whole, None) == []


def test_what_is_no_entry_is_refused() -> None:
    for wrong in (b"", b"[]", b"not json", b'{"at_ms":"x"}'):
        with pytest.raises(RegisterError):
            Entry.read(wrong)
