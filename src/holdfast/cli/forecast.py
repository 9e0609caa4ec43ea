"""``holdfast forecast``: what the loss of each node would mean now."""

from __future__ import annotations

from dataclasses import asdict
from pathlib import Path
from typing import TYPE_CHECKING

import click

from holdfast.cli.clusters import with_cluster
from holdfast.cli.failures import FAILED
from holdfast.cli.output import as_typed, directory_option, json_option, print_json

if TYPE_CHECKING:
    from holdfast.core.forecast import Estimate, Forecast, Takeover
    from holdfast.local.cluster import LocalCluster


@click.command()
@directory_option
@click.option(
    "--report",
    "report_dir",
    type=click.Path(file_okay=False, path_type=Path),
    default=Path("holdfast-report"),
    show_default=True,
    help="Directory of the drills' reports: what they measured under the same settings is the RTO.",
)
@json_option
@click.pass_context
def forecast(ctx: click.Context, directory: Path, report_dir: Path, as_json: bool) -> None:
    """Say what would happen if the primary, or a standby, died now; exit status 1 if nobody could take over.

    The same rules that decide in a failover are applied to what the agents report at this moment. Nothing is changed.
    """
    from holdfast.local.outlook import read_forecast

    found = with_cluster(directory, lambda cluster: read_forecast(cluster, _by_drills(cluster, report_dir)))
    if as_json:
        print_json(asdict(found))
    else:
        for line in _lines(found):
            click.echo(as_typed(line))
    ctx.exit(0 if found.if_primary_died.candidate is not None else FAILED)


def _by_drills(cluster: LocalCluster, report_dir: Path) -> Estimate | None:
    """How long writes stalled in drills of a crash under the settings of this cluster."""
    from holdfast.core.forecast import Estimate
    from holdfast.drill.archive import Archive, summarize

    for row in summarize(Archive(report_dir.absolute() / "history.jsonl").entries()):
        same = row.drill == "primary-crash" and row.settings == cluster.settings_hash
        if same and row.median_stall_ms is not None and row.worst_stall_ms is not None:
            count = f"{row.runs} drills" if row.runs > 1 else "one drill"
            words = f"by {count} of primary-crash under these settings (at worst {row.worst_stall_ms:,.0f} ms)"
            return Estimate(round(row.median_stall_ms), words)
    return None


def _lines(found: Forecast) -> list[str]:
    if found.primary is None:
        return [found.if_primary_died.because, *(f"  {o}" for o in found.if_primary_died.obstacles)]
    if found.primary_lost is not None:
        return [f"The primary {found.primary} is lost ({found.primary_lost}):", *_takeover(found.if_primary_died, "  ")]
    lines = [f"If the primary {found.primary} died now:", *_takeover(found.if_primary_died, "  ")]
    for standby in found.if_standby_died:
        writes = "writes would go on" if standby.writes_go_on else "writes would wait until a standby is back"
        lines += ["", f"If standby {standby.node} died now: {writes}. If {found.primary} died after it:"]
        lines += _takeover(standby.then_primary, "  ")
    return lines


def _takeover(takeover: Takeover, indent: str) -> list[str]:
    if takeover.candidate is None:
        lines = [f"nobody could take over: {takeover.because}"]
    else:
        lines = [
            f"candidate  {takeover.candidate}: {takeover.because}",
            f"RPO        {_rpo(takeover)}",
            f"RTO        {_rto(takeover)}",
        ]
    lines += [f"in the way  {obstacle}" for obstacle in takeover.obstacles]
    return [indent + line for line in lines]


def _rpo(takeover: Takeover) -> str:
    if takeover.rpo_bytes is None:
        return "unknown: commits are local, and how far the candidate is behind cannot be told"
    if takeover.local_commits:
        return f"{takeover.rpo_bytes:,} bytes of log, and what is acknowledged in the last moment: commits are local"
    return "nothing that was acknowledged is lost"


def _rto(takeover: Takeover) -> str:
    if takeover.rto is None:
        return "unknown: no failover and no drill to go by yet"
    return f"about {takeover.rto.ms:,} ms {takeover.rto.source}"
