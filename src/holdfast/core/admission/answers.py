"""The last good answers to some reads, within a bound of memory: the one that was asked for least lately goes. Pure."""

from __future__ import annotations

from collections import OrderedDict
from collections.abc import Hashable
from typing import Final, NamedTuple

LARGEST_PART: Final = 8
"""No answer takes more than this part (one of so many) of the room for all."""
ENTRY_BYTES: Final = 400
"""What an answer takes beside its bytes and its question's: measured, about."""


class Found(NamedTuple):
    """An answer, and how old it is."""

    data: bytes
    age_s: float


class _Kept(NamedTuple):
    data: bytes
    at_s: float
    size_bytes: int


class Answers:
    """Answers by question; ``bytes_max`` of 0 keeps none."""

    def __init__(self, bytes_max: int = 0) -> None:
        self.bytes_max = bytes_max
        self.size_bytes = 0
        self._kept: OrderedDict[Hashable, _Kept] = OrderedDict()

    def __len__(self) -> int:
        return len(self._kept)

    @property
    def largest_bytes(self) -> int:
        """The largest answer that is kept."""
        return self.bytes_max // LARGEST_PART

    def bound(self, bytes_max: int) -> None:
        """Another bound is in force."""
        self.bytes_max = bytes_max
        self._make_room()

    def keep(self, question: Hashable, question_bytes: int, data: bytes, now_s: float) -> None:
        """Keep an answer in place of an older one to the same question."""
        self.forget(question)
        size_bytes = len(data) + question_bytes + ENTRY_BYTES
        if size_bytes <= self.largest_bytes:
            self._kept[question] = _Kept(data, now_s, size_bytes)
            self.size_bytes += size_bytes
            self._make_room()

    def find(self, question: Hashable, now_s: float, tolerance_s: float) -> Found | None:
        """The answer, if it is not older than is tolerated."""
        kept = self._kept.get(question)
        if kept is None or now_s - kept.at_s > tolerance_s:
            return None
        self._kept.move_to_end(question)
        return Found(kept.data, max(0.0, now_s - kept.at_s))

    def forget(self, question: Hashable) -> None:
        """There is no answer any more."""
        kept = self._kept.pop(question, None)
        if kept is not None:
            self.size_bytes -= kept.size_bytes

    def _make_room(self) -> None:
        while self.size_bytes > self.bytes_max:
            _, kept = self._kept.popitem(last=False)
            self.size_bytes -= kept.size_bytes
