"""The script of what is to be brought back: those transactions of the scripts of lost rows, and nothing else."""

from __future__ import annotations

import contextlib
import os
from collections import defaultdict
from collections.abc import Iterator
from pathlib import Path

from holdfast.core.words import plural
from holdfast.local.lost import script_lines
from holdfast.local.match.lost_rows import Where
from holdfast.local.match.run import Matched
from holdfast.model.errors import EnvironmentFault
from holdfast.postgres.salvage.extract import only

_HEAD = """\
-- {count} to bring back: {table} is in the ledger and was lost. Written by `holdfast lost match`.
-- Holdfast runs none of this. Read it, take out what must not come back, and run it on the primary with psql, once.
-- A transaction is here whole, with what it wrote to other tables and to rows that the ledger does not have.
-- A row that was inserted meanwhile under the same key stays as it is (INSERT 0 0); one that was changed or removed
-- meanwhile is left alone (UPDATE 0, DELETE 0): look at those yourself. Then match again.
"""


def write_script(path: Path, matched: Matched) -> int:
    """Write it for its owner's eyes only, whole or not at all; raises EnvironmentFault.

    Returns how many transactions in it end with ROLLBACK, for a person to decide.
    """
    half_made = path.with_name(f".{path.name}.part")
    rolled_back = 0
    try:
        half_made.unlink(missing_ok=True)
        descriptor = os.open(half_made, os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_NOFOLLOW, 0o600)
        with os.fdopen(descriptor, "w", encoding="utf-8", errors="surrogateescape", newline="\n") as file:
            for line in _lines(matched):
                rolled_back += line.startswith("ROLLBACK; --")
                file.write(line)
        half_made.replace(path)
    except OSError as error:
        with contextlib.suppress(OSError):
            half_made.unlink(missing_ok=True)
        raise EnvironmentFault(
            f"--sql {path}: the script cannot be written: {error.strerror}. Choose another place, or free some space"
        ) from error
    return rolled_back


def _lines(matched: Matched) -> Iterator[str]:
    chosen = sorted(matched.selection.transactions)
    yield _HEAD.format(count=plural(len(chosen), "transaction"), table=_one_line(matched.table))
    by_account: dict[int, list[int]] = defaultdict(list)
    for number in chosen:
        by_account[id(matched.transactions[number].account)].append(number)
    for numbers in by_account.values():
        account = matched.transactions[numbers[0]].account
        yield f"\n-- From the log of {account.member.node} that epoch {account.epoch} replaced:\n"
        notes = {matched.transactions[n].lost.xid: _notes(matched, n) for n in numbers}
        yield from only(script_lines(account), notes)


def _notes(matched: Matched, number: int) -> list[str]:
    needed = matched.selection.needs.get(number, ())
    if not needed:
        return []
    names = ", ".join(in_words(matched.transactions[n]) for n in needed)
    return [
        f"It changed further what was lost with {names}, which is not in this script: some statements may find no row."
    ]


def in_words(where: Where) -> str:
    """A lost transaction by its name: an id alone names nothing."""
    return f"xid {where.lost.xid} of {where.account.member.node} (epoch {where.account.timeline})"


def _one_line(text: str) -> str:
    return "".join(character if character.isprintable() else "?" for character in text)
