"""What the proxy costs: pgbench straight to the primary and through the proxy, in interleaved rounds.

    python bench/proxy.py [--clients 8] [--rounds 3] [--seconds 5] [--json FILE]

Makes a cluster of its own. For each protocol mode it prints the throughput of both ways, their ratio within a round
(median and spread over the rounds), and the proxy's own CPU time for a transaction.
"""

from __future__ import annotations

import argparse
import asyncio
import json
import statistics
import sys
from dataclasses import asdict, dataclass
from pathlib import Path

from pgbench import TPS, TRANSACTIONS, Pgbench, number
from rich.console import Console
from rich.table import Table

from holdfast.local.bringup import temporary_cluster
from holdfast.local.cluster import LocalCluster

MODES = ("simple", "extended", "prepared")


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
        self.pgbench = Pgbench(cluster)
        self._write_port = cluster.file.ports.write
        self._leader_port = leader_port
        self._clients = clients
        self._seconds = seconds

    def round(self, mode: str) -> Round:
        """The direct way, then the proxy."""
        load = ("-n", "-S", "-M", mode, "-c", str(self._clients), "-j", "1", "-T", str(self._seconds))
        direct = number(TPS, self.pgbench.run(self._leader_port, *load))
        before_s = self.pgbench.proxy_cpu_s()
        printed = self.pgbench.run(self._write_port, *load)
        used_s = self.pgbench.proxy_cpu_s() - before_s
        return Round(mode, direct, number(TPS, printed), used_s * 1e6 / max(number(TRANSACTIONS, printed), 1))


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
        bench.pgbench.run(leader.postgres_port, "-i", "-q", "-s", "5")
        for turn in range(arguments.rounds):
            for mode in MODES:
                console.print(f"  round {turn + 1} of {arguments.rounds}: {mode}")
                rounds.append(await asyncio.to_thread(bench.round, mode))
    show(rounds, Console())
    if arguments.json:
        arguments.json.write_text(json.dumps([{**asdict(r), "tps_ratio": r.tps_ratio} for r in rounds], indent=2))


if __name__ == "__main__":
    asyncio.run(main())
