"""``holdfast ramp``: what is let into the database after a promotion, and what a person wants of it."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from holdfast.cli.clusters import with_cluster
from holdfast.cli.output import as_typed, directory_option, json_option, print_json

if TYPE_CHECKING:
    from holdfast.local.cluster import LocalCluster


@click.group()
def ramp() -> None:
    """Show what is let into the database; hold, resume, speed up or end the ramp after a promotion.

    A fresh primary has cold caches and meets all of the backlog: proxies let in a part of the usual number of
    statements first, and more in steps. The policy says how (`ramp_start_percent`, `ramp_window_s`).
    """


@ramp.command("show")
@directory_option
@json_option
def show(directory: Path, as_json: bool) -> None:
    """Show who is inside, who waits and who was refused, by class, and the step of the ramp."""
    from holdfast.local.ramp import read_admission

    admission = with_cluster(directory, read_admission)
    if as_json:
        print_json(admission)
        return
    for port, now in admission.items():
        click.echo("\n".join(_lines(port, now)))


@ramp.command("hold")
@directory_option
@json_option
def hold(directory: Path, as_json: bool) -> None:
    """Stay at this step until `holdfast ramp resume`."""
    _give(directory, "hold", as_json)


@ramp.command("resume")
@directory_option
@json_option
def resume(directory: Path, as_json: bool) -> None:
    """Go on by the rules."""
    _give(directory, "resume", as_json)


@ramp.command("faster")
@directory_option
@json_option
def faster(directory: Path, as_json: bool) -> None:
    """Take the next step now."""
    _give(directory, "faster", as_json)


@ramp.command("end")
@directory_option
@json_option
def end(directory: Path, as_json: bool) -> None:
    """Let everybody in."""
    _give(directory, "end", as_json)


def _give(directory: Path, wanted: str, as_json: bool) -> None:
    from holdfast.local.orders import order

    async def given(cluster: LocalCluster) -> str:
        return await order(cluster, "/ramp", {"order": wanted})

    message = with_cluster(directory, given)
    if as_json:
        print_json({"ok": True, "message": message})
    else:
        click.echo(as_typed(message))


def _lines(port: str, now: dict[str, Any]) -> Iterator[str]:
    limit = "any number" if now["limit"] is None else f"at most {now['limit']}"
    yield f"{port}: {limit} at once; {now['inside']} inside, {now['waiting']} wait; usual is {now['usual']}"
    climb = now["ramp"]
    if climb is not None:
        held = ", HELD by a person" if climb["held"] else ""
        since = f"{climb['since_ms'] / 1000:.1f} s after it began (window: {climb['window_s']} s)"
        yield f"  ramp of epoch {climb['epoch']}: {climb['percent']} % of the usual {climb['usual']}, {since}{held}"
    found = now["adaptive"]
    if found is not None:
        trial = f", one step {found['trial']} on trial" if found["trial"] is not None else ""
        latency = f" at {found['latency_ms']:.1f} ms inside" if found["latency_ms"] is not None else ""
        yield f"  found by trial: {found['limit']} at once{latency}{trial}"
    for name, line in now["classes"].items():
        over = f", {line['over_quota']} of these over quota" if line.get("over_quota") else ""
        yield f"  {name:16} {line['inside']:6} inside {line['waiting']:6} wait{over} {line['refused']:6} refused"
