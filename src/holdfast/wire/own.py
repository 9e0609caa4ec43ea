"""What a client says to the proxy in SQL: ``SHOW holdfast.lsn``, ``SET holdfast.route`` and ``SET holdfast.wait_for``.

PostgreSQL takes any setting whose name has a dot in it, so that a SET goes to the server like every other, and the
session's state says what is in force, also after a rollback. ``SHOW holdfast.lsn`` goes there as the question that it
stands for: the answer comes from the server that has the session's writes. A wrong value is refused by the server, too:
in any protocol, and in a transaction as every error is.
"""

from __future__ import annotations

from collections.abc import Mapping
from functools import lru_cache
from typing import Final

from holdfast.model.lsn import Lsn
from holdfast.wire import messages as m
from holdfast.wire.frames import HEADER_BYTES, Frame
from holdfast.wire.sql import Kind, Statement, split_statements

PREFIX: Final = "holdfast."
ROUTE: Final = "holdfast.route"
WAIT_FOR: Final = "holdfast.wait_for"
AUTO: Final = "auto"
ROUTES: Final = ("primary", AUTO)
MARK: Final = PREFIX.encode()
"""Is in every text that may be meant for the proxy, in whatever case."""

LSN_SQL: Final = (
    b"SELECT ('x' || pg_catalog.left(pg_catalog.pg_walfile_name(pg_catalog.pg_current_wal_insert_lsn()), 8))"
    b"::pg_catalog.bit(32)::pg_catalog.int4::pg_catalog.text || ':' || "
    b'pg_catalog.pg_current_wal_insert_lsn()::pg_catalog.text AS "holdfast.lsn"'
)
"""The epoch, which is the timeline, and how far the log is."""
_TEXT_BYTES_MAX: Final = 256
_MESSAGE_BYTES_MAX: Final = 2 * _TEXT_BYTES_MAX
_TEXTS: Final = frozenset((m.QUERY, m.PARSE))
_LSN: Final = "lsn"


def in_place_of(sql: bytes) -> bytes | None:
    """What goes to the server in place of a text that is meant for the proxy; None: the text itself."""
    if len(sql) > _TEXT_BYTES_MAX or MARK not in sql.lower():
        return None
    return _in_place_of(sql)


@lru_cache(maxsize=256)
def _in_place_of(sql: bytes) -> bytes | None:
    statements = split_statements(sql)
    if len(statements) != 1:
        return None
    statement = statements[0]
    first = statement.word(0)
    if first == "show" and _name(statement, 1) == PREFIX + _LSN and len(statement.tokens) == 4:
        return LSN_SQL
    if first != "set":
        return None
    is_local, at = statement.word(1) == "local", 2 if statement.word(1) in ("local", "session") else 1
    name = _name(statement, at)
    if not name.startswith(PREFIX):
        return None
    wrong = _wrong(name, value_of(statement), is_local=is_local)
    return _refusal(*wrong) if wrong is not None else None


def is_mere_setting(data: bytes) -> bool:
    """Whether the bytes are one simple Query that only sets, resets or shows a setting, the proxy's or another."""
    if not data.startswith(b"Q") or len(data) > _MESSAGE_BYTES_MAX or int.from_bytes(data[1:5], "big") != len(data) - 1:
        return False
    statements = split_statements(data[HEADER_BYTES:-1])
    return len(statements) == 1 and statements[0].word(0) in ("set", "reset", "show")


def _name(statement: Statement, at: int) -> str:
    is_dotted = at + 1 < len(statement.tokens) and statement.tokens[at + 1] == (Kind.SIGN, ".")
    return f"{statement.name(at)}.{statement.name(at + 2)}".lower() if is_dotted else ""


