"""The one clock of an agent: its event loop's, so that time-outs and time stamps never disagree."""

from __future__ import annotations

import asyncio
import time


class BootTimeLoop(asyncio.SelectorEventLoop):
    """The loop of an agent's process: its clock never goes back and goes on while the machine sleeps."""

    def time(self) -> float:
        """CLOCK_BOOTTIME in seconds."""
        return time.clock_gettime(time.CLOCK_BOOTTIME)


def monotonic_ms() -> int:
    """Milliseconds on the running loop's clock."""
    return int(asyncio.get_running_loop().time() * 1000)
