"""Figures as people read them."""

from __future__ import annotations


def duration(ms: float) -> str:
    """``<0.1 ms``, ``0.4 ms``, ``420 ms``, ``1.24 s``, ``2 min 5 s``."""
    if 0 < ms < 0.05:
        return "<0.1 ms"
    if 0 < ms < 9.95:
        return f"{ms:.1f} ms"
    if ms < 999.5:
        return f"{ms:.0f} ms"
    if ms < 59_995:
        return f"{ms / 1000:.2f} s"
    seconds = round(ms / 1000)
    return f"{seconds // 60} min {seconds % 60} s"


def amount(count: int) -> str:
    """``12,345``."""
    return f"{count:,}"


def plural(count: int, word: str) -> str:
    """A number with its noun."""
    return f"{count} {word}" if count == 1 else f"{count} {word}s"
