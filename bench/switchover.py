"""What a switchover costs its clients, and how much of that PostgreSQL itself would take.

    python bench/switchover.py [--rounds 10] [--json FILE]

Makes a cluster of its own with writers through the proxy and idle sessions, and hands the primary's part over again
and again. For each round: how long no write was acknowledged, and the parts of that time from the journal. The *floor*
is measured beside it, in each round: a bare primary with one standby, without load, is stopped with
``pg_ctl stop -m fast`` and the standby promoted with ``pg_ctl promote -w``, one after the other, by somebody who looks
at nothing.
"""

from __future__ import annotations

import argparse
import asyncio
import contextlib
import json
import os
import shutil
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import AsyncIterator, Sequence
from itertools import pairwise
from pathlib import Path
from typing import Any

import psycopg
from rich.console import Console
from rich.table import Table

from holdfast.local.bringup import temporary_cluster
from holdfast.local.cluster import LocalCluster
from holdfast.local.ports import free_ports
from holdfast.model.event import Event
from holdfast.postgres.account import run_as

ENDS = {
    "drain and stop": "postgres.stopped",
    "open the epoch": "epoch.opened",
    "recruit and choose": "candidate.chosen",
    "promote": "primary.promoted",
    "barrier": "epoch.serving",
}
"""Parts of a switchover in order, each with the journal entry that ends it."""
LAST_PART = "first write"
BEGINS = "handover.begun"

Round = dict[str, Any]
"""What was found in one round."""


class Load:
    """Paced writers and idle sessions; when each write was acknowledged."""

    def __init__(self, cluster: LocalCluster, writers: int, idle: int, rate: float) -> None:
        self._dsn = cluster.write_dsn
        self._writers, self._idle = writers, idle
        self._pause_s = writers / rate
        self.acknowledged_ms: list[float] = []
        self.errors: list[str] = []

    @contextlib.asynccontextmanager
    async def running(self) -> AsyncIterator[None]:
        """Under load."""
        async with contextlib.AsyncExitStack() as stack:
            sessions = [await self._session(stack) for _ in range(self._writers + self._idle)]
            await sessions[0].execute("CREATE TABLE IF NOT EXISTS written (at timestamptz DEFAULT now())")
            tasks = [asyncio.create_task(self._write(session)) for session in sessions[: self._writers]]
            try:
                yield
            finally:
                for task in tasks:
                    task.cancel()
                await asyncio.gather(*tasks, return_exceptions=True)

    async def _session(self, stack: contextlib.AsyncExitStack) -> psycopg.AsyncConnection:
        return await stack.enter_async_context(await psycopg.AsyncConnection.connect(self._dsn, autocommit=True))

    async def _write(self, session: psycopg.AsyncConnection) -> None:
        while True:
            try:
                await session.execute("INSERT INTO written DEFAULT VALUES")
                self.acknowledged_ms.append(time.time() * 1000)
            except psycopg.Error as error:
                self.errors.append(str(error).strip())
                return
            await asyncio.sleep(self._pause_s)


def parts_of(events: Sequence[Event], acknowledged_ms: Sequence[float], epoch: int) -> dict[str, float]:
    """The parts of the switchover to ``epoch``, in milliseconds; a part that the journal does not tell is 0."""
    begun = max(e.at_ms for e in events if e.kind == BEGINS)
    reached, parts = begun, {}
    for part, kind in ENDS.items():
        found = [e.at_ms for e in events if e.kind == kind and e.at_ms >= begun and e.epoch in (epoch - 1, epoch)]
        ended = max(reached, min(found, default=reached))
        parts[part], reached = ended - reached, ended
    parts[LAST_PART] = max(0.0, min((ms for ms in acknowledged_ms if ms > reached), default=reached) - reached)
    return parts


def longest_gap_ms(acknowledged_ms: Sequence[float], since_ms: float) -> float:
    """The longest time without an acknowledged write."""
    seen = sorted(ms for ms in acknowledged_ms if ms >= since_ms)
    return max((b - a for a, b in pairwise(seen)), default=0.0)


