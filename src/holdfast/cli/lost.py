"""``holdfast lost``: which transactions did not make it through a failover, their rows, and a script of them."""

from __future__ import annotations

from dataclasses import asdict
from datetime import UTC, datetime
from pathlib import Path
from typing import TYPE_CHECKING

import click

from holdfast.cli.clusters import with_cluster
from holdfast.cli.failures import FAILED
from holdfast.cli.match import match
from holdfast.cli.output import directory_option, json_option, print_json
from holdfast.model.errors import ConfigurationError

if TYPE_CHECKING:
    from holdfast.core.losses import Proof
    from holdfast.core.whose import Whose
    from holdfast.local.cluster import LocalCluster
    from holdfast.local.lost import SalvagedRow
    from holdfast.model.lost import LostLog, LostTransaction

_VALUE_CHARACTERS = 60
"""Of a value in a line for people; ``--json`` and the files have all of it."""

_CLIENTS_MAX = 50
"""Clients that are listed for people."""

node_option = click.option("--node", help="Only the log of this node.")
epoch_option = click.option("--epoch", type=int, help="Only the log that this epoch left behind.")


@click.group()
def lost() -> None:
    """What an old primary had committed and nobody else had: the transactions, their rows, and a script of them."""


lost.add_command(match)


@lost.command("show")
@directory_option
@json_option
@click.pass_context
def show(ctx: click.Context, directory: Path, as_json: bool) -> None:
    """List the transactions that were beyond the fork when an old primary was taken back.

    Each was committed on a primary that was replaced, and did not reach the one that came after it. Says that nothing
    acknowledged is lost only where lists and journal prove it, else what is in doubt. Names the clients whose
    transaction their server took with it, as the proxies saw them. Exit status 1 if a node does not answer: its list
    is missing.
    """
    from holdfast.local.lost import read_lost, read_proof, read_whose

    async def work(cluster: LocalCluster) -> tuple[list[LostLog], list[str], Proof, list[LostLog], Whose]:
        accounts, silent = await read_lost(cluster)
        return accounts, silent, *await read_proof(cluster, accounts, silent), await read_whose(cluster)

    accounts, silent, proof, unacknowledged, unanswered = with_cluster(directory, work)
    if as_json:
        listed = [_as_json(a, is_unacknowledged=a in unacknowledged) for a in accounts]
        proved = {"nothing_lost": proof.nothing_lost, "doubts": proof.doubts}
        print_json({"accounts": listed, "silent": silent, **proved, "unanswered": asdict(unanswered)})
    else:
        _tell(accounts, silent, proof, unacknowledged)
        _tell_whose(unanswered)
    ctx.exit(FAILED if silent else 0)


@lost.command("rows")
@click.option("--table", metavar="DATABASE.SCHEMA.TABLE", help="Only the rows of this table.")
@node_option
@epoch_option
@directory_option
@json_option
def rows(table: str | None, node: str | None, epoch: int | None, directory: Path, as_json: bool) -> None:
    """Show the rows that lost transactions inserted, updated or deleted, as they were and as they became.

    They were read before the old primary was taken back, and are on its host, in the directory that `holdfast lost
    show` names: `rows/` holds a file of JSON lines for each table. Only their owner can read them.
    """
    from holdfast.local.lost import rows_of

    account = _one_with_rows(directory, node, epoch)
    found = list(rows_of(account, table))
    notes = account.salvage.notes if account.salvage is not None else ()
    if as_json:
        chosen = {"node": account.member.node, "epoch": account.epoch}
        print_json({**chosen, "is_whole": not notes, "notes": notes, "rows": [asdict(row) for row in found]})
        return
    for row in found:
        click.echo(_row_in_words(row))
    for note in notes:
        click.echo(f"not whole: {note}", err=True)


@lost.command("sql")
@node_option
@epoch_option
@directory_option
@json_option
def script(node: str | None, epoch: int | None, directory: Path, as_json: bool) -> None:
    """Print the script that brings the rows back, for somebody to read, change and run; nothing here runs it.

    Every statement names the row as it was: one that somebody has changed meanwhile is left alone, and so is a key that
    is taken.
    """
    from holdfast.local.lost import script_of

    account = _one_with_rows(directory, node, epoch)
    text = script_of(account)
    notes = account.salvage.notes if account.salvage is not None else ()
    if as_json:
        print_json({"node": account.member.node, "epoch": account.epoch, "notes": notes, "sql": text})
        return
    click.echo(text, nl=False)
    for note in notes:
        click.echo(f"not whole: {note}", err=True)


def _one_with_rows(directory: Path, node: str | None, epoch: int | None) -> LostLog:
    """The log whose rows are meant; raises ConfigurationError unless it is exactly one."""
    from holdfast.core.losses import covered
    from holdfast.local.lost import read_lost, without_doubles

    accounts, silent = with_cluster(directory, read_lost)
    there = [a for a in accounts if a.salvage is not None]
    found = [a for a in there if node in (None, a.member.node) and epoch in (None, a.epoch)]
    found = found if node is not None else without_doubles(found)
    if len(found) == 1:
        other = covered(accounts).get(accounts.index(found[0]))
        if other is not None:
            click.echo(f"{_as_covered(other)}: bring back the rows of one of them, not of both", err=True)
        return found[0]
    choices = ", ".join(f"--node {a.member.node} --epoch {a.epoch}" for a in there) or "none at all"
    unknown = f" ({', '.join(silent)} did not answer)" if silent else ""
    what = "of more than one log" if found else "of no such log"
    raise ConfigurationError(f"rows {what} were read; choose one with --node and --epoch: {choices}{unknown}")


# -- in words ---------------------------------------------------------------------------------------------------------


