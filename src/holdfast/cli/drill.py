"""``holdfast drill``: faults on purpose, with a verdict."""

from __future__ import annotations

from pathlib import Path

import click

from holdfast.cli.failures import FAILED, run
from holdfast.cli.output import json_option, print_json
from holdfast.cli.trial import DRILLS, Trial, drill_options, try_on_own_cluster, try_on_running_cluster


@click.group()
def drill() -> None:
    """Break a cluster on purpose, and account for every write."""


@drill.command("list")
@json_option
def list_drills(as_json: bool) -> None:
    """Say which drills there are."""
    if as_json:
        print_json([{"name": name, "title": title} for name, title in DRILLS.items()])
        return
    for name, title in DRILLS.items():
        click.echo(f"{name:16}  {title}")


@drill.command("run")
@click.argument("name", type=click.Choice(list(DRILLS)))
@drill_options
@click.option(
    "--dir",
    "directory",
    type=click.Path(file_okay=False, path_type=Path),
    default=None,
    help="Try the running cluster of this directory, and leave it running.  [default: a cluster of its own]",
)
@click.option("--nodes", type=int, default=None, help="Nodes of its own cluster: 3 to 9.  [default: 3]")
@click.pass_context
def run_drill(ctx: click.Context, name: str, trial: Trial, directory: Path | None, nodes: int | None) -> None:
    """Run one drill; exit status 0 only if nothing was lost or duplicated and the cluster is whole again."""
    if directory is None:
        passed = run(try_on_own_cluster(trial, nodes=3 if nodes is None else nodes))
    elif nodes is not None:
        raise click.UsageError("--nodes is for a cluster of the drill's own: leave out --dir or --nodes.")
    else:
        passed = run(try_on_running_cluster(trial, directory))
    ctx.exit(0 if passed else FAILED)
