"""What the gate is worth, and what it costs.

    python bench/overload.py [--rounds 3] [--seconds 8] [--json FILE]

Makes a cluster of its own. *Cost*: pgbench with admission off, and on with a bound that nobody meets, in interleaved
rounds: throughput and the proxy's CPU time for a transaction. *Worth*: paced critical transactions alone (30 % of what
was measured just before), then beside thirty clients that scan a table without a pause, with admission off and on:
throughput and 99th percentile of the critical ones as ratios to their normal, and how many were refused. If none comes
through at all, the whole time of the measurement stands for the percentile. The primary's PostgreSQL has one core for
itself, and the clients, the proxy and everything else have the others.
"""

from __future__ import annotations

import argparse
import asyncio
import json
import os
import re
import statistics
import subprocess
import sys
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from dataclasses import asdict, dataclass
from pathlib import Path

import psutil
from pgbench import TPS, TRANSACTIONS, Pgbench, number
from rich.console import Console
from rich.table import Table

from holdfast.local.bringup import temporary_cluster
from holdfast.local.cluster import LocalCluster
from holdfast.local.orders import order
from holdfast.local.processes import postmaster_of

CRITICAL, REPORTS = "pay", "reports"
CRITICAL_CLIENTS, REPORT_CLIENTS = 4, 30
NORMAL_SHARE = 0.3
SCAN = "SELECT count(*) FROM pgbench_accounts WHERE filler LIKE '%x%' AND abalance > -1;\n"
OFF = {"admission": False}
UNMET = {"admission": True, "statements_max": 1000}
BOUND = {"admission": True, "statements_max": 8}
CLASSES = {"critical": {"application_names": [CRITICAL]}, "background": {"application_names": [REPORTS]}}
_FAILED = re.compile(r"failed transactions: (\d+)")


@dataclass(frozen=True, slots=True)
class Cost:
    """One way in one round."""

    tps: float
    cpu_us: float


@dataclass(frozen=True, slots=True)
class Worth:
    """What the critical transactions met."""

    tps: float
    p99_ms: float
    refused: int


class Bench:
    """The loads, through the proxy of one cluster."""

    def __init__(self, cluster: LocalCluster, seconds: int, scratch: Path) -> None:
        self.pgbench = Pgbench(cluster, scratch)
        self._port = cluster.file.ports.write
        self._seconds = seconds
        self._scratch = scratch
        self._scan = scratch / "scan.sql"
        self._scan.write_text(SCAN)

    def run(self, *arguments: str) -> str:
        """What pgbench printed of the critical clients."""
        load = ("-T", str(self._seconds), *arguments)
        return self.pgbench.run(self._port, *load, name=CRITICAL, may_fail=True)

    def cost(self) -> Cost:
        """As many reads as there can be."""
        before_s = self.pgbench.proxy_cpu_s()
        printed = self.run("-n", "-S", "-M", "prepared", "-c", "8", "-j", "1")
        used_s = self.pgbench.proxy_cpu_s() - before_s
        return Cost(number(TPS, printed), used_s * 1e6 / max(1.0, number(TRANSACTIONS, printed)))

    def capacity_tps(self) -> float:
        """Transactions a second of the critical clients without a pause."""
        return number(TPS, self.run("-n", "-N", "-M", "prepared", "-c", str(CRITICAL_CLIENTS)))

    def worth(self, rate: float) -> Worth:
        """The critical transactions at their pace."""
        for old in self._scratch.glob("critical.*"):
            old.unlink()
        load = ("-n", "-N", "-M", "prepared", "-c", str(CRITICAL_CLIENTS), "-j", "1")
        printed = self.run(*load, "-R", f"{rate:.1f}", "-l", "--log-prefix=critical")
        taken_ms = sorted(self._taken_ms())
        at = min(len(taken_ms) - 1, int(0.99 * len(taken_ms)))
        p99_ms = taken_ms[at] if taken_ms else 1000.0 * self._seconds
        return Worth(len(taken_ms) / self._seconds, p99_ms, round(number(_FAILED, printed, 0)))

    def _taken_ms(self) -> Iterator[float]:
        for path in self._scratch.glob("critical.*"):
            for line in path.read_text().splitlines():
                taken = line.split()[2]
                if taken.isdigit():
                    yield int(taken) / 1000

    @contextmanager
    def reports(self) -> Iterator[None]:
        """Scans without a pause, until the block ends."""
        load = ("-n", "-f", str(self._scan), "-c", str(REPORT_CLIENTS), "-j", "1", "-T", "600")
        running = subprocess.Popen(
            self.pgbench.command(self._port, *load),
            env=self.pgbench.environment(REPORTS),
            cwd=self._scratch,
            stdout=subprocess.DEVNULL,
            stderr=subprocess.DEVNULL,
        )
        try:
            yield
        finally:
            running.kill()
            running.wait()


