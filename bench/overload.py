"""What the gate is worth, and what it costs.

    python bench/overload.py [--rounds 3] [--seconds 8] [--json FILE]

Makes a cluster of its own. *Cost*: pgbench with admission off, and on with a bound that nobody meets, in interleaved
rounds: throughput and the proxy's CPU time for a transaction. *Worth*: paced critical transactions alone (30 % of what
was measured just before), then beside thirty clients that scan a table without a pause, with admission off and on:
throughput and 99th percentile of the critical ones as ratios to their normal, and how many were refused. If none comes
through at all, the whole time of the measurement stands for the percentile.
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
from contextlib import contextmanager
from dataclasses import asdict, dataclass
from pathlib import Path

import psutil
from rich.console import Console
from rich.table import Table

from holdfast.local.bringup import temporary_cluster
from holdfast.local.cluster import LocalCluster
from holdfast.local.orders import order

CRITICAL, REPORTS = "pay", "reports"
CRITICAL_CLIENTS, REPORT_CLIENTS = 4, 30
NORMAL_SHARE = 0.3
SCAN = "SELECT count(*) FROM pgbench_accounts WHERE filler LIKE '%x%' AND abalance > -1;\n"
OFF = {"admission": False}
UNMET = {"admission": True, "statements_max": 1000}
BOUND = {"admission": True, "statements_max": 8}
CLASSES = {"critical": {"application_names": [CRITICAL]}, "background": {"application_names": [REPORTS]}}
_TPS = re.compile(r"tps = ([\d.]+)")
_TRANSACTIONS = re.compile(r"actually processed: (\d+)")
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
    """pgbench through the proxy of one cluster."""

    def __init__(self, cluster: LocalCluster, seconds: int, scratch: Path) -> None:
        self._pgbench = str(Path(cluster.file.postgresql.path) / "pgbench")
        self._cluster = cluster
        self._seconds = seconds
        self._scratch = scratch
        proxy = cluster.state().processes["proxy"].process
        if proxy is None:
            raise SystemExit("the proxy does not run")
        self._proxy = psutil.Process(proxy.pid)
        self._scan = scratch / "scan.sql"
        self._scan.write_text(SCAN)

    def _command(self, *arguments: str) -> list[str]:
        port = self._cluster.file.ports.write
        return [self._pgbench, "-h", "127.0.0.1", "-p", str(port), "-U", "app", *arguments, "app"]

    def _environment(self, name: str) -> dict[str, str]:
        """The password goes by the environment of the child only."""
        return {**os.environ, "PGPASSWORD": self._cluster.layout.read_secret("app"), "PGAPPNAME": name}

    def run(self, *arguments: str, name: str = CRITICAL) -> str:
        """What pgbench printed."""
        done = subprocess.run(
            self._command(*arguments),
            capture_output=True,
            text=True,
            env=self._environment(name),
            cwd=self._scratch,
            check=False,
        )
        if done.returncode not in (0, 2):  # 2: some transactions failed, which is for us to count
            raise SystemExit(f"pgbench failed: {done.stderr.strip()}")
        return done.stdout

    def cost(self) -> Cost:
        """As many reads as there can be."""
        times = self._proxy.cpu_times()
        printed = self.run("-n", "-S", "-M", "prepared", "-c", "8", "-j", "1", "-T", str(self._seconds))
        used = self._proxy.cpu_times()
        used_s = used.user + used.system - times.user - times.system
        return Cost(_number(_TPS, printed), used_s * 1e6 / max(1.0, _number(_TRANSACTIONS, printed)))

    def capacity_tps(self) -> float:
        """Transactions a second of the critical clients without a pause."""
        load = ("-n", "-N", "-M", "prepared", "-c", str(CRITICAL_CLIENTS), "-T", str(self._seconds))
        return _number(_TPS, self.run(*load))

    def worth(self, rate: float) -> Worth:
        """The critical transactions at their pace."""
        for old in self._scratch.glob("critical.*"):
            old.unlink()
        load = ("-n", "-N", "-M", "prepared", "-c", str(CRITICAL_CLIENTS), "-j", "1", "-T", str(self._seconds))
        printed = self.run(*load, "-R", f"{rate:.1f}", "-l", "--log-prefix=critical")
        taken_ms = sorted(self._taken_ms())
        at = min(len(taken_ms) - 1, int(0.99 * len(taken_ms)))
        p99_ms = taken_ms[at] if taken_ms else 1000.0 * self._seconds
        return Worth(len(taken_ms) / self._seconds, p99_ms, round(_number(_FAILED, printed, 0)))

    def _taken_ms(self) -> Iterator[float]:
        for path in self._scratch.glob("critical.*"):
            for line in path.read_text().splitlines():
                taken = line.split()[2]
                if taken.isdigit():
                    yield int(taken) / 1000

    @contextmanager
    def reports(self) -> Iterator[None]:
        """Scans without a pause, until the block ends."""
        load = ("-n", "-f", str(self._scan), "-c", str(REPORT_CLIENTS), "-j", "1", "-T", "600", "--max-tries=1000000")
        running = subprocess.Popen(
            self._command(*load),
            env=self._environment(REPORTS),
            cwd=self._scratch,
            stdout=subprocess.DEVNULL,
            stderr=subprocess.DEVNULL,
        )
        try:
            yield
        finally:
            running.kill()
            running.wait()


def _number(pattern: re.Pattern[str], text: str, default: float | None = None) -> float:
    found = pattern.findall(text)
    if not found and default is None:
        raise SystemExit(f"pgbench did not say what was asked: {text[-300:]}")
    return float(found[-1]) if found else float(default or 0)


async def measure(cluster: LocalCluster, bench: Bench, rounds: int, console: Console) -> dict[str, object]:
    """Both parts; returns what ``--json`` writes."""
    await order(cluster, "/policy", {"classes": CLASSES})
    costs: dict[str, list[Cost]] = {"off": [], "on": []}
    for number in range(rounds):
        for way, policy in (("off", OFF), ("on", UNMET)):
            console.print(f"  cost, round {number + 1} of {rounds}: admission {way}")
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
            bench.run("-i", "-q", "-s", "5")
            found = await measure(cluster, bench, arguments.rounds, console)
    show(found, Console())
    if arguments.json:
        arguments.json.write_text(json.dumps(found, indent=2))
    protected = json.loads(json.dumps(found))["protected"]["critical"]
    sys.exit(0 if protected["refused"] == 0 else 1)


if __name__ == "__main__":
    asyncio.run(main())
