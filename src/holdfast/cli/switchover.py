"""``holdfast switchover``: hand the primary's part to another node, on purpose."""

from __future__ import annotations

import time
from pathlib import Path

import click

from holdfast.cli.failures import run
from holdfast.cli.output import Steps, directory_option, json_option, print_json


@click.command()
@directory_option
@click.option("--to", "target", default=None, help="The node that is to lead; the most suitable one if left out.")
@json_option
def switchover(directory: Path, target: str | None, as_json: bool) -> None:
    """Hand the primary's part to a standby; clients wait a moment.

    New statements are held. A transaction that is still open after the time to drain ends with an error, and so does a
    session that holds what cannot move (temporary tables, say).
    """
    from holdfast.cli.logs import configure_quiet_logs
    from holdfast.local.cluster import LocalCluster

    configure_quiet_logs()
    cluster = LocalCluster.open(directory)
    steps = Steps(quiet=as_json)

    async def work() -> str:
        try:
            steps(f"handing over to {target or 'the most suitable standby'}")
            return await cluster.switch_over(target)
        finally:
            await cluster.close()

    began_at = time.monotonic()
    message = run(work())
    if as_json:
        duration_ms = round((time.monotonic() - began_at) * 1000)
        print_json({"ok": True, "message": message, "duration_ms": duration_ms})
    else:
        steps(message)
