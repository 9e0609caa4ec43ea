"""A statement that may have killed a primary: kept in the store, where every proxy hears of it."""

from __future__ import annotations

from dataclasses import dataclass
from enum import StrEnum
from typing import Final

from pydantic import TypeAdapter, ValidationError

from holdfast.model.errors import RegisterError

FINGERPRINT_DIGITS: Final = 12
"""Hexadecimal ones, of a statement's id."""


class Standing(StrEnum):
    """What becomes of a suspect."""

    ALONE = "alone"
    """Each proxy lets one in at a time, and more step by step as they do no harm."""
    REFUSED = "refused"
    """Nobody may run it until a person releases it."""
    RELEASED = "released"


class Verdict(StrEnum):
    """What a person says of a suspect."""

    RELEASE = "release"
    KEEP = "keep"
    """Refuse it until it is released."""


@dataclass(frozen=True, slots=True)
class Suspect:
    """A fingerprint, and what speaks against it."""

    id: str
    text: str
    """The statement without its literals."""
    epochs: tuple[int, ...]
    """Those that ended while it was in flight, the newest last."""
    standing: Standing
    rule: str
    """By which it has this standing: one of `suspicion.RULES`."""
    sessions: int
    """In which it was in flight when the last of those primaries was lost, at the proxy that saw most."""
    ran_ms: int
    """For how long at most, when that primary last answered."""
    at_ms: float
    """When it got this standing: wall clock, Unix time."""

    @property
    def is_held(self) -> bool:
        """Whether it may not simply run."""
        return self.standing is not Standing.RELEASED

    def to_json(self) -> bytes:
        """The stored form."""
        return _ADAPTER.dump_json(self)

    @classmethod
    def from_json(cls, raw: bytes) -> Suspect:
        """Read the stored form; raises RegisterError."""
        try:
            return _ADAPTER.validate_json(raw)
        except ValidationError as error:
            raise RegisterError(f"the record of a suspect cannot be read: {error.errors()[0]['msg']}") from error


_ADAPTER = TypeAdapter(Suspect)
