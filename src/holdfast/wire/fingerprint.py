"""What statements have in common that differ only in their literals: a short text, and an id made of it.

Left out are white space, comments, the case of words, literals and parameters, how many there are in a list, and how
many rows VALUES has. As in `sql` this is no parser: TRUE, FALSE, NULL and DEFAULT count as literals in lists only, and
a sign before a number as a part of it where no operand can be before it.
"""

from __future__ import annotations

import hashlib
import re
from collections.abc import Iterator
from functools import lru_cache
from typing import Final, NamedTuple

from holdfast.model.suspect import FINGERPRINT_DIGITS
from holdfast.wire.sql import Control, Kind, Token, control_of, split_statements

READ_BYTES_MAX: Final = 4096
"""No more of a statement is looked at: what is longer and differs only after that has one fingerprint."""
TEXT_MAX: Final = 200
"""Longer texts are cut; their ids still differ."""

_LITERALS: Final = (Kind.STRING, Kind.NUMBER, Kind.PARAMETER)
_WORD_LITERALS: Final = ("true", "false", "null", "default")
_BEFORE_LITERAL: Final = ("", "(", ",", "[")
_BEFORE_SIGN: Final = frozenset(
    (
        *("", "(", ",", "[", "=", "<", ">", "+", "-", "*", "/", "%", "|", ";"),
        *("select", "where", "and", "or", "not", "in", "between", "like", "limit", "offset", "when", "then", "else"),
        *("returning", "set", "by", "on", "values", "return", "is", "from", "to"),
    )
)
"""No operand is before it."""
_MANTISSA: Final = re.compile(r"[\d._]+e\Z")
_LIST: Final = re.compile(r"\?(?: , \?)+")
_ROWS: Final = re.compile(r"\( \? \)(?: , \( \? \))+")
_CUT_LIST: Final = re.compile(r"(?: ,)?(?: \((?: \?)?)?(?: ,)?\Z")
_TIGHT: Final = re.compile(r" (?=[,);.\]])|(?<=[(.\[]) |(?<=:) (?=:)|(?<=[^:]) (?=: :)|(?<=: :) ")


class Fingerprint(NamedTuple):
    """``id``: twelve hexadecimal digits. ``text`` is for people."""

    id: str
    text: str


@lru_cache(maxsize=512)
def fingerprint(sql: bytes) -> Fingerprint:
    """The fingerprint of a statement, or of several that are sent as one."""
    normal = _normal(sql)
    text = _TIGHT.sub("", normal)
    if len(text) > TEXT_MAX:
        text = text[: TEXT_MAX - 1] + "…"
    return Fingerprint(hashlib.sha256(normal.encode("latin-1")).hexdigest()[:FINGERPRINT_DIGITS], text)


@lru_cache(maxsize=512)
def does_work(sql: bytes) -> bool:
    """Whether any of the statements does more than to begin or end a transaction, or to set something."""
    found = split_statements(sql[:READ_BYTES_MAX])
    return any(control_of(s) is Control.OTHER and s.word(0) not in ("commit", "rollback") for s in found)


def _normal(sql: bytes) -> str:
    is_cut = len(sql) > READ_BYTES_MAX
    statements = split_statements(sql[:READ_BYTES_MAX])
    words = [word for statement in statements for word in (*_words(statement.tokens), ";")][:-1]
    if is_cut:
        words = words[:-1]  # it may have been cut in the middle
    joined = _ROWS.sub("( ? )", _LIST.sub("?", " ".join(words)))
    return _CUT_LIST.sub("", joined) if is_cut else joined


def _words(tokens: tuple[Token, ...]) -> Iterator[str]:
    """Each token as it counts; a sign waits for what comes after it."""
    before, sign, before_sign = "", "", ""
    in_exponent = False
    for token in tokens:
        word = token.text
        if in_exponent:
            in_exponent = token.kind is Kind.SIGN and word in "+-"
            if in_exponent or token.kind is Kind.NUMBER:
                continue
        is_literal = token.kind in _LITERALS or (
            token.kind is Kind.WORD and word in _WORD_LITERALS and before in _BEFORE_LITERAL
        )
        if sign:
            if not is_literal or before_sign not in _BEFORE_SIGN:
                yield sign
            sign = ""
        if is_literal:
            in_exponent = token.kind is Kind.NUMBER and _MANTISSA.match(word) is not None
            word = "?"
        elif token.kind is Kind.QUOTED:
            word = f'"{word}"'
        elif token.kind is Kind.SIGN and word in "+-":
            sign, before_sign, before = word, before, word
            continue
        yield word
        before = word
    if sign:
        yield sign
