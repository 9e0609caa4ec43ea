"""Tokens and statements of SQL, as far as a session's state depends on them.

This is no parser. It knows strings, comments, quoting and where statements end, and it recognises by their first words
(and a few function names) the statements that change what a session holds. Of a DO block the text is searched for the
same; what a function does inside the server is not seen. Text is decoded as Latin-1, which keeps every byte.
"""

from __future__ import annotations

import re
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from enum import StrEnum
from functools import lru_cache
from typing import Final, NamedTuple

_TOKEN = re.compile(
    r"""
    (?P<space>[ \t\n\r\f\v]+|--[^\n\r]*)
  | (?P<comment>/\*)
  | (?P<escaped>[eE]'(?:[^'\\]|\\.|'')*(?:'|\Z))
  | (?P<string>(?:[bBxXnN]|[uU]&)?'(?:[^']|'')*(?:'|\Z))
  | (?P<quoted>(?:[uU]&)?"(?:[^"]|"")*(?:"|\Z))
  | (?P<dollar>\$(?P<tag>[A-Za-z_\x80-\xff][A-Za-z_0-9\x80-\xff]*)?\$)
  | (?P<parameter>\$\d+)
  | (?P<word>[A-Za-z_\x80-\xff][A-Za-z_0-9$\x80-\xff]*)
  | (?P<number>\.?\d[\w.]*)
  | (?P<sign>.)
    """,
    re.VERBOSE | re.DOTALL,
)
_COMMENT_EDGE = re.compile(r"/\*|\*/")


class Kind(StrEnum):
    """What a token is."""

    WORD = "word"
    QUOTED = "quoted"
    STRING = "string"
    PARAMETER = "parameter"
    NUMBER = "number"
    SIGN = "sign"


class Token(NamedTuple):
    """A token: words in lower case, strings and quoted names without their quotes."""

    kind: Kind
    text: str


@dataclass(frozen=True, slots=True)
class Statement:
    """One statement: its text without the semicolon, and its tokens without comments."""

    text: str
    tokens: tuple[Token, ...]

    def word(self, index: int) -> str:
        """The word at ``index``, or an empty string."""
        if index < len(self.tokens) and self.tokens[index].kind is Kind.WORD:
            return self.tokens[index].text
        return ""

    def name(self, index: int) -> str:
        """The name (quoted or not) at ``index``, or an empty string."""
        if index < len(self.tokens) and self.tokens[index].kind in (Kind.WORD, Kind.QUOTED):
            return self.tokens[index].text
        return ""

    def has_word(self, *words: str) -> bool:
        """Whether any of the words occurs unquoted."""
        return any(token.kind is Kind.WORD and token.text in words for token in self.tokens)


def _tokens(sql: str) -> Iterator[tuple[Token | None, int, int]]:
    """Tokens with start and end; None for white space and comments."""
    position = 0
    while position < len(sql):
        match = _TOKEN.match(sql, position)
        if match is None:  # the last alternative takes any character
            return
        kind, text, start = match.lastgroup, match.group(), position
        position = match.end()
        if match["tag"] is not None or kind == "dollar":
            end = sql.find(text, position)
            value = sql[position : end if end >= 0 else len(sql)]
            position = end + len(text) if end >= 0 else len(sql)
            yield Token(Kind.STRING, value), start, position
        elif kind == "space":
            yield None, start, position
        elif kind == "comment":
            position = _end_of_comment(sql, position)
            yield None, start, position
        elif kind in ("string", "escaped"):
            yield Token(Kind.STRING, text[text.index("'") + 1 : -1].replace("''", "'")), start, position
        elif kind == "quoted":
            yield Token(Kind.QUOTED, text[text.index('"') + 1 : -1].replace('""', '"')), start, position
        else:
            yield Token(Kind(kind or "sign"), text.lower()), start, position


def _end_of_comment(sql: str, position: int) -> int:
    depth = 1
    while depth:
        edge = _COMMENT_EDGE.search(sql, position)
        if edge is None:
            return len(sql)
        depth += 1 if edge.group() == "/*" else -1
        position = edge.end()
    return position


@lru_cache(maxsize=512)
def split_statements(sql: bytes) -> tuple[Statement, ...]:
    """The statements of a simple Query, in the order in which the server completes them; empty ones are left out."""
    text = sql.decode("latin-1")
    statements: list[Statement] = []
    tokens: list[Token] = []
    begin, depth, atomic = 0, 0, 0
    for token, start, end in _tokens(text):
        if token is None:
            continue
        if token == (Kind.SIGN, ";") and depth <= 0 and not atomic:
            if tokens:
                statements.append(Statement(text[begin:start], tuple(tokens)))
            tokens, begin, depth = [], end, 0
            continue
        if token.kind is Kind.SIGN:
            depth += (token.text in "([") - (token.text in ")]")
        elif token.kind is Kind.WORD:
            atomic = _atomic_depth(atomic, token.text, tokens)
        tokens.append(token)
    if tokens:
        statements.append(Statement(text[begin:], tuple(tokens)))
    return tuple(statements)


def _atomic_depth(depth: int, word: str, before: Sequence[Token]) -> int:
    """How deep inside of ``BEGIN ATOMIC … END``, whose semicolons end nothing (a CASE has an END of its own)."""
    if word == "atomic" and before and before[-1] == (Kind.WORD, "begin"):
        return depth + 1
    if depth and word == "case":
        return depth + 1
    return depth - 1 if depth and word == "end" else depth


class Control(StrEnum):
    """What a statement does to the transaction."""

    BEGIN = "begin"
    COMMIT = "commit"
    ROLLBACK = "rollback"
    SAVEPOINT = "savepoint"
    ROLLBACK_TO = "rollback to"
    RELEASE = "release"
    HARMLESS = "harmless"
    """Changes nothing that a commit would keep."""
    OTHER = "other"


_HARMLESS: Final = frozenset(
    ("set", "show", "reset", "deallocate", "discard", "listen", "unlisten", "close", "declare", "fetch")
)


def control_of(statement: Statement) -> Control:
    """Classify by the first words."""
    first, second = statement.word(0), statement.word(1)
    if first == "begin" or (first == "start" and second == "transaction"):
        return Control.BEGIN
    if first in ("commit", "end"):
        return Control.OTHER if second == "prepared" else Control.COMMIT
    if first == "prepare":
        return Control.COMMIT if second == "transaction" else Control.HARMLESS
    if first in ("rollback", "abort"):
        if second == "prepared":
            return Control.OTHER
        to = statement.word(2) if second in ("work", "transaction") else second
        return Control.ROLLBACK_TO if to == "to" else Control.ROLLBACK
    if first == "savepoint":
        return Control.SAVEPOINT
    if first == "release":
        return Control.RELEASE
    return Control.HARMLESS if first in _HARMLESS else Control.OTHER


def savepoint_of(statement: Statement) -> str:
    """The name in ``SAVEPOINT x``, ``RELEASE [SAVEPOINT] x`` or ``ROLLBACK TO [SAVEPOINT] x``: the last token."""
    return statement.name(len(statement.tokens) - 1)
