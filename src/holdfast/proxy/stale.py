"""Reads that say how old their answers may be, and what is said to them while the database cannot be asked."""

from __future__ import annotations

import time
from collections.abc import Hashable
from typing import Any, Final

from holdfast.core.admission.answers import Answers
from holdfast.model.policy import Policy
from holdfast.proxy.footing import Switched
from holdfast.wire.fingerprint import fingerprint
from holdfast.wire.readonly import is_read_only
from holdfast.wire.stale import notice_of, tolerance_in

_MIB: Final = 1024 * 1024


class Keeping:
    """An answer that is being passed on, and kept if it comes to a good end."""

    __slots__ = ("_chunks", "_question", "_size_bytes", "_whose")

    def __init__(self, whose: StaleAnswers, question: tuple[Hashable, ...]) -> None:
        self._whose = whose
        self._question = question
        self._chunks: list[bytes] = []
        self._size_bytes = 0

    def add(self, data: bytes) -> bool:
        """A part of it; False: it is too large to be kept."""
        self._size_bytes += len(data)
        if self._size_bytes > self._whose.largest_bytes:
            return False
        self._chunks.append(data)
        return True

    def done(self) -> None:
        """That was all of it."""
        self._whose.keep(self._question, b"".join(self._chunks))


class StaleAnswers(Switched):
    """Of one port. Off unless the policy gives room for answers."""

    def __init__(self) -> None:
        super().__init__()
        self.given = 0
        """How often an older answer was given, since the start."""
        self._answers = Answers()
        self._by: dict[str, int] = {}

    def policy_is(self, policy: Policy) -> None:
        """A policy is in force."""
        self._answers.bound(policy.stale_answers_mib * _MIB)
        self._by = policy.stale_by
        self.is_on = policy.stale_answers_mib > 0

    @property
    def largest_bytes(self) -> int:
        """The largest answer that is kept."""
        return self._answers.largest_bytes

    def tolerance_s(self, text: bytes) -> int | None:
        """How old the answer to a text may be; None: it must be today's. Never of what may write."""
        by_itself = tolerance_in(text)
        if by_itself is None and not self._by:
            return None
        tolerance_s = by_itself if by_itself is not None else self._by.get(fingerprint(text).id)
        return tolerance_s if tolerance_s and is_read_only(text) else None

    def keep(self, question: tuple[Hashable, ...], data: bytes) -> None:
        """The last good answer to a question."""
        self._answers.keep(question, _bytes_of(question), data, time.monotonic())

    def find(self, question: tuple[Hashable, ...], tolerance_s: int) -> bytes | None:
        """The notice and the last good answer, which ends with its ReadyForQuery, if it is young enough."""
        found = self._answers.find(question, time.monotonic(), tolerance_s)
        if found is None:
            return None
        self.given += 1
        return notice_of(found.age_s) + found.data

    def status(self) -> dict[str, Any]:
        """What ``/status`` says of this port."""
        return {"kept": len(self._answers), "kept_bytes": self._answers.size_bytes, "given": self.given}


def _bytes_of(question: tuple[Hashable, ...]) -> int:
    known = [part for part in question if isinstance(part, (bytes, tuple))]
    return sum(len(part) if isinstance(part, bytes) else _bytes_of(part) for part in known)
