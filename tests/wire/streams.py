"""Cutting streams for the tests."""

from __future__ import annotations

from collections.abc import Iterator


def cut_at(stream: bytes, cuts: list[int]) -> Iterator[bytes]:
    """The stream in pieces that end at ``cuts`` and at its end."""
    begin = 0
    for end in sorted({cut for cut in cuts if 0 < cut < len(stream)} | {len(stream)}):
        yield stream[begin:end]
        begin = end
