"""What a person says of a ramp: kept in the store, where every proxy hears it."""

from __future__ import annotations

from dataclasses import dataclass
from enum import StrEnum

from pydantic import TypeAdapter, ValidationError

from holdfast.model.errors import RegisterError


class Order(StrEnum):
    """How the ramp is to go on."""

    HOLD = "hold"
    """Stay at this step."""
    RESUME = "resume"
    """Go on by the rules."""
    FASTER = "faster"
    """Take the next step now."""
    END = "end"
    """Let everybody in."""


@dataclass(frozen=True, slots=True)
class RampOrder:
    """An order, for the ramps of one epoch."""

    epoch: int
    order: Order

    def to_json(self) -> bytes:
        """The stored form."""
        return _ADAPTER.dump_json(self)

    @classmethod
    def from_json(cls, raw: bytes) -> RampOrder:
        """Read the stored form; raises RegisterError."""
        try:
            return _ADAPTER.validate_json(raw)
        except ValidationError as error:
            raise RegisterError(f"the order for a ramp cannot be read: {error.errors()[0]['msg']}") from error


_ADAPTER = TypeAdapter(RampOrder)
