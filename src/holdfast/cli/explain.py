"""``holdfast explain``: the tables by which the cluster is led."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import asdict
from datetime import UTC, datetime
from itertools import groupby
from pathlib import Path
from typing import TYPE_CHECKING

import click

from holdfast.cli.clusters import with_cluster
from holdfast.cli.failures import FAILED
from holdfast.cli.output import directory_option, json_option, print_json

if TYPE_CHECKING:
    from holdfast.core.story import Line, Story

_TITLES = {
    "cluster": "What a voter does about the register: phase of the epoch, what it sees",
    "node": "What an agent does about its own PostgreSQL: what it is, what it ought to be",
    "verdict": "What an observer holds of the primary: rules in the order in which they are tried, the verdict of each",
    "outcome": "What is said of a transaction: number, the outcome, the rule that decides it",
}


@click.command()
@click.option("--last", is_flag=True, help="Tell the last failover or switchover instead: who did what, and why.")
@directory_option
@json_option
@click.pass_context
def explain(ctx: click.Context, last: bool, directory: Path, as_json: bool) -> None:
    """Print every rule of the leadership protocol: what is seen, which rule fires, and why.

    With --last it tells what happened in the last change of leadership of the cluster of --dir, from its journal, or
    from what the agents remember while the store is away. Exit status 1 if there has been none.
    """
    if last:
        ctx.exit(_explain_last(directory, as_json))
    from holdfast.core.explain import rows

    found = rows()
    if as_json:
        print_json([asdict(row) for row in found])
        return
    state, seen, rule = (max(len(getattr(row, column)) for row in found) for column in ("state", "input", "rule"))
    for table, of_table in groupby(found, key=lambda row: row.table):
        click.echo(f"{_TITLES.get(table, table)}\n")
        for row in of_table:
            click.echo(f"  {row.state:{state}}  {row.input:{seen}}  {row.rule:{rule}}  {row.comment}")
        click.echo("")


def _explain_last(directory: Path, as_json: bool) -> int:
    from holdfast.local.outlook import read_story

    story, from_store = with_cluster(directory, read_story)
    if as_json:
        print_json({"source": "store" if from_store else "agents", "story": None if story is None else asdict(story)})
    elif story is None:
        click.echo("Nobody has taken over from anybody yet.")
    else:
        _print_story(story, from_store)
    return FAILED if story is None else 0


def _print_story(story: Story, from_store: bool) -> None:
    began = datetime.fromtimestamp(story.began_at_ms / 1000, UTC)
    click.echo(story.headline)
    click.echo(f"It began on {began:%Y-%m-%d} at {began:%H:%M:%S.%f}"[:-3] + " UTC.")
    if not from_store:
        click.echo("The store does not answer: this is what the agents that answer remember.")
    click.echo("")
    print_lines(story.lines)
    click.echo("")
    for name, words in (
        ("opened_ms", "an epoch was open"),
        ("chosen_ms", "a candidate was chosen"),
        ("promoted_ms", "it had left recovery"),
        ("serving_ms", "it served writes"),
        ("old_back_ms", f"{story.old} was back as a standby"),
    ):
        value = getattr(story, name)
        click.echo(
            f"{'-' if value is None else _after(value):>10}  {words if value is not None else 'not yet: ' + words}"
        )


def print_lines(lines: Sequence[Line]) -> None:
    """What happened, line by line, each with the rule and the evidence that led to it."""
    who = max(len(line.who) for line in lines)
    for line in lines:
        click.echo(f"{_after(line.offset_ms):>10}  {line.who:{who}}  {line.says}")
        for detail in _details(line):
            click.echo(f"{'':{who + 14}}{detail}")


def _details(line: Line) -> list[str]:
    rule = [f"rule {line.rule}: {line.why}"] if line.rule and line.why else []
    return [*rule, *line.evidence]


def _after(ms: int) -> str:
    return f"+{ms} ms" if ms < 10_000 else f"+{ms / 1000:.1f} s"
