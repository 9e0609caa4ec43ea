"""Some transactions of a script of lost rows, exactly as they stand in it. Pure.

Rows may hold any text, also one that looks like the head of a transaction: strings are told from statements.
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Iterator, Mapping

_HEAD = re.compile(r"-- transaction (?P<xid>[0-9]+),")
_QUOTES = re.compile(r"['\"]")


def only(lines: Iterable[str], chosen: Mapping[int, Iterable[str]]) -> Iterator[str]:
    """The lines of a script that belong to its ``chosen`` transactions, with the databases that they are for.

    What is said of a transaction there goes in front of it, as comments. Lines keep their ends.
    """
    quote, takes = "", False
    database: list[str] = []
    is_connecting = False
    for line in lines:
        if not quote:
            head = _HEAD.match(line)
            if head is not None:
                takes, is_connecting = int(head["xid"]) in chosen, False
                if takes:
                    yield from database
                    database = []
                    yield "\n"
                    yield line
                    yield from (f"-- {note}\n" for note in chosen[int(head["xid"])])
                    continue
            elif line.startswith("\\connect "):
                takes, is_connecting, database = False, True, ["\n"]
        if is_connecting and line.strip():
            database.append(line)
        elif takes and (quote or line.strip()):
            yield line
        if quote or not line.startswith("--"):
            quote = _open_quote(line, quote)


def _open_quote(line: str, quote: str) -> str:
    """The quote that is open at the end of a line; a doubled one closes and opens again."""
    for found in _QUOTES.finditer(line):
        if not quote:
            quote = found[0]
        elif quote == found[0]:
            quote = ""
    return quote
