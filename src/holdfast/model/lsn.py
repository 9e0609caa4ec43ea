"""Positions in PostgreSQL's write-ahead log."""

from __future__ import annotations

import re
from dataclasses import dataclass
from typing import Any

from pydantic import GetCoreSchemaHandler
from pydantic_core import CoreSchema, core_schema

_LSN = re.compile(r"\A([0-9A-Fa-f]{1,8})/([0-9A-Fa-f]{1,8})\Z")


class Lsn(int):
    """A byte position in the log (PostgreSQL manual, "pg_lsn Type"), printed as two hexadecimal halves."""

    @classmethod
    def parse(cls, text: str) -> Lsn:
        """Read ``16/B374D848``; raises ValueError for anything else."""
        match = _LSN.match(text)
        if match is None:
            raise ValueError(f"not a log position: {text!r} (expected two hexadecimal numbers, such as 16/B374D848)")
        return cls((int(match[1], 16) << 32) | int(match[2], 16))

    def __str__(self) -> str:
        return f"{int(self) >> 32:X}/{int(self) & 0xFFFFFFFF:X}"

    def __repr__(self) -> str:
        return f"Lsn({self})"

    @classmethod
    def __get_pydantic_core_schema__(cls, source: Any, handler: GetCoreSchemaHandler) -> CoreSchema:
        def read(value: Any) -> Lsn:
            if isinstance(value, Lsn):
                return value
            if isinstance(value, str):
                return cls.parse(value)
            raise ValueError("a log position is written as a string, such as 16/B374D848")

        return core_schema.no_info_plain_validator_function(
            read, serialization=core_schema.plain_serializer_function_ser_schema(str)
        )


@dataclass(frozen=True, slots=True, order=True)
class Position:
    """The end of a node's log. Ordered as protocol.md orders logs: the newer timeline first, then the longer log."""

    timeline: int
    lsn: Lsn


@dataclass(frozen=True, slots=True)
class TimelineSwitch:
    """One line of a history file: ``timeline`` was left at ``switch_lsn``."""

    timeline: int
    switch_lsn: Lsn


History = tuple[TimelineSwitch, ...]


def is_on_history(position: Position, timeline: int, history: History) -> bool:
    """Whether a log that ends at ``position`` is a prefix of a log on ``timeline`` with ``history``.

    Only such a node can follow as it is; any other has log beyond the fork and must be rewound or cloned.
    """
    if position.timeline == timeline:
        return True
    return any(s.timeline == position.timeline and position.lsn <= s.switch_lsn for s in history)
