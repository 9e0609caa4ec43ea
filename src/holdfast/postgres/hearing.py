"""When a standby last can have received log: nothing that its upstream sent later can have been confirmed by it."""

from __future__ import annotations

from holdfast.model.lsn import Lsn


class Hearing:
    """Times in seconds on the loop's clock. What was noted holds only while the log still ends where it ended then."""

    def __init__(self) -> None:
        self._at_s: float | None = None
        self._end: Lsn | None = None

    def nobody(self, now_s: float, end: Lsn | None) -> None:
        """There is no walreceiver now."""
        if self._at_s is None or end != self._end:
            self._at_s, self._end = now_s, end

    def somebody(self) -> None:
        """There is a walreceiver now; who wants to know more asks it."""
        self._at_s = None

    def last(self, at_s: float, end: Lsn) -> None:
        """The walreceiver says when its last message came."""
        self._at_s, self._end = at_s, end

    def last_s(self, end: Lsn, now_s: float) -> float:
        """When the last message can have come, given where the log ends now that nobody receives any more."""
        return self._at_s if self._at_s is not None and end == self._end else now_s
