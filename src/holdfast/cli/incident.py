"""``holdfast incident``: what happened, what clients met, what was lost, why, and what to change."""

from __future__ import annotations

import re
import time
from collections.abc import Callable
from dataclasses import asdict, replace
from datetime import UTC, datetime
from pathlib import Path
from typing import TYPE_CHECKING

import click

from holdfast.cli.clusters import with_cluster
from holdfast.cli.failures import FAILED
from holdfast.cli.lost import print_clients
from holdfast.cli.output import as_typed, directory_option, json_option, print_json

if TYPE_CHECKING:
    from holdfast.core.chain import Chain
    from holdfast.core.cost import Objectives
    from holdfast.core.incident import Incident
    from holdfast.local.cluster import LocalCluster
    from holdfast.local.incidents import Record

_UNITS_MS = {"ms": 1, "s": 1000, "min": 60_000}

number_argument = click.argument("number", type=int, required=False)


def _time_ms(ctx: click.Context, param: click.Parameter, value: str | None) -> int | None:
    """A time with its unit, in milliseconds."""
    if value is None:
        return None
    found = re.fullmatch(r"(\d+(?:\.\d+)?)\s*(ms|s|min)", value)
    if found is None:
        raise click.BadParameter(f"{value!r} is no time with a unit, such as 500ms, 2s or 1.5min.", ctx, param)
    return round(float(found[1]) * _UNITS_MS[found[2]])


_rto_option = click.option(
    "--rto", "rto_ms", metavar="TIME", callback=_time_ms, help="The longest stall that was promised, such as 2s."
)
_rpo_option = click.option(
    "--rpo", "rpo_ms", metavar="TIME", callback=_time_ms, help="How far back what is lost may reach, such as 0s."
)
_availability_option = click.option(
    "--availability",
    type=click.FloatRange(0, 100, max_open=True),
    help="The availability that was promised, in percent of 30 days, such as 99.95.",
)


def objectives_options(command: Callable[..., None]) -> Callable[..., None]:
    """What was promised; what is left out is as the policy says."""
    return _rto_option(_rpo_option(_availability_option(command)))


@click.group()
def incident() -> None:
    """Failovers and switchovers, told from the journal for those who were asleep."""


@incident.command("list")
@directory_option
@json_option
def list_incidents(directory: Path, as_json: bool) -> None:
    """List every change of the primary that the journal knows, oldest first.

    The number is the epoch that ended it. The journal keeps the newest 10,000 entries.
    """
    record = _read(directory)
    if as_json:
        print_json([_short(i) for i in record.incidents])
        return
    if not record.incidents:
        click.echo("Nobody has taken over from anybody yet.")
    for one in record.incidents:
        stall = "-" if one.stall_ms is None else f"{one.stall_ms} ms"
        click.echo(f"{one.number:>5}  {_at(one):%Y-%m-%d %H:%M:%S} UTC  {stall:>9}  {one.summary[0]}")
    _say_who_told(record)


@incident.command("show")
@number_argument
@objectives_options
@click.option("--follow", is_flag=True, help="Draw only the steps, again with each change, until they are over.")
@directory_option
@json_option
def show(
    number: int | None,
    rto_ms: int | None,
    rpo_ms: int | None,
    availability: float | None,
    follow: bool,
    directory: Path,
    as_json: bool,
) -> None:
    """Tell one incident: five lines, its steps, where the time went, why, what to change, and what happened.

    Without NUMBER it is the last one. The steps are F failover, A pools shed, I isolate, L load shed, O offline
    snapshot, V verify parity, E ease traffic back, R retrospective: waiting, running, done with what it left as
    evidence, or not done and why.
    """
    if follow:
        if as_json:
            raise click.UsageError("--follow draws for people: leave --json out, and ask again.")
        with_cluster(directory, lambda cluster: _follow(cluster, number))
        return
    record = _read(directory)
    one, objectives = record.one(number), _objectives(record, rto_ms, rpo_ms, availability)
    if as_json:
        print_json(_whole(one, objectives))
        return
    _print(one, objectives)
    _say_who_told(record)