def _tell(accounts: list[LostLog], silent: list[str], proof: Proof, unacknowledged: list[LostLog]) -> None:
    from holdfast.core.losses import covered

    doubles = covered(accounts)
    for i, account in enumerate(accounts):
        own = len(account.transactions) - len(account.of_clients)
        click.echo(
            f"{account.member.node}, replaced by epoch {account.epoch}: {account.lost_bytes:,} bytes of log beyond "
            f"{account.fork_lsn}, {len(account.of_clients)} transactions of clients ({own} of Holdfast's own)"
        )
        for transaction in account.of_clients:
            click.echo(f"  {_in_words(transaction)}")
        if i in doubles:
            click.echo(f"  {_as_covered(doubles[i])}")
        if account in unacknowledged and account.of_clients:
            click.echo("  no client was told of them: they needed a quorum that they did not get")
        if account.unread:
            click.echo(f"  not listed to the end: {account.unread}")
        for words in account.left_out:
            click.echo(f"  not copied: {words}")
        _tell_rows(account)
        click.echo(f"  evidence: {account.evidence_dir}")
    if not accounts:
        click.echo("no old primary had log of its own when it was taken back")
    if silent:
        click.echo(f"no answer from {', '.join(silent)}: what they know is missing here", err=True)
    if proof.nothing_lost:
        click.echo("Nothing that was acknowledged is lost: proved for every change of leadership.")
    for doubt in proof.doubts:
        click.echo(f"Not proved that nothing is lost: {doubt}.")


def _tell_whose(unanswered: Whose) -> None:
    if unanswered.clients:
        click.echo("Clients whose transaction their server took with it:")
        print_clients(unanswered)


def print_clients(unanswered: Whose) -> None:
    """One line for each client, the newest last."""
    clients = unanswered.clients
    if len(clients) > _CLIENTS_MAX:
        click.echo(f"  {len(clients) - _CLIENTS_MAX:,} earlier ones: --json has them")
    for client in clients[-_CLIENTS_MAX:]:
        at = datetime.fromtimestamp(client.at_ms / 1000, UTC)
        where = f"on {client.node} in epoch {client.epoch}"
        click.echo(f"  {at:%Y-%m-%d %H:%M:%S} UTC  {client.told.value:7}  {client.owner.in_words}, {where}")
    if unanswered.unnamed:
        click.echo(f"  and {unanswered.unnamed:,} more that their proxies did not name")


def _as_covered(other: LostLog) -> str:
    return f"all of these transactions are in the list of {other.member.node}, too (epoch {other.epoch})"


def _tell_rows(account: LostLog) -> None:
    found = account.salvage
    if found is None:
        return
    tables = f" of {len(found.files)} tables" if found.files else ""
    click.echo(f"  rows: {found.rows} changes{tables} were read in {found.took_ms / 1000:.1f} s")
    for note in found.notes:
        click.echo(f"  not whole: {note}")


def _in_words(transaction: LostTransaction) -> str:
    wrote = ", ".join(
        f"{name}: " + " ".join(f"{count} {kind}" for kind, count in _counts(tuples).items())
        for name, tuples in transaction.relations.items()
    )
    state = "committed" if transaction.prepared_as is None else f"prepared as {transaction.prepared_as!r}"
    if transaction.open_as is not None:
        state = f"prepared before as {transaction.open_as!r}, committed"
    more = ", and perhaps more before what was read of the log" if transaction.is_partial else ""
    owner = f"  of {transaction.owner.in_words}" if transaction.owner is not None else ""
    tokens = "".join(f"  token {token}" for token in transaction.tokens)
    return f"xid {transaction.xid}  {state} {transaction.committed_at}  {wrote}{more}{owner}{tokens}"


def _row_in_words(row: SalvagedRow) -> str:
    before, after = (None if image is None else _values(image) for image in (row.before, row.after))
    images = " -> ".join(image for image in (before, after) if image is not None)
    return f"{row.table}  xid {row.xid}  {row.change}  {images or 'not known any more'}"


def _values(image: dict[str, str | None]) -> str:
    return "(" + ", ".join(f"{name} {_value(value)}" for name, value in image.items()) + ")"


def _value(value: str | None) -> str:
    if value is None:
        return "NULL"
    if len(value) <= _VALUE_CHARACTERS:
        return repr(value)
    return f"{value[:_VALUE_CHARACTERS]!r}… ({len(value):,} characters)"


def _counts(tuples: object) -> dict[str, int]:
    return {kind: n for kind in ("inserted", "updated", "deleted") if (n := getattr(tuples, kind))}


def _as_json(account: LostLog, *, is_unacknowledged: bool) -> dict[str, object]:
    return {
        "node": account.member.node,
        "incarnation": account.member.incarnation,
        "epoch": account.epoch,
        "timeline": account.timeline,
        "fork_lsn": str(account.fork_lsn),
        "end_lsn": str(account.end_lsn),
        "lost_bytes": account.lost_bytes,
        "evidence_dir": account.evidence_dir,
        "left_out": list(account.left_out),
        "unread": account.unread,
        "proved_unacknowledged": is_unacknowledged,
        "rows": None if account.salvage is None else asdict(account.salvage),
        "transactions": [
            {
                "xid": t.xid,
                "lsn": str(t.lsn),
                "committed_at": t.committed_at,
                "subxids": list(t.subxids),
                "prepared_as": t.prepared_as,
                "open_as": t.open_as,
                "is_partial": t.is_partial,
                "owner": None if t.owner is None else asdict(t.owner),
                "tokens": list(t.tokens),
                "relations": {name: _counts(tuples) for name, tuples in t.relations.items()},
            }
            for t in account.of_clients
        ],
    }
