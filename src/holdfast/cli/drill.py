"""``holdfast drill``: faults on purpose, with a verdict."""

from __future__ import annotations

import json
import sys
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from holdfast.cli.failures import FAILED, run
from holdfast.cli.output import Steps, as_typed, json_option, print_json
from holdfast.cli.trial import (
    STANDARD_OUTPUT,
    Trial,
    check_places,
    drill_options,
    try_on_own_cluster,
    try_on_running_cluster,
)

if TYPE_CHECKING:
    from holdfast.drill.archive import Entry
    from holdfast.drill.scenario import Drill

ALL = "all"
ON_LOOPBACK = "primary-crash"
"""The one drill that needs no hosts of its own."""
HISTORY = "history.jsonl"


@click.group()
def drill() -> None:
    """Break a cluster on purpose, and account for every write."""


def _catalogue() -> dict[str, Drill]:
    from holdfast.drill.catalogue import CATALOGUE

    return CATALOGUE


def _known(ctx: click.Context, parameter: click.Parameter, value: str) -> str:
    names = [*_catalogue(), ALL]
    if value not in names:
        raise click.BadParameter(f"{value!r} is no drill; there are {', '.join(names)}.")
    return value


@drill.command("list")
@json_option
def list_drills(as_json: bool) -> None:
    """Say which drills there are."""
    drills = _catalogue().values()
    if as_json:
        print_json(
            [
                {"name": d.name, "title": d.title, "fault": d.fault, "proves": d.proves, "scenarios": list(d.scenarios)}
                for d in drills
            ]
        )
        return
    width = max(len(d.name) for d in drills)
    for each in drills:
        click.echo(f"{each.name:{width}}  {each.title[0].lower()}{each.title[1:]}")


@drill.command("run")
@click.argument("name", callback=_known)
@drill_options
@click.option("--runs", type=click.IntRange(1, 1000), default=None, help="Run it so often, with seeds from --seed on.")
@click.option(
    "--on",
    "place",
    type=click.Choice(("hosts", "loopback")),
    default=None,
    help="Hosts of its own (network namespaces), or this machine's loopback, which is for primary-crash only.  "
    "[default: loopback for primary-crash alone, else hosts]",
)
@click.option("--afresh", is_flag=True, help="Do not go on where an interrupted run of the same drills ended.")
@click.option(
    "--dir",
    "directory",
    type=click.Path(file_okay=False, path_type=Path),
    default=None,
    help="Try the running cluster of this directory, and leave it running (primary-crash only).  "
    "[default: a cluster of its own]",
)
@click.option("--nodes", type=int, default=None, help="Nodes of its own cluster on loopback: 3 to 9.  [default: 3]")
@click.pass_context
def run_drill(
    ctx: click.Context,
    name: str,
    trial: Trial,
    runs: int | None,
    place: str | None,
    afresh: bool,
    directory: Path | None,
    nodes: int | None,
) -> None:
    """Run one drill, or `all`; exit status 0 only if every run passed: nothing lost, the cluster whole again."""
    on_loopback = place == "loopback" or (place is None and name == ON_LOOPBACK and runs is None)
    if not on_loopback and directory is None:
        if nodes is not None or trial.hard:
            raise click.UsageError("--nodes and --hard are for primary-crash on loopback.")
        ctx.exit(_run_on_hosts(name, trial, runs, afresh))
    if name != ON_LOOPBACK:
        raise click.UsageError(f"{name} needs hosts of its own: leave out --on and --dir ({ON_LOOPBACK} needs none).")
    if runs is not None:
        raise click.UsageError("--runs is for hosts of its own: leave out --on and --dir.")
    if directory is None:
        passed = run(try_on_own_cluster(trial, nodes=3 if nodes is None else nodes))
    elif nodes is not None:
        raise click.UsageError("--nodes is for a cluster of the drill's own: leave out --dir or --nodes.")
    else:
        passed = run(try_on_running_cluster(trial, directory))
    ctx.exit(0 if passed else FAILED)


