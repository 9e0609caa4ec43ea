"""The lost rows of one table, out of every list that there is, made ready to be matched."""

from __future__ import annotations

import json
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from hashlib import blake2b

from holdfast.core.match.matcher import LostRow, Terms
from holdfast.core.match.rules import Image, LostChange
from holdfast.local.lost import SalvagedRow, rows_of
from holdfast.model.lost import LostLog, LostTransaction
from holdfast.model.rows import Row


@dataclass(frozen=True, slots=True)
class Where:
    """A lost transaction and the list that has it."""

    account: LostLog
    lost: LostTransaction


@dataclass(slots=True)
class LostRows:
    """Every lost transaction once, in the order of epochs and commits, though two lists may have it."""

    accounts: Sequence[LostLog]
    transactions: list[Where] = field(init=False)
    _numbers: dict[tuple[int, int], int] = field(init=False)

    def __post_init__(self) -> None:
        first: dict[tuple[int, int, int], Where] = {}
        for account in self.accounts:
            if account.salvage is not None:
                for lost in account.of_clients:
                    first.setdefault((account.timeline, lost.lsn, lost.xid), Where(account, lost))
        ordered = sorted(first.items())
        self.transactions = [where for _, where in ordered]
        self._numbers = {(id(where.account), where.lost.xid): n for n, where in enumerate(self.transactions)}

    @property
    def tables(self) -> list[str]:
        """The tables of which rows were lost."""
        return sorted({table for a in self.accounts if a.salvage is not None for table in a.salvage.files})

    def rows(self, table: str | None = None) -> Iterator[tuple[int, SalvagedRow]]:
        """Rows with the numbers of their transactions, table by table, in the order of the commits of each list."""
        for account in self.accounts:
            if account.salvage is None or (table is not None and table not in account.salvage.files):
                continue
            for row in rows_of(account, table):
                number = self._numbers.get((id(account), row.xid))
                if number is not None:
                    yield number, row

    def columns(self, table: str, there: Sequence[str]) -> tuple[str, ...]:
        """Those that the table has now, and every lost row has, too."""
        common = dict.fromkeys(there)
        for _, row in self.rows(table):
            for image in (row.before, row.after):
                if image is not None and not common.keys() <= image.keys():
                    common = {name: None for name in common if name in image}
        return tuple(common)

    def of_table(self, table: str, terms: Terms, columns: Sequence[str]) -> tuple[list[LostRow], list[str]]:
        """The rows of a table, and what was done to each."""
        found: list[LostRow] = []
        kinds: list[str] = []
        for number, row in self.rows(table):
            found.append(_lost_row(number, row, terms, columns))
            kinds.append(row.change)
        return found, kinds


def _lost_row(number: int, row: SalvagedRow, terms: Terms, columns: Sequence[str]) -> LostRow:
    before, after = (None if i is None else image_of(i, terms, columns) for i in (row.before, row.after))
    if row.after is None and row.change != "delete":
        return LostRow(LostChange(number, before, None), "look.unread")  # what it became is not known
    known = row.after if row.after is not None else row.before
    if known is None:
        return LostRow(LostChange(number, None, None), "look.unread")
    if row.change == "update" and before is None and after is not None:
        before = Image(b"", after.values)  # it was something, and nobody knows what
    return LostRow(LostChange(number, before, after), terms.key_of_row(known))


def image_of(row: Row, terms: Terms, columns: Sequence[str]) -> Image:
    """A row, as far as two of them are compared."""
    return Image(digest_of("", [row[name] for name in columns]), terms.values_of_row(row))


def digest_of(table: str, values: Sequence[str | None]) -> bytes:
    """Equal for equal rows of a table."""
    return blake2b(json.dumps([table, *values]).encode(), digest_size=16).digest()
