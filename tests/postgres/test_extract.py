"""Some transactions of a script, though their rows hold text that looks like a script."""

from __future__ import annotations

from hypothesis import given
from hypothesis import strategies as st

from holdfast.model.lost import LostTransaction
from holdfast.model.lsn import Lsn
from holdfast.model.rows import Column, RowChange, Table
from holdfast.postgres.salvage import script
from holdfast.postgres.salvage.extract import only

NASTY = [
    "-- transaction 2, committed", "\n-- transaction 1, committed then\nBEGIN;", "'", "''", '"', "\r\n", "\\connect x",
    "\n\\connect \"x\"\n", "COMMIT;", "\n\n", "", "a", "--'", "\n--\"",
]  # fmt: skip
values = st.one_of(st.none(), st.lists(st.sampled_from(NASTY), max_size=4).map("".join))


def lines_of(text: str) -> list[str]:
    return [f"{line}\n" for line in text.split("\n")[:-1]]


def block(xid: int, database: str, name: str, found: list[tuple[str | None, str | None]]) -> str:
    table = Table(database, "public", name, (Column("a", "text"), Column("b", "text")))
    changes = [RowChange(table, None, {"a": a, "b": b}) for a, b in found]
    lost = LostTransaction(xid, Lsn(xid), "then")
    return "".join(f"{line}\n" for line in script.transaction(lost, changes, ["a note"]))


some_rows = st.lists(st.tuples(values, values), max_size=3)
some_transactions = st.tuples(st.sampled_from("ab"), st.sampled_from(["t", 'o"dd', "it's"]), some_rows)


@given(st.lists(some_transactions, max_size=5), st.sets(st.integers(0, 4)))
def test_only_the_chosen_transactions_are_taken(
    transactions: list[tuple[str, str, list[tuple[str | None, str | None]]]], chosen: set[int]
) -> None:
    whole, expected = "-- the head, isn't it\n", ""
    present = written = None
    for xid, (database, name, found) in enumerate(transactions):
        if database != present:
            present = database
            whole += script.in_database(database)
        text = block(xid, database, name, found)
        whole += text
        if xid in chosen:
            if database != written:
                written = database
                expected += script.in_database(database)
            expected += text
        elif database != written:
            written = None
    taken = "".join(only(lines_of(whole), {xid: [] for xid in chosen}))
    assert taken == expected


def test_what_is_said_of_a_transaction_stands_at_its_head() -> None:
    whole = script.in_database("app") + block(7, "app", "t", [("1", None)])
    taken = "".join(only(lines_of(whole), {7: ["it needs another"]}))
    assert "-- transaction 7, committed then\n-- it needs another\n-- a note\nBEGIN;\n" in taken
