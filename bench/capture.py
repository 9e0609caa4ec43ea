"""What the capture of a failed primary costs its clients, and its agent in memory.

    python bench/capture.py [--data-gib 0.0625] [--log-gib 0.0625] [--rounds 3] [--json FILE]

Makes a cluster of its own. In each round, once with captures off and once with them on: a primary with so much data is
cut off from its standbys, writes so much log that nobody else has, and is killed with all its processes. A client that
writes a row every few milliseconds through the proxy measures the write stall, and the longest wait after it, until the
node is back; the memory is the largest resident set of any agent from before the kill until then. Which of the two
comes first changes from round to round. At the end the agent is killed (SIGKILL) half-way through one more capture.
For the figures of a large node: --data-gib 10 --log-gib 1; it takes five times the data's size on the disk of TMPDIR.
Exit status 1 if captures add 50 ms or more to the median stall, if an agent takes 150 MB or more, if a capture is not
whole, or if the one that was killed is neither resumed nor told to be interrupted.
"""

from __future__ import annotations

import argparse
import asyncio
import json
import shutil
import statistics
import sys
import time
from contextlib import suppress
from dataclasses import asdict, dataclass, replace
from pathlib import Path

import psutil
import psycopg
from rich.console import Console
from rich.table import Table

from holdfast.local.bringup import temporary_cluster
from holdfast.local.cluster import LocalCluster
from holdfast.local.orders import order
from holdfast.local.processes import postmaster_of
from holdfast.model.capture import Capture, Kind, State
from holdfast.model.register import Phase, Register
from holdfast.postgres.capture.keep import read_captures

ADDED_MS_MAX = 50
MEMORY_BYTES_MAX = 150_000_000
WAIT_S = 3600.0
PAUSE_S = 0.005
STALL_BEGINS_S = 1.0
"""A write that began so soon after the kill, or before it, has waited for the failover."""
LOG_OF_ONE_MIB = b"INSERT INTO changed SELECT repeat('x', 940) FROM generate_series(1, 1024)"


@dataclass(frozen=True, slots=True)
class Round:
    """One failover. ``taken_bytes`` and ``captured_ms`` are 0 where captures are off."""

    captures: bool
    stall_ms: float
    """From the kill to the first write of the new primary."""
    later_ms: float
    """The longest wait of a write after that, while the node is captured, accounted for and rewound."""
    back_s: float
    agent_peak_bytes: int
    taken_bytes: int = 0
    divergent_bytes: int = 0
    captured_ms: int = 0
    begun_ms: int = 0
    """From the kill until the capture begins: later than the stall ends, it has no part in it."""
    is_whole: bool = True


@dataclass(frozen=True, slots=True)
class Killed:
    """What became of a capture whose agent was killed half-way."""

    files_before: int
    state: str
    attempts: int
    notes: tuple[str, ...]

    @property
    def is_told(self) -> bool:
        """Whether it was resumed to its end, or says that it was not."""
        return (self.state == State.COMPLETE and self.attempts > 1) or self.state == State.INTERRUPTED


class Writer:
    """Writes rows without a pause to speak of, and remembers the waits around a kill."""

    def __init__(self, dsn: str) -> None:
        self._dsn = dsn
        self._killed_s: float | None = None
        self.stall_ms = self.later_ms = 0.0

    def is_killed(self) -> None:
        """The primary is killed now."""
        self._killed_s, self.stall_ms, self.later_ms = time.monotonic(), 0.0, 0.0

    async def run(self) -> None:
        """For ever; a broken connection is made again, and its time counts."""
        last_s = time.monotonic()
        while True:
            with suppress(psycopg.Error):
                async with await psycopg.AsyncConnection.connect(self._dsn, autocommit=True) as connection:
                    while True:
                        await connection.execute("INSERT INTO written VALUES (1)")
                        now_s = time.monotonic()
                        self._note(last_s, now_s)
                        await asyncio.sleep(PAUSE_S)
                        last_s = time.monotonic()
            await asyncio.sleep(PAUSE_S)

    def _note(self, began_s: float, ended_s: float) -> None:
        if self._killed_s is None or ended_s < self._killed_s:
            return
        waited_ms = (ended_s - began_s) * 1000
        if began_s < self._killed_s + STALL_BEGINS_S:
            self.stall_ms = max(self.stall_ms, waited_ms)
        else:
            self.later_ms = max(self.later_ms, waited_ms)


async def register_of(cluster: LocalCluster) -> Register:
    """The register; ends the program if there is none."""
    register = await cluster.register()
    if register is None:
        sys.exit("the cluster has no register")
    return register


