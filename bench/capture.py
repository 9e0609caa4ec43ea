"""What the capture of a failed primary costs its clients, and its agent in memory.

    python bench/capture.py [--data-mib 64] [--log-mib 64] [--rounds 3] [--json FILE]

Makes a cluster of its own. In each round, with captures off and then on: a primary with so much data is cut off from
its standbys, writes so much log that nobody else has, and is killed with all its processes. A client that writes a row
every few milliseconds through the proxy measures the longest wait; the agent's memory is its peak from before the kill
until the node is back. For the figures of a large node: --data-mib 10240 --log-mib 1024, with room for three of them.
Exit status 1 if captures add 50 ms or more to the median stall, if an agent takes 150 MB or more, or if a capture is
not whole.
"""

from __future__ import annotations

import argparse
import asyncio
import json
import statistics
import sys
import time
from contextlib import suppress
from dataclasses import asdict, dataclass
from pathlib import Path

import psutil
import psycopg
from rich.console import Console
from rich.table import Table

from holdfast.local.bringup import temporary_cluster
from holdfast.local.captures import read_all
from holdfast.local.cluster import LocalCluster
from holdfast.local.orders import order
from holdfast.local.processes import postmaster_of
from holdfast.model.capture import Kind
from holdfast.model.register import Phase, Register

ADDED_MS_MAX = 50
MEMORY_BYTES_MAX = 150_000_000
WAIT_S = 3600.0
PAUSE_S = 0.005
LOG_OF_ONE_MIB = b"SELECT pg_logical_emit_message(false, 'bench', repeat('x', 8192)) FROM generate_series(1, 128)"


@dataclass(frozen=True, slots=True)
class Round:
    """One failover. ``taken_bytes`` and ``captured_ms`` are 0 where captures are off."""

    captures: bool
    stall_ms: float
    back_s: float
    agent_peak_bytes: int
    taken_bytes: int = 0
    divergent_bytes: int = 0
    captured_ms: int = 0
    is_whole: bool = True


class Writer:
    """Writes rows without a pause to speak of, and remembers the longest wait."""

    def __init__(self, dsn: str) -> None:
        self._dsn = dsn
        self.longest_ms = 0.0

    async def run(self) -> None:
        """For ever; a broken connection is made again, and its time counts."""
        last_s = time.monotonic()
        while True:
            with suppress(psycopg.Error):
                async with await psycopg.AsyncConnection.connect(self._dsn, autocommit=True) as connection:
                    while True:
                        await connection.execute("INSERT INTO written VALUES (1)")
                        now_s = time.monotonic()
                        self.longest_ms = max(self.longest_ms, (now_s - last_s) * 1000)
                        last_s = now_s
                        await asyncio.sleep(PAUSE_S)
                        last_s = time.monotonic()
            await asyncio.sleep(PAUSE_S)


async def register_of(cluster: LocalCluster) -> Register:
    """The register; ends the program if there is none."""
    register = await cluster.register()
    if register is None:
        sys.exit("the cluster has no register")
    return register


async def one_round(cluster: LocalCluster, log_mib: int, *, captures: bool) -> Round:
    """Kill the primary with log that nobody else has, and wait until it is back."""
    await order(cluster, "/policy", {"capture_wait_s": int(WAIT_S) if captures else 0})
    before = await register_of(cluster)
    old = before.committed.leader.node
    found = postmaster_of(cluster.layout.data_dir(old))
    state = cluster.state().processes[old].process
    if found is None or state is None:
        sys.exit(f"{old} does not run")
    server, agent = psutil.Process(found.pid), psutil.Process(state.pid)
    await forget_peak(agent)
    writer = Writer(cluster.write_dsn)
    async with await psycopg.AsyncConnection.connect(cluster.superuser_dsn(old, "app"), autocommit=True) as session:
        writing = asyncio.create_task(writer.run())
        await asyncio.sleep(1.0)
        senders = [p for p in server.children() if "walsender" in " ".join(p.cmdline())]
        for sender in senders:
            sender.suspend()
        for _ in range(log_mib):
            await session.execute(LOG_OF_ONE_MIB)
        agent.suspend()  # else it leads again: its log is the longest
        writer.longest_ms = 0.0
        killed_s = time.monotonic()
        for process in (server, *server.children(recursive=True)):
            with suppress(psutil.NoSuchProcess):
                process.kill()
    while (now := await register_of(cluster)).phase is not Phase.SERVING or now.epoch == before.epoch:  # noqa: ASYNC110
        await asyncio.sleep(PAUSE_S)
    agent.resume()
    if not await cluster.wait_until_whole(WAIT_S):
        sys.exit(f"{old} did not come back")
    back_s = time.monotonic() - killed_s
    writing.cancel()
    await asyncio.gather(writing, return_exceptions=True)
    made = Round(captures, round(writer.longest_ms, 1), round(back_s, 2), peak_bytes(agent))
    taken = [c for c in (await read_all(cluster))[0] if c.epoch == now.epoch and c.node == old]
    if not captures:
        return made
    if not taken:
        return Round(**{**asdict(made), "is_whole": False})
    (one,) = taken
    divergent_bytes = sum(f.size_bytes for f in one.files if f.kind is Kind.DIVERGENT_LOG)
    took_ms = (one.ended_at_ms or one.begun_at_ms) - one.begun_at_ms
    more = {"taken_bytes": one.size_bytes, "divergent_bytes": divergent_bytes, "captured_ms": took_ms}
    return Round(**{**asdict(made), **more, "is_whole": one.is_ended and not one.lacking})


