"""Cutting a byte stream into messages of one type byte, a length and a body."""

from __future__ import annotations

import struct
from typing import Final

from holdfast.model.errors import ProtocolViolation

Frame = tuple[int, int, int]
"""Type byte, start and end of one message in the buffer it was cut from; the body begins at ``start + 5``."""

HEADER_BYTES: Final = 5
CONTINUED: Final = 0
"""The type of a piece that continues a message whose head was handed out before."""

WHOLE_BYTES_MAX: Final = 256 * 1024
"""A message up to this size is handed out whole, so that what is forwarded never ends inside of one."""

FRAME_BYTES_MAX: Final = 0x3FFFFFFF
"""PostgreSQL's own limit of a message (PQ_LARGE_MESSAGE_LIMIT, MaxAllocSize - 1)."""

_HEADER = struct.Struct("!BI")


class FrameCutter:
    """Cuts one direction of a connection into messages.

    Types in ``passable`` that are larger than ``WHOLE_BYTES_MAX`` are handed out in pieces (the first with its type,
    the others as ``CONTINUED``); everything else only once it is complete.
    """

    __slots__ = ("_needed", "_passable", "_remaining", "_rest", "_size_max")

    def __init__(self, passable: frozenset[int] = frozenset(), size_max: int = FRAME_BYTES_MAX) -> None:
        self._passable = passable
        self._size_max = size_max
        self._rest = bytearray()
        self._needed = 0
        self._remaining = 0

    @property
    def inside_frame(self) -> bool:
        """Whether a message was handed out whose end has not come yet."""
        return self._remaining > 0

    @property
    def is_empty(self) -> bool:
        """Whether nothing is kept and no message is half handed out."""
        return not (self._rest or self._remaining)

    @property
    def waiting_bytes(self) -> int:
        """How many bytes wait for more, or to be handed out again."""
        return len(self._rest)

    def feed(self, data: bytes) -> tuple[bytes, list[Frame]]:
        """Take more bytes; returns a buffer and the messages in it. Raises ProtocolViolation on an absurd length."""
        if self._rest:
            self._rest += data
            if len(self._rest) < self._needed:
                return b"", []
            data = bytes(self._rest)
            self._rest = bytearray()
        frames: list[Frame] = []
        position = 0
        size = len(data)
        if self._remaining and size:
            position = min(self._remaining, size)
            self._remaining -= position
            frames.append((CONTINUED, 0, position))
        unpack = _HEADER.unpack_from
        while size - position >= HEADER_BYTES:
            kind, length = unpack(data, position)
            if not 4 <= length <= self._size_max:
                raise ProtocolViolation(f"a message of type {describe(kind)} claims a length of {length} bytes")
            end = position + 1 + length
            if end > size:
                if length > WHOLE_BYTES_MAX and kind in self._passable:
                    frames.append((kind, position, size))
                    self._remaining = end - size
                    return data, frames
                self._keep(data, position, end - position)
                return data, frames
            frames.append((kind, position, end))
            position = end
        if position < size:
            self._keep(data, position, HEADER_BYTES)
        return data, frames

    def _keep(self, data: bytes, position: int, needed: int) -> None:
        self._rest += data[position:]
        self._needed = needed

    def push_back(self, data: bytes) -> None:
        """Take back what the last `feed` handed out from some message on, up to the end of the last one."""
        self._rest[:0] = data
        self._needed = 0
        self._remaining = 0

    def hold(self, data: bytes) -> None:
        """Take more bytes without cutting them; a later ``feed(b"")`` does."""
        self._rest += data
        self._needed = 0


def describe(kind: int) -> str:
    """A type byte for a human."""
    return repr(chr(kind)) if 32 < kind < 127 else f"0x{kind:02x}"
