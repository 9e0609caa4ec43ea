"""``holdfast lost match``: what was lost, held against a ledger of the world outside."""

from __future__ import annotations

import json
import os
import time
from pathlib import Path
from typing import TYPE_CHECKING, TextIO

import click

from holdfast.cli.clusters import with_cluster
from holdfast.cli.failures import FAILED
from holdfast.cli.output import directory_option, json_option, print_json
from holdfast.core.words import amount, plural
from holdfast.model.errors import ConfigurationError, EnvironmentFault

if TYPE_CHECKING:
    from holdfast.core.match.matcher import Pair
    from holdfast.core.match.rules import Verdict
    from holdfast.local.cluster import LocalCluster
    from holdfast.local.match.run import Found, Ledger, Matched

_SHOWN = 20
"""Of each rule; ``--list`` has all of them."""
_TELL_S = 2.0


@click.command("match")
@click.option("--ledger", required=True, metavar="FILE|DSN", help="A CSV file, a file of JSON lines, - or a database.")
@click.option("--query", metavar="SQL", help="What to ask the database for, one row for each entry.")
@click.option("--table", metavar="DATABASE.SCHEMA.TABLE", help="The table that the ledger is of.")
@click.option(
    "--key",
    "keys",
    multiple=True,
    required=True,
    metavar="COLUMN[=LEDGER_COLUMN]",
    help="A column that names a row; repeat it if it takes several.",
)
@click.option(
    "--compare",
    "compared",
    multiple=True,
    metavar="COLUMN[=LEDGER_COLUMN]",
    help="A column, an amount for example, that must be the same; may be repeated.",
)
@click.option("--format", "kind", type=click.Choice(["csv", "jsonl"]), help="Of a file whose name does not tell it.")
@click.option("--delimiter", help="Between the fields of a CSV file; a comma unless the name ends with .tsv.")
@click.option("--null", default="", help="What stands for NULL in a CSV file; an empty field unless you say otherwise.")
@click.option(
    "--sql",
    "sql_file",
    type=click.Path(dir_okay=False, path_type=Path),
    help="Write the script of what to re-apply there.",
)
@click.option(
    "--list",
    "list_file",
    type=click.Path(dir_okay=False, path_type=Path),
    help="Write everything but what needs nothing there, a line of JSON each.",
)
@directory_option
@json_option
@click.pass_context
def match(
    ctx: click.Context,
    ledger: str,
    query: str | None,
    table: str | None,
    keys: tuple[str, ...],
    compared: tuple[str, ...],
    kind: str | None,
    delimiter: str | None,
    null: str,
    sql_file: Path | None,
    list_file: Path | None,
    directory: Path,
    as_json: bool,
) -> None:
    """Hold what was lost against a ledger of the world outside: re-apply, refund, look, or ignore.

    The ledger is a file or a query over a connection string; a password comes from PGPASSFILE, PGPASSWORD or a service
    file. Every entry and every lost row of the table falls under one rule. Values are compared by what they mean. With
    --sql the transactions to re-apply are written as a script; nothing here runs it. Exit status 1 if something is left
    to be done, or if a node does not answer: what it lost is missing.
    """
    from holdfast.local.match.run import Request
    from holdfast.local.match.run import match as match_ledger
    from holdfast.local.match.script import write_script

    request = Request(
        _ledger(ledger, query, kind, delimiter, null), table, _pairs("--key", keys), _pairs("--compare", compared)
    )
    progress = _Progress(hidden=as_json)
    with _List(list_file) as written:

        async def work(cluster: LocalCluster) -> Matched:
            try:
                return await match_ledger(cluster, request, lambda found: written.add(_as_json(found)), progress.show)
            finally:
                progress.end()

        matched = with_cluster(directory, work)
    rolled_back = write_script(sql_file, matched) if sql_file is not None else 0
    if as_json:
        print_json(_whole(matched, sql_file, list_file, rolled_back))
    else:
        _tell(matched, request.ledger.name)
        _tell_script(matched, sql_file, rolled_back)
    ctx.exit(FAILED if matched.left or matched.silent else 0)


def _ledger(ledger: str, query: str | None, kind: str | None, delimiter: str | None, null: str) -> Ledger:
    from holdfast.local.match.files import FileLedger
    from holdfast.local.match.query import QueryLedger, is_dsn

    if not is_dsn(ledger):
        if query is not None:
            raise ConfigurationError("--query is for a database: --ledger names a file")
        return FileLedger(ledger, kind, delimiter, null)
    if query is None:
        raise ConfigurationError("--ledger names a database: add --query, a SELECT with a row for each entry")
    if kind is not None or delimiter is not None:
        raise ConfigurationError("--format and --delimiter are for a file: --ledger names a database")
    return QueryLedger(ledger, query)