async def one_round(cluster: LocalCluster, log_mib: int, *, captures: bool) -> Round:
    """Kill the primary with log that nobody else has, and wait until it is back."""
    await order(cluster, "/policy", {"capture_wait_s": int(WAIT_S) if captures else 0})
    agents = agents_of(cluster)
    for agent in agents.values():
        await forget_peak(agent)
    writer = Writer(cluster.write_dsn)
    writing = asyncio.create_task(writer.run())
    await asyncio.sleep(1.0)
    killed_s, old, epoch = await lose_primary(cluster, log_mib, writer)
    killed_at_ms = round((time.time() - (time.monotonic() - killed_s)) * 1000)
    if not await cluster.wait_until_whole(WAIT_S):
        sys.exit(f"{old} did not come back")
    back_s = time.monotonic() - killed_s
    writing.cancel()
    await asyncio.gather(writing, return_exceptions=True)
    peak = max(peak_bytes(agent) for agent in agents.values())
    made = Round(captures, round(writer.stall_ms, 1), round(writer.later_ms, 1), round(back_s, 2), peak)
    one = await capture_of(cluster, old, epoch)
    if not captures:
        return made
    if one is None:
        return replace(made, is_whole=False)
    divergent_bytes = sum(f.size_bytes for f in one.files if f.kind is Kind.DIVERGENT_LOG)
    took_ms = (one.ended_at_ms or one.begun_at_ms) - one.begun_at_ms
    return replace(
        made,
        taken_bytes=one.size_bytes,
        divergent_bytes=divergent_bytes,
        captured_ms=took_ms,
        begun_ms=one.begun_at_ms - killed_at_ms,
        is_whole=one.is_ended and not one.lacking,
    )


async def lose_primary(cluster: LocalCluster, log_mib: int, writer: Writer | None) -> tuple[float, str, int]:
    """Kill the primary with so much log that nobody else has; returns when, which, and the epoch that serves then."""
    before = await register_of(cluster)
    old = before.committed.leader.node
    found = postmaster_of(cluster.layout.data_dir(old))
    if found is None:
        sys.exit(f"{old} does not run")
    server, agent = psutil.Process(found.pid), agents_of(cluster)[old]
    async with await psycopg.AsyncConnection.connect(cluster.superuser_dsn(old, "app"), autocommit=True) as session:
        senders = [sender for sender in server.children() if is_walsender(sender)]
        for sender in senders:
            sender.suspend()
        for _ in range(log_mib):
            await session.execute(LOG_OF_ONE_MIB)
        agent.suspend()  # else it leads again: its log is the longest
        if writer is not None:
            writer.is_killed()
        killed_s = time.monotonic()
        for process in (server, *server.children(recursive=True)):
            with suppress(psutil.NoSuchProcess):
                process.kill()
    while (now := await register_of(cluster)).phase is not Phase.SERVING or now.epoch == before.epoch:  # noqa: ASYNC110
        await asyncio.sleep(PAUSE_S)
    agent.resume()
    return killed_s, old, now.epoch


def is_walsender(process: psutil.Process) -> bool:
    """Whether it is one; what ends meanwhile is none."""
    with suppress(psutil.NoSuchProcess):
        return "walsender" in " ".join(process.cmdline())
    return False


async def killed_half_way(cluster: LocalCluster, log_mib: int) -> Killed:
    """Kill the agent when half of the divergent log is taken, and see what it says of the capture when it is back."""
    await order(cluster, "/policy", {"capture_wait_s": int(WAIT_S)})
    _, old, epoch = await lose_primary(cluster, log_mib, None)
    half_bytes = log_mib * 2**20 / 2
    while True:
        one = await capture_of(cluster, old, epoch)
        if one is not None and (one.is_ended or one.size_bytes > half_bytes):
            break
        await asyncio.sleep(PAUSE_S)
    before = one
    agents_of(cluster)[old].kill()
    if before.is_ended:
        sys.exit("the capture ended before its agent could be killed: use a larger --log-gib")
    if not await cluster.wait_until_whole(WAIT_S):
        sys.exit(f"{old} did not come back")
    after = await capture_of(cluster, old, epoch)
    if after is None:
        return Killed(len(before.files), "gone", 0, ())
    return Killed(len(before.files), after.state, after.attempts, after.notes)


async def capture_of(cluster: LocalCluster, node: str, epoch: int) -> Capture | None:
    """What was taken of a node that an epoch replaced."""
    found = await asyncio.to_thread(read_captures, captures_dir(cluster, node), node)
    return next((capture for capture in found if capture.epoch == epoch), None)


def captures_dir(cluster: LocalCluster, node: str) -> Path:
    """Where the agent of a node keeps its captures."""
    return cluster.layout.node(node) / "state" / "captures"


def agents_of(cluster: LocalCluster) -> dict[str, psutil.Process]:
    """The agents, by node; ends the program if one does not run."""
    found = {}
    for node in cluster.nodes:
        process = cluster.state().processes[node].process
        if process is None:
            sys.exit(f"the agent of {node} does not run")
        found[node] = psutil.Process(process.pid)
    return found


