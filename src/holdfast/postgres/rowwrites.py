"""Which tuples a record of the log wrote, and where: what pg_waldump prints of the heap (its page in the manual).

The text differs between versions: ``DELETE off 2`` (14, 15), ``DELETE xmax: 740, off: 2`` (16 on); 14 and 15 do not
print where the tuples of a MULTI_INSERT lie.
"""

from __future__ import annotations

import re
from array import array
from collections.abc import Iterator
from typing import NamedTuple

ANYWHERE = 0
"""The offset of tuples of which only the block is known; offsets begin with 1."""

_BLOCK = re.compile(r"blkref #(\d+): rel (\d+/\d+/\d+)(?: fork (\w+))? blk (\d+)")
_OFFSET = re.compile(r"\boff:? (\d+)")
_OLD_AND_NEW = re.compile(r"\b(?:old_)?off:? (\d+).*?\bnew[ _]off:? (\d+)")
_OFFSETS = re.compile(r"offsets: \[([\d, ]*)\]")
_MANY = re.compile(r"(?:ntuples: )?(\d+)(?: tuples)?")


_NOWHERE = (-1, 0, 0)
_NUMBERS = 1 + 2 * len(_NOWHERE)


class Place(NamedTuple):
    """Where a tuple lies: ``relation`` is tablespace/database/filenode."""

    relation: str
    block: int
    offset: int

    @property
    def database(self) -> str:
        """The database's number."""
        return self.relation.split("/")[1]

    @property
    def is_catalog(self) -> bool:
        """Whether the relation came with the database (transam.h, FirstNormalObjectId): its catalog, in effect."""
        return int(self.relation.rsplit("/", 1)[1]) < 16384


class RowWrite(NamedTuple):
    """One tuple written by (sub)transaction ``xid``: an insert has no ``old``, a delete no ``new``."""

    order: int
    xid: int
    old: Place | None
    new: Place | None


class RelationNames:
    """Numbers for relations: a log names few of them, and each of them again and again."""

    def __init__(self) -> None:
        self._numbers: dict[str, int] = {}
        self._names: list[str] = []

    def number(self, name: str) -> int:
        """The same for the same name."""
        if name not in self._numbers:
            self._numbers[name] = len(self._names)
            self._names.append(name)
        return self._numbers[name]

    def name(self, number: int) -> str:
        """What was given this number."""
        return self._names[number]


class PackedWrites:
    """Writes, in 56 bytes each: hundreds of thousands of them are remembered beside a server that wants its memory."""

    def __init__(self, names: RelationNames) -> None:
        self._names = names
        self._numbers = array("q")

    def append(self, write: RowWrite) -> None:
        """Remember one more."""
        self._numbers.append(write.order)
        for place in (write.old, write.new):
            if place is None:
                self._numbers.extend(_NOWHERE)
            else:
                self._numbers.extend((self._names.number(place.relation), place.block, place.offset))

    def __len__(self) -> int:
        return len(self._numbers) // _NUMBERS

    def of(self, xid: int) -> Iterator[RowWrite]:
        """All of them, as written by ``xid``."""
        for start in range(0, len(self._numbers), _NUMBERS):
            order, *places = self._numbers[start : start + _NUMBERS]
            yield RowWrite(order, xid, self._place(*places[:3]), self._place(*places[3:]))

    def _place(self, relation: int, block: int, offset: int) -> Place | None:
        return None if relation < 0 else Place(self._names.name(relation), block, offset)


def tuples_of(operation: str, desc: str) -> Iterator[tuple[Place | None, Place | None]]:
    """Old and new place of each tuple that one heap record wrote; ``operation`` is without ``+INIT``."""
    blocks = {int(n): (rel, int(blk)) for n, rel, fork, blk in _BLOCK.findall(desc) if fork in ("", "main")}
    if 0 not in blocks:
        return
    head = desc.split(", blkref", 1)[0]
    if operation == "INSERT" and (found := _OFFSET.search(head)):
        yield None, Place(*blocks[0], int(found[1]))
    elif operation == "DELETE" and (found := _OFFSET.search(head)):
        yield Place(*blocks[0], int(found[1])), None
    elif operation in ("UPDATE", "HOT_UPDATE") and (found := _OLD_AND_NEW.search(head)):
        yield Place(*blocks.get(1, blocks[0]), int(found[1])), Place(*blocks[0], int(found[2]))
    elif operation == "MULTI_INSERT":
        for offset in _offsets(head):
            yield None, Place(*blocks[0], offset)


def _offsets(head: str) -> list[int]:
    name, _, rest = head.partition(" ")
    count = int(found[1]) if (found := _MANY.match(rest)) else 0
    if name.endswith("+INIT"):
        return list(range(1, count + 1))
    if printed := _OFFSETS.search(rest):
        return [int(text) for text in printed[1].split(",") if text.strip()]
    return [ANYWHERE] if count else []
