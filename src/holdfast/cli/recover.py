"""``holdfast recover``: a new register after the store was lost or restored from a backup."""

from __future__ import annotations

import sys
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from holdfast.cli.failures import run
from holdfast.cli.output import Steps, as_typed, directory_option, json_option, print_json

if TYPE_CHECKING:
    from holdfast.local.cluster import LocalCluster
    from holdfast.local.recovery import Proposal


@click.command()
@directory_option
@click.option("--dry-run", is_flag=True, help="Only say what would be written, and why.")
@click.option(
    "--ignore", "ignored", multiple=True, metavar="NODE", help="Go on without this node; what that risks is told first."
)
@click.option("--yes", is_flag=True, help="Do not ask.")
@json_option
def recover(directory: Path, dry_run: bool, ignored: tuple[str, ...], yes: bool, as_json: bool) -> None:
    """Build the register anew from what all agents say, when the store has lost it or has an older one.

    Nobody is promoted or stopped until then: agents that find no register, or one that is older than their promise,
    raise an alarm and touch nothing. The new register opens an epoch above every promise and timeline; the node with
    the newest log, or one that has all of it, leads in it. Clients wait as in a failover.
    """
    from holdfast.cli.logs import configure_quiet_logs
    from holdfast.local.cluster import LocalCluster

    configure_quiet_logs()
    if not (dry_run or yes) and (as_json or not sys.stdin.isatty()):
        raise click.UsageError("nobody can be asked here: look with --dry-run first, then say --yes.")
    run(_recover(LocalCluster.open(directory), frozenset(ignored), dry_run=dry_run, yes=yes, as_json=as_json))


async def _recover(cluster: LocalCluster, ignored: frozenset[str], *, dry_run: bool, yes: bool, as_json: bool) -> None:
    from holdfast.local.recovery import carry_out, propose

    try:
        proposal = await propose(cluster, ignored)
        if not as_json:
            _show(proposal)
        if dry_run:
            _report(proposal, as_json, done=False)
            return
        if not yes:
            click.confirm("Write this register?", abort=True)
        steps = Steps(quiet=as_json)
        await carry_out(cluster, proposal)
        steps(f"epoch {proposal.recovery.register.epoch} is open")
        await cluster.wait_until_serving(steps)
        steps("a primary serves")
        _report(proposal, as_json, done=True)
    finally:
        await cluster.close()


def _show(proposal: Proposal) -> None:
    for line in (*([proposal.unreadable] if proposal.unreadable else []), *proposal.recovery.because):
        click.echo(f"  {line}")
    for risk in proposal.recovery.risks:
        click.echo(f"  RISK {risk}")
    click.echo(as_typed("  the policy is the one that the store has now (see `holdfast policy show`)"))


def _report(proposal: Proposal, as_json: bool, *, done: bool) -> None:
    register = proposal.recovery.register
    found: dict[str, Any] = {
        "done": done,
        "epoch": register.epoch,
        "newest_log": register.committed.leader.node,
        "because": list(proposal.recovery.because),
        "risks": list(proposal.recovery.risks),
    }
    if as_json:
        print_json(found)
    elif not done:
        click.echo("Nothing was written: leave --dry-run out to do it.")
