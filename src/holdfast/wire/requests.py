"""What a client asked for: the texts behind statements and portals, and what their completion leaves behind."""

from __future__ import annotations

from typing import Final

from holdfast.wire import messages as m
from holdfast.wire.owed import Owed, Reply
from holdfast.wire.state import SessionState

_STATEMENT: Final = ord("S")


class Requests:
    """Follows Parse, Bind and Execute, so that each execution's text is known."""

    __slots__ = ("portals", "texts")

    def __init__(self) -> None:
        self.texts: dict[bytes, bytes] = {}
        """Name of a prepared statement → its text."""
        self.portals: dict[bytes, tuple[bytes | None, tuple[bytes | None, ...]]] = {}
        """Name of a portal → the text of its statement, and the values that were bound as far as they matter."""

    def read(self, kind: int, buffer: bytes, start: int, end: int) -> Owed | None:
        """What the message at ``start`` asks for, if more than its type matters. Raises ProtocolViolation."""
        body = start + 5
        if kind == m.QUERY:
            return Owed(Reply.QUERY, buffer[body : end - 1])
        if kind == m.EXECUTE:
            (portal,), _ = m.read_strings(buffer, 1, body)
            sql, values = self.portals.get(portal, (None, ()))
            return Owed(Reply.EXECUTE, sql, values=values)
        if kind == m.BIND:
            (portal, name), _ = m.read_strings(buffer, 2, body)
            sql = self.texts.get(name)
            has_values = sql is not None and b"set_config" in sql.lower()
            self.portals[portal] = (sql, m.read_bind(buffer[body:end]).values if has_values else ())
            return Owed(Reply.BIND)
        if kind == m.DESCRIBE:
            return Owed(Reply.DESCRIBE, body=buffer[body : body + 1])
        if kind == m.PARSE:
            (name, sql), _ = m.read_strings(buffer, 2, body)
            self.texts[name] = sql
            return Owed(Reply.PARSE, sql, name, buffer[start:end])
        if kind == m.CLOSE:
            (name,), _ = m.read_strings(buffer, 1, body + 1)
            if buffer[body] != _STATEMENT:
                self.portals.pop(name, None)
                return None
            self.texts.pop(name, None)
            return Owed(Reply.CLOSE, name=name)
        return None

    def text_of(self, kind: int, buffer: bytes, start: int, end: int) -> bytes | None:
        """The text that the message at ``start`` is about; None if there is none. Raises ProtocolViolation."""
        body = start + 5
        if kind == m.QUERY:
            return buffer[body : end - 1]
        if kind == m.PARSE:
            return m.read_strings(buffer, 2, body)[0][1]
        if kind == m.BIND:
            return self.texts.get(m.read_strings(buffer, 2, body)[0][1])
        if kind == m.EXECUTE:
            (portal,), _ = m.read_strings(buffer, 1, body)
            return self.portals.get(portal, (None, ()))[0]
        return None

    def completed(self, state: SessionState, kind: int, head: Owed, buffer: bytes, start: int, end: int) -> None:
        """The server's message ``kind`` completed ``head``, or a statement of it."""
        if kind == m.PORTAL_SUSPENDED:  # as many rows as were asked for; what it does besides may be done
            if head.sql is not None:
                state.completed(head.sql, 0, b"SELECT", head.values)
        elif kind == m.COMMAND_COMPLETE:
            if head.sql is not None:
                state.completed(head.sql, max(head.completed - 1, 0), buffer[start + 5 : end - 1], head.values)
        elif kind == m.PARSE_COMPLETE:
            if head.name is not None:
                state.parsed(head.name, head.body)
        elif kind == m.CLOSE_COMPLETE and head.name is not None:
            state.closed(head.name)

    def ended(self) -> None:
        """The transaction has ended, or the server is gone, and the portals with it."""
        self.portals.clear()
