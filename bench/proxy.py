"""What the proxy costs: pgbench straight to the primary and through the proxy, in interleaved rounds.

    python bench/proxy.py [--clients 8] [--rounds 3] [--seconds 5] [--json FILE]

Makes a cluster of its own. For each protocol mode it prints the throughput of both ways, their ratio within a round
(median and spread over the rounds), and the proxy's own CPU time for a transaction.
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
from dataclasses import asdict, dataclass
from pathlib import Path

import psutil
from rich.console import Console
from rich.table import Table

from holdfast.local.bringup import temporary_cluster
from holdfast.local.cluster import LocalCluster

MODES = ("simple", "extended", "prepared")
_TPS = re.compile(r"tps = ([\d.]+)")
_TRANSACTIONS = re.compile(r"actually processed: (\d+)")


@dataclass(frozen=True, slots=True)
class Round:
    """One round of one mode: the baseline and the proxy within seconds of each other."""

    mode: str
    direct_tps: float
    proxy_tps: float
    proxy_cpu_us: float

    @property
    def tps_ratio(self) -> float:
        """Through the proxy, as a share of the direct way."""
        return self.proxy_tps / self.direct_tps


class Bench:
    """pgbench against one cluster."""

    def __init__(self, cluster: LocalCluster, leader_port: int, clients: int, seconds: int) -> None:
        self._pgbench = str(Path(cluster.file.postgresql.path) / "pgbench")
        self._cluster = cluster
        self._leader_port = leader_port
        self._clients = clients
        self._seconds = seconds
        proxy = cluster.state().processes["proxy"].process
        if proxy is None:
            raise SystemExit("the proxy does not run")
        self._proxy = psutil.Process(proxy.pid)

    def run(self, port: int, *arguments: str) -> str:
        """What pgbench printed; the password goes by the environment of the child only."""
        command = [self._pgbench, "-h", "127.0.0.1", "-p", str(port), "-U", "app", *arguments, "app"]
        environment = {**os.environ, "PGPASSWORD": self._cluster.layout.read_secret("app")}
        done = subprocess.run(command, capture_output=True, text=True, env=environment, check=False)
        if done.returncode != 0:
            raise SystemExit(f"pgbench failed: {done.stderr.strip()}")
        return done.stdout

    def round(self, mode: str) -> Round:
        """The direct way, then the proxy."""
        load = ("-n", "-S", "-M", mode, "-c", str(self._clients), "-j", "1", "-T", str(self._seconds))
        direct = float(_TPS.findall(self.run(self._leader_port, *load))[-1])
        before = self._cpu_s()
        printed = self.run(self._cluster.file.ports.write, *load)
        used_s = self._cpu_s() - before
        transactions = int(_TRANSACTIONS.findall(printed)[-1])
        return Round(mode, direct, float(_TPS.findall(printed)[-1]), used_s * 1e6 / max(transactions, 1))

    def _cpu_s(self) -> float:
        times = self._proxy.cpu_times()
        return float(times.user + times.system)


def show(rounds: list[Round], console: Console) -> None:
    """One line a mode."""
    table = Table("mode", "direct tps", "proxy tps", "ratio (spread)", "proxy CPU µs/transaction")
    for mode in MODES:
        mine = [r for r in rounds if r.mode == mode]
        ratios = [r.tps_ratio for r in mine]
        table.add_row(
            mode,
            f"{statistics.median(r.direct_tps for r in mine):,.0f}",
            f"{statistics.median(r.proxy_tps for r in mine):,.0f}",
            f"{statistics.median(ratios):.2f} ({min(ratios):.2f}–{max(ratios):.2f})",
            f"{statistics.median(r.proxy_cpu_us for r in mine):.1f}",
        )
    console.print(table)


async def main() -> None:
    """Parse, run, print."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--clients", type=int, default=8)
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--seconds", type=int, default=5)
    parser.add_argument("--json", type=Path)
    arguments = parser.parse_args()
    console = Console(stderr=True)
    rounds: list[Round] = []
    async with temporary_cluster(nodes=3, progress=lambda step: console.print(f"  {step}")) as cluster:
        register = await cluster.register()
        if register is None or register.leader is None:
            sys.exit("the cluster does not serve")
        leader = (await cluster.node_records())[register.leader.node]
        bench = Bench(cluster, leader.postgres_port, arguments.clients, arguments.seconds)
        bench.run(leader.postgres_port, "-i", "-q", "-s", "5")
        for number in range(arguments.rounds):
            for mode in MODES:
                console.print(f"  round {number + 1} of {arguments.rounds}: {mode}")
                rounds.append(await asyncio.to_thread(bench.round, mode))
    show(rounds, Console())
    if arguments.json:
        arguments.json.write_text(json.dumps([{**asdict(r), "tps_ratio": r.tps_ratio} for r in rounds], indent=2))


if __name__ == "__main__":
    asyncio.run(main())