def make_room(cluster: LocalCluster) -> None:
    """Remove what a round left beside the data: the next one needs its place."""
    for node in cluster.nodes:
        for directory in (captures_dir(cluster, node), cluster.layout.node(node) / "state" / "evidence"):
            shutil.rmtree(directory, ignore_errors=True)


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
        await session.execute("CREATE TABLE changed (row text)")
        await session.execute("CREATE TABLE filler (page text)")
        await session.execute("ALTER TABLE filler ALTER page SET STORAGE EXTERNAL")
        for done in range(0, data_mib, 16):
            rows = min(16, data_mib - done) * 128
            await session.execute(
                f"INSERT INTO filler SELECT repeat('x', 8000) FROM generate_series(1, {rows})".encode()
            )


def show(rounds: list[Round], killed: Killed, console: Console) -> float:
    """Print the rounds; returns how much captures add to the median stall, in milliseconds."""
    table = Table(
        "captures", "stall", "later", "back after", "agents' peak", "captured", "of it divergent", "begun after", "in"
    )
    for r in rounds:
        table.add_row(
            "on" if r.captures else "off", f"{r.stall_ms:.0f} ms", f"{r.later_ms:.0f} ms", f"{r.back_s:.1f} s",
            f"{r.agent_peak_bytes / 1e6:.0f} MB",
            f"{r.taken_bytes / 2**20:.0f} MiB", f"{r.divergent_bytes / 2**20:.0f} MiB",
            f"{r.begun_ms} ms" if r.captures else "", f"{r.captured_ms} ms",
        )  # fmt: skip
    console.print(table)
    on, off = (statistics.median(r.stall_ms for r in rounds if r.captures is on) for on in (True, False))
    late = sum(r.begun_ms > r.stall_ms for r in rounds if r.captures)
    console.print(f"{late} of {sum(r.captures for r in rounds)} captures began when the stall was over")
    later = [statistics.median(r.later_ms for r in rounds if r.captures is on) for on in (True, False)]
    console.print(f"median write stall: {on:.0f} ms with captures, {off:.0f} ms without: ratio {on / off:.3f}")
    console.print(f"captures add {on - off:.0f} ms to it")
    console.print(f"median of the longest wait after it: {later[0]:.0f} ms with captures, {later[1]:.0f} ms without")
    said = f"; {'; '.join(killed.notes)}" if killed.notes else ""
    console.print(
        f"agent killed after {killed.files_before} files: {killed.state} after {killed.attempts} attempts{said}"
    )
    return on - off


async def measure(cluster: LocalCluster, arguments: argparse.Namespace, console: Console) -> tuple[list[Round], Killed]:
    """All rounds, and the one in which the agent is killed."""
    log_mib = max(1, round(arguments.log_gib * 1024))
    await order(cluster, "/policy", {"durability": "asynchronous", "maximum_lag_bytes": 1 << 40})
    await cluster.wait_until_whole(WAIT_S)
    await fill(cluster, max(1, round(arguments.data_gib * 1024)))
    rounds = []
    for number in range(arguments.rounds):
        for captures in (False, True) if number % 2 == 0 else (True, False):
            console.print(f"  round {number + 1}, captures {'on' if captures else 'off'}")
            await cluster.wait_until_whole(WAIT_S)
            rounds.append(await one_round(cluster, log_mib, captures=captures))
            console.print(f"  {rounds[-1]}")
            await asyncio.to_thread(make_room, cluster)
    console.print("  the agent is killed half-way")
    return rounds, await killed_half_way(cluster, log_mib)


async def main() -> None:
    """Measure, print, judge."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0] if __doc__ else None)
    parser.add_argument("--data-gib", type=float, default=0.0625, help="of tables [0.0625]; of a large node: 10")
    parser.add_argument("--log-gib", type=float, default=0.0625, help="of divergent log [0.0625]; of a large node: 1")
    parser.add_argument("--rounds", type=int, default=3, help="each with captures off and on [3]")
    parser.add_argument("--json", type=Path, help="write every round there")
    arguments = parser.parse_args()
    console = Console(stderr=True)
    async with temporary_cluster(nodes=3, progress=lambda step: console.print(f"  {step}")) as cluster:
        rounds, killed = await measure(cluster, arguments, console)
    added_ms = show(rounds, killed, Console())
    if arguments.json:
        found = {"rounds": [asdict(r) for r in rounds], "killed": asdict(killed), "added_ms": round(added_ms, 1)}
        arguments.json.write_text(json.dumps(found, indent=2))
    peak = max(r.agent_peak_bytes for r in rounds)
    is_good = added_ms < ADDED_MS_MAX and peak < MEMORY_BYTES_MAX and all(r.is_whole for r in rounds) and killed.is_told
    sys.exit(0 if is_good else 1)


if __name__ == "__main__":
    asyncio.run(main())
