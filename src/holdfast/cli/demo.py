"""``holdfast demo``: a cluster of its own, load, the death of the primary, and what became of every write."""

from __future__ import annotations

from pathlib import Path

import click

from holdfast.cli.failures import FAILED, run
from holdfast.cli.trial import Trial, drill_options, try_on_own_cluster


@click.command()
@drill_options
@click.option("--nodes", type=int, default=3, show_default=True, help="Nodes of the cluster: 3 to 9.")
@click.option("--keep", is_flag=True, help="Leave the cluster running at the end, and say how to look and stop.")
@click.option(
    "--dir",
    "directory",
    type=click.Path(file_okay=False, path_type=Path),
    default=None,
    help="Where the cluster's files go meanwhile: a new or empty directory.  [default: a temporary one]",
)
@click.pass_context
def demo(ctx: click.Context, trial: Trial, nodes: int, keep: bool, directory: Path | None) -> None:
    """Watch a real cluster lose its primary under load and go on about a second later, with nothing lost.

    Makes a cluster in a temporary directory, runs the drill primary-crash on it, and leaves nothing behind but the
    report.
    """
    passed = run(try_on_own_cluster(trial, nodes=nodes, keep=keep, directory=directory))
    ctx.exit(0 if passed else FAILED)
