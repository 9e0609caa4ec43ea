"""The common batches of a client, recognised at a glance, and their answers, walked by their headers.

The full way follows every message of both sides (`requests`, `owed`, `replies`). Nearly all traffic needs less: one
Query, or Parse, Bind, Describe, Execute and a Sync, that is answered well and changes nothing that its session keeps.
Such a batch is remembered as it is while it is *in flight*. Whatever is out of the ordinary in it or in its answer is
left alone here, and a flight that is under way can be told to the full way at any moment as if it had always been
there (`told`): the full way is the specification, this is what may be left out of it.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from functools import lru_cache
from typing import Final

from holdfast.wire import heads
from holdfast.wire import messages as m
from holdfast.wire.effects import PLAIN_TAGS, executes, names_temporary
from holdfast.wire.frames import FRAME_BYTES_MAX, HEADER_BYTES, WHOLE_BYTES_MAX
from holdfast.wire.own import MARK

BATCH_BYTES_MAX: Final = 16 * 1024
"""A batch that is larger costs so much elsewhere that the full way is not felt."""

_END_TAGS: Final = (b"COMMIT\0", b"ROLLBACK\0")
_END_WORDS: Final = (b"commit", b"end", b"rollback", b"abort")

_WORD_BYTES: Final = 8

_MARK = MARK.decode()

# Constants of C where this is compiled, so without annotations.
_QUERY = m.QUERY
_SYNC = m.SYNC
_DATA_ROW = m.DATA_ROW
_IDLE = m.IDLE
_IN_TRANSACTION = m.IN_TRANSACTION
_HEADER_BYTES = HEADER_BYTES
_NOT_ORDINARY = -1
_STAYS = 0
_NEXT = 1
_COMPLETE = 2
_COMPLETE_NEXT = 3
_READY = 4

_MOVES: Final[Mapping[int, Mapping[int, int]]] = {
    m.QUERY: {
        m.DATA_ROW: _STAYS,
        m.ROW_DESCRIPTION: _STAYS,
        m.EMPTY_QUERY: _STAYS,
        m.COMMAND_COMPLETE: _COMPLETE,
        m.READY_FOR_QUERY: _READY,
    },
    m.PARSE: {m.PARSE_COMPLETE: _NEXT},
    m.BIND: {m.BIND_COMPLETE: _NEXT},
    m.DESCRIBE: {m.PARAMETER_DESCRIPTION: _STAYS, m.ROW_DESCRIPTION: _NEXT, m.NO_DATA: _NEXT},
    m.EXECUTE: {
        m.DATA_ROW: _STAYS,
        m.EMPTY_QUERY: _NEXT,
        m.PORTAL_SUSPENDED: _NEXT,
        m.COMMAND_COMPLETE: _COMPLETE_NEXT,
    },
    m.SYNC: {m.READY_FOR_QUERY: _READY},
}
"""What is being answered → what the server may say → how it goes on; the ordinary part of `owed.TABLE`."""

_HEAD_ONLY: Final = frozenset((m.DATA_ROW, m.ROW_DESCRIPTION, m.PARAMETER_DESCRIPTION))
"""Nobody looks into these, so that of those that were passed on only the head is remembered."""
_ROW: Final = m.message(m.DATA_ROW)
_ORDER: Final = {m.PARSE: 1, m.BIND: 2, m.DESCRIBE: 3, m.EXECUTE: 4, m.SYNC: 5}
_PORTAL: Final = ord("P")


def is_plain(text: bytes) -> bool:
    """Whether a statement that ends with a plain tag surely leaves nothing behind (`effects.may_have_effect`).

    And it needs no translation on a shared connection (`sharing`), and is not meant for the proxy (`own`).
    """
    lowered = text.lower()
    words = lowered.decode("latin-1")  # to look for bytes in bytes takes ten times as long
    if "advisory" in words or "set_config" in words or "deallocate" in words or _MARK in words:
        return False
    return not (("execute" in words and executes(lowered)) or ("temp" in words and names_temporary(lowered)))


_is_plain_again = lru_cache(maxsize=512)(is_plain)
"""Of prepared statements, whose texts come again and again."""


class Flight:
    """One session's batch under way, if there is one, and how far its answer has come."""

    __slots__ = (
        "_at",
        "_kinds",
        "_rest",
        "_seen",
        "bind_at",
        "bind_end",
        "data",
        "is_done",
        "is_simple",
        "keeps_uncommitted",
        "name",
        "parse_end",
        "portal",
        "sql",
        "status",
    )

    def __init__(self) -> None:
        self.data = b""
        """What the client sent; empty while nothing is under way."""
        self.is_done = False
        """The answer is complete."""
        self.status = m.IDLE
        """Of the ReadyForQuery that completed it."""
        self.keeps_uncommitted = False
        """The open transaction changed something of the session: its end is not for us."""
        self.is_simple = False
        """The batch is a Query."""
        self.parse_end = 0
        """The batch begins with a Parse that ends here; 0: it does not."""
        self.bind_at = 0
        self.bind_end = 0
        """Where the Bind is; ``bind_end`` is 0 if there is none."""
        self.name = b""
        """The statement that is parsed or bound."""
        self.portal = b""
        """The portal that is bound."""
        self.sql = b""
        """The text of the statement that is parsed or bound."""
        self._kinds = b""
        self._at = 0
        self._seen: list[bytes] = []
        self._rest = b""

    def begin(self, data: bytes, texts: Mapping[bytes, bytes]) -> bool:
        """Whether ``data`` is one whole batch of a common kind; ``texts`` are those of prepared statements."""
        size = len(data)
        if not _HEADER_BYTES < size <= BATCH_BYTES_MAX:
            return False
        kind, length = heads.header(data, 0)
        self.is_simple = kind == _QUERY
        if self.is_simple:
            if length != size - 1 or not is_plain(data):
                return False
            self._kinds = b"Q"
            self.parse_end = self.bind_end = 0
        elif not self._begin_extended(data, size, texts):
            return False
        self.data = data
        self.is_done = False
        self._at = 0
        return True

    def _begin_extended(self, data: bytes, size: int, texts: Mapping[bytes, bytes]) -> bool:
        self.parse_end = self.bind_at = self.bind_end = 0
        self.name = self.portal = self.sql = b""
        position = rank = 0
        kinds = bytearray()
        while rank != _ORDER[_SYNC]:
            if size - position < _HEADER_BYTES:
                return False
            kind, length = heads.header(data, position)
            end = position + 1 + length
            before, rank = rank, _ORDER.get(kind, 0)
            if end > size or length < 4 or rank <= before:
                return False
            if kind != _SYNC and not self._is_ordinary(kind, data, position, end, texts):
                return False
            kinds.append(kind)
            position = end
        self._kinds = bytes(kinds)
        return position == size and len(kinds) > 1

    def _is_ordinary(self, kind: int, data: bytes, start: int, end: int, texts: Mapping[bytes, bytes]) -> bool:
        """One message before the Sync; what it names is kept."""
        body = start + _HEADER_BYTES
        if kind == m.PARSE:
            named = data.find(b"\0", body, end)
            told = data.find(b"\0", named + 1, end)
            if named < 0 or told < 0:
                return False
            self.name, self.sql, self.parse_end = data[body:named], data[named + 1 : told], end
            return _is_plain_again(self.sql)
        if kind == m.BIND:
            ported = data.find(b"\0", body, end)
            named = data.find(b"\0", ported + 1, end)
            if ported < 0 or named < 0:
                return False
            name = data[ported + 1 : named]
            self.portal, self.bind_at, self.bind_end = data[body:ported], start, end
            if self.parse_end:
                return name == self.name
            sql = texts.get(name)
            if sql is None:
                return False
            self.name, self.sql = name, sql
            return _is_plain_again(sql)
        if kind == m.DESCRIBE:
            return self.bind_end > 0 and end > body and data[body] == _PORTAL
        return self.bind_end > 0 and data.startswith(self.portal + b"\0", body, end)

    @property
    def text(self) -> bytes:
        """The text of the statement."""
        return self.data[_HEADER_BYTES:-1] if self.is_simple else self.sql

    def forget(self) -> None:
        """Nothing is under way any more."""
        self.data = b""
        if self._seen:
            self._seen = []
        self._rest = b""

    def answer(self, data: bytes) -> bytes | None:
        """What the client gets of these bytes of the server: whole messages.

        None: they are not ordinary, and nothing was taken of them; what was before is in `told`.
        """
        if self._rest:
            data = self._rest + data
        size = len(data)
        kinds, at = self._kinds, self._at
        moves = _MOVES[kinds[at]]
        position = others = 0
        while size - position >= _HEADER_BYTES:
            kind, length = heads.header(data, position)
            end = position + 1 + length
            if end > size:
                if length > WHOLE_BYTES_MAX or length > FRAME_BYTES_MAX:
                    return None
                break
            step = moves.get(kind, _NOT_ORDINARY)
            if step == _NOT_ORDINARY or length < 4:
                return None
            if kind != _DATA_ROW:
                others += 1
                if step >= _COMPLETE:
                    if step == _READY:
                        return self._ready(data, position, size)
                    body = position + _HEADER_BYTES
                    if not (data.startswith(PLAIN_TAGS, body) or self._only_ends_transaction(data[body:end])):
                        return None
                if step & _NEXT:
                    at += 1
                    moves = _MOVES[kinds[at]]
            position = end
        self._keep(data, position, others)
        self._at = at
        return data[:position]

    def _only_ends_transaction(self, tag: bytes) -> bool:
        """Whether a tag is that of a lone COMMIT or ROLLBACK which decides about nothing that the session keeps."""
        text = self.text
        is_end = tag in _END_TAGS and text[:_WORD_BYTES].lower().startswith(_END_WORDS)
        return is_end and not self.keeps_uncommitted and text.find(b";", 0, -1) < 0

    def _ready(self, data: bytes, position: int, size: int) -> bytes | None:
        if size != position + _HEADER_BYTES + 1:
            return None
        status = data[position + _HEADER_BYTES]
        if status not in (_IDLE, _IN_TRANSACTION):
            return None
        self.status = status
        self.is_done = True
        return data

    def _keep(self, data: bytes, position: int, others: int) -> None:
        """The answer goes on: remember what was passed on, and what cannot be passed on yet."""
        self._rest = data[position:]
        if not others:
            if position and (not self._seen or self._seen[-1] is not _ROW):
                self._seen.append(_ROW)
            return
        start = 0
        while start < position:
            kind, length = heads.header(data, start)
            end = start + 1 + length
            if kind == _DATA_ROW:
                if not self._seen or self._seen[-1] is not _ROW:
                    self._seen.append(_ROW)
            else:
                self._seen.append(m.message(kind) if kind in _HEAD_ONLY else data[start:end])
            start = end

    def told(self) -> tuple[Iterator[tuple[int, int, int]], bytes, bytes]:
        """For the full way: the batch's messages (type, start, end), what was seen of the answer (messages that
        nobody looks into without their bodies), and the beginning of a message that was not passed on.
        """
        return _frames(self.data), b"".join(self._seen), self._rest


def _frames(data: bytes) -> Iterator[tuple[int, int, int]]:
    start = 0
    while start < len(data):
        kind, length = heads.header(data, start)
        yield kind, start, start + 1 + length
        start += 1 + length