@incident.command("report")
@number_argument
@click.option("--html", type=click.Path(dir_okay=False, path_type=Path), help="Write the page there.")
@click.option("--markdown", type=click.Path(dir_okay=False, path_type=Path), help="Write it as Markdown there.")
@objectives_options
@directory_option
@json_option
def report(
    number: int | None,
    html: Path | None,
    markdown: Path | None,
    rto_ms: int | None,
    rpo_ms: int | None,
    availability: float | None,
    directory: Path,
    as_json: bool,
) -> None:
    """Write the retrospective of one incident: a page that opens without a network, or Markdown.

    Without NUMBER it is of the last one; without --html and --markdown the page goes to incident-NUMBER.html.
    """
    from holdfast.pages.incident import incident_markdown, incident_page
    from holdfast.pages.page import write_whole

    record = _read(directory)
    one, objectives = record.one(number), _objectives(record, rto_ms, rpo_ms, availability)
    accounts = record.accounts_of(one)
    if html is None and markdown is None:
        html = Path(f"incident-{one.number}.html")
    if html is not None:
        write_whole(html, incident_page(one, record.cluster, accounts, objectives))
    if markdown is not None:
        write_whole(markdown, incident_markdown(one, record.cluster, accounts, objectives))
    written = {
        kind: str(path.absolute()) for kind, path in (("html", html), ("markdown", markdown)) if path is not None
    }
    with_cluster(directory, lambda cluster: _note_report(cluster, one.number, list(written.values())))
    if as_json:
        print_json({"incident": one.number, **written})
        return
    for line in one.summary:
        click.echo(line)
    for path in written.values():
        click.echo(f"The report is in {path}")


@incident.command("export")
@number_argument
@click.option("--everything", is_flag=True, help="The whole journal instead of one incident's part of it.")
@directory_option
@json_option
def export(number: int | None, everything: bool, directory: Path, as_json: bool) -> None:
    """Print the journal's entries of one incident, each as a line of JSON; with --json as one list.

    Without NUMBER they are those of the last one. `holdfast incident verify --file` checks what was written.
    """
    record = _read(directory)
    if everything and number is not None:
        raise click.UsageError("--everything is the whole journal: leave the number out.")
    events = record.events if everything else record.whole_events_of(record.one(number))
    if as_json:
        print_json([asdict(event) for event in events])
        return
    for event in events:
        click.echo(event.to_json())


@incident.command("verify")
@click.option(
    "--file",
    "path",
    type=click.Path(exists=True, dir_okay=False, path_type=Path),
    help="An exported file, instead of the journal in the store.",
)
@directory_option
@json_option
@click.pass_context
def verify(ctx: click.Context, path: Path | None, directory: Path, as_json: bool) -> None:
    """Check that nobody changed, removed or put in entries of the journal, by the chain of each of its writers.

    What is in the store is also held against what its writers remember. Of a file only what lies between its first
    and last entries can be checked. Exit status 1 if a chain is broken.
    """
    from holdfast.local.evidence import verify_cluster, verify_file

    found = verify_file(path) if path is not None else with_cluster(directory, verify_cluster)
    if as_json:
        print_json({"intact": found.intact, **asdict(found)})
    else:
        for chain in found.chains:
            _print_chain(chain)
        for name in found.unreadable:
            click.echo(f"cannot be read: {name}")
    ctx.exit(0 if found.intact else FAILED)


def _print_chain(chain: Chain) -> None:
    span = "none of its entries" if chain.first is None else f"entries {chain.first} to {chain.last}"
    older = f", and {chain.unlinked} without a link" if chain.unlinked else ""
    click.echo(f"{chain.source}: {span}{older}: {'intact' if chain.intact else 'BROKEN'}")
    for each in chain.breaks:
        which = f"entry {each.number}" if each.number == each.until else f"entries {each.number} to {each.until}"
        what = "" if each.event is None else f" ({each.event.kind}, {_moment(each.event.time_ms)})"
        click.echo(f"  {each.harm.value}: {which}{what} {each.says}")


async def _note_report(cluster: LocalCluster, number: int, files: list[str]) -> None:
    from holdfast.local.orders import note_deed

    await note_deed(cluster, "incident.reported", incident=number, files=[*files])


async def _follow(cluster: LocalCluster, number: int | None) -> None:
    """Draw the steps whenever the journal grows, and each second while one runs; a report may be written later."""
    from holdfast.local.evidence import wait_for_entries
    from holdfast.local.incidents import read_record

    async for _ in wait_for_entries(cluster, at_least_every_s=1.0):
        record = await read_record(cluster)
        one = record.one(number)
        click.clear()
        click.echo(f"Incident {one.number}: {one.summary[0]}\n")
        _print_steps(one)
        if all(s.is_over for s in one.steps if s.step.letter != "R"):
            return


