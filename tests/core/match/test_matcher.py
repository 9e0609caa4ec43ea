"""Every ledger entry and every lost row ends under exactly one rule, in whatever order they come."""

from __future__ import annotations

import random
from collections import Counter, defaultdict
from collections.abc import Iterable, Sequence

import pytest
from hypothesis import given
from hypothesis import strategies as st

from holdfast.core.match.matcher import Asked, Entry, Judged, LostRow, Matcher, Pair, Terms
from holdfast.core.match.rules import RULES, Image, Key, LostChange
from holdfast.core.match.selection import Needs, select

Row = dict[str, str | None]
TERMS = Terms((Pair("id", "payment"),), (Pair("amount", "charged"),), {"id": "integer", "amount": "numeric"})
KEY_ONLY = Terms((Pair("id", "payment"),), (), {"id": "integer", "amount": "numeric"})


def image(row: Row, terms: Terms) -> Image:
    return Image(repr(sorted(row.items())).encode(), terms.values_of_row(row))


def row(number: object, amount: object = "10.00", note: str = "") -> Row:
    return {"id": None if number is None else str(number), "amount": None if amount is None else str(amount), "n": note}


def entry(number: object, charged: object = "10", at: str = "") -> Entry:
    return Entry(at, {"payment": None if number is None else str(number), "charged": str(charged)})


class Change:
    def __init__(self, transaction: int, before: Row | None, after: Row | None) -> None:
        self.transaction, self.before, self.after = transaction, before, after

    def lost(self, terms: Terms) -> LostRow:
        images = (None if r is None else image(r, terms) for r in (self.before, self.after))
        known = self.after or self.before
        assert known is not None
        return LostRow(LostChange(self.transaction, *images), terms.key_of_row(known))


def match(
    terms: Terms,
    entries: Iterable[Entry],
    changes: Sequence[Change],
    database: Sequence[Row],
    *,
    is_unique: bool = True,
    is_whole: bool = True,
) -> list[Judged]:
    """All of it, with a database that is a list."""
    there: dict[Key | str, list[Image]] = defaultdict(list)
    for found in database:
        there[terms.key_of_row(found)].append(image(found, terms))
    matcher = Matcher(terms, [c.lost(terms) for c in changes], is_unique=is_unique, is_whole=is_whole)
    judged: list[Judged] = []
    for each in entries:
        taken = matcher.take(each, terms.key_of_entry(each.values))
        if isinstance(taken, Asked):
            taken = matcher.decide(taken, there.get(taken.key, ()))
        if taken is not None:
            judged.append(taken)
    judged += matcher.finish({key: there.get(key, ()) for key in matcher.lost_keys})
    return judged


def rules(judged: Iterable[Judged]) -> tuple[list[str], list[str]]:
    """Of the entries, in the order of their positions, and of the lost rows in theirs."""
    entries = sorted((j.entry.position, j.rule) for j in judged if j.entry is not None)
    lost = sorted((j.lost, j.rule) for j in judged if j.lost is not None)
    return [rule for _, rule in entries], [rule for _, rule in lost]


MADE = Change(0, None, row(1))
CHANGED = Change(1, row(1), row(1, 80))
DELETED = Change(1, row(1), None)
OF_SOMEBODY_ELSE = row(1, "10.00", "another")