def _wrong(name: str, value: str | None, *, is_local: bool) -> tuple[str, str] | None:
    """What is wrong with a SET, and how it is right."""
    if name not in (ROUTE, WAIT_FOR):
        return f'unrecognized configuration parameter "{name}"', f"There are {ROUTE} and {WAIT_FOR}."
    if is_local:
        return f"{name} cannot be set for a transaction alone", f"Write SET {name}."
    if value is None:
        return None
    if name == ROUTE and value not in ROUTES:
        return f'invalid value for parameter "{name}": "{value}"', f"It may be {' or '.join(ROUTES)}."
    if name == WAIT_FOR and value and token_of(value) is None:
        return f'invalid value for parameter "{name}": "{value}"', "It is what SHOW holdfast.lsn says, or empty."
    return None


def _refusal(text: str, hint: str) -> bytes:
    """A statement that fails with these words: invalid_parameter_value."""
    words = [part.replace("'", "''").replace("$", "") for part in (text, hint)]
    said = f"ERRCODE = '22023', MESSAGE = '{words[0]}', HINT = '{words[1]}'"
    return f"DO $holdfast$ BEGIN RAISE EXCEPTION USING {said}; END $holdfast$".encode("latin-1")


def value_of(statement: Statement) -> str | None:
    """What a setting is set to, by SET or by ``set_config`` with plain arguments; None for DEFAULT."""
    if statement.word(0) == "select":
        texts = [token.text for token in statement.tokens if token.kind is Kind.STRING]
        return texts[1] if len(texts) > 1 else None
    last = statement.tokens[-1]
    return None if last == (Kind.WORD, "default") else last.text


def setting_of(own: Mapping[str, str], name: str) -> str:
    """The value of one of the session's settings for the proxy (`SessionState.own`); empty if it has none."""
    sql = own.get(name)
    if sql is None:
        return ""
    statements = split_statements(sql.encode("latin-1"))
    return (value_of(statements[0]) or "").strip() if statements else ""


def token_of(text: str) -> tuple[int, Lsn] | None:
    """The epoch and the position in what ``SHOW holdfast.lsn`` said; None if it did not say that."""
    epoch, _, lsn = text.strip().partition(":")
    if not (epoch.isascii() and epoch.isdigit()):
        return None
    try:
        return int(epoch), Lsn.parse(lsn)
    except ValueError:
        return None


def with_own(buffer: bytes, frames: list[Frame]) -> tuple[bytes, list[Frame]]:
    """The client's messages, with those in place that go to the server instead of what is meant for the proxy."""
    if not any(kind in _TEXTS and end - start <= _MESSAGE_BYTES_MAX for kind, start, end in frames):
        return buffer, frames
    if MARK not in buffer.lower():
        return buffer, frames
    parts: list[bytes] = []
    made: list[Frame] = []
    at = 0
    for kind, start, end in frames:
        part = buffer[start:end]
        if kind == m.QUERY:
            instead = in_place_of(part[HEADER_BYTES:-1])
            part = part if instead is None else m.query(instead)
        elif kind == m.PARSE and part.count(b"\0", HEADER_BYTES) >= 2:
            (name, sql), rest = m.read_strings(part, 2, HEADER_BYTES)
            instead = in_place_of(sql)
            part = part if instead is None else m.message(kind, name + b"\0" + instead + b"\0" + part[rest:])
        parts.append(part)
        made.append((kind, at, at + len(part)))
        at += len(part)
    return b"".join(parts), made


def route_at_login(parameters: Mapping[str, str]) -> str:
    """What a start-up message says of the route, as a parameter or in ``options``; empty if it says nothing of use."""
    said = parameters.get(ROUTE, "")
    words = parameters.get("options", "").replace("\\ ", "_").split()
    for index, word in enumerate(words):
        for flag in ("-c", "--"):
            setting = words[index + 1] if word == flag == "-c" and index + 1 < len(words) else word.removeprefix(flag)
            name, equals, value = setting.partition("=")
            if word.startswith(flag) and equals and name.lower().replace("-", "_") == ROUTE:
                said = value
    return said if said in ROUTES else ""
