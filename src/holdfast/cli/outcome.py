"""``holdfast outcome``: what became of one transaction."""

from __future__ import annotations

import json
import re
from pathlib import Path
from typing import TYPE_CHECKING

import click

from holdfast.cli.clusters import with_cluster
from holdfast.cli.failures import FAILED
from holdfast.cli.output import directory_option, json_option, print_json
from holdfast.model.outcome import Outcome, OutcomeAnswer, OwnQuestion, parse_epoch, parse_position, parse_xid
from holdfast.model.token import parse_token

if TYPE_CHECKING:
    from holdfast.local.cluster import LocalCluster


_XID = re.compile(r"[0-9]+|0x[0-9a-fA-F]+")
"""What is meant as an id, although one in hexadecimal digits is refused."""


@click.command()
@click.argument("transaction", metavar="XID|TOKEN")
@click.option("--epoch", metavar="N", help="The epoch in which the client wrote: the timeline of its primary then.")
@click.option("--lsn", metavar="LSN", help="What pg_logical_emit_message returned when it wrote the token.")
@click.option("--token", "is_token", is_flag=True, help="What looks like an XID is a token.")
@directory_option
@json_option
@click.pass_context
def outcome(
    ctx: click.Context,
    transaction: str,
    epoch: str | None,
    lsn: str | None,
    is_token: bool,
    directory: Path,
    as_json: bool,
) -> None:
    """Say what became of a transaction: committed, aborted, lost, in progress or unknown, and how that is known.

    XID is the number that pg_current_xact_id() printed in it. After a failover ids are given away again: an id that was
    needs its epoch. TOKEN is what the application wrote in it by pg_logical_emit_message(true, 'holdfast', TOKEN); it
    is never given away again, and without --epoch and --lsn only what the log still has of it can be told. Exit
    status 1 if the outcome is unknown.
    """
    from holdfast.local.outcome import find_outcome, find_own_token

    in_epoch = None if epoch is None else parse_epoch(epoch)
    if is_token or _XID.fullmatch(transaction) is None:
        question = OwnQuestion(parse_token(transaction), in_epoch, parse_position(lsn))

        async def work(cluster: LocalCluster) -> OutcomeAnswer:
            return await find_own_token(cluster, question)

    else:
        if lsn is not None:
            raise click.UsageError(f"--lsn tells where a token was written, and {transaction} is an id: add --token.")
        xid = parse_xid(transaction)

        async def work(cluster: LocalCluster) -> OutcomeAnswer:
            return await find_outcome(cluster, xid, in_epoch)

    answer = with_cluster(directory, work)
    if as_json:
        print_json(json.loads(answer.to_json()))
    else:
        _tell(answer)
    ctx.exit(FAILED if answer.outcome is Outcome.UNKNOWN else 0)


_THERE = {
    True: "what it did is in the database",
    False: "what it did is not in the database",
    None: "whether what it did is in the database is not known",
}


def _tell(answer: OutcomeAnswer) -> None:
    where = "" if answer.epoch is None else f" of epoch {answer.epoch}"
    what = () if answer.token is None else (f"token {answer.token}",)
    what = what if answer.xid is None else (*what, f"transaction {answer.xid}")
    click.echo(f"{', '.join(what)}{where}: {answer.outcome.value}")
    click.echo(f"  {_THERE[answer.is_there]}")
    click.echo(f"  rule {answer.rule}: {answer.why}")
    for words in answer.evidence:
        click.echo(f"  {words}")
    for epoch in answer.epochs:
        click.echo(f"  it may be the one of epoch {epoch}: add --epoch {epoch}")
