"""``holdfast quarantine``: statements that may have killed a primary, and what a person says of them."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import asdict
from datetime import datetime
from pathlib import Path
from typing import TYPE_CHECKING

import click

from holdfast.cli.clusters import with_cluster
from holdfast.cli.output import as_typed, directory_option, json_option, print_json

if TYPE_CHECKING:
    from holdfast.local.cluster import LocalCluster
    from holdfast.model.suspect import Suspect


@click.group()
def quarantine() -> None:
    """List, release or keep statements that may have killed a primary.

    What was in flight when a primary was lost, and is not always in flight, is a suspect. Proxies let it in one at a
    time after that, and with others step by step as it does no harm; if a second primary is lost under it, it is
    refused until a person releases it. The policy says what becomes of suspects (`quarantine`, `quarantine_s`).
    """


@quarantine.command("list")
@directory_option
@json_option
def list_suspects(directory: Path, as_json: bool) -> None:
    """Show all suspects, the newest first, and what speaks against them."""
    from holdfast.local.quarantine import read_suspects

    suspects = with_cluster(directory, read_suspects)
    if as_json:
        print_json([asdict(suspect) for suspect in suspects])
        return
    for suspect in suspects:
        click.echo("\n".join(_lines(suspect)))
    if not suspects:
        click.echo("no statement is suspected of anything")


@quarantine.command("fingerprint")
@click.argument("sql")
@json_option
def show_fingerprint(sql: str, as_json: bool) -> None:
    """Show the fingerprint of a statement: what it has in common with those that differ only in their values.

    Nobody is asked; any text will do, with values or with $1 in their place. The policy's `stale_by` names it, too.
    """
    from holdfast.wire.fingerprint import fingerprint

    found = fingerprint(sql.encode())
    if as_json:
        print_json({"id": found.id, "statement": found.text})
        return
    click.echo(f"{found.id}  {found.text}")


@quarantine.command("release")
@click.argument("suspect", metavar="ID")
@directory_option
@json_option
def release(suspect: str, directory: Path, as_json: bool) -> None:
    """Let everybody run it again."""
    _judge(directory, suspect, "release", as_json)


@quarantine.command("keep")
@click.argument("suspect", metavar="ID")
@directory_option
@json_option
def keep(suspect: str, directory: Path, as_json: bool) -> None:
    """Let nobody run it until it is released."""
    _judge(directory, suspect, "keep", as_json)


def _judge(directory: Path, suspect: str, verdict: str, as_json: bool) -> None:
    from holdfast.local.orders import order

    async def given(cluster: LocalCluster) -> str:
        return await order(cluster, "/suspect", {"suspect": suspect, "verdict": verdict})

    message = with_cluster(directory, given)
    if as_json:
        print_json({"ok": True, "message": message})
    else:
        click.echo(as_typed(message))


def _lines(suspect: Suspect) -> Iterator[str]:
    from holdfast.core.admission.suspicion import RULES

    since = datetime.fromtimestamp(suspect.at_ms / 1000).astimezone()
    epochs = ", ".join(map(str, suspect.epochs))
    yield f"{suspect.id}  {suspect.standing.value:8}  since {since:%Y-%m-%d %H:%M:%S %Z}  {suspect.text}"
    yield f"              {suspect.rule}: {RULES[suspect.rule]}"
    ran = f"in flight in {suspect.sessions} sessions, for {suspect.ran_ms} ms at most"
    yield f"              lost with it: the primary of epoch {epochs}; {ran}"