def _run_on_hosts(name: str, trial: Trial, runs: int | None, afresh: bool) -> int:
    """Go to a network of our own, run, print the table; returns the exit status."""
    from holdfast.cli.logs import configure_quiet_logs
    from holdfast.drill import hosts

    check_places(trial)
    hosts.enter([sys.executable, "-m", "holdfast.cli", *sys.argv[1:]])
    configure_quiet_logs()
    entries, left = run(_campaign(name, trial, runs, afresh))
    _write_json(trial, entries, alone=runs is None and name != ALL)
    return 0 if all(e.result is not None and e.result.passed for e in entries) and not left else FAILED


async def _campaign(name: str, trial: Trial, runs: int | None, afresh: bool) -> tuple[list[Entry], int]:
    from holdfast.drill.archive import Archive, phase_table, summarize, table
    from holdfast.drill.campaign import Campaign, Turn, run_campaign, turns_of
    from holdfast.drill.progress import make_observer
    from holdfast.drill.runner import DrillOptions

    to_stderr = trial.json_file == STANDARD_OUTPUT
    steps = Steps(err=to_stderr)
    drills = list(_catalogue().values()) if name == ALL else [_catalogue()[name]]
    archive = Archive(trial.report_dir.absolute() / HISTORY)
    place = trial.report_dir.absolute() / f"unfinished-{name}.json"
    campaign = Campaign.resume(place, turns_of(drills, runs or 1, trial.seed), afresh=afresh)
    if campaign.done:
        steps(f"going on where an earlier run ended: {len(campaign.done)} of {len(campaign.turns)} are done")

    def options_of(turn: Turn) -> DrillOptions:
        page = f"{turn.drill.name}-{turn.seed}.html" if len(campaign.turns) > 1 else "report.html"
        return DrillOptions(report_path=trial.report_dir.absolute() / page)

    await run_campaign(campaign, archive, options_of, lambda: make_observer(plain=trial.plain, err=to_stderr), steps)
    entries = archive.entries()[-len(campaign.turns) :]
    if len(campaign.turns) > 1:
        rows = summarize(entries)
        click.echo("", err=to_stderr)
        for line in (*table(rows), "", *phase_table(rows)):
            click.echo(line, err=to_stderr)
    return entries, len(campaign.left)


def _write_json(trial: Trial, entries: list[Entry], *, alone: bool) -> None:
    if trial.json_file is None:
        return
    found: Any = [entry.as_run() for entry in entries]
    text = json.dumps(found[-1] if alone else {"runs": found}, indent=2) + "\n"
    if trial.json_file == STANDARD_OUTPUT:
        click.echo(text, nl=False)
    else:
        trial.json_file.write_text(text)


@drill.command("history")
@json_option
@click.option(
    "--report",
    "report_dir",
    type=click.Path(file_okay=False, path_type=Path),
    default=Path("holdfast-report"),
    show_default=True,
    help="Directory that the drills wrote to.",
)
@click.option("--table", "as_table", is_flag=True, help="One line for each drill and settings instead of each run.")
def history(as_json: bool, report_dir: Path, as_table: bool) -> None:
    """Say what earlier drills on hosts found; runs may be compared only if their settings' hash is the same."""
    from holdfast.core.words import duration
    from holdfast.drill.archive import Archive, phase_table, summarize, table

    entries = Archive(report_dir / HISTORY).entries()
    if as_json:
        print_json({"runs": [{"at": entry.at, **entry.as_run()} for entry in entries]})
        return
    if not entries:
        click.echo(as_typed(f"no drill has left a result in {report_dir} yet: `holdfast drill run all` does"))
        return
    if as_table:
        rows = summarize(entries)
        for line in (*table(rows), "", *phase_table(rows)):
            click.echo(line)
        return
    for entry in entries:
        result = entry.result
        if result is None:
            click.echo(f"{entry.at}  {'':19}  {entry.drill:32} seed {entry.seed:<4} NOT RUN: {entry.not_run}")
            continue
        word = "passed" if result.passed else "FAILED"
        click.echo(
            f"{entry.at}  {result.settings[:19]}  {entry.drill:32} seed {entry.seed:<4} {word}  "
            f"stall {duration(result.rto_ms)}, lost {result.writes.lost}"
        )
