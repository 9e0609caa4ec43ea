"""What clients met while something was wrong, told to the journal once it is over."""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Collection
from dataclasses import dataclass

from holdfast.proxy.lane import Lane

LOOK_S = 1.0
"""Between two looks at the counters; an account is closed when two in a row find nothing new."""
WORTH_MS = 100
"""A wait that is shorter, and did nobody harm, is not worth an entry."""


@dataclass(frozen=True, slots=True)
class Toll:
    """What the ports counted: statements that had to wait or were refused, and what became of those under way."""

    held: int = 0
    refused: int = 0
    unknown: int = 0
    undone: int = 0

    @classmethod
    def of(cls, lanes: Collection[Lane]) -> Toll:
        """Everything since the start."""
        counters = [lane.counters for lane in lanes]
        return cls(
            held=sum(c.statements_held for c in counters),
            refused=sum(c.holds_ended + c.statements_shed for c in counters),
            unknown=sum(c.outcomes_unknown for c in counters),
            undone=sum(c.transactions_lost for c in counters),
        )

    def since(self, before: Toll) -> Toll:
        """What came on top."""
        return Toll(
            self.held - before.held,
            self.refused - before.refused,
            self.unknown - before.unknown,
            self.undone - before.undone,
        )

    @property
    def did_harm(self) -> bool:
        """Whether something failed."""
        return bool(self.refused or self.unknown or self.undone)


Tell = Callable[[Toll, int], None]
"""Told the toll, and the longest wait of one statement in milliseconds."""


class Impact:
    """Keeps the account of both ports. Clients notice nothing of it: it looks at counters now and then."""

    def __init__(self, lanes: Collection[Lane], tell: Tell) -> None:
        self._lanes = lanes
        self._tell = tell
        self._told = Toll()
        self._seen = Toll()

    async def run(self) -> None:
        """Look, for ever."""
        while True:
            await asyncio.sleep(LOOK_S)
            self.look()

    def look(self) -> None:
        """Tell what has come on top since the last time, unless it still goes on."""
        before, self._seen = self._seen, Toll.of(self._lanes)
        if self._seen == before and not any(lane.held for lane in self._lanes):
            self.close()

    def close(self) -> None:
        """Tell what has come on top, also if it still goes on: nobody will look again."""
        self._seen = Toll.of(self._lanes)
        if self._seen == self._told:
            return
        toll, self._told = self._seen.since(self._told), self._seen
        longest_ms = max(lane.take_longest_hold_ms() for lane in self._lanes)
        if toll.did_harm or longest_ms >= WORTH_MS:
            self._tell(toll, longest_ms)
