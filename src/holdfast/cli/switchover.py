"""``holdfast switchover``: hand the primary's part to another node, on purpose."""

from __future__ import annotations

import time
from datetime import UTC, datetime
from pathlib import Path

import click

from holdfast.cli.clusters import with_cluster
from holdfast.cli.output import Steps, directory_option, json_option, print_json


@click.command()
@directory_option
@click.option("--to", "target", default=None, help="The node that is to lead; the most suitable one if left out.")
@click.option("--dry-run", is_flag=True, help="Only say what would be done, or why it would be refused.")
@click.option("--at", "when", default=None, help="Do it later: HH:MM, or an ISO 8601 time. It survives this command.")
@click.option("--cancel", is_flag=True, help="Drop the switchover that was planned with --at.")
@json_option
def switchover(
    directory: Path, target: str | None, dry_run: bool, when: str | None, cancel: bool, as_json: bool
) -> None:
    """Hand the primary's part to a standby; clients wait a moment.

    New statements are held. A transaction that is still open after the time to drain ends with an error, and so does a
    session that holds what cannot move (temporary tables, say). If the standby does not get the last record in time,
    the primary starts again and goes on.
    """
    from holdfast.local import switchover as switching

    if sum((dry_run, when is not None, cancel)) > 1 or (cancel and target is not None):
        raise click.UsageError("--dry-run, --at and --cancel exclude each other, and --cancel takes no --to.")
    at = switching.parse_time(when, datetime.now(UTC)) if when is not None else None
    if cancel:
        _tell(as_json, with_cluster(directory, switching.cancel))
    elif at is not None:
        planned = with_cluster(directory, lambda cluster: switching.plan(cluster, target, at))
        _tell(as_json, planned, at=at.isoformat())
    elif dry_run:
        lines = with_cluster(directory, lambda cluster: switching.rehearse(cluster, target))
        if as_json:
            print_json({"ok": True, "dry_run": True, "message": lines[0], "steps": lines[1:]})
        else:
            click.echo("\n".join(lines))
    else:
        _switch_over(directory, target, as_json)


def _switch_over(directory: Path, target: str | None, as_json: bool) -> None:
    steps = Steps(quiet=as_json)
    steps(f"asking the primary to hand over to {target or 'the most suitable standby'}")
    began_at = time.monotonic()
    message = with_cluster(directory, lambda cluster: cluster.switch_over(target))
    if as_json:
        duration_ms = round((time.monotonic() - began_at) * 1000)
        print_json({"ok": True, "message": message, "duration_ms": duration_ms})
    else:
        steps(message)


def _tell(as_json: bool, message: str, **more: str) -> None:
    if as_json:
        print_json({"ok": True, "message": message, **more})
    else:
        click.echo("; ".join((message, *more.values())))
