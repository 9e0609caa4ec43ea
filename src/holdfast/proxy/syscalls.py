"""Receiving and sending by descriptor. There are two bodies of this: one for the compiled proxy (`syscalls.pyx`)."""

from __future__ import annotations

import os
from typing import Final

READ_BYTES: Final = 64 * 1024
"""At most so much is read at once; the next socket has its turn then."""


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
