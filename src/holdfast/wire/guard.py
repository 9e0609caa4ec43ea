"""A token in each writing transaction, so that its outcome can be found when its answer is lost. Pure.

The proxy sends statements of its own in the session of the client, without a round trip: in front of a COMMIT, or
between a writing statement and the Sync that commits it. They write a logical message into the log of the same
transaction if, and only if, it has written something. The client sees nothing of them.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from enum import Enum, auto
from functools import lru_cache
from typing import Final

from holdfast.model.lsn import Lsn
from holdfast.wire import messages as m
from holdfast.wire.owed import Owed, Reply
from holdfast.wire.sql import Control, Kind, Statement, control_of, split_statements

GUARD_SQL: Final = (
    b"SELECT CASE WHEN pg_catalog.pg_current_xact_id_if_assigned() IS NOT NULL "
    b"THEN pg_catalog.pg_logical_emit_message(true, 'holdfast', $1) END"
)
"""One row: where the message is in the log, or NULL for a transaction that has written nothing."""
TEXT_BYTES_MAX: Final = 16 * 1024
"""Longer statements are not looked into: that costs time."""

_GUARD: Final = b"holdfast_guard"
_PLAIN: Final = b"holdfast_plain"
"""A statement of the simple protocol, sent by the extended one."""
_TEXT_OID: Final = b"\0\0\0\x19"
_COMMIT_BYTES_MAX: Final = 256
_BEGINNINGS: Final = (b"commit", b"end", b"insert", b"update", b"delete", b"merge", b"with", b"--", b"/*")
_WRITES: Final = ("insert", "update", "delete", "merge")
_READS: Final = ("select", "with", "values", "table")
_COMMITS: Final = frozenset(
    tuple(f"{verb} {what} {chain}".split())
    for verb in ("commit", "end")
    for what in ("", "work", "transaction")
    for chain in ("", "and no chain")
)
_COMMITTED: Final = m.message(m.COMMAND_COMPLETE, b"COMMIT\0")


@dataclass(frozen=True, slots=True)
class Token:
    """Of one transaction: sent when the primary of ``epoch`` had its log up to ``after``, to server process ``pid``."""

    text: str
    epoch: int
    after: Lsn
    pid: int


class Sort(Enum):
    """What a statement is to the guard."""

    COMMIT = auto()
    """A COMMIT, and nothing else."""
    WRITE = auto()
    """One INSERT, UPDATE, DELETE or MERGE: outside of a transaction block, a transaction of its own."""
    READ = auto()
    """One SELECT: it may stand beside a WRITE."""
    OTHER = auto()


def may_need_guard(text: bytes) -> bool:
    """A quick look that rules out most statements that need none."""
    return text[:_COMMIT_BYTES_MAX].lstrip()[:6].lower().startswith(_BEGINNINGS)


def sort_of(text: bytes) -> Sort:
    """What a text is, whichever protocol it came by."""
    if len(text) > TEXT_BYTES_MAX or not text:
        return Sort.OTHER
    return _sort_of(text)


@lru_cache(maxsize=512)
def _sort_of(text: bytes) -> Sort:
    statements = split_statements(text)
    if len(statements) != 1:
        return Sort.OTHER
    statement = statements[0]
    if control_of(statement) is Control.COMMIT:
        words = tuple(token.text for token in statement.tokens if token.kind is Kind.WORD)
        is_lone = len(text) <= _COMMIT_BYTES_MAX and len(words) == len(statement.tokens) and words in _COMMITS
        return Sort.COMMIT if is_lone else Sort.OTHER
    first = statement.word(0)
    if first in _WRITES or (first == "with" and statement.has_word(*_WRITES)):
        return Sort.WRITE
    return (
        Sort.READ if first in ("select", "with", "values", "table") and not statement.has_word("into") else Sort.OTHER
    )


def has_parameters(text: bytes) -> bool:
    """Whether a statement of the simple protocol names a parameter, which is an error there and here another one."""
    return b"$" in text and any(_has_parameter(statement) for statement in split_statements(text))


def _has_parameter(statement: Statement) -> bool:
    return any(token.kind is Kind.PARAMETER for token in statement.tokens)


Told = list[tuple[bytes, Owed | None]]
"""Messages in order, each with what answers it."""


def guard_messages(mark: str) -> Told:
    """What writes the mark.

    Its statement is made anew each time: a function of the application may have taken away all that was prepared, and
    to find it gone would fail the transaction.
    """
    content = mark.encode()
    value = len(content).to_bytes(4, "big") + content
    bind = m.message(m.BIND, _GUARD + b"\0" + _GUARD + b"\0" + b"\0\0" + b"\0\1" + value + b"\0\0")
    return [
        *_made(_GUARD, GUARD_SQL, b"\0\1" + _TEXT_OID, is_guard=True),
        (bind, Owed(Reply.BIND, is_hidden=True, is_guard=True)),
        (m.message(m.EXECUTE, _GUARD + b"\0\0\0\0\0"), Owed(Reply.EXECUTE, is_hidden=True, is_guard=True)),
    ]


def plain_messages(text: bytes) -> Told:
    """A statement of the simple protocol, up to where its guard follows: its answer is the same."""
    execute = Owed(Reply.EXECUTE, text)
    execute.is_kept = True
    return [
        (m.message(m.CLOSE, b"S\0"), Owed(Reply.CLOSE, is_hidden=True)),  # as the simple protocol does
        *_made(_PLAIN, text, b"\0\0"),
        (m.message(m.BIND, b"\0" + _PLAIN + b"\0" + bytes(6)), Owed(Reply.BIND, is_hidden=True)),
        (m.message(m.DESCRIBE, b"P\0"), Owed(Reply.DESCRIBE, is_plain=True)),
        (m.message(m.EXECUTE, b"\0" + bytes(4)), execute),
    ]


def _made(name: bytes, sql: bytes, types: bytes, *, is_guard: bool = False) -> Told:
    return [
        (m.message(m.CLOSE, b"S" + name + b"\0"), Owed(Reply.CLOSE, is_hidden=True)),
        (m.message(m.PARSE, name + b"\0" + sql + b"\0" + types), Owed(Reply.PARSE, is_hidden=True, is_guard=is_guard)),
    ]


def token_of(pending: Iterable[Owed]) -> Token | None:
    """The one token of what is owed; None if there is none, or more than one."""
    tokens = [owed.token for owed in pending if owed.token is not None]
    return tokens[0] if len(tokens) == 1 else None


def answer_if_committed(pending: Sequence[Owed], kept: bytes) -> bytes | None:
    """What the client still gets of a transaction that was committed, up to ReadyForQuery (which it gets if it sent
    its Sync); None if nobody knows: rows, or how many there were.

    ``kept`` is what the server said already, and the client was not told.
    """
    out = [kept]
    for owed in pending:
        if owed.is_hidden:
            continue
        is_commit = owed.sql is not None and sort_of(owed.sql) is Sort.COMMIT
        match owed.reply:
            case Reply.PARSE:
                out.append(m.message(m.PARSE_COMPLETE))
            case Reply.BIND:
                out.append(m.message(m.BIND_COMPLETE))
            case Reply.DESCRIBE if owed.is_plain is False and owed.body == b"P":
                out.append(m.message(m.NO_DATA))
            case Reply.EXECUTE if is_commit:
                out.append(_COMMITTED)
            case Reply.QUERY if is_commit:
                out += [*([] if owed.completed else [_COMMITTED]), m.ready_for_query(m.IDLE)]
            case Reply.SYNC:
                out.append(m.ready_for_query(m.IDLE))
            case _:
                return None
    return b"".join(out)
