"""What is kept about nodes that are cut off: by their own agent on its disk, by the leader in the store."""

from __future__ import annotations

from dataclasses import dataclass

from pydantic import TypeAdapter, ValidationError

from holdfast.model.errors import RegisterError


@dataclass(frozen=True, slots=True)
class CutOff:
    """A node for which a leader runs its command. ``epoch``: the one in which it was lost; ``ran``: the command has."""

    node: str
    epoch: int
    ran: bool = False

    def to_json(self) -> bytes:
        """The stored form."""
        return _CUT_OFF.dump_json(self)

    @classmethod
    def from_json(cls, raw: bytes) -> CutOff:
        """Read the stored form; raises RegisterError."""
        try:
            return _CUT_OFF.validate_json(raw)
        except ValidationError as error:
            raise RegisterError(f"the record of a node that is cut off cannot be read: {error}") from error


@dataclass(frozen=True, slots=True)
class Note:
    """What an agent writes down before it cuts its own node off, for whoever is the agent later.

    ``measures``: what it may have done, by name, so that it is undone also if the settings say otherwise by then.
    """

    epoch: int
    measures: tuple[str, ...]

    def to_json(self) -> bytes:
        """The stored form."""
        return _NOTE.dump_json(self)

    @classmethod
    def from_json(cls, raw: bytes) -> Note:
        """Read the stored form; raises RegisterError."""
        try:
            return _NOTE.validate_json(raw)
        except ValidationError as error:
            raise RegisterError(f"the note of an isolation cannot be read: {error}") from error


_CUT_OFF = TypeAdapter(CutOff)
_NOTE = TypeAdapter(Note)
