"""Tamper evidence: each writer's entries of the journal are a chain, and what was done to one is seen.

Every entry has the digest of the one before it, so that none can be changed, taken out or put in between without all
that follow being made anew. The digest is SHA-256 of the entry as JSON: keys sorted, no spaces, ASCII only, members
that are null left out, and without the digest itself.
"""

from __future__ import annotations

import hashlib
import json
from collections import defaultdict
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from enum import StrEnum

from pydantic import JsonValue

from holdfast.core.causality import in_order
from holdfast.model.errors import RegisterError
from holdfast.model.event import CHAIN_FORM, Event, Head, Link


def digest_of(members: Mapping[str, JsonValue]) -> str:
    """The digest that an entry with these members must have."""
    kept = {name: value for name, value in members.items() if value is not None}
    link = kept.get("link")
    if isinstance(link, dict):
        kept["link"] = {name: value for name, value in link.items() if name != "digest"}
    canonical = json.dumps(kept, sort_keys=True, separators=(",", ":"), ensure_ascii=True)
    return hashlib.sha256(canonical.encode()).hexdigest()


def seal(event: Event, head: Head | None) -> Event:
    """The event as the next link after ``head`` (None: as the first)."""
    number, previous = (1, "") if head is None else (head.number + 1, head.digest)
    open_link = replace(event, link=Link(number, previous, ""))
    return replace(event, link=Link(number, previous, digest_of(json.loads(open_link.to_json()))))


def head_of(event: Event) -> Head:
    """Where the chain goes on after a sealed event; raises ValueError for one that is not sealed."""
    if event.link is None:
        raise ValueError("an event that is no link of a chain has no head")
    return Head(event.link.number, event.link.digest)


@dataclass(frozen=True, slots=True)
class Entry:
    """An entry as it was found, and the digest that what was found gives."""

    event: Event
    digest: str

    @classmethod
    def read(cls, raw: bytes | str) -> Entry:
        """From its stored form; raises RegisterError."""
        try:
            members = json.loads(raw)
        except ValueError as error:
            raise RegisterError(f"a journal entry is no JSON: {error}") from error
        if not isinstance(members, dict):
            raise RegisterError("a journal entry is no JSON object")
        return cls(Event.from_mapping(members), digest_of(members))


class Harm(StrEnum):
    """What was done to a chain."""

    CHANGED = "changed"
    REMOVED = "removed"
    INSERTED = "inserted"


@dataclass(frozen=True, slots=True)
class Break:
    """One place where a chain is broken: entries ``number`` to ``until``; ``event`` is one of them, if it is known."""

    harm: Harm
    number: int
    until: int
    says: str
    event: Event | None = None


@dataclass(frozen=True, slots=True)
class Chain:
    """What became of one writer's chain; ``unlinked`` entries are older than the chain, or of another form."""

    source: str
    first: int | None
    last: int | None
    entries: int
    unlinked: int
    breaks: tuple[Break, ...] = ()

    @property
    def intact(self) -> bool:
        """Whether nothing speaks against it."""
        return not self.breaks


@dataclass(frozen=True, slots=True)
class Ends:
    """What the store knows of the ends of all chains, by source: the newest entries, and the last that were dropped."""

    heads: Mapping[str, Head]
    bases: Mapping[str, Head]


def check(entries: Iterable[Entry], ends: Ends | None = None, remembered: Iterable[Event] = ()) -> tuple[Chain, ...]:
    """Every writer's chain. ``ends`` None: of a part of the journal, whose ends are not known.

    ``remembered`` is what the writers themselves still have in memory, read before the entries were.
    """
    by_source: dict[str, list[Entry]] = defaultdict(list)
    for entry in entries:
        by_source[entry.event.source].append(entry)
    memories: dict[str, dict[int, Event]] = defaultdict(dict)
    for event in remembered:
        if event.link is not None and event.link.form == CHAIN_FORM:
            memories[event.source][event.link.number] = event
    sources = {*by_source, *memories, *(ends.heads if ends is not None else ())}
    return tuple(_Checked(source, by_source[source], ends, memories[source]).chain() for source in sorted(sources))


