"""What guarded commits cost, and whether their clients are told the truth.

    python bench/commit_guard.py [--rounds 5] [--seconds 5] [--clients 8] [--json FILE]
    python bench/commit_guard.py --crashes 200 [--clients 8] [--json FILE]

Makes a cluster of its own. The first form measures the throughput of writing transactions through the proxy, with
``commit_guard`` off and on in each round (in turn, which is first), in three ways of writing, and prints the medians
and their ratio. The second kills the primary again and again under load, and compares what each client was told of
its row with the rows that are there: `lies` and `unknown` must be 0. Exit status 1 if they are not.
"""

from __future__ import annotations

import argparse
import asyncio
import json
import statistics
import sys
import time
from pathlib import Path
from typing import Any

import psycopg
from rich.console import Console
from rich.table import Table

from holdfast.drill.truths import Told, Truths
from holdfast.local.bringup import temporary_cluster
from holdfast.local.cluster import LocalCluster
from holdfast.local.orders import order
from holdfast.model.register import Phase

WAYS = ("block", "row", "plain")
WHOLE_S = 300.0


async def guard_status(cluster: LocalCluster) -> dict[str, Any]:
    """What the proxy says of its guard."""
    async with cluster.http().get(f"{cluster.proxy_url}/status") as answer:
        found: dict[str, Any] = json.loads(await answer.read())["commit_guard"]
        return found


async def switch_guard(cluster: LocalCluster, on: bool) -> None:
    """Set the policy, and wait until the proxy obeys it.

    Nothing is quarantined: a statement that every client runs is in flight whenever a primary is killed, and would be
    refused after the second.
    """
    await order(cluster, "/policy", {"commit_guard": on, "capture_wait_s": 0, "quarantine": "off"})
    while (await guard_status(cluster))["on"] is not on:  # noqa: ASYNC110 - the proxy is asked, it does not call
        await asyncio.sleep(0.02)


# -- throughput -------------------------------------------------------------------------------------------------------


async def transact(connection: psycopg.AsyncConnection, way: str, number: int) -> None:
    """One transaction that writes one row."""
    if way == "row":
        await connection.execute("INSERT INTO guarded (n) VALUES (%s) RETURNING n", (number,))
        return
    if way == "plain":
        await connection.execute("INSERT INTO guarded (n) VALUES (1)")
        return
    await connection.execute("BEGIN")
    await connection.execute("INSERT INTO guarded (n) VALUES (1)")
    await connection.execute("COMMIT")


async def throughput(connections: list[psycopg.AsyncConnection], way: str, seconds: float) -> float:
    """Transactions per second."""
    done, until = 0, time.monotonic() + seconds

    async def client(connection: psycopg.AsyncConnection) -> None:
        nonlocal done
        while time.monotonic() < until:
            await transact(connection, way, done)
            done += 1

    began = time.monotonic()
    await asyncio.gather(*(client(connection) for connection in connections))
    return done / (time.monotonic() - began)


async def measure(cluster: LocalCluster, rounds: int, seconds: float, clients: int, console: Console) -> dict[str, Any]:
    """Every way of writing, with and without, in every round."""
    connections = [
        await psycopg.AsyncConnection.connect(cluster.write_dsn, autocommit=True, prepare_threshold=None)
        for _ in range(clients)
    ]
    try:
        await connections[0].execute("CREATE TABLE guarded (n int)")
        found: dict[str, dict[str, list[float]]] = {way: {"off": [], "on": []} for way in WAYS}
        for number in range(rounds):
            for way in WAYS:
                for on in (False, True) if number % 2 == 0 else (True, False):
                    await switch_guard(cluster, on)
                    await throughput(connections, way, 0.3)
                    tps = await throughput(connections, way, seconds)
                    found[way]["on" if on else "off"].append(tps)
            console.print(f"round {number + 1} of {rounds}", style="dim")
    finally:
        for connection in connections:
            await connection.close()
    return {way: _compared(runs["off"], runs["on"]) for way, runs in found.items()}


def _compared(off: list[float], on: list[float]) -> dict[str, Any]:
    ratios = [b / a for a, b in zip(off, on, strict=True)]
    return {
        "off_tps": round(statistics.median(off), 1),
        "on_tps": round(statistics.median(on), 1),
        "ratio": round(statistics.median(ratios), 3),
        "ratios": [round(ratio, 3) for ratio in ratios],
    }


