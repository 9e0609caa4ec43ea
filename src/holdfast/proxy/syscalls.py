"""Waiting, receiving, sending by descriptor, and the clock. The compiled proxy has another body: `syscalls.pxd`."""

from __future__ import annotations

import os
import select
from time import monotonic
from typing import Final

__all__ = ["READ_BYTES", "monotonic", "ready", "receive", "send"]

READ_BYTES: Final = 64 * 1024
"""At most so much is read at once; the next socket has its turn then."""


def ready(epoll: select.epoll, descriptor: int, wait_s: float) -> list[tuple[int, int]]:
    """The descriptors that are ready within that time (-1: whenever one is), and for what; maybe none before it.

    ``descriptor`` is that of ``epoll``. Raises OSError.
    """
    return epoll.poll(wait_s)


def receive(descriptor: int) -> bytes | None:
    """What has come on a socket that does not block; None: nothing, and nothing is over. Raises OSError."""
    try:
        return os.read(descriptor, READ_BYTES)
    except (BlockingIOError, InterruptedError):
        return None


def send(descriptor: int, data: bytes | bytearray | memoryview) -> int:
    """How many bytes a socket that does not block has taken. Raises OSError."""
    try:
        return os.write(descriptor, data)
    except (BlockingIOError, InterruptedError):
        return 0
