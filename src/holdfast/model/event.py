"""What the journal keeps: everything that happened, who saw it, which rule fired, and what cannot be changed unseen."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Final

from pydantic import JsonValue, TypeAdapter, ValidationError

from holdfast.model.errors import RegisterError

CHAIN_FORM: Final = 1
"""How links are made; entries of another form are not checked, only counted."""


@dataclass(frozen=True, slots=True, order=True)
class Stamp:
    """A time of a hybrid logical clock: later than every stamp its writer had seen, and close to the wall clock.

    ``us`` is Unix time in microseconds, ``count`` tells apart what happened at the same one.
    """

    us: int
    count: int = 0

    def __str__(self) -> str:
        return f"{self.us}+{self.count}"

    @property
    def ms(self) -> float:
        """Unix time, milliseconds."""
        return self.us / 1000

    @classmethod
    def parse(cls, text: str) -> Stamp:
        """Read what `str` gave; raises RegisterError."""
        us, plus, count = text.partition("+")
        if not plus or not (us.isascii() and us.isdigit() and count.isascii() and count.isdigit()) or len(text) > 40:
            raise RegisterError(f"{text[:60]!r} is no time of a hybrid clock, such as 1795260000000000+0")
        return cls(int(us), int(count))


@dataclass(frozen=True, slots=True)
class Link:
    """Where an entry stands among those of its writer. Digests are SHA-256 in hexadecimal digits.

    ``number`` counts from 1; ``previous`` is the digest of the entry before it ("" for the first), ``digest`` that of
    this entry, with all but this field.
    """

    number: int
    previous: str
    digest: str
    form: int = CHAIN_FORM


@dataclass(frozen=True, slots=True)
class Head:
    """The last entry of one writer's chain, or of the part of it that has left the journal."""

    number: int
    digest: str

    def to_json(self) -> bytes:
        """The stored form."""
        return _HEAD.dump_json(self)

    @classmethod
    def from_json(cls, raw: bytes) -> Head:
        """Read the stored form; raises RegisterError."""
        try:
            return _HEAD.validate_json(raw)
        except ValidationError as error:
            raise RegisterError(f"the head of a chain cannot be read: {error.errors()[0]['msg']}") from error


@dataclass(frozen=True, slots=True)
class Event:
    """One entry of the journal.

    ``at_ms`` is the writer's wall clock (Unix time, milliseconds); ``kind`` is a stable dotted id such as
    ``epoch.opened``; ``rule`` is the id of the rule that led to it, if one did. ``stamp`` and ``link`` are missing in
    entries that were written before there were any.
    """

    at_ms: float
    source: str
    kind: str
    epoch: int
    rule: str | None = None
    detail: dict[str, JsonValue] = field(default_factory=dict)
    stamp: Stamp | None = None
    link: Link | None = None

    @property
    def order(self) -> Stamp:
        """What entries of all writers are sorted by: a cause before what it led to."""
        return self.stamp or Stamp(int(self.at_ms * 1000))

    @property
    def time_ms(self) -> float:
        """When it happened (Unix time, milliseconds), on a clock that never runs backwards from cause to effect."""
        return self.at_ms if self.stamp is None else self.stamp.ms

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

    @classmethod
    def from_mapping(cls, members: Mapping[str, JsonValue]) -> Event:
        """Read an entry that was parsed already; raises RegisterError."""
        try:
            return _EVENT.validate_python(dict(members))
        except ValidationError as error:
            raise RegisterError(f"a journal entry cannot be read: {error.errors()[0]['msg']}") from error


_EVENT = TypeAdapter(Event)
_HEAD = TypeAdapter(Head)
