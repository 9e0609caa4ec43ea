"""The one clock of an agent."""

from __future__ import annotations

import time


def monotonic_ms() -> int:
    """Milliseconds that never go back and go on while the machine sleeps (CLOCK_BOOTTIME)."""
    return time.clock_gettime_ns(time.CLOCK_BOOTTIME) // 1_000_000
