"""``holdfast explain``: the tables by which the cluster is led."""

from __future__ import annotations

from dataclasses import asdict
from itertools import groupby

import click

from holdfast.cli.output import json_option, print_json

_TITLES = {
    "cluster": "What a voter does about the register: phase of the epoch, what it sees",
    "node": "What an agent does about its own PostgreSQL: what it is, what it ought to be",
    "verdict": "What an observer holds of the primary: rules in the order in which they are tried, the verdict of each",
}


@click.command()
@json_option
def explain(as_json: bool) -> None:
    """Print every rule of the leadership protocol: what is seen, which rule fires, and why."""
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