@pytest.mark.parametrize(
    ("entries", "lost", "there", "expected"),
    [
        # in the ledger, lost, in the database
        ([entry(1)], [MADE], [], (["reapply.seen"], ["reapply.seen"])),
        ([entry(1)], [MADE], [row(1)], (["nothing.again"], ["nothing.again"])),
        ([entry(1)], [MADE], [OF_SOMEBODY_ELSE], (["look.taken"], ["look.taken"])),
        ([entry(1)], [], [row(1)], (["nothing.there"], [])),
        ([entry(1)], [], [], (["refund.nowhere"], [])),
        ([], [MADE], [], ([], ["ignore.unseen"])),
        ([], [MADE], [OF_SOMEBODY_ELSE], ([], ["ignore.unseen"])),
        ([], [MADE], [row(1)], ([], ["nothing.again"])),
        # amounts
        ([entry(1, "10.000")], [MADE], [], (["reapply.seen"], ["reapply.seen"])),
        ([entry(1, "11")], [MADE], [], (["differs.lost"], ["differs.lost"])),
        ([entry(1, "11")], [], [row(1)], (["differs.there"], [])),
        ([entry(1, "11")], [MADE], [row(1)], (["differs.there"], ["nothing.again"])),
        ([entry(1, "ten")], [MADE], [], (["differs.lost"], ["differs.lost"])),
        # changes: the ledger speaks for the state that it has
        ([entry(1, "80")], [CHANGED], [row(1)], (["reapply.change"], ["reapply.change"])),
        ([entry(1, "10")], [CHANGED], [row(1)], (["nothing.there"], ["ignore.unseen"])),
        ([entry(1, "80")], [CHANGED], [row(1, 80)], (["nothing.again"], ["nothing.again"])),
        ([entry(1, "80")], [CHANGED], [row(1, 90)], (["look.taken"], ["look.taken"])),
        ([entry(1, "80")], [CHANGED], [], (["look.taken"], ["look.taken"])),
        ([entry(1)], [DELETED], [row(1)], (["look.deleted"], ["look.deleted"])),
        ([entry(1)], [DELETED], [], (["look.deleted"], ["nothing.again"])),
        ([], [DELETED], [row(1)], ([], ["ignore.unseen"])),
        # several lost transactions led to one state
        ([entry(1, "80")], [MADE, CHANGED], [], (["reapply.seen"], ["reapply.seen"] * 2)),
        ([entry(1, "80")], [CHANGED, MADE], [row(1)], (["reapply.change"], ["reapply.change"] * 2)),
        ([entry(1, "80")], [MADE, CHANGED], [row(1, 80)], (["nothing.again"], ["nothing.again"] * 2)),
        ([entry(1)], [MADE, DELETED], [], (["look.deleted"], ["nothing.again"] * 2)),
        # twice in the ledger
        ([entry(1, 10, "a"), entry(1, 10, "b")], [MADE], [], (["reapply.seen"] * 2, ["reapply.seen"])),
        ([entry(1, 10, "a"), entry(1, 11, "b")], [MADE], [], (["reapply.seen", "differs.lost"], ["reapply.seen"])),
        # what cannot be matched
        ([entry(None)], [], [], (["look.no-key"], [])),
        ([entry("one")], [], [], (["look.unreadable"], [])),
        ([], [Change(0, None, row(None))], [], ([], ["look.no-key"])),
    ],
)
def test_rules(entries: list[Entry], lost: list[Change], there: list[Row], expected: object) -> None:
    assert rules(match(TERMS, entries, lost, there)) == expected


def test_what_is_nowhere_is_refunded_only_where_all_that_was_lost_is_known() -> None:
    assert rules(match(TERMS, [entry(1)], [], [], is_whole=False))[0] == ["look.nowhere"]


def test_rows_that_share_a_key_are_each_their_own() -> None:
    lost = [Change(0, None, row(1, 10)), Change(1, None, row(1, 20)), Change(2, None, row(1, 30))]
    found = match(TERMS, [entry(1, 10)], lost, [row(1, 30), row(1, 40)], is_unique=False)
    assert rules(found) == (["reapply.seen"], ["reapply.seen", "differs.lost", "nothing.again"])


def test_keys_of_rows_that_were_inserted_twice_are_named() -> None:
    lost = [Change(0, None, row(1, 10)), Change(1, None, row(1, 20)), Change(2, None, row(2)), Change(3, row(2), None)]
    matcher = Matcher(TERMS, [c.lost(TERMS) for c in [*lost, Change(4, None, row(2))]], is_unique=False, is_whole=True)
    assert matcher.twice_lost == (("1",),)


