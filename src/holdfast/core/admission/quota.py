"""What one class, or each user or database of it, may have at most: statements at once, and statements a second.

Pure. The rate is a token bucket (Turner 1986, "New Directions in Communications"): it holds what may begin in one
second, and at least one.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Final

from holdfast.model.traffic import Each, TrafficClass

if TYPE_CHECKING:
    from holdfast.core.admission.gate import Permit

_ALMOST_ONE: Final = 1 - 1e-6
"""A token: the clock is a float."""


@dataclass(frozen=True, slots=True)
class Quota:
    """The bounds of a class; None: no bound."""

    each: Each
    statements_max: int | None
    statements_per_s: float | None

    @classmethod
    def of(cls, settings: TrafficClass) -> Quota | None:
        """That of a class, if it has one."""
        if settings.statements_max is None and settings.statements_per_s is None:
            return None
        return cls(settings.each, settings.statements_max, settings.statements_per_s)

    @property
    def capacity(self) -> float:
        """Statements that may begin at once after a pause."""
        return max(1.0, self.statements_per_s or 1.0)


@dataclass(slots=True)
class Tenant:
    """Whom a quota is for: a class (its name is empty), a user or a database."""

    name: str
    tokens: float
    at_ms: float
    """When there were so many."""
    inside: int = 0
    waiting: dict[Permit, None] = field(default_factory=dict)
    """In the order in which they came."""

    def lacks(self, quota: Quota, now_ms: float) -> str | None:
        """What of its quota is used up, in words; None if it may begin a statement."""
        if quota.statements_max is not None and self.inside >= quota.statements_max:
            return f"{quota.statements_max} at once"
        if quota.statements_per_s is not None and self._tokens(quota, now_ms) < _ALMOST_ONE:
            return f"{quota.statements_per_s:g} a second"
        return None

    def begin(self, quota: Quota, now_ms: float) -> None:
        """A statement of it begins, whether or not it may."""
        self.inside += 1
        if quota.statements_per_s is not None:
            self.tokens, self.at_ms = self._tokens(quota, now_ms) - 1, now_ms

    def token_in_ms(self, quota: Quota, now_ms: float) -> float | None:
        """When its next statement may begin as far as the rate goes; None if that is not what it waits for."""
        if quota.statements_per_s is None:
            return None
        if quota.statements_max is not None and self.inside >= quota.statements_max:
            return None
        return max(0.0, 1 - self._tokens(quota, now_ms)) * 1000 / quota.statements_per_s

    def is_idle(self, quota: Quota | None, now_ms: float) -> bool:
        """Whether nothing needs to be remembered of it."""
        if self.inside or self.waiting:
            return False
        return quota is None or quota.statements_per_s is None or self._tokens(quota, now_ms) >= quota.capacity

    def _tokens(self, quota: Quota, now_ms: float) -> float:
        per_s = quota.statements_per_s or 0.0
        return min(quota.capacity, self.tokens + (now_ms - self.at_ms) * per_s / 1000)