# -- crashes ----------------------------------------------------------------------------------------------------------


async def crash(cluster: LocalCluster, truths: Truths) -> None:
    """Kill the primary while every client writes, and wait until the cluster is whole again."""
    rows = len(truths.told)
    while len(truths.told) < rows + 5 * truths.writers:  # noqa: ASYNC110 - until all are at work
        await asyncio.sleep(0.02)
    register = await cluster.register()
    assert register is not None
    assert register.leader is not None
    await cluster.kill_postgres(register.leader.node)
    while True:
        now = await cluster.register()
        if now is not None and now.phase is Phase.SERVING and now.epoch > register.epoch:
            break
        await asyncio.sleep(0.02)
    if not await cluster.wait_until_whole(WHOLE_S):
        raise RuntimeError(f"the cluster is not whole {WHOLE_S:.0f} s after a crash: {cluster.where_to_look()}")


async def crashes(cluster: LocalCluster, count: int, clients: int, limit_s: float, console: Console) -> dict[str, Any]:
    """How many clients were told what, and whether it was true."""
    await switch_guard(cluster, True)
    truths = Truths(cluster.write_dsn, clients)
    await truths.start()
    began, done = time.monotonic(), 0
    while done < count and time.monotonic() - began < limit_s:
        await crash(cluster, truths)
        done += 1
        console.print(
            f"crash {done} of {count}, {time.monotonic() - began:.0f} s: {len(truths.told)} rows", style="dim"
        )
    await truths.stop()
    verdict = await truths.verdict()
    guard = await guard_status(cluster)
    doubtful = guard["found_committed"] + guard["found_undone"] + verdict.unknown
    told = sum(verdict.told.values())
    return {
        "crashes": done,
        "rows": told,
        "told": {told.name.lower(): verdict.told[told] for told in Told},
        "lies": list(verdict.lies),
        "unknown": verdict.unknown,
        "found_committed": guard["found_committed"],
        "found_undone": guard["found_undone"],
        "answered_percent": round(100 * (doubtful - verdict.unknown) / doubtful, 2) if doubtful else None,
        "guarded_commits": guard["commits"],
        "seconds": round(time.monotonic() - began, 1),
    }


def _print_throughput(found: dict[str, Any], console: Console) -> None:
    table = Table("way of writing", "off, tps", "on, tps", "on/off", "of each round")
    for way, figures in found.items():
        rounds = " ".join(f"{ratio:.2f}" for ratio in figures["ratios"])
        table.add_row(way, str(figures["off_tps"]), str(figures["on_tps"]), str(figures["ratio"]), rounds)
    console.print(table)


def _print_crashes(found: dict[str, Any], console: Console) -> None:
    for name, value in found.items():
        console.print(f"{name}: {value}")


async def run(arguments: argparse.Namespace, console: Console) -> dict[str, Any]:
    """Measure, and tell."""

    def progress(step: str) -> None:
        console.print(step, style="dim")

    async with temporary_cluster(nodes=3, progress=progress) as cluster:
        if arguments.crashes:
            found = await crashes(cluster, arguments.crashes, arguments.clients, arguments.limit, console)
            _print_crashes(found, console)
        else:
            found = await measure(cluster, arguments.rounds, arguments.seconds, arguments.clients, console)
            _print_throughput(found, console)
    return found


def main() -> int:
    """Parse and run."""
    parser = argparse.ArgumentParser(description="What guarded commits cost, and whether they tell the truth.")
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--seconds", type=float, default=5.0, help="for each way of writing, with and without")
    parser.add_argument("--clients", type=int, default=8)
    parser.add_argument("--crashes", type=int, default=0, help="kill the primary so often instead")
    parser.add_argument("--limit", type=float, default=86_400.0, help="seconds after which no other crash begins")
    parser.add_argument("--json", type=Path, help="write the figures there, too")
    arguments = parser.parse_args()
    console = Console(stderr=True)
    found = asyncio.run(run(arguments, console))
    if arguments.json is not None:
        arguments.json.write_text(json.dumps(found, indent=2) + "\n")
    return 1 if found.get("lies") or found.get("unknown") else 0


if __name__ == "__main__":
    sys.exit(main())