class _Checked:
    """One writer's chain while it is looked at."""

    def __init__(self, source: str, entries: Sequence[Entry], ends: Ends | None, memory: Mapping[int, Event]) -> None:
        self._source = source
        self._head = None if ends is None else ends.heads.get(source)
        self._base = None if ends is None else ends.bases.get(source)
        self._ends_known = ends is not None
        self._memory = memory
        self._linked = [e for e in entries if _link(e.event).form == CHAIN_FORM]
        self._loose = [e.event for e in entries if _link(e.event).form != CHAIN_FORM]
        self._breaks: list[Break] = []

    def chain(self) -> Chain:
        by_number: dict[int, list[Entry]] = defaultdict(list)
        for entry in self._linked:
            by_number[_link(entry.event).number].append(entry)
        genuine = [self._genuine(by_number, number) for number in sorted(by_number)]
        self._look_at_loose(genuine)
        self._look_at_start(genuine)
        for before, entry in zip([None, *genuine], genuine, strict=False):
            if before is not None:
                self._look_between(before, entry)
            self._look_at(entry)
        self._look_at_end(genuine)
        numbers = sorted(by_number)
        first, last = (numbers[0], numbers[-1]) if numbers else (None, None)
        ordered = tuple(sorted(self._breaks, key=lambda b: (b.number, b.harm.value)))
        return Chain(self._source, first, last, len(self._linked), len(self._loose), ordered)

    def _genuine(self, by_number: Mapping[int, Sequence[Entry]], number: int) -> Entry:
        """The entry that its neighbours are chained to; others of the same number were put beside it."""
        wanted = {_link(after.event).previous for after in by_number.get(number + 1, ())}
        if self._head is not None and self._head.number == number:
            wanted.add(self._head.digest)
        if number in self._memory:
            wanted = {_link(self._memory[number]).digest}
        former = {_link(before.event).digest for before in by_number.get(number - 1, ())}

        def rank(entry: Entry) -> tuple[bool, bool, bool]:
            link = _link(entry.event)
            return link.digest in wanted, entry.digest == link.digest, link.previous in former

        best, *others = sorted(by_number[number], key=rank, reverse=True)
        for other in others:
            self._note(Harm.INSERTED, number, number, "was put beside the entry of this number", other.event)
        return best

    def _look_at_loose(self, genuine: Sequence[Entry]) -> None:
        if not genuine:
            return
        begun = genuine[0].event
        for event in self._loose:
            if event.link is None and event.order > begun.order:
                near = max((_link(e.event).number for e in genuine if e.event.order <= event.order), default=0)
                says = "has no place in the chain: put in, or written by an agent older than the chain"
                self._note(Harm.INSERTED, near, near, says, event)

    def _look_at_start(self, genuine: Sequence[Entry]) -> None:
        if not self._ends_known or not genuine:
            return
        base = self._base or Head(0, "")
        first = genuine[0].event
        if _link(first).number > base.number + 1:
            self._missing(base.number + 1, _link(first).number - 1, None, first)
        elif _link(first).number == base.number + 1 and _link(first).previous != base.digest:
            self._note(Harm.CHANGED, _link(first).number, _link(first).number, _FOREIGN.format(base.number), first)

    def _look_at(self, entry: Entry) -> None:
        link = _link(entry.event)
        memory = self._memory.get(link.number)
        if memory is not None and (_link(memory).digest != link.digest or entry.digest != link.digest):
            says = f"differs from what {self._source} remembers: {'; '.join(differences(memory, entry.event))}"
            self._note(Harm.CHANGED, link.number, link.number, says, entry.event)
        elif entry.digest != link.digest:
            says = "is not what it was sealed as: its content, or its digest, was changed"
            self._note(Harm.CHANGED, link.number, link.number, says, entry.event)

    def _look_between(self, before: Entry, entry: Entry) -> None:
        one, other = _link(before.event), _link(entry.event)
        if other.number > one.number + 1:
            self._missing(one.number + 1, other.number - 1, before.event, entry.event)
        elif other.previous != one.digest and not self._is_noted(one.number):
            says = f"is another than the one that entry {other.number} follows: it was replaced"
            self._note(Harm.CHANGED, one.number, one.number, says, before.event)

    def _look_at_end(self, genuine: Sequence[Entry]) -> None:
        reached = _link(genuine[-1].event).number if genuine else (self._base.number if self._base else 0)
        last = genuine[-1].event if genuine else None
        known = max(self._memory, default=0)
        if self._head is not None:
            if reached == self._head.number and last is not None and _link(last).digest != self._head.digest:
                if not self._is_noted(reached):
                    self._note(Harm.CHANGED, reached, reached, "is another than the one that was written last", last)
            elif reached > self._head.number:
                says = f"was not written by {self._source}: its last entry is {self._head.number}"
                self._note(Harm.INSERTED, self._head.number + 1, reached, says, last)
            known = max(known, self._head.number)
        elif self._ends_known and genuine:
            self._note(Harm.REMOVED, reached, reached, "is no longer known as the last one: the head is gone", last)
        if known > reached:
            self._missing(reached + 1, known, last, None)

    def _missing(self, number: int, until: int, before: Event | None, after: Event | None) -> None:
        known = next((self._memory[n] for n in range(number, until + 1) if n in self._memory), None)
        which = "is missing" if number == until else "are missing"
        around = " and ".join(
            f"{side} {event.kind} ({_link(event).number})"
            for side, event in (("after", before), ("before", after))
            if event is not None
        )
        says = f"{which}, {around}" if around else which
        if known is not None:
            says += f"; {self._source} remembers {known.kind} ({_link(known).number})"
        self._note(Harm.REMOVED, number, until, says, known)

    def _is_noted(self, number: int) -> bool:
        return any(b.number <= number <= b.until and b.harm is Harm.CHANGED for b in self._breaks)

    def _note(self, harm: Harm, number: int, until: int, says: str, event: Event | None) -> None:
        self._breaks.append(Break(harm, number, until, says, event))


