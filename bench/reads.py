"""Whether a session is ever shown less than what it has written, and how many reads the standbys take over.

    python bench/reads.py [--pairs 100000] [--clients 8] [--think-ms 20] [--json FILE]

Makes a cluster of its own with two standbys that lag: one by 30 ms at least, and replay is paused on one or both of
them for up to two seconds again and again. Clients write a number and read it, half of them in the same session, half
in another one by token (`SHOW holdfast.lsn`, `SET holdfast.wait_for`). To compare, a tenth of so many pairs is read on
the read-only port first, which promises nothing. Exit status 1 if a routed read is stale, or if no standby answered.
"""

from __future__ import annotations

import argparse
import asyncio
import json
import random
import sys
import time
from contextlib import suppress
from dataclasses import asdict
from pathlib import Path
from typing import Any

import psycopg
from rich.console import Console

from holdfast.drill.pairs import Pairs
from holdfast.local.bringup import temporary_cluster
from holdfast.local.cluster import LocalCluster
from holdfast.local.ramp import read_proxy

DELAY = "30ms"
PAUSE_MAX_S = 2.0
WHOLE_S = 300.0


async def ask(dsn: str, *statements: str) -> None:
    """Run statements on one server, as the superuser."""
    async with await psycopg.AsyncConnection.connect(dsn, autocommit=True) as connection:
        for statement in statements:
            await connection.execute(statement.encode())


async def lag(dsns: list[str], seed: int) -> None:
    """Pause and resume replay at random, until cancelled."""
    rng = random.Random(seed)
    try:
        while True:
            await asyncio.sleep(rng.random() * PAUSE_MAX_S)
            paused = rng.choice([dsns[:1], dsns[1:], dsns])
            for dsn in paused:
                await ask(dsn, "SELECT pg_wal_replay_pause()")
            await asyncio.sleep(rng.random() * PAUSE_MAX_S)
            for dsn in paused:
                await ask(dsn, "SELECT pg_wal_replay_resume()")
    finally:
        for dsn in dsns:
            await ask(dsn, "SELECT pg_wal_replay_resume()")


async def run_pairs(pairs: Pairs, standbys: list[str], console: Console) -> dict[str, Any]:
    """Make them while the standbys lag."""
    await pairs.setup()
    await asyncio.sleep(1.0)  # the table comes to the standbys
    lagging = asyncio.create_task(lag(standbys, 7))
    began = time.monotonic()
    pairs.start()
    making = asyncio.create_task(pairs.wait())
    try:
        while not making.done():
            await asyncio.wait((making,), timeout=30)
            console.print(f"{pairs.made} pairs after {time.monotonic() - began:.0f} s", style="dim")
        await making
    finally:
        await pairs.close()
        lagging.cancel()
        with suppress(asyncio.CancelledError):
            await lagging
    on_standbys = await pairs.read_on(standbys)
    return {
        "session": asdict(pairs.session),
        "token": asdict(pairs.token),
        "reads_on_standbys": on_standbys,
        "share_on_standbys": round(on_standbys / pairs.made, 4) if pairs.made else None,
        "seconds": round(time.monotonic() - began, 1),
    }


async def measure(cluster: LocalCluster, options: argparse.Namespace, console: Console) -> dict[str, Any]:
    """First what the read-only port shows, then what is routed."""
    if not await cluster.wait_until_whole(WHOLE_S):
        raise RuntimeError(f"the cluster is not whole: {cluster.where_to_look()}")
    register = await cluster.register()
    assert register is not None
    assert register.leader is not None
    standbys = [await cluster.direct_dsn(n) for n in cluster.nodes if n != register.leader.node]
    delay = f"ALTER SYSTEM SET recovery_min_apply_delay = '{DELAY}'"
    await ask(standbys[0], delay, "SELECT pg_reload_conf()")
    shared: dict[str, Any] = {"clients": options.clients, "think_ms": options.think_ms}
    ways = (cluster.write_dsn,)
    plain = Pairs(ways, schema="plain", limit=options.pairs // 10, read_dsn=cluster.read_dsn, **shared)
    routed = Pairs(ways, schema="routed", limit=options.pairs, **shared)
    found = {"read_only_port": await run_pairs(plain, standbys, console)}
    found["routed"] = await run_pairs(routed, standbys, console)
    found["proxy"] = (await read_proxy(cluster))["reads"]
    return found


async def run(options: argparse.Namespace, console: Console) -> dict[str, Any]:
    """In a cluster of its own."""
    async with temporary_cluster(nodes=3, progress=lambda step: console.print(step, style="dim")) as cluster:
        return await measure(cluster, options, console)


def main() -> int:
    """See the module's text."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--pairs", type=int, default=100_000)
    parser.add_argument("--clients", type=int, default=8)
    parser.add_argument("--think-ms", type=float, default=20.0)
    parser.add_argument("--json", type=Path)
    options = parser.parse_args()
    console = Console(stderr=True)
    found = asyncio.run(run(options, console))
    text = json.dumps(found, indent=2)
    print(text)
    if options.json is not None:
        options.json.write_text(text + "\n")
    routed = found["routed"]
    stale = routed["session"]["stale"] + routed["token"]["stale"]
    return 1 if stale or not routed["reads_on_standbys"] else 0


if __name__ == "__main__":
    sys.exit(main())
