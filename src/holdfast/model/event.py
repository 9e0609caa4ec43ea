"""What the journal keeps: everything that happened, who saw it, and which rule fired."""

from __future__ import annotations

from dataclasses import dataclass, field

from pydantic import JsonValue, TypeAdapter, ValidationError

from holdfast.model.errors import RegisterError


@dataclass(frozen=True, slots=True)
class Event:
    """One entry of the journal.

    ``at_ms`` is the writer's wall clock (Unix time, milliseconds); ``kind`` is a stable dotted id such as
    ``epoch.opened``; ``rule`` is the id of the rule that led to it, if one did.
    """

    at_ms: float
    source: str
    kind: str
    epoch: int
    rule: str | None = None
    detail: dict[str, JsonValue] = field(default_factory=dict)

    def to_json(self) -> bytes:
        """The stored form."""
        return _EVENT.dump_json(self)

    @classmethod
    def from_json(cls, raw: bytes) -> Event:
        """Read the stored form; raises RegisterError."""
        try:
            return _EVENT.validate_json(raw)
        except ValidationError as error:
            raise RegisterError(f"a journal entry cannot be read: {error.errors()[0]['msg']}") from error


_EVENT = TypeAdapter(Event)
