"""What the clients of a drill saw, and nothing else: the checker's only evidence besides the rows found at the end."""

from __future__ import annotations

import bisect
from array import array
from collections import Counter
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from enum import IntEnum


class Outcome(IntEnum):
    """What a client knows about one write."""

    ACKNOWLEDGED = 0
    """The server said that it is committed."""

    ERROR = 1
    """It surely did not commit: an ERROR whose SQLSTATE proves it, or it was never sent."""

    UNKNOWN = 2
    """It was sent, and no answer says what became of it. Normal in a failover; never guessed."""


@dataclass(frozen=True, slots=True)
class Server:
    """Who acknowledged a write, by its own word: where it listens, and the timeline that it wrote on."""

    address: str
    timeline: int


@dataclass(frozen=True, slots=True)
class FreshRead:
    """One answered read of a writer's newest sequence (0: no row) on the writable port."""

    start_ms: float
    end_ms: float
    writer: int
    sequence: int


@dataclass(frozen=True, slots=True)
class Attempt:
    """One write, tried once under its own id; times are Unix milliseconds on one steady clock."""

    writer: int
    sequence: int
    outcome: Outcome
    start_ms: float
    end_ms: float
    sqlstate: str | None = None
    server: Server | None = None


@dataclass(frozen=True, slots=True)
class Row:
    """One row found in the table at the end."""

    writer: int
    sequence: int
    payload: str


class History:
    """Every attempt of every client, kept in columns (about 30 bytes a write).

    ``observed`` holds the ids of rows that readers saw, ``fresh_reads`` the answers of the writable port,
    ``read_end_ms`` and ``read_latency_ms`` the reads on the read-only port that were answered, ``read_error_ms`` those
    that were not.
    """

    def __init__(self, attempts: Iterable[Attempt] = ()) -> None:
        self._writer = array("H")
        self._sequence = array("Q")
        self._outcome = array("B")
        self._start_ms = array("d")
        self._end_ms = array("d")
        self._sqlstate: dict[int, str] = {}
        self._server = array("h")
        self._servers: list[Server] = []
        self.fresh_reads: list[FreshRead] = []
        self.counts = [0, 0, 0]
        self.observed: set[tuple[int, int]] = set()
        self.read_end_ms = array("d")
        self.read_latency_ms = array("d")
        self.read_error_ms = array("d")
        for attempt in attempts:
            self.record(attempt)

    def record(self, attempt: Attempt) -> None:
        """Keep one attempt."""
        if attempt.sqlstate is not None:
            self._sqlstate[len(self._writer)] = attempt.sqlstate
        self._writer.append(attempt.writer)
        self._sequence.append(attempt.sequence)
        self._outcome.append(attempt.outcome)
        self._start_ms.append(attempt.start_ms)
        self._end_ms.append(attempt.end_ms)
        self._server.append(self._number_of(attempt.server))
        self.counts[attempt.outcome] += 1

    def _number_of(self, server: Server | None) -> int:
        if server is None:
            return -1
        if server not in self._servers:
            self._servers.append(server)
        return self._servers.index(server)

    def record_read(self, start_ms: float, end_ms: float, seen: tuple[int, int] | None) -> None:
        """Keep one answered read; ``seen`` is the id of the row that it returned, if it returned one."""
        self.read_end_ms.append(end_ms)
        self.read_latency_ms.append(end_ms - start_ms)
        if seen is not None:
            self.observed.add(seen)

    def record_read_error(self, end_ms: float) -> None:
        """Keep one read that was not answered."""
        self.read_error_ms.append(end_ms)

    def __len__(self) -> int:
        return len(self._writer)

    def __iter__(self) -> Iterator[Attempt]:
        for i in range(len(self._writer)):
            yield Attempt(
                self._writer[i],
                self._sequence[i],
                Outcome(self._outcome[i]),
                self._start_ms[i],
                self._end_ms[i],
                self._sqlstate.get(i),
                self._servers[self._server[i]] if self._server[i] >= 0 else None,
            )

    @property
    def acknowledged(self) -> int:
        """How many writes were acknowledged so far."""
        return self.counts[Outcome.ACKNOWLEDGED]

    @property
    def errors(self) -> int:
        """How many writes surely failed so far."""
        return self.counts[Outcome.ERROR]

    @property
    def unknown(self) -> int:
        """How many writes have an unknown outcome so far."""
        return self.counts[Outcome.UNKNOWN]

    def acknowledged_at_ms(self, before_writer: int | None = None) -> array[float]:
        """When each acknowledgement arrived, in order of time; with ``before_writer`` of lower writers only."""
        limit = 1 << 16 if before_writer is None else before_writer
        columns = zip(self._end_ms, self._outcome, self._writer, strict=True)
        return array("d", sorted(e for e, o, w in columns if o == Outcome.ACKNOWLEDGED and w < limit))

    def first_acknowledged_from(self, at_ms: float) -> float | None:
        """When the first acknowledgement at or after ``at_ms`` arrived; of a history that was recorded in order."""
        first = bisect.bisect_left(self._end_ms, at_ms)
        return next(
            (self._end_ms[i] for i in range(first, len(self._end_ms)) if self._outcome[i] == Outcome.ACKNOWLEDGED), None
        )

    def sqlstates(self) -> dict[str, int]:
        """How often each SQLSTATE ended a write; a lost connection has none and counts as ``connection lost``."""
        named = Counter(self._sqlstate.values())
        nameless = len(self) - self.acknowledged - named.total()
        if nameless:
            named["connection lost"] = nameless
        return dict(named.most_common())