async def forget_peak(process: psutil.Process) -> None:
    """Begin to measure the peak anew (proc(5), clear_refs)."""
    await asyncio.to_thread(Path(f"/proc/{process.pid}/clear_refs").write_text, "5")


def peak_bytes(process: psutil.Process) -> int:
    """The largest resident set since then."""
    lines = Path(f"/proc/{process.pid}/status").read_text().splitlines()
    return next(int(line.split()[1]) * 1024 for line in lines if line.startswith("VmHWM:"))


async def fill(cluster: LocalCluster, data_mib: int) -> None:
    """Make the tables."""
    leader = (await register_of(cluster)).committed.leader.node
    async with await psycopg.AsyncConnection.connect(cluster.superuser_dsn(leader, "app"), autocommit=True) as session:
        await session.execute("CREATE TABLE written (n int)")
        await session.execute("GRANT ALL ON written TO app")
        await session.execute("CREATE TABLE filler (page text)")
        await session.execute("ALTER TABLE filler ALTER page SET STORAGE EXTERNAL")
        for done in range(0, data_mib, 16):
            rows = min(16, data_mib - done) * 128
            await session.execute(
                f"INSERT INTO filler SELECT repeat('x', 8000) FROM generate_series(1, {rows})".encode()
            )


def show(rounds: list[Round], console: Console) -> float:
    """Print the rounds; returns how much captures add to the median stall, in milliseconds."""
    table = Table("captures", "stall", "back after", "agent's peak", "captured", "of it divergent", "in")
    for r in rounds:
        table.add_row(
            "on" if r.captures else "off", f"{r.stall_ms:.0f} ms", f"{r.back_s:.1f} s",
            f"{r.agent_peak_bytes / 1e6:.0f} MB",
            f"{r.taken_bytes / 2**20:.0f} MiB", f"{r.divergent_bytes / 2**20:.0f} MiB", f"{r.captured_ms} ms",
        )  # fmt: skip
    console.print(table)
    medians = [statistics.median(r.stall_ms for r in rounds if r.captures is on) for on in (True, False)]
    console.print(f"captures add {medians[0] - medians[1]:.0f} ms to the median stall of {medians[1]:.0f} ms")
    return medians[0] - medians[1]


async def main() -> None:
    """Measure, print, judge."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0] if __doc__ else None)
    parser.add_argument("--data-mib", type=int, default=64)
    parser.add_argument("--log-mib", type=int, default=64)
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--json", type=Path)
    arguments = parser.parse_args()
    console = Console(stderr=True)
    async with temporary_cluster(nodes=3, progress=lambda step: console.print(f"  {step}")) as cluster:
        await order(cluster, "/policy", {"durability": "asynchronous", "maximum_lag_bytes": 1 << 40})
        await cluster.wait_until_whole(WAIT_S)
        await fill(cluster, arguments.data_mib)
        rounds = []
        for number in range(arguments.rounds):
            for captures in (False, True):
                console.print(f"  round {number + 1}, captures {'on' if captures else 'off'}")
                await cluster.wait_until_whole(WAIT_S)
                rounds.append(await one_round(cluster, arguments.log_mib, captures=captures))
    added_ms = show(rounds, Console())
    if arguments.json:
        arguments.json.write_text(json.dumps([asdict(r) for r in rounds], indent=2))
    peak = max(r.agent_peak_bytes for r in rounds)
    sys.exit(0 if added_ms < ADDED_MS_MAX and peak < MEMORY_BYTES_MAX and all(r.is_whole for r in rounds) else 1)


if __name__ == "__main__":
    asyncio.run(main())
