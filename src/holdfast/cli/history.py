"""``holdfast history``: the whole journal, entry by entry."""

from __future__ import annotations

import re
import time
from dataclasses import asdict
from datetime import UTC, datetime
from pathlib import Path
from typing import TYPE_CHECKING

import click

from holdfast.cli.clusters import with_cluster
from holdfast.cli.output import directory_option, json_option, print_json

if TYPE_CHECKING:
    from holdfast.core.history import Selection
    from holdfast.local.cluster import LocalCluster
    from holdfast.model.event import Event

_UNITS_S = {"s": 1, "min": 60, "h": 3600, "d": 86_400}


def _moment_ms(ctx: click.Context, param: click.Parameter, value: str | None) -> float | None:
    """A moment, in Unix milliseconds: so long ago, or a date and time (UTC if it names no zone)."""
    if value is None:
        return None
    ago = re.fullmatch(r"(\d+)\s*(s|min|h|d)", value)
    if ago is not None:
        return (time.time() - int(ago[1]) * _UNITS_S[ago[2]]) * 1000
    try:
        moment = datetime.fromisoformat(value)
    except ValueError:
        wanted = "a time such as 10min (ago) or 2026-11-30T12:00"
        raise click.BadParameter(f"{value!r} is not {wanted}.", ctx, param) from None
    return (moment if moment.tzinfo is not None else moment.replace(tzinfo=UTC)).timestamp() * 1000


@click.command()
@click.option("--since", "since_ms", metavar="TIME", callback=_moment_ms, help="From then on: 10min, 2h, or a date.")
@click.option("--until", "until_ms", metavar="TIME", callback=_moment_ms, help="Until then.")
@click.option("--kind", "kinds", metavar="PATTERN", multiple=True, help="Such as epoch.opened or 'capture.*'.")
@click.option("--host", "sources", metavar="PATTERN", multiple=True, help="Who noted it: n1, or 'proxy *'.")
@click.option("--people", is_flag=True, help="Only what a person ordered or did: who, and from where.")
@click.option("--last", metavar="N", type=click.IntRange(1), help="Only the newest so many.")
@click.option("--follow", is_flag=True, help="Go on with what comes, until Ctrl-C; with --json a line each.")
@directory_option
@json_option
def history(
    since_ms: float | None,
    until_ms: float | None,
    kinds: tuple[str, ...],
    sources: tuple[str, ...],
    people: bool,
    last: int | None,
    follow: bool,
    directory: Path,
    as_json: bool,
) -> None:
    """Print every entry of the journal: what happened on which host, and by which rule or whose order.

    Entries of all hosts are in the order of cause and effect, also where clocks differ. The journal keeps the newest
    10,000; while the store is away it is what the agents that answer remember.
    """
    from holdfast.core.history import Selection, selected

    wanted = Selection(since_ms, until_ms, kinds, sources, people)
    if follow:
        with_cluster(directory, lambda cluster: _follow(cluster, wanted, last, as_json))
        return
    from holdfast.local.outlook import read_events

    events, from_store = with_cluster(directory, read_events)
    found = selected(events, wanted, last)
    if as_json:
        print_json([asdict(event) for event in found])
        return
    for event in found:
        click.echo(_line(event))
    if not found:
        click.echo("There is no such entry.")
    if not from_store:
        click.echo("\nThe store does not answer: this is what the agents that answer remember.")


async def _follow(cluster: LocalCluster, wanted: Selection, last: int | None, as_json: bool) -> None:
    from holdfast.core.history import selected
    from holdfast.local.evidence import follow

    first = True
    async for events in follow(cluster):
        for event in selected(events, wanted, last if first else None):
            click.echo(event.to_json() if as_json else _line(event))
        first = False


def _line(event: Event) -> str:
    from holdfast.core.story import sentence_of

    at = datetime.fromtimestamp(event.time_ms / 1000, UTC)
    rule = f"  [{event.rule}]" if event.rule else ""
    return f"{at:%Y-%m-%d %H:%M:%S}.{at.microsecond // 1000:03}  {event.source:8}  {event.kind:18}  " + (
        f"{sentence_of(event)}{rule}"
    )
