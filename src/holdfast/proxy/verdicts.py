"""What standbys have shown of statements: which they could answer, which they could not, and which write."""

from __future__ import annotations

import math
import re
import time
from dataclasses import dataclass, field
from typing import Final, TypeVar

from holdfast.proxy.pools import PoolKey

_REMEMBERED_MAX: Final = 512
"""Statements that standbys could not answer are remembered, so many,"""
_REFUSED_S: Final = 10.0
"""and for so long: a table may come that is not there yet."""
_ANSWERED_MAX: Final = 4096
"""Of statements that standbys have answered, so many are remembered."""
_READ_ONLY: Final = "25006"
"""read_only_sql_transaction: what only seemed to read wants to write."""
_PASSING: Final = frozenset(("40001", "40P01", "57014", "57P01", "57P02", "57P03", "53300", ""))
"""Errors that say nothing of the statement: a conflict with what is replayed, a server that ends."""
_LITERALS: Final = re.compile(rb"'[^']*'|(?<![\w$.])\d+(?:\.\d+)?\b")
_HIDES_LITERALS: Final = re.compile(rb"[\"\\]|--|/\*|\$(?!\d)")
"""Where this is in a text, it takes more to tell its literals from the rest."""
_Key = TypeVar("_Key")
_Value = TypeVar("_Value")


@dataclass(eq=False)
class Verdicts:
    """For all sessions together."""

    _refused: dict[bytes, float] = field(default_factory=dict)
    _refused_settings: dict[tuple[PoolKey, bytes], float] = field(default_factory=dict)
    _answered: dict[tuple[PoolKey, bytes, bytes], None] = field(default_factory=dict)

    def is_refused(self, sql: bytes) -> bool:
        """Whether standbys could not answer a statement a moment ago, or it writes."""
        until_s = self._refused.get(sql)
        return until_s is not None and time.monotonic() < until_s

    def writes(self, sql: bytes) -> bool:
        """Whether it wanted to write."""
        return self._refused.get(sql) == math.inf

    def refused(self, sql: bytes, sqlstate: str) -> None:
        """A standby could not answer a statement."""
        if sqlstate in _PASSING:
            return
        _keep(
            self._refused, sql, math.inf if sqlstate == _READ_ONLY else time.monotonic() + _REFUSED_S, _REMEMBERED_MAX
        )

    def refused_settings(self, key: PoolKey, mark: bytes, sqlstate: str) -> None:
        """A standby does not take the settings of a session with that login (`SessionState.mark`)."""
        if mark and sqlstate not in _PASSING:  # without any it was what another session left there
            _keep(self._refused_settings, (key, mark), time.monotonic() + _REFUSED_S, _REMEMBERED_MAX)

    def are_refused(self, key: PoolKey, mark: bytes) -> bool:
        """Whether one has refused those settings a moment ago."""
        until_s = self._refused_settings.get((key, mark)) if mark else None
        return until_s is not None and time.monotonic() < until_s

    def answered(self, key: PoolKey, mark: bytes, sql: bytes) -> None:
        """A standby has answered a statement of a session with that login and those settings (`SessionState.mark`)."""
        known = key, mark, _shape(sql)
        if known not in self._answered:
            _keep(self._answered, known, None, _ANSWERED_MAX)

    def has_answered(self, key: PoolKey, mark: bytes, sql: bytes) -> bool:
        """Whether one has answered this statement, or one that differs in its literals only."""
        return (key, mark, _shape(sql)) in self._answered


def _keep(kept: dict[_Key, _Value], key: _Key, value: _Value, most: int) -> None:
    kept.pop(key, None)
    if len(kept) >= most:
        del kept[next(iter(kept))]
    kept[key] = value


def _shape(sql: bytes) -> bytes:
    return sql if _HIDES_LITERALS.search(sql) else _LITERALS.sub(b"?", sql)