def _print_steps(one: Incident) -> None:
    from holdfast.cli.playbook import drawn

    for line in drawn(one.steps, time.time() * 1000 - one.story.began_at_ms):
        click.echo(as_typed(f"  {line}"))


def _read(directory: Path) -> Record:
    from holdfast.local.incidents import read_record

    return with_cluster(directory, read_record)


def _objectives(
    record: Record, rto_ms: int | None, rpo_ms: int | None, availability_percent: float | None
) -> Objectives:
    promised = record.promised
    return replace(
        promised,
        rto_ms=promised.rto_ms if rto_ms is None else rto_ms,
        rpo_ms=promised.rpo_ms if rpo_ms is None else rpo_ms,
        availability_percent=promised.availability_percent if availability_percent is None else availability_percent,
    )


def _say_who_told(record: Record) -> None:
    if not record.from_store:
        click.echo("\nThe store does not answer: this is what the agents that answer remember.")


def _at(one: Incident) -> datetime:
    return datetime.fromtimestamp(one.story.began_at_ms / 1000, UTC)


def _moment(at_ms: float) -> str:
    return f"{datetime.fromtimestamp(at_ms / 1000, UTC):%Y-%m-%d %H:%M:%S} UTC"


def _short(one: Incident) -> dict[str, object]:
    return {
        "number": one.number,
        "switchover": one.story.switchover,
        "began_at_ms": one.story.began_at_ms,
        "old": one.story.old,
        "new": one.story.new,
        "stall_ms": one.stall_ms,
        "nothing_lost": one.losses.proved,
        "summary": one.summary,
    }


def _whole(one: Incident, objectives: Objectives) -> dict[str, object]:
    from holdfast.core.incident import against, cost_of

    cost = asdict(cost_of(objectives, one))
    return {**_short(one), **asdict(one), "against_objectives": against(objectives, one), "cost": cost}


def _print(one: Incident, objectives: Objectives) -> None:
    from holdfast.cli.explain import print_lines
    from holdfast.core.incident import against
    from holdfast.core.words import duration

    click.echo(f"Incident {one.number}, {_at(one):%Y-%m-%d %H:%M:%S} UTC\n")
    for line in (*one.summary, *against(objectives, one)):
        click.echo(f"  {line}")
    click.echo("\nHow far it is")
    _print_steps(one)
    click.echo("\nWhere the time went")
    for part in one.parts:
        click.echo(f"  {part.name:8}  {duration(part.ms):>9}  {part.meaning}")
    _print_classes(one, objectives)
    click.echo("\nWhy it may have happened")
    for cause in one.causes:
        click.echo(f"  {cause.what}")
        for words in cause.evidence:
            click.echo(f"      {words}")
        if cause.look_at:
            click.echo(f"      look at {cause.look_at}")
    if not one.causes:
        click.echo("  The journal tells of nothing that would explain it.")
    if one.losses.doubts:
        click.echo("\nWhat is in doubt")
        for doubt in one.losses.doubts:
            click.echo(f"  {doubt}")
    if one.whose.clients:
        click.echo("\nWhose transactions the lost server took with it")
        print_clients(one.whose)
    if one.evidence:
        click.echo("\nWhat was taken as evidence")
        for words in one.evidence:
            click.echo(f"  {words}")
    if one.guardrails:
        click.echo("\nWhat would make the next time better")
        for guardrail in one.guardrails:
            click.echo(f"  {guardrail.what}" + as_typed(f": `{guardrail.command}`" if guardrail.command else ""))
    click.echo("\nWhat happened")
    print_lines(one.story.lines)


def _print_classes(one: Incident, objectives: Objectives) -> None:
    from holdfast.core.cost import CLASS_HEAD, class_rows
    from holdfast.core.incident import cost_of

    told = () if one.impact is None else one.impact.classes
    if not told:
        return
    rows = [CLASS_HEAD, *class_rows(told, cost_of(objectives, one))]
    widths = [max(map(len, column)) for column in zip(*rows, strict=True)]
    click.echo("\nWhat clients met, by class")
    for first, *rest in rows:
        cells = (f"{cell:>{width}}" for cell, width in zip(rest, widths[1:], strict=True))
        click.echo(f"  {first:{widths[0]}}  {'  '.join(cells)}")