def keep_apart(cluster: LocalCluster, leader: str) -> None:
    """The primary's PostgreSQL on the first core, and everything else, ourselves included, on the others.

    Otherwise the scans take the cores from the clients and the proxy, and what is measured is the machine.
    """
    first, *others = sorted(psutil.Process().cpu_affinity())
    if not others:
        raise SystemExit("one core is not enough: the load must not take it from the server")
    primary = postmaster_of(cluster.layout.data_dir(leader))
    supervisor = cluster.state().supervisor
    if primary is None or supervisor is None:
        raise SystemExit("the cluster does not run")
    server = psutil.Process(primary.pid)
    servers = [server, *server.children(recursive=True)]
    supervised = [psutil.Process(supervisor.pid), *psutil.Process(supervisor.pid).children(recursive=True)]
    for process in (psutil.Process(), *supervised):
        pin(process, others)
    for process in servers:
        pin(process, [first])


def pin(process: psutil.Process, cores: list[int]) -> None:
    """All threads of it, and what it forks from now on."""
    with suppress(psutil.NoSuchProcess):
        for thread in process.threads():
            os.sched_setaffinity(thread.id, cores)


async def measure(cluster: LocalCluster, bench: Bench, rounds: int, console: Console) -> dict[str, object]:
    """Both parts; returns what ``--json`` writes."""
    await order(cluster, "/policy", {"classes": CLASSES})
    costs: dict[str, list[Cost]] = {"off": [], "on": []}
    for turn in range(rounds):
        for way, policy in (("off", OFF), ("on", UNMET)):
            console.print(f"  cost, round {turn + 1} of {rounds}: admission {way}")
            await order(cluster, "/policy", policy)
            costs[way].append(await asyncio.to_thread(bench.cost))
    pairs = list(zip(costs["on"], costs["off"], strict=True))
    await order(cluster, "/policy", {"admission": True, "statements_max": None})
    rate = NORMAL_SHARE * await asyncio.to_thread(bench.capacity_tps)
    console.print(f"  worth: {rate:,.0f} critical transactions a second, alone")
    normal = await asyncio.to_thread(bench.worth, rate)
    found: dict[str, object] = {
        "cost": {
            "tps_ratio": statistics.median(on.tps / off.tps for on, off in pairs),
            "cpu_ratio": statistics.median(on.cpu_us / off.cpu_us for on, off in pairs),
            "rounds": {way: [asdict(c) for c in each] for way, each in costs.items()},
        },
        "normal": asdict(normal),
    }
    for name, policy in (("unprotected", OFF), ("protected", BOUND)):
        await order(cluster, "/policy", policy)
        with bench.reports():
            console.print(f"  worth: {name}, beside {REPORT_CLIENTS} clients that scan")
            await asyncio.sleep(3)
            met = await asyncio.to_thread(bench.worth, rate)
        found[name] = {
            "critical": {
                "tps_ratio": met.tps / normal.tps,
                "p99_ratio": met.p99_ms / normal.p99_ms,
                "refused": met.refused,
                **asdict(met),
            }
        }
    return found


def show(found: dict[str, object], console: Console) -> None:
    """Two tables."""
    said = json.loads(json.dumps(found))
    cost = said["cost"]
    console.print(f"cost: {cost['tps_ratio']:.3f} of the throughput, {cost['cpu_ratio']:.3f} of the CPU time")
    table = Table("critical", "tps", "of normal", "p99 ms", "of normal", "refused")
    table.add_row("alone", f"{said['normal']['tps']:,.0f}", "1", f"{said['normal']['p99_ms']:.1f}", "1", "0")
    for name in ("unprotected", "protected"):
        met = said[name]["critical"]
        ratios = f"{met['tps_ratio']:.2f}", f"{met['p99_ms']:.1f}", f"{met['p99_ratio']:.1f}"
        table.add_row(name, f"{met['tps']:,.0f}", *ratios, str(met["refused"]))
    console.print(table)


async def main() -> None:
    """Parse, run, print."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--seconds", type=int, default=8)
    parser.add_argument("--json", type=Path)
    arguments = parser.parse_args()
    console = Console(stderr=True)
    with tempfile.TemporaryDirectory(prefix="holdfast-bench-") as scratch:
        async with temporary_cluster(nodes=3, progress=lambda step: console.print(f"  {step}")) as cluster:
            bench = Bench(cluster, arguments.seconds, Path(scratch))
            bench.pgbench.run(cluster.file.ports.write, "-i", "-q", "-s", "5")
            register = await cluster.register()
            if register is None or register.leader is None:
                sys.exit("the cluster does not serve")
            keep_apart(cluster, register.leader.node)
            found = await measure(cluster, bench, arguments.rounds, console)
    show(found, Console())
    if arguments.json:
        arguments.json.write_text(json.dumps(found, indent=2))
    protected = json.loads(json.dumps(found))["protected"]["critical"]
    sys.exit(0 if protected["refused"] == 0 else 1)


if __name__ == "__main__":
    asyncio.run(main())