_FOREIGN = "does not follow entry {}, the last one that has left the journal"
_NO_LINK = Link(0, "", "", form=0)


def _link(event: Event) -> Link:
    return event.link if event.link is not None else _NO_LINK


def differences(one: Event, other: Event) -> Iterator[str]:
    """What is different in ``other``, member by member."""
    before, after = _flat(one), _flat(other)
    for name in sorted({*before, *after}):
        if before.get(name) != after.get(name):
            yield f"{name} was {before.get(name, 'missing')}, is {after.get(name, 'missing')}"


def _flat(event: Event) -> dict[str, str]:
    members = json.loads(event.to_json())
    detail = {f"detail.{name}": value for name, value in (members.pop("detail") or {}).items()}
    members.pop("link")
    return {name: json.dumps(value, sort_keys=True) for name, value in {**members, **detail}.items()}


def without_gaps(part: Sequence[Event], journal: Iterable[Event]) -> list[Event]:
    """A part of the journal, with what of its writers' chains lies between: it can be checked by itself."""
    spans: dict[str, tuple[int, int]] = {}
    for event in part:
        if event.link is not None:
            low, high = spans.get(event.source, (event.link.number, event.link.number))
            spans[event.source] = min(low, event.link.number), max(high, event.link.number)
    own = {id(event) for event in part}
    between = [
        event
        for event in journal
        if id(event) not in own
        and event.link is not None
        and event.source in spans
        and spans[event.source][0] < event.link.number < spans[event.source][1]
    ]
    return in_order([*part, *between]) if between else list(part)
