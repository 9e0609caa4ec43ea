"""Whether a standby has its primary's rows, judged while both go on (docs/parity.md).

A physical standby has the primary's row versions at the same places (ctid) under the same xmin. So three looks at a
chunk of a table tell the truth without a lock: the primary's (*before*), the standby's once it has replayed what the
first could see, and the primary's again (*after*). What the primary shows both times must be on the standby. What the
standby shows and is older than the first look must have been in it. Everything else changed meanwhile.
"""

from __future__ import annotations

import re
from collections.abc import Collection, Iterable, Mapping
from dataclasses import dataclass, field

_NUMBERS = re.compile(r"((?<![\w.\-])-?[0-9]{1,40}(?![\w.\-]))")
"""Whole numbers that stand alone; what is in a UUID or a date is text."""
_FIRST_NORMAL_XID = 3
_HALF = 1 << 31


@dataclass(frozen=True, slots=True)
class Version:
    """One version of a row: where it lies, who wrote it, and a digest of its values.

    ``xmax`` is who deletes or locks it, 0 for nobody. ``key`` is its primary key as text, empty without one.
    """

    block: int
    offset: int
    xmin: int
    xmax: int
    digest: int
    key: str = ""

    @property
    def identity(self) -> tuple[int, int, int]:
        """What tells it from every other version that has ever been in the table."""
        return self.block, self.offset, self.xmin

    def __str__(self) -> str:
        return self.key or f"ctid ({self.block},{self.offset})"


Look = Mapping[tuple[int, int, int], Version]
"""The versions that one node shows, by identity."""


def look_of(versions: Collection[Version]) -> Look:
    """What one node shows."""
    return {version.identity: version for version in versions}


def precedes(xid: int, other: int) -> bool:
    """Whether a transaction id is older; ids wrap around (PostgreSQL manual, section 25.1.5)."""
    if xid < _FIRST_NORMAL_XID or other < _FIRST_NORMAL_XID:
        return xid < other
    return (xid - other) & 0xFFFFFFFF >= _HALF


@dataclass(slots=True)
class Difference:
    """The versions of a chunk in which the standby differs, and those of which that cannot be said."""

    missing: dict[tuple[int, int, int], Version] = field(default_factory=dict)
    extra: dict[tuple[int, int, int], Version] = field(default_factory=dict)
    different: dict[tuple[int, int, int], Version] = field(default_factory=dict)
    undecided: int = 0

    def __bool__(self) -> bool:
        return bool(self.missing or self.extra or self.different)

    def also_in(self, other: Difference) -> Difference:
        """What was found by both of two comparisons."""
        return Difference(
            {k: v for k, v in self.missing.items() if k in other.missing},
            {k: v for k, v in self.extra.items() if k in other.extra},
            {k: v for k, v in self.different.items() if k in other.different},
        )

    def add(self, other: Difference) -> None:
        """Count what was found elsewhere in the same table."""
        self.missing.update(other.missing)
        self.extra.update(other.extra)
        self.different.update(other.different)
        self.undecided += other.undecided

    def all(self) -> list[Version]:
        """Every version that differs, in the order of their places."""
        found = {**self.missing, **self.extra, **self.different}
        return [found[identity] for identity in sorted(found)]


def range_of(keys: Iterable[str]) -> tuple[str, str]:
    """The first and the last of some primary keys, numbers in them by value; empty if any row has none."""
    known = sorted(keys, key=_order_of)
    return (known[0], known[-1]) if known and all(known) else ("", "")


def _order_of(key: str) -> list[tuple[int, int, str]]:
    """Numbers come before texts, as they do in no key that has both in one place."""
    parts = ((part, part.strip()) for part in _NUMBERS.split(key) if part)
    return [(0, int(plain), "") if _NUMBERS.fullmatch(plain) else (1, 0, part) for part, plain in parts]


@dataclass(slots=True)
class Looks:
    """Comparisons of one chunk, one after the other: what differs must do so twice in a row."""

    left: int
    """How many more there may be."""
    _last: Difference | None = None

    def judge(self, now: Difference) -> Difference | None:
        """What has been found by now; None: look again."""
        self.left -= 1
        if not now and not now.undecided:
            return now
        both = Difference() if self._last is None else self._last.also_in(now)
        self._last = now
        if both:
            return both
        return None if self.left > 0 else Difference(undecided=now.undecided)


def compare(before: Look, before_xmin: int, standby: Look, after: Look) -> Difference:
    """Judge one chunk. ``before_xmin`` is the oldest transaction that was still running at the first look.

    A row that is being deleted while its deleter waits for the standby's word is gone there and still shown here, so
    what has an ``xmax`` that may still run is left undecided.
    """
    found = Difference()
    for identity, version in before.items():
        still = after.get(identity)
        if still is None:
            continue
        there = standby.get(identity)
        if there is not None:
            if there.digest != version.digest == still.digest:
                found.different[identity] = version
        elif still.xmax == 0 or precedes(still.xmax, before_xmin):
            found.missing[identity] = version
        else:
            found.undecided += 1
    for identity, version in standby.items():
        if identity not in before and precedes(version.xmin, before_xmin):
            found.extra[identity] = version
    return found
