"""Prepared statements on a server connection that several sessions use in turn.

Two clients may give the same name to different statements. On a shared connection a statement is called after its
text, so that it is made there once and serves all who have it. A server that does not know it yet is told before the
client's message; the client sees nothing of that.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import lru_cache
from hashlib import blake2b
from typing import Final

from holdfast.wire import messages as m
from holdfast.wire.flight import Flight
from holdfast.wire.frames import HEADER_BYTES
from holdfast.wire.held import Held
from holdfast.wire.owed import Ledger, Owed, Reply
from holdfast.wire.sql import split_statements
from holdfast.wire.state import Dropped

PREPARED_MAX: Final = 500
"""Statements that a shared server connection keeps; of more, those used longest ago are closed."""

_STATEMENT: Final = b"S"
_UNNAMED: Final = b""
_PREFIX: Final = b"holdfast_"
_DEALLOCATES: Final = b"deallocate"
_HEAD_BYTES: Final = 64
"""A comment may stand before it; not a long one."""
_ANYTHING: Final = b"SELECT 1\0\0\0"
_MAY_NAME_A_STATEMENT: Final = frozenset((m.QUERY, m.PARSE, m.BIND, m.DESCRIBE, m.CLOSE))


_OUTDATED: Final = ("0A000", "RevalidateCachedQuery")
"""SQLSTATE and routine of *cached plan must not change result type*."""

_Before = tuple[bytes, Owed]
"""A message, and the answer to it."""


@dataclass(frozen=True, slots=True)
class _Translation:
    """What goes to the server in place of a client's message."""

    message: bytes
    before: Sequence[_Before] = ()
    """Messages that go first; their answers are not the client's."""
    makes: bytes | None = None
    drops: bytes | None = None
    uses: bytes | None = None
    """Shared names, as in `Owed`."""


class Outdated:
    """The statements of a pool whose results have changed, by an ALTER TABLE, since connections were told of them.

    PostgreSQL refuses them from then on. One session meets that; before any other uses a connection, they are taken
    for unknown there, so that they are made again.
    """

    def __init__(self) -> None:
        self._found: dict[bytes, int] = {}
        self.count = 0

    def found(self, shared: bytes) -> None:
        """It was refused on one connection."""
        self.count += 1
        self._found.pop(shared, None)
        self._found[shared] = self.count
        if len(self._found) > PREPARED_MAX:
            del self._found[next(iter(self._found))]

    def leave_out(self, held: Held) -> None:
        """Of a connection on which nothing is under way."""
        if held.outdated_seen == self.count:
            return
        for shared, number in self._found.items():
            if number > held.outdated_seen:
                held.prepared.pop(shared, None)
        held.outdated_seen = self.count