def _pairs(option: str, given: tuple[str, ...]) -> tuple[Pair, ...]:
    from holdfast.core.match.matcher import Pair

    pairs: list[Pair] = []
    for text in given:
        column, _, ledger_column = text.partition("=")
        if not column or text.endswith("="):
            raise ConfigurationError(f"{option} {text!r}: write COLUMN, or COLUMN=LEDGER_COLUMN if the names differ")
        if column in (pair.column for pair in pairs):
            raise ConfigurationError(f"{option} {column}: it is given twice")
        pairs.append(Pair(column, ledger_column or column))
    return tuple(pairs)


class _Progress:
    """A line now and then, for what takes longer than two seconds."""

    def __init__(self, *, hidden: bool) -> None:
        self._hidden = hidden
        self._told_s = time.monotonic()
        self._is_open = False

    def show(self, entries: int, share: float | None) -> None:
        """How far it is."""
        now_s = time.monotonic()
        if self._hidden or now_s - self._told_s < _TELL_S:
            return
        self._told_s, self._is_open = now_s, True
        done = "" if share is None else f", {share:.0%} of the ledger"
        click.echo(f"\r  {amount(entries)} entries read{done} ", err=True, nl=False)

    def end(self) -> None:
        """Leave the last line as it is."""
        if self._is_open:
            click.echo(err=True)
            self._is_open = False


class _List:
    """The file of ``--list``, for its owner's eyes only."""

    def __init__(self, path: Path | None) -> None:
        self._path = path
        self._file: TextIO | None = None

    def __enter__(self) -> _List:
        if self._path is not None:
            try:
                self._path.unlink(missing_ok=True)
                descriptor = os.open(self._path, os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o600)
            except OSError as error:
                raise EnvironmentFault(f"--list {self._path} cannot be written: {error.strerror}") from error
            self._file = os.fdopen(descriptor, "w", encoding="utf-8")
        return self

    def __exit__(self, *_: object) -> None:
        if self._file is not None:
            self._file.close()

    def add(self, found: dict[str, object]) -> None:
        """One line."""
        if self._file is not None:
            self._file.write(json.dumps(found) + "\n")


# -- in words ---------------------------------------------------------------------------------------------------------


def _tell(matched: Matched, ledger: str) -> None:
    from holdfast.core.match.matcher import counted
    from holdfast.core.match.rules import RULES, Verdict

    entries, rows = counted(matched.entries), counted(matched.rows)
    total = sum(matched.entries.values()), sum(matched.rows.values())
    click.echo(f"{ledger} against {matched.table}: {_counts(*total)}")
    for verdict in Verdict:
        if entries[verdict] or rows[verdict]:
            click.echo(f"  {verdict.value:14}  {_counts(entries[verdict], rows[verdict])}")
    for rule, (verdict, why) in RULES.items():
        if verdict is not Verdict.NOTHING and rule in matched.listed:
            click.echo(f"\n{verdict.value}: {why} ({rule})")
            _tell_listed(matched, rule)
    for keys, count, what in (
        (matched.twice_in_ledger, matched.twice_in_ledger_count, "in the ledger more than once"),
        (matched.twice_lost, len(matched.twice_lost), "lost more than once, inserted each time"),
    ):
        if keys:
            click.echo(f"\n{what}: {', '.join(_key(key) for key in list(keys)[:_SHOWN])}{_more(len(keys))}")
            if count > len(keys):
                click.echo(f"  {amount(count)} entries in all repeat a key")
    if not matched.is_unique:
        click.echo("\nno unique index covers the key: rows that share it cannot be told apart")
    for gap in matched.gaps:
        click.echo(f"not everything that was lost is known: {gap}", err=True)


def _tell_listed(matched: Matched, rule: str) -> None:
    found = matched.listed[rule]
    for each in found[:_SHOWN]:
        click.echo(f"  {_in_words(matched, each)}")
    count = matched.entries[rule] + matched.rows[rule]
    if count > _SHOWN:
        click.echo(f"  and {amount(count - _SHOWN)} more: --list FILE writes all of them")


