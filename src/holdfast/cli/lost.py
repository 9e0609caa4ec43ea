"""``holdfast lost``: which transactions did not make it through a failover."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING

import click

from holdfast.cli.failures import FAILED, run
from holdfast.cli.output import directory_option, json_option, print_json

if TYPE_CHECKING:
    from holdfast.model.lost import LostLog, LostTransaction


@click.command()
@directory_option
@json_option
@click.pass_context
def lost(ctx: click.Context, directory: Path, as_json: bool) -> None:
    """List the transactions that were beyond the fork when an old primary was taken back.

    Each was committed on a primary that was replaced, and reached no standby. With a quorum none of them was
    acknowledged; while commits were local some were. Exit status 1 if a node does not answer: its list is missing.
    """
    from holdfast.cli.logs import configure_quiet_logs
    from holdfast.local.cluster import LocalCluster
    from holdfast.local.lost import read_lost

    configure_quiet_logs()
    cluster = LocalCluster.open(directory)

    async def work() -> tuple[list[LostLog], list[str]]:
        try:
            return await read_lost(cluster)
        finally:
            await cluster.close()

    accounts, silent = run(work())
    if as_json:
        print_json({"accounts": [_as_json(a) for a in accounts], "silent": silent})
    else:
        _tell(accounts, silent)
    ctx.exit(FAILED if silent else 0)


def _tell(accounts: list[LostLog], silent: list[str]) -> None:
    for account in accounts:
        own = len(account.transactions) - len(account.of_clients)
        click.echo(
            f"{account.member.node}, replaced by epoch {account.epoch}: {account.lost_bytes:,} bytes of log beyond "
            f"{account.fork_lsn}, {len(account.of_clients)} transactions of clients ({own} of Holdfast's own)"
        )
        for transaction in account.of_clients:
            click.echo(f"  {_in_words(transaction)}")
        for words in account.left_out:
            click.echo(f"  not copied: {words}")
        click.echo(f"  evidence: {account.evidence_dir}")
    if not accounts:
        click.echo("no old primary had log of its own when it was taken back")
    if silent:
        click.echo(f"no answer from {', '.join(silent)}: what they know is missing here", err=True)


def _in_words(transaction: LostTransaction) -> str:
    wrote = ", ".join(
        f"{name}: " + " ".join(f"{count} {kind}" for kind, count in _counts(tuples).items())
        for name, tuples in transaction.relations.items()
    )
    state = "committed" if transaction.prepared_as is None else f"prepared as {transaction.prepared_as!r}"
    return f"xid {transaction.xid}  {state} {transaction.committed_at}  {wrote}"


def _counts(tuples: object) -> dict[str, int]:
    return {kind: n for kind in ("inserted", "updated", "deleted") if (n := getattr(tuples, kind))}


def _as_json(account: LostLog) -> dict[str, object]:
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
        "transactions": [
            {
                "xid": t.xid,
                "lsn": str(t.lsn),
                "committed_at": t.committed_at,
                "subxids": list(t.subxids),
                "prepared_as": t.prepared_as,
                "relations": {name: _counts(tuples) for name, tuples in t.relations.items()},
            }
            for t in account.of_clients
        ],
    }
