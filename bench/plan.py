"""In which order bench/proxy.py measures what."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass

from cells import DIRECT, HAPROXY, Cell


@dataclass(frozen=True, slots=True)
class Plan:
    """What is measured."""

    cells: list[Cell]
    poolers: list[str]
    rounds: int
    sessions_max: int

    def has(self, cell: Cell, pooler: str) -> bool:
        """Whether this one takes that load."""
        is_without_pool = pooler in (HAPROXY, DIRECT)
        needs_sessions = is_without_pool or cell.pooling == "session"
        return not (is_without_pool and cell.tls) and not (needs_sessions and cell.clients > self.sessions_max)

    def runs(self) -> Iterator[tuple[int, Cell, str]]:
        """Round, load and pooler, in the order in which they are measured."""
        for turn in range(self.rounds):
            first = turn % len(self.poolers)
            for cell in self.cells:
                for pooler in self.poolers[first:] + self.poolers[:first]:
                    if self.has(cell, pooler):
                        yield turn, cell, pooler
