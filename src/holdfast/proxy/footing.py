"""What every statement asks of its port before it goes on: one look each, kept where the rules are."""

from __future__ import annotations

import math
from collections.abc import Callable

from holdfast.proxy import syscalls


class Versioned:
    """Something that changes now and then, and says when by a number."""

    def __init__(self) -> None:
        self.version = 0
        """Grows with every change that matters."""


class Trust:
    """Until when something may be taken for true."""

    def __init__(self, until_s: float = math.inf, clock: Callable[[], float] | None = None) -> None:
        """``clock``: seconds, by another clock than the machine's monotonic one."""
        self.until_s = until_s
        self._clock = clock

    def now_s(self) -> float:
        """By the clock that ``until_s`` is measured with."""
        return syscalls.monotonic() if self._clock is None else self._clock()

    def is_fresh(self) -> bool:
        """Whether it may now."""
        return (syscalls.monotonic() if self._clock is None else self._clock()) < self.until_s


class Switched:
    """A rule that is on or off as a whole."""

    def __init__(self) -> None:
        self.is_on = False
        """Whether statements must be asked for."""


class Footing:
    """What a port's servers stand on: the routing, and the trust in the primary that it names."""

    def __init__(self, routing: Versioned, trust: Trust) -> None:
        self.routing = routing
        self.trust = trust
        """For ever where what servers say may be old."""
        self.is_failing = False
        """The last attempt to reach a server failed."""
        self.known_version = -1
        """The version of the routing in which it was seen whether it `has_target`."""
        self.has_target = False
        """Whether there is a server to go to."""

    def surely_serves(self) -> bool:
        """Whether a session need not wait for a server to be named or reached; False: maybe (`Lane.surely_serves`)."""
        is_known = self.known_version == self.routing.version
        return is_known and self.has_target and not self.is_failing and self.trust.is_fresh()
