"""``holdfast parity``: whether the standbys have the primary's rows."""

from __future__ import annotations

from dataclasses import asdict
from pathlib import Path
from typing import TYPE_CHECKING

import click

from holdfast.cli.failures import FAILED, run
from holdfast.cli.output import as_typed, directory_option, json_option, print_json
from holdfast.core.words import plural

if TYPE_CHECKING:
    from click._termui_impl import ProgressBar

    from holdfast.local.parity import Progress
    from holdfast.model.parity import Mismatch, Parity


@click.command()
@click.argument("nodes", nargs=-1, metavar="[NODE...]")
@click.option(
    "--table", "tables", multiple=True, metavar="DATABASE.SCHEMA.TABLE", help="Only this table; may be repeated."
)
@click.option(
    "--share",
    type=click.FloatRange(0.01, 1.0),
    default=0.5,
    show_default=True,
    help="How much of a server's time the comparison may take; the rest it pauses.",
)
@click.option(
    "--indexes", is_flag=True, help="Let amcheck go through the standbys' B-trees, too; it must be installed."
)
@click.option("--keep-reading", is_flag=True, help="Let clients read from a standby also when its rows differ.")
@directory_option
@json_option
@click.pass_context
def parity(
    ctx: click.Context,
    nodes: tuple[str, ...],
    tables: tuple[str, ...],
    share: float,
    indexes: bool,
    keep_reading: bool,
    directory: Path,
    as_json: bool,
) -> None:
    """Compare every row of the standbys with the primary's, while both go on.

    Takes no lock that others would wait for, and no row for different that is only being changed. A standby whose rows
    differ is named with the table, the blocks and some keys, and taken out of the reads until somebody says
    `holdfast policy set NODE.readable=true`. Exit status 1 if rows differ, or if
    PostgreSQL cannot read what it has.
    """
    from holdfast.cli.logs import configure_quiet_logs
    from holdfast.local.cluster import LocalCluster
    from holdfast.local.orders import note_deed
    from holdfast.local.parity import Pace, compare_standbys, take_out_of_reads

    configure_quiet_logs()
    cluster = LocalCluster.open(directory)
    bars = _Bars(hidden=as_json)

    async def work() -> tuple[list[Parity], list[str]]:
        try:
            found = await compare_standbys(
                cluster, nodes, tables, Pace(share), check_indexes=indexes, progress=bars.show
            )
            bad = [] if keep_reading else [parity.node for parity in found if not parity.is_standby_sound]
            for node in bad:
                await take_out_of_reads(cluster, node)
            outcome = "; ".join(_verdict(parity) for parity in found)
            await note_deed(cluster, "parity.checked", outcome=outcome, holds=all(p.holds for p in found))
            return found, bad
        finally:
            bars.end()
            await cluster.close()

    found, taken_out = run(work())
    holds = all(parity.holds for parity in found)
    if as_json:
        print_json({"holds": holds, "taken_out": taken_out, "nodes": [asdict(parity) for parity in found]})
    else:
        for each in found:
            _tell(each)
        for node in taken_out:
            click.echo(as_typed(f"nobody reads from {node} any more, until `holdfast policy set {node}.readable=true`"))
    ctx.exit(0 if holds else FAILED)


class _Bars:
    """One bar after the other, a node each."""

    def __init__(self, *, hidden: bool) -> None:
        self._hidden = hidden
        self._node: str | None = None
        self._bar: ProgressBar[int] | None = None
        self._shown = 0

    def show(self, progress: Progress) -> None:
        """How far it is now."""
        if progress.node != self._node:
            self.end()
            self._node, self._shown = progress.node, 0
            self._bar = click.progressbar(
                length=max(progress.total_blocks, 1), label=progress.node, hidden=self._hidden
            )
            self._bar.__enter__()
        assert self._bar is not None
        self._bar.update(progress.done_blocks - self._shown)
        self._shown = progress.done_blocks

    def end(self) -> None:
        """Leave the last bar as it is."""
        if self._bar is not None:
            self._bar.__exit__(None, None, None)
            self._bar = None


def _tell(found: Parity) -> None:
    what = f"{plural(found.rows, 'row')} of {plural(found.tables, 'table')} compared in {found.seconds:.1f} s"
    indexes = f", {found.indexes} B-trees checked" if found.indexes else ""
    click.echo(f"{_verdict(found)} (timeline {found.timeline}, replayed {found.replayed_lsn}): {what}{indexes}")
    for mismatch in found.mismatches:
        click.echo(f"  {_in_words(mismatch)}")
    for damage in found.damage:
        click.echo(f"  damaged on {damage.node}: {damage.what}")
    if found.undecided:
        click.echo(f"  {plural(found.undecided, 'row')} were being changed whenever they were looked at")
    for skipped in found.skipped:
        click.echo(f"  not compared: {skipped}")


def _verdict(found: Parity) -> str:
    as_far = ", as far as it was compared" if found.skipped else ""
    verdict = f"has what {found.primary} has{as_far}" if found.holds else f"DIFFERS from {found.primary}"
    return f"{found.node} {verdict}"


def _in_words(m: Mismatch) -> str:
    counts = {"missing": m.missing, "too many": m.extra, "different": m.different}
    found = ", ".join(f"{count} {word}" for word, count in counts.items() if count)
    blocks = f"block {m.first_block}" if m.first_block == m.last_block else f"blocks {m.first_block} to {m.last_block}"
    more = m.missing + m.extra + m.different - len(m.keys)
    if m.first_key != m.last_key:
        blocks += f", keys {m.first_key} to {m.last_key}"
    keys = ", ".join(m.keys) + (f" and {more} more" if more > 0 else "")
    return f"{m.table}: {found}, in {blocks}: {keys}"