class SharedNames:
    """One client's prepared statements, by its own names."""

    def __init__(self, outdated: Outdated | None = None) -> None:
        self._outdated = outdated or Outdated()
        self._made: dict[bytes, bytes] = {}  # its name → the rest of its Parse: text and types
        self._told: set[bytes] = set()  # names that were told to the server in this batch
        self._unnamed_is_there = False
        self.is_supposed = False
        """What was sent since `settled` may have failed."""
        self.has_made = False
        """The client has prepared a statement, if only an unnamed one, and if only once."""
        self._mark = b""

    def attached(self, held: Held) -> None:
        """The client has another server connection."""
        if held.outdated_seen != self._outdated.count:
            self._outdated.leave_out(held)
        if self._told:
            self._told.clear()
        self._unnamed_is_there = False

    def settled(self, prepared: Mapping[bytes, bytes]) -> None:
        """Nothing is owed any more: ``prepared`` (as `SessionState.prepared`) is what the client has."""
        if self.is_supposed:
            made = {name: parse for name, parse in prepared.items() if parse[0] == m.PARSE}
            self._made = {name: _tail_of(name, parse) for name, parse in made.items()}
            self.has_made = True
            self.is_supposed = False

    def send(
        self, kind: int, owed: Owed | None, message: bytes, held: Held, ledger: Ledger, mark: bytes = b""
    ) -> bytes:
        """What goes to the server instead of a message that will be answered by ``owed``; nothing: itself.

        ``mark`` is `SessionState.mark`. Raises ProtocolViolation.
        """
        self._mark = mark
        if kind == m.SYNC:
            self._told.clear()
        elif kind == m.QUERY:
            self._made.pop(_UNNAMED, None)
        elif kind == m.EXECUTE and owed is not None:
            self._executed(owed, held)
        if kind not in _MAY_NAME_A_STATEMENT:
            return b""
        translation = self._translate(kind, message, held)
        if translation is None:
            return b""
        for told, hidden in translation.before:
            ledger.sent(told[0], hidden)
        if owed is not None:
            owed.makes, owed.drops, owed.uses = translation.makes, translation.drops, translation.uses
        return b"".join(told for told, _ in translation.before) + translation.message

    def translate_at_once(self, flight: Flight, held: Held, mark: bytes) -> bytes | None:
        """What `send` makes of a common batch, if the server needs to be told nothing before it; nothing is noted.

        None: `send` must be asked.
        """
        if flight.parse_end:
            return None if flight.name else flight.data
        if not flight.bind_end:
            return flight.data
        tail = self._made.get(flight.name) if flight.name else None
        if tail is None:
            return None
        shared = _shared_name(tail, mark)
        if shared not in held.prepared:
            return None
        data = flight.data
        names = len(flight.portal) + 1 + HEADER_BYTES
        rest = data[flight.bind_at + names + len(flight.name) : flight.bind_end]
        bind = m.message(m.BIND, flight.portal + b"\0" + shared + rest)
        return data[: flight.bind_at] + bind + data[flight.bind_end :]

    def sent_at_once(self, flight: Flight, held: Held, mark: bytes) -> None:
        """What `send` and `settled` would have noted of a common batch that was answered well."""
        self._mark = mark
        if flight.parse_end:
            self._made[flight.name] = _tail_of(flight.name, flight.data[: flight.parse_end])
            self._unnamed_is_there = self.has_made = True
        elif flight.bind_end:
            shared = _shared_name(self._made[flight.name], mark)
            del held.prepared[shared]
            held.prepared[shared] = None

    def sent_query_at_once(self) -> None:
        """The same of a simple Query."""
        self._made.pop(_UNNAMED, None)

    def answered_elsewhere(self, flight: Flight) -> None:
        """A server that has nothing to do with these names answered a common batch."""
        if flight.parse_end:
            self._made[flight.name] = _tail_of(flight.name, flight.data[: flight.parse_end])
            self.has_made = True
        elif flight.is_simple:
            self._made.pop(_UNNAMED, None)
        self._unnamed_is_there = False

    def dropped(self, dropped: Dropped, held: Held) -> None:
        """A DEALLOCATE or a DISCARD ALL is complete."""
        for name, parse in dropped.parses.items():
            tail = _tail_of(name, parse)
            held.prepared.pop(self._shared(tail), None)
            if self._made.get(name) == tail:
                del self._made[name]
        if dropped.all:
            held.prepared.clear()

    def failed(self, shared: bytes, report: m.Report, held: Held) -> None:
        """What used a statement has failed."""
        if (report.sqlstate, report.routine) == _OUTDATED:
            held.prepared.pop(shared, None)
            self._outdated.found(shared)

    def _translate(self, kind: int, message: bytes, held: Held) -> _Translation | None:
        if kind == m.BIND:
            (portal, name), rest = m.read_strings(message, 2, 5)
            return self._used(kind, portal + b"\0", name, message[rest:], held)
        if kind == m.PARSE:
            (name,), rest = m.read_strings(message, 1, 5)
            return self._parsed(name, message[rest:], held)
        if kind in (m.DESCRIBE, m.CLOSE) and message[5:6] == _STATEMENT:
            (name,), _ = m.read_strings(message, 1, 6)
            return self._used(kind, _STATEMENT, name, b"", held) if kind == m.DESCRIBE else self._closed(name, held)
        if kind == m.QUERY and (own := self._deallocated_by(message[5:-1])) is not None:
            text, before = self._deallocate(own, held)
            if before:
                before.append((m.SYNC_MESSAGE, Owed(Reply.SYNC, is_hidden=True)))
            self._gone(self._made.pop(own), held)
            return _Translation(m.query(text), before)
        return None

    def _parsed(self, name: bytes, tail: bytes, held: Held) -> _Translation | None:
        sql = tail[: tail.find(b"\0")]
        before: list[_Before] = []
        if (own := self._deallocated_by(sql)) is not None:
            text, before = self._deallocate(own, held)
            tail = text + tail[len(sql) :]
        self._made[name], self.is_supposed, self.has_made = tail, True, True
        if name == _UNNAMED:
            self._unnamed_is_there = True
            return _Translation(_parse(name, tail), before) if own is not None else None
        shared = self._shared(tail)
        held.prepared.pop(shared, None)
        before += self._room(held)
        self._told.add(shared)
        return _Translation(_parse(shared, tail), (*before, _close(shared)), makes=shared)

    def _executed(self, owed: Owed, held: Held) -> None:
        """A DEALLOCATE of one of the client's statements is on its way."""
        own = self._deallocated_by(owed.sql) if owed.sql is not None else None
        if own is not None:
            self._gone(self._made.pop(own), held)
            self.is_supposed = True

    def _used(self, kind: int, head: bytes, name: bytes, rest: bytes, held: Held) -> _Translation | None:
        tail = self._made.get(name)
        if tail is None:
            return _unknown(kind, head, name, rest)
        if name != _UNNAMED:
            shared, before = self._ensure(tail, held)
            return _Translation(m.message(kind, head + shared + b"\0" + rest), before, uses=shared)
        if self._unnamed_is_there:
            return None
        self._unnamed_is_there = True
        made_again = (_parse(_UNNAMED, tail), Owed(Reply.PARSE, is_hidden=True))
        return _Translation(m.message(kind, head + b"\0" + rest), (made_again,))

    def _ensure(self, tail: bytes, held: Held) -> tuple[bytes, list[_Before]]:
        """The shared name of a statement, and what makes sure that the server has it."""
        shared = self._shared(tail)
        if shared in held.prepared:
            del held.prepared[shared]
            held.prepared[shared] = None
            return shared, []
        if shared in self._told:
            return shared, []
        self._told.add(shared)
        made = _parse(shared, tail), Owed(Reply.PARSE, is_hidden=True, makes=shared)
        return shared, [_close(shared), *self._room(held), made]

    def _room(self, held: Held) -> list[_Before]:
        """What makes room on the server for one more: those that were used longest ago go."""
        gone = []
        while len(held.prepared) >= PREPARED_MAX:
            eldest = next(iter(held.prepared))
            del held.prepared[eldest]
            self._told.discard(eldest)
            gone.append(_close(eldest))
        return gone

    def _closed(self, name: bytes, held: Held) -> _Translation | None:
        """The statement is closed for this client; for others it is made again when they need it."""
        tail = self._made.pop(name, None)
        if tail is None or name == _UNNAMED:
            return _unknown(m.CLOSE, _STATEMENT, name, b"")
        self.is_supposed = True
        shared = self._gone(tail, held)
        return _Translation(m.message(m.CLOSE, _STATEMENT + shared + b"\0"), drops=shared)

    def _deallocate(self, own: bytes, held: Held) -> tuple[bytes, list[_Before]]:
        """The DEALLOCATE of one of the client's statements, and what makes sure that it finds something."""
        shared = self._shared(self._made[own])
        there = shared in held.prepared or shared in self._told
        before = [] if there else [_close(shared), (_parse(shared, _ANYTHING), Owed(Reply.PARSE, is_hidden=True))]
        self.is_supposed = True
        return b"DEALLOCATE " + shared, before

    def _gone(self, tail: bytes, held: Held) -> bytes:
        shared = self._shared(tail)
        held.prepared.pop(shared, None)
        self._told.discard(shared)
        return shared

    def _shared(self, tail: bytes) -> bytes:
        return _shared_name(tail, self._mark)

    def _deallocated_by(self, sql: bytes) -> bytes | None:
        """The client's own name in a lone ``DEALLOCATE [PREPARE] name``."""
        if _DEALLOCATES not in sql[:_HEAD_BYTES].lower():
            return None
        statements = split_statements(sql)
        if len(statements) != 1:
            return None
        statement = statements[0]
        index = 2 if statement.word(1) == "prepare" and len(statement.tokens) > 2 else 1
        name = statement.name(index).encode("latin-1")
        return name if name in self._made and len(statement.tokens) == index + 1 else None


@lru_cache(maxsize=4096)
def _shared_name(tail: bytes, mark: bytes) -> bytes:
    return _PREFIX + blake2b(tail + mark, digest_size=16).hexdigest().encode()


def _tail_of(name: bytes, parse: bytes) -> bytes:
    """What a Parse message says after the name: text and types."""
    return parse[6 + len(name) :]


def _unknown(kind: int, head: bytes, name: bytes, rest: bytes) -> _Translation | None:
    """The server says that there is no such statement, also if the name is that of somebody else's there."""
    if name and not name.startswith(_PREFIX):
        return None
    return _Translation(m.message(kind, head + b"no_" + name + b"\0" + rest))


def _parse(name: bytes, tail: bytes) -> bytes:
    return m.message(m.PARSE, name + b"\0" + tail)


def _close(name: bytes) -> _Before:
    return m.message(m.CLOSE, _STATEMENT + name + b"\0"), Owed(Reply.CLOSE, is_hidden=True, drops=name)