# -- whatever comes ---------------------------------------------------------------------------------------------------

numbers = st.sampled_from([None, "1", "1.0", "2", "3", "x"])
amounts = st.sampled_from(["10", "10.00", "11", "?"])
some_rows = st.builds(row, numbers, amounts, st.sampled_from(["", "b"]))
some_entries = st.lists(st.builds(entry, numbers, amounts), max_size=8).map(
    lambda found: [Entry(f"line {n}", each.values) for n, each in enumerate(found)]
)


@st.composite
def some_changes(draw: st.DrawFn) -> list[Change]:
    pairs = draw(st.lists(st.tuples(some_rows, some_rows, st.sampled_from(["insert", "update", "delete"])), max_size=6))
    return [
        Change(n, None if kind == "insert" else before, None if kind == "delete" else after)
        for n, (before, after, kind) in enumerate(pairs)
    ]


@given(
    st.sampled_from([TERMS, KEY_ONLY]), some_entries, some_changes(), st.lists(some_rows, max_size=4), st.booleans(),
    st.booleans(), st.randoms(use_true_random=False),
)  # fmt: skip
def test_everything_falls_under_one_rule_in_any_order(
    terms: Terms,
    entries: list[Entry],
    changes: list[Change],
    database: list[Row],
    is_unique: bool,
    is_whole: bool,
    chance: random.Random,
) -> None:
    found = match(terms, entries, changes, database, is_unique=is_unique, is_whole=is_whole)
    assert Counter(j.entry.position for j in found if j.entry is not None) == Counter(e.position for e in entries)
    assert sorted(j.lost for j in found if j.lost is not None) == list(range(len(changes)))
    assert all(j.rule in RULES for j in found)

    mixed_entries, mixed_rows = entries[:], database[:]
    order = list(range(len(changes)))
    for each in (mixed_entries, mixed_rows, order):
        chance.shuffle(each)
    again = match(terms, mixed_entries, [changes[n] for n in order], mixed_rows, is_unique=is_unique, is_whole=is_whole)
    told = {j.entry.position: j.rule for j in again if j.entry is not None}
    assert told == {j.entry.position: j.rule for j in found if j.entry is not None}
    told_lost = {order[j.lost]: j.rule for j in again if j.lost is not None}
    assert told_lost == {j.lost: j.rule for j in found if j.lost is not None}


@given(some_entries, some_changes(), st.lists(some_rows, max_size=4))
def test_what_is_in_the_ledger_and_gone_is_never_passed_over(
    entries: list[Entry], changes: list[Change], database: list[Row]
) -> None:
    """An entry of which the database has nothing is something to do; a lost row that nobody knows of is not."""
    there = {KEY_ONLY.key_of_row(found) for found in database}
    known = {KEY_ONLY.key_of_entry(each.values) for each in entries}
    for judged in match(KEY_ONLY, entries, changes, database):
        verdict, _ = RULES[judged.rule]
        if judged.entry is not None and judged.key not in there:
            assert verdict in ("re-apply", "refund", "look")
        if judged.lost is not None and judged.key is not None and judged.key not in known:
            assert verdict in ("ignore", "nothing to do")


# -- transactions -----------------------------------------------------------------------------------------------------


def test_a_transaction_comes_back_whole_and_says_what_else_it_holds() -> None:
    found = select([(0, "reapply.seen"), (0, "ignore.unseen"), (1, "ignore.unseen"), (2, "reapply.change")])
    assert found.transactions == {0, 2}
    assert found.mixed == {0: {"ignore": 1}}


def test_who_changed_further_what_is_not_brought_back() -> None:
    needs = Needs(frozenset({2, 4}))
    needs.see(0, None, b"a")
    needs.see(1, b"a", b"b")
    needs.see(2, b"b", b"c")  # needs 1, and by way of it 0
    needs.see(3, None, b"x")
    needs.see(4, b"c", b"d")  # needs 2, which comes, and what that needs
    assert needs.found == {2: (0, 1), 4: (0, 1)}
