"""``holdfast status``: how the cluster does, and what it could lose now."""

from __future__ import annotations

import asyncio
from collections.abc import Iterator
from datetime import datetime
from pathlib import Path
from typing import TYPE_CHECKING

import click

from holdfast.cli.failures import FAILED, run
from holdfast.cli.output import as_typed, directory_option, json_option, print_json

if TYPE_CHECKING:
    from rich.console import RenderableType

    from holdfast.local.cluster import LocalCluster
    from holdfast.local.status import ClusterStatus, NodeStatus


@click.command()
@directory_option
@click.option("--watch", is_flag=True, help="Go on until Ctrl-C.")
@json_option
@click.pass_context
def status(ctx: click.Context, directory: Path, watch: bool, as_json: bool) -> None:
    """Show every node, the quorum, and which losses are tolerated now; exit status 1 if it is not healthy."""
    from holdfast.cli.logs import configure_quiet_logs
    from holdfast.local.cluster import LocalCluster

    configure_quiet_logs()
    cluster = LocalCluster.open(directory)
    healthy = run(_watch(cluster, as_json) if watch else _once(cluster, as_json))
    ctx.exit(0 if healthy else FAILED)


async def _once(cluster: LocalCluster, as_json: bool) -> bool:
    from holdfast.local.status import read_status

    try:
        now = await read_status(cluster)
    finally:
        await cluster.close()
    _show(now, as_json)
    return now.healthy


async def _watch(cluster: LocalCluster, as_json: bool) -> bool:
    from rich.console import Console
    from rich.live import Live

    from holdfast.local.status import read_status

    interval_s = cluster.timeouts.local_watch_ms / 1000
    console = Console()
    try:
        if as_json or not console.is_terminal:
            while True:
                _show(await read_status(cluster), as_json)
                await asyncio.sleep(interval_s)
        with Live(console=console, auto_refresh=False) as live:
            while True:
                live.update(_picture(await read_status(cluster)), refresh=True)
                await asyncio.sleep(interval_s)
    finally:
        await cluster.close()


def _show(now: ClusterStatus, as_json: bool) -> None:
    if as_json:
        print_json(now.to_dict())
        return
    from rich.console import Console

    Console(highlight=False).print(_picture(now), soft_wrap=True)


def _picture(now: ClusterStatus) -> RenderableType:
    from rich.console import Group
    from rich.table import Table
    from rich.text import Text

    table = Table(box=None, pad_edge=False, padding=(0, 2, 0, 0))
    for heading in ("node", "role", "epoch", "position", "lag", "streams", "in quorum", "agent", "port"):
        table.add_column(heading, justify="right" if heading in ("epoch", "lag", "port") else "left")
    for node in now.nodes:
        is_primary = node.name == now.primary
        table.add_row(
            node.name,
            Text(_role(node), style="bold green" if is_primary else "" if node.streaming else "yellow"),
            "-" if node.epoch is None else str(node.epoch),
            node.position or "-",
            "-" if node.lag_bytes is None else f"{node.lag_bytes:,} B",
            "" if is_primary else "yes" if node.streaming else "no",
            "leads" if is_primary else "yes" if node.member else "no",
            "alive" if node.agent_alive else Text("silent", style="red"),
            str(node.postgres_port),
        )
    return Group(
        f"{now.directory}: {_state(now)}",
        table,
        *(Text(as_typed(words), style=style) for words, style in _news(now)),
        f"durability  {now.durability or '-'}",
        f"tolerates   {now.tolerates}",
        *(Text(as_typed(f"            but {obstacle}")) for obstacle in now.obstacles),
        *_planned(now),
        *_voters(now),
        f"write       {now.write_address}    read  {now.read_address}",
    )


def _state(now: ClusterStatus) -> str:
    if not now.running:
        return "stopped"
    if now.primary_lost is not None:
        return f"epoch {now.epoch}, {now.primary} is lost ({now.primary_lost})"
    return f"epoch {now.epoch}, {_PHASES.get(now.phase or '', now.phase)}"


_PHASES = {
    "recruiting": "recruiting: standbys stop listening to the old primary, and the one with the most log is chosen",
    "promoting": "promoting: the chosen one is taking over",
}


def _role(node: NodeStatus) -> str:
    """What it is, or was when it was last heard of."""
    return node.role if node.agent_alive or node.role == "unknown" else f"was {node.role}"


def _news(now: ClusterStatus) -> Iterator[tuple[str, str]]:
    """What is out of the ordinary, each with its style, the most urgent last."""
    for node in now.nodes:
        if node.progress:
            yield f"{node.name}: {node.progress}", ""
        if node.isolated:
            yield f"ISOLATED {node.name}: {node.isolated}", "yellow"
    for words in now.held_back:
        yield words, "yellow"
    for trouble in now.troubles:
        yield trouble, "bold red" if "ALARM" in trouble else "yellow"
    if now.running and not now.supervised:
        yield f"its supervisor is gone: what dies stays dead until `holdfast up --dir {now.directory}`", "red"
    if now.paused:
        yield "PAUSED: agents look on and touch nothing until `holdfast resume`", "bold"
    for name in now.unread:
        yield f"nobody reads from {name}, as the policy says (`holdfast policy set {name}.readable=true`)", "yellow"
    if now.waiting:
        yield f"WAITS: {now.waiting}", "bold red"


def _planned(now: ClusterStatus) -> list[str]:
    plan = now.planned_switchover
    if plan is None:
        return []
    at = datetime.fromtimestamp(plan.at_ms / 1000).astimezone()
    return [f"planned     switchover to {plan.to or 'the most suitable standby'} at {at:%Y-%m-%d %H:%M:%S %Z}"]


def _voters(now: ClusterStatus) -> list[RenderableType]:
    """What each voter thinks of the primary, and how many must agree."""
    from rich.text import Text

    if not now.voters:
        return []
    lost = sum(voter.would_fail_over for voter in now.voters)
    count = f"{lost} of {len(now.voters)} voters hold the primary for lost; {now.votes_needed} must agree"
    lines: list[RenderableType] = [f"voters      {count}"]
    for voter in now.voters:
        style = "red" if voter.would_fail_over else "" if voter.verdict == "healthy" else "yellow"
        held = f"holds {voter.about_in_words} for {voter.verdict}" if voter.verdict is not None else "has no verdict"
        lines.append(Text(f"            {voter.name}  {held}: {voter.evidence}", style=style))
    return lines