def _tell_script(matched: Matched, sql_file: Path | None, rolled_back: int) -> None:
    from holdfast.local.match.script import in_words

    chosen = sorted(matched.selection.transactions)
    if not matched.left:
        click.echo("\nNothing is left to be done.")
    if chosen:
        click.echo(f"\n{plural(len(chosen), 'transaction')} to re-apply, each of them whole:")
    for number in chosen[:_SHOWN]:
        where = matched.transactions[number]
        click.echo(f"  {in_words(where)}, committed {where.lost.committed_at}: {', '.join(where.lost.relations)}")
        mixed = matched.selection.mixed.get(number, {})
        if mixed:
            others = ", ".join(f"{count} to {_do(verdict)}" for verdict, count in mixed.items())
            click.echo(f"    holds other rows of {matched.table}, too: {others}")
        for needed in matched.selection.needs.get(number, ()):
            click.echo(f"    changed further what {in_words(matched.transactions[needed])} had lost, which is not here")
    if len(chosen) > _SHOWN:
        click.echo(f"  and {amount(len(chosen) - _SHOWN)} more")
    if sql_file is not None:
        click.echo(f"The script is in {sql_file}: read it, and run it on the primary with psql -f")
        if rolled_back:
            click.echo(
                f"  {plural(rolled_back, 'transaction')} in it ends with ROLLBACK, for you to decide; it says why"
            )
    elif chosen:
        click.echo("Add --sql FILE for the script of them.")


def _do(verdict: Verdict) -> str:
    return {"nothing to do": "leave", "differs": "look at", "look": "look at"}.get(verdict.value, verdict.value)


def _in_words(matched: Matched, found: Found) -> str:
    from holdfast.local.match.script import in_words

    if found.entry is not None:
        values = ", ".join(f"{name} {'NULL' if v is None else repr(v)}" for name, v in found.entry.values.items())
        return f"{found.entry.position}: {values}"
    assert found.transaction is not None
    where = matched.transactions[found.transaction]
    key = "" if found.key is None else f" of {_key(found.key)}"
    return f"lost: {found.change}{key} by {in_words(where)}, committed {where.lost.committed_at}"


def _counts(entries: int, rows: int) -> str:
    words = [
        f"{amount(count)} {one if count == 1 else many}"
        for count, one, many in ((entries, "entry", "entries"), (rows, "lost row", "lost rows"))
        if count
    ]
    return ", ".join(words) or "nothing"


def _key(key: tuple[str, ...]) -> str:
    return key[0] if len(key) == 1 else f"({', '.join(key)})"


def _more(count: int) -> str:
    return f" and {count - _SHOWN} more" if count > _SHOWN else ""


# -- for programs -----------------------------------------------------------------------------------------------------


def _as_json(found: Found) -> dict[str, object]:
    from holdfast.core.match.rules import verdict_of

    told: dict[str, object] = {"rule": found.rule, "verdict": verdict_of(found.rule).value, "key": found.key}
    if found.entry is not None:
        return {**told, "position": found.entry.position, "entry": dict(found.entry.values)}
    return {**told, "transaction": found.transaction, "change": found.change}


def _whole(matched: Matched, sql_file: Path | None, list_file: Path | None, rolled_back: int) -> dict[str, object]:
    from holdfast.core.match.matcher import counted
    from holdfast.local.match.run import LISTED_MAX

    selection = matched.selection
    rules = sorted({*matched.entries, *matched.rows})
    return {
        "table": matched.table,
        "left": matched.left,
        "entries": counted(matched.entries),
        "rows": counted(matched.rows),
        "rules": {rule: {"entries": matched.entries[rule], "rows": matched.rows[rule]} for rule in rules},
        "found": [_as_json(each) for listed in matched.listed.values() for each in listed],
        "found_at_most": LISTED_MAX,
        "more_than_once": {"ledger": list(matched.twice_in_ledger), "lost": matched.twice_lost},
        "key_is_unique": matched.is_unique,
        "gaps": matched.gaps,
        "silent": matched.silent,
        "transactions": [
            {
                "transaction": n, "node": w.account.member.node, "epoch": w.account.timeline, "xid": w.lost.xid,
                "committed_at": w.lost.committed_at, "prepared_as": w.lost.prepared_as,
                "reapply": n in selection.transactions, "needs": selection.needs.get(n, ()),
            }
            for n, w in enumerate(matched.transactions)
        ],
        "sql": None if sql_file is None else str(sql_file.absolute()),
        "ends_with_rollback": rolled_back,
        "list": None if list_file is None else str(list_file.absolute()),
    }  # fmt: skip