class Floor:
    """A bare primary and its standby, again and again from the same copy."""

    def __init__(self, programs: Path, scratch: Path) -> None:
        self._programs, self._scratch = programs, scratch
        self._primary, self._standby = scratch / "primary", scratch / "standby"
        self._user = run_as(None)
        if self._user is not None:
            os.chown(scratch, self._user.uid, self._user.gid)

    def measure_ms(self) -> float:
        """One round: both made, then stopped and promoted."""
        for directory in (self._primary, self._standby):
            shutil.rmtree(directory, ignore_errors=True)
        spare = free_ports(os.getpid())
        ports = next(spare), next(spare)
        self._run("initdb", "-D", str(self._primary), "-U", "postgres", "-A", "trust", "-N")
        self._start(self._primary, ports[0])
        address = ("-h", "127.0.0.1", "-p", str(ports[0]), "-U", "postgres")
        self._run("pg_basebackup", "-D", str(self._standby), *address, "-R", "-X", "stream", "-c", "fast")
        self._start(self._standby, ports[1])
        try:
            began = time.monotonic()
            self._run("pg_ctl", "stop", "-m", "fast", "-w", "-D", str(self._primary))
            self._run("pg_ctl", "promote", "-w", "-D", str(self._standby))
            return (time.monotonic() - began) * 1000
        finally:
            self._run("pg_ctl", "stop", "-m", "immediate", "-D", str(self._standby))

    def _start(self, directory: Path, port: int) -> None:
        options = f"-p {port} -c listen_addresses=127.0.0.1 -c unix_socket_directories={self._scratch}"
        log = str(self._scratch / f"{directory.name}.log")
        self._run("pg_ctl", "start", "-w", "-D", str(directory), "-o", options, "-l", log)

    def _run(self, program: str, *arguments: str) -> None:
        account: dict[str, Any] = {}
        if self._user is not None:
            account = {"user": self._user.uid, "group": self._user.gid, "extra_groups": []}
        done = subprocess.run(
            [str(self._programs / program), *arguments],
            stdout=subprocess.DEVNULL,
            stderr=subprocess.PIPE,
            text=True,
            check=False,
            cwd=self._scratch,
            **account,
        )
        if done.returncode != 0:
            raise SystemExit(f"{program} failed: {done.stderr.strip()}")


async def measure(
    cluster: LocalCluster, load: Load, floor: Floor, rounds: int, console: Console
) -> list[dict[str, Any]]:
    """One entry for each round."""
    found: list[dict[str, Any]] = []
    for number in range(1, rounds + 1):
        if not await cluster.wait_until_whole(60):
            raise SystemExit("the cluster was not whole within 60 s")
        floor_ms = await asyncio.to_thread(floor.measure_ms)
        async with load.running():
            await asyncio.sleep(2)
            since_ms = time.time() * 1000
            await cluster.switch_over(None)
            await asyncio.sleep(1)
        register = await cluster.register()
        if register is None:
            raise SystemExit("the store holds no register")
        parts = parts_of(await cluster.events(), load.acknowledged_ms, register.epoch)
        stall_ms = longest_gap_ms(load.acknowledged_ms, since_ms)
        found.append({"stall_ms": stall_ms, "floor_ms": floor_ms, "ratio": stall_ms / floor_ms, "parts_ms": parts})
        console.print(f"  round {number} of {rounds}: {stall_ms:.0f} ms, floor {floor_ms:.0f} ms")
    return found


def show(found: Sequence[Round], errors: Sequence[str], console: Console) -> None:
    """The table."""
    table = Table(title=f"{len(found)} switchovers", caption="milliseconds")
    for heading in ("", "median", "least", "most"):
        table.add_column(heading, justify="left" if not heading else "right")

    def row(name: str, values: Sequence[float], digits: int = 0) -> None:
        figures = (statistics.median(values), min(values), max(values))
        table.add_row(name, *(f"{figure:.{digits}f}" for figure in figures))

    row("no write acknowledged", [r["stall_ms"] for r in found])
    for part in (*ENDS, LAST_PART):
        row(f"  {part}", [r["parts_ms"][part] for r in found])
    row("floor: bare stop and promotion", [r["floor_ms"] for r in found])
    row("ratio to the floor", [r["ratio"] for r in found], 2)
    console.print(table)
    console.print(f"errors of clients: {len(errors)}" + (f" ({errors[0]})" if errors else ""))


async def main() -> None:
    """Make the cluster, measure, show."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--rounds", type=int, default=10, help="[10]")
    parser.add_argument("--writers", type=int, default=8, help="[8]")
    parser.add_argument("--idle", type=int, default=100, help="idle sessions [100]")
    parser.add_argument("--rate", type=float, default=400.0, help="writes a second, all writers together [400]")
    parser.add_argument("--json", type=Path, help="write what was found there")
    options = parser.parse_args()
    console = Console(stderr=True)
    with tempfile.TemporaryDirectory(prefix="holdfast-bench-") as scratch:
        async with temporary_cluster(nodes=3, progress=lambda step: console.print(f"  {step}")) as cluster:
            load = Load(cluster, options.writers, options.idle, options.rate)
            floor = Floor(Path(cluster.file.postgresql.path), Path(scratch))
            found = await measure(cluster, load, floor, options.rounds, console)
    show(found, load.errors, Console())
    if options.json:
        options.json.write_text(json.dumps({"rounds": found, "errors": load.errors}, indent=2))
    sys.exit(1 if load.errors else 0)


if __name__ == "__main__":
    asyncio.run(main())
