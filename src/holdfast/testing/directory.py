"""A simulated data directory: its log as records, what of it is on the disk, and where timelines branch off."""

from __future__ import annotations

from holdfast.model.lsn import History, Lsn, Position, TimelineSwitch


class Record:
    """One record of the log; the same object wherever the log was copied to, so that logs can be compared."""

    __slots__ = ("begun_s", "end", "start", "timeline", "write")

    def __init__(self, start: Lsn, end: Lsn, timeline: int, write: int, begun_s: float) -> None:
        self.start = start
        self.end = end
        self.timeline = timeline
        self.write = write
        """The number of a client's write that this commits; 0 for anything else."""
        self.begun_s = begun_s

    def __str__(self) -> str:
        return f"write {self.write}" if self.write else f"the record at {self.start}"


class Directory:
    """What a disk holds of one PostgreSQL. A directory made anew is another object."""

    __slots__ = ("complete", "flushed", "history", "identifier", "incarnation", "log", "slots", "timeline", "writes")

    def __init__(self, identifier: str, log: list[Record], incarnation: str | None) -> None:
        self.identifier = identifier
        self.incarnation = incarnation
        self.complete = True
        """False while a rewind has it half done."""
        self.log: list[Record] = []
        self.flushed = 0
        """How many records survive a loss of power."""
        self.slots: set[str] = set()
        """The nodes that have a slot here; a copy has none, nor has what was rewound."""
        self.timeline = log[0].timeline
        self.history: History = ()
        self.writes: dict[int, int] = {}
        """Which clients' writes the log holds, and how long it is up to each."""
        for record in log:
            self.append(record)
        self.flushed = len(log)

    def append(self, record: Record) -> None:
        """Add a record at the end."""
        if record.timeline != self.timeline:
            self.history = (*self.history, TimelineSwitch(self.timeline, record.start))
            self.timeline = record.timeline
        self.log.append(record)
        if record.write:
            self.writes[record.write] = len(self.log)

    def truncate(self, count: int) -> None:
        """Keep the first ``count`` records."""
        if count == len(self.log):
            return
        kept = self.log[:count]
        self.log, self.history, self.timeline, self.writes = [], (), kept[0].timeline, {}
        for record in kept:
            self.append(record)
        self.flushed = min(self.flushed, count)

    def durable(self) -> set[int]:
        """The clients' writes that survive a loss of power."""
        return {write for write, count in self.writes.items() if count <= self.flushed}

    def end(self) -> Lsn:
        """Where the written log ends."""
        return self.log[-1].end

    def position(self) -> Position:
        """Where the flushed log ends."""
        last = self.log[self.flushed - 1]
        return Position(last.timeline, last.end)

    def history_before(self, timeline: int) -> History:
        """The timelines before one that this log has come through."""
        return self.history if timeline == self.timeline else tuple(s for s in self.history if s.timeline < timeline)

    def shared_with(self, other: Directory) -> int:
        """How many records both logs begin with."""
        count = min(len(self.log), len(other.log))
        while count and self.log[count - 1] is not other.log[count - 1]:
            count -= 1
        return count
