"""A planned switchover: kept in the store beside the register, begun by the agent of whoever leads then."""

from __future__ import annotations

from dataclasses import dataclass

from pydantic import ConfigDict, TypeAdapter, ValidationError

from holdfast.model.errors import RegisterError
from holdfast.model.register import NodeName


@dataclass(frozen=True, slots=True)
class PlannedSwitchover:
    """To whom (None: the most suitable standby of then), and when (Unix time, milliseconds)."""

    to: NodeName | None
    at_ms: int

    __pydantic_config__ = ConfigDict(extra="forbid")

    def to_json(self) -> bytes:
        """The stored form."""
        return _PLAN.dump_json(self)

    @classmethod
    def from_json(cls, raw: bytes) -> PlannedSwitchover:
        """Read the stored form; raises RegisterError."""
        try:
            return _PLAN.validate_json(raw)
        except ValidationError as error:
            raise RegisterError(f"the planned switchover cannot be read: {error.errors()[0]['msg']}") from error


_PLAN = TypeAdapter(PlannedSwitchover)
