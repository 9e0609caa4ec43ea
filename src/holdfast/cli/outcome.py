"""``holdfast outcome``: what became of one transaction."""

from __future__ import annotations

import json
from pathlib import Path
from typing import TYPE_CHECKING

import click

from holdfast.cli.clusters import with_cluster
from holdfast.cli.failures import FAILED
from holdfast.cli.output import directory_option, json_option, print_json
from holdfast.model.outcome import Outcome, OutcomeAnswer, parse_epoch, parse_xid

if TYPE_CHECKING:
    from holdfast.local.cluster import LocalCluster


@click.command()
@click.argument("xid")
@click.option("--epoch", metavar="N", help="The epoch in which the client wrote: the timeline of its primary then.")
@directory_option
@json_option
@click.pass_context
def outcome(ctx: click.Context, xid: str, epoch: str | None, directory: Path, as_json: bool) -> None:
    """Say what became of a transaction: committed, aborted, lost, in progress or unknown, and how that is known.

    XID is the number that pg_current_xact_id() printed in it. After a failover ids are given away again: an id that was
    needs its epoch. Exit status 1 if the outcome is unknown.
    """
    from holdfast.local.outcome import find_outcome

    wanted, in_epoch = parse_xid(xid), None if epoch is None else parse_epoch(epoch)

    async def work(cluster: LocalCluster) -> OutcomeAnswer:
        return await find_outcome(cluster, wanted, in_epoch)

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
    click.echo(f"transaction {answer.xid}{where}: {answer.outcome.value}")
    click.echo(f"  {_THERE[answer.is_there]}")
    click.echo(f"  rule {answer.rule}: {answer.why}")
    for words in answer.evidence:
        click.echo(f"  {words}")
    for epoch in answer.epochs:
        click.echo(f"  it may be the one of epoch {epoch}: add --epoch {epoch}")
