"""Reads that may be answered by an older answer: how a client says so, and what two of them must have in common.

A read says for itself how old its answer may be, in a comment at the beginning or at the end of its text:
``/* holdfast: stale=300 */``, in seconds.
"""

from __future__ import annotations

import re
from functools import lru_cache
from typing import Final

from holdfast.wire import messages as m
from holdfast.wire.flight import Flight
from holdfast.wire.frames import HEADER_BYTES

_SAYS: Final = rb"/\*\s*holdfast:\s*stale\s*=\s*(\d{1,9})\s*\*/"
_MARK: Final = re.compile(rb"\A\s*" + _SAYS + rb"|" + _SAYS + rb"\s*;?\s*\Z", re.IGNORECASE)
READY_BYTES: Final = len(m.ready_for_query(m.IDLE))


@lru_cache(maxsize=2048)
def tolerance_in(text: bytes) -> int | None:
    """How old the answer may be (seconds), by the text itself; None: it does not say."""
    found = _MARK.search(text)
    return None if found is None else int(found[1] or found[2])


def question_of(flight: Flight) -> tuple[bytes, ...] | None:
    """What the answer to a common batch depends on, but for who asks; None: it is not kept.

    The names that a client gives to statements are no part of it. A batch that makes a named one is not kept, nor one
    that leaves a portal with a name.
    """
    data = flight.data
    if flight.is_simple:
        return (data[HEADER_BYTES:],)
    if not flight.bind_end or flight.portal or (flight.parse_end and flight.name):
        return None
    types = b""
    if flight.parse_end:
        types = data[HEADER_BYTES + len(flight.name) + len(flight.sql) + 2 : flight.parse_end]
    values = data[flight.bind_at + HEADER_BYTES + len(flight.portal) + len(flight.name) + 2 : flight.bind_end]
    return (b"P" if flight.parse_end else b"", flight.sql, types, values, data[flight.bind_end :])


def notice_of(age_s: float) -> bytes:
    """What comes in front of an older answer."""
    text = f"this answer is {age_s:.1f} s old: the database cannot be asked now"
    return m.Report("WARNING", "01000", text, detail=f"stale_ms={round(age_s * 1000)}").encode(m.NOTICE)
