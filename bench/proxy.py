"""What a transaction costs in the proxy, beside PgBouncer and HAProxy: pgbench through each, in interleaved rounds.

    python bench/proxy.py [--fetch] [--rounds 5] [--seconds 5] [--clients 8,32,128,1000] [--json FILE]

Makes a cluster of its own, and in front of its primary starts Holdfast's proxy (its sources compiled, and not
compiled), PgBouncer, and HAProxy as what a relay costs that pools nothing. In each round every load (script, protocol
mode, clients, TLS) goes through all of them, one after the other, the first one another in each round. It prints
throughput, latency and the pooler's own CPU time for a transaction, and what an idle connection takes of its memory;
each as a ratio to PgBouncer in the same round: median, lowest and highest. See docs/performance.md.

Prepared statements are measured with session pooling, since PgBouncer before 1.21 has them with no other; all else
with transaction pooling unless --pooling says otherwise. Loads with session pooling, and HAProxy, which pools nothing,
are left out where clients are more than --sessions-max; HAProxy also with TLS.
"""

from __future__ import annotations

import argparse
import asyncio
import json
import os
import resource
import sys
import tempfile
from collections.abc import Callable
from pathlib import Path

import peers
from cells import (
    BASELINE,
    COMPILED,
    DIRECT,
    HAPROXY,
    OURS,
    PGBOUNCER,
    PLAIN,
    Cell,
    Line,
    Memory,
    Sample,
    Summary,
    lines_of,
)
from cells import as_json as figures_of
from load import SCRIPTS, Load, idle_memory, make_certificate
from plan import Plan
from poolers import Place, Pooler, Starter, copied_sources
from rich.console import Console
from rich.table import Table

from holdfast.local.bringup import temporary_cluster

MODES = ("simple", "extended", "prepared")
POOLERS = (PGBOUNCER, COMPILED, PLAIN, HAPROXY, DIRECT)
POOLING = ("transaction", "session")
SWITCH = ("off", "on")
SPARE_CONNECTIONS = 60
"""For the cluster itself, and for the pools of shared connections."""


def cells_of(arguments: argparse.Namespace) -> list[Cell]:
    """The loads that were asked for, in the order of asking."""
    found = []
    for script in arguments.scripts:
        for mode in arguments.modes:
            pooling = "session" if mode == "prepared" and not arguments.pooling else arguments.pooling
            for clients in arguments.clients:
                for tls in arguments.tls:
                    found.append(Cell(script, mode, clients, tls == "on", pooling or "transaction"))
    return found


def show(lines: list[Line], memory: list[Memory], console: Console) -> None:
    """One line for each load and pooler."""
    table = Table("load", "through", "tps", "ratio", "p50 ms", "p99 ms", "ratio", "CPU µs", "ratio")
    last: Cell | None = None
    for line in lines:
        cell = line.cell
        name = f"{cell.script} {cell.mode} {cell.clients}{' TLS' if cell.tls else ''} ({cell.pooling})"
        table.add_row(
            name if cell != last else "",
            line.pooler,
            f"{line.tps:,.0f}",
            ratio_text(line.tps_ratio),
            f"{line.p50_ms:.2f}",
            f"{line.p99_ms:.2f}",
            ratio_text(line.p99_ratio),
            f"{line.cpu_us:.1f}",
            ratio_text(line.cpu_ratio),
        )
        last = cell
    console.print(table)
    for entry in memory:
        tls = " with TLS" if entry.tls else ""
        console.print(f"{entry.pooler}: {entry.bytes_each / 1024:.1f} KiB for an idle connection{tls}")


def ratio_text(ratio: Summary | None) -> str:
    """``median (lowest–highest)``."""
    return "–" if ratio is None else f"{ratio.median:.2f} ({ratio.low:.2f}–{ratio.high:.2f})"


def available(arguments: argparse.Namespace, scratch: Path) -> tuple[dict[str, peers.Program], dict[str, Path]]:
    """The programs and the sources of those that can be measured; says what is missing."""
    if arguments.fetch:
        peers.fetch(arguments.cache)
    programs, sources = {}, {}
    for name in arguments.poolers:
        if name in peers.PROGRAMS:
            program = peers.find(name, arguments.cache)
            if program is None:
                print(peers.missing(name), file=sys.stderr)
            else:
                print(f"{name}: {program.version()}", file=sys.stderr)
                programs[name] = program
        elif name in OURS and (copy := copied_sources(name, scratch)) is not None:
            sources[name] = copy
    if BASELINE not in programs:
        print(f"without {BASELINE} there are no ratios", file=sys.stderr)
    return programs, sources


def parse() -> argparse.Namespace:
    """The command line."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    add = parser.add_argument
    add("--scripts", type=_several(tuple(SCRIPTS)), default=list(SCRIPTS), help=f"of {', '.join(SCRIPTS)}")
    add("--modes", type=_several(MODES), default=list(MODES), help=f"of {', '.join(MODES)}")
    add("--clients", type=_numbers, default=[8, 32, 128, 1000])
    add("--tls", type=_several(SWITCH), default=list(SWITCH), help="between clients and proxy: off, on or off,on")
    add("--poolers", type=_several(POOLERS), default=list(POOLERS[:-1]), help=f"of {', '.join(POOLERS)}")
    add("--pooling", choices=POOLING, help="in all modes (default: session for prepared, else transaction)")
    add("--pool-size", type=int, default=16, help="server connections with transaction pooling")
    add("--sessions-max", type=int, default=128, help="server connections with session pooling")
    add("--scale", type=int, default=10, help="of pgbench's tables")
    add("--rounds", type=int, default=5)
    add("--seconds", type=int, default=5, help="of each run; the first second is not measured")
    add("--idle", type=int, default=1000, help="idle connections that the memory is measured with; 0: it is not")
    add("--fetch", action="store_true", help="download Debian's packages of PgBouncer and HAProxy, without installing")
    add("--cache", type=Path, default=peers.cache_directory(), help="where --fetch puts them")
    add("--json", type=Path)
    arguments = parser.parse_args()
    if arguments.seconds < 2 or arguments.rounds < 1:
        parser.error("--seconds must be at least 2, --rounds at least 1")
    return arguments


def _several(known: tuple[str, ...]) -> Callable[[str], list[str]]:
    def split(text: str) -> list[str]:
        names = text.split(",")
        for name in names:
            if name not in known:
                raise argparse.ArgumentTypeError(f"{name!r} is none of {', '.join(known)}")
        return names

    return split


def _numbers(text: str) -> list[int]:
    return [int(number) for number in text.split(",")]


def measure(plan: Plan, load: Load, starter: Starter, idle: int, console: Console) -> tuple[list[Sample], list[Memory]]:
    """All of it."""
    pooling = list(dict.fromkeys(cell.pooling for cell in plan.cells))
    running = {(name, kind): starter.start(name, kind) for name in plan.poolers if name != DIRECT for kind in pooling}
    memory = []
    for name in [name for name in plan.poolers if idle and name not in (DIRECT, HAPROXY)]:
        for tls in dict.fromkeys(cell.tls for cell in plan.cells):
            console.print(f"  {idle} idle connections through {name}{' with TLS' if tls else ''}")
            pooler = starter.start(name, "transaction")
            memory.append(Memory(name, tls, idle, idle_memory(load, pooler, idle, tls)))
            pooler.stop()
    samples = []
    for turn, cell, name in plan.runs():
        through: Pooler | None = running.get((name, cell.pooling))
        sample = load.run(turn, cell, name, through)
        what = f"{cell.script} {cell.mode} {cell.clients}{' TLS' if cell.tls else ''} {name}"
        console.print(
            f"  round {turn + 1} of {plan.rounds}: {what}: {sample.tps:,.0f} tps, {sample.cpu_us:.1f} µs",
            soft_wrap=True,
        )
        samples.append(sample)
    return samples, memory


async def main() -> None:
    """Parse, run, print."""
    arguments = parse()
    console = Console(stderr=True)
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    resource.setrlimit(resource.RLIMIT_NOFILE, (hard if hard != resource.RLIM_INFINITY else max(soft, 65536), hard))
    with tempfile.TemporaryDirectory(prefix="holdfast-bench-") as directory:
        scratch = Path(directory)
        os.chmod(scratch, 0o711)  # PgBouncer runs as another user if we are root
        programs, sources = available(arguments, scratch)
        names = [name for name in arguments.poolers if name in programs or name in sources or name == DIRECT]
        plan = Plan(cells_of(arguments), names, arguments.rounds, arguments.sessions_max)
        certificate = make_certificate(scratch) if "on" in arguments.tls else None
        connections = SPARE_CONNECTIONS + 4 * arguments.pool_size + 2 * arguments.sessions_max
        parameters = {"max_connections": str(connections)}
        async with temporary_cluster(
            nodes=3, progress=lambda step: console.print(f"  {step}"), parameters=parameters
        ) as cluster:
            register = await cluster.register()
            if register is None or register.leader is None:
                raise SystemExit("the cluster does not serve")
            primary_port = (await cluster.node_records())[register.leader.node].postgres_port
            clients_max = max([arguments.idle, *arguments.clients]) + 100
            sizes = arguments.pool_size, arguments.sessions_max, clients_max
            place = Place(cluster, primary_port, scratch, certificate, *sizes)
            load = Load(place, arguments.seconds)
            await asyncio.to_thread(load.prepare, arguments.scale)
            starter = Starter(place, programs, sources)
            try:
                samples, memory = await asyncio.to_thread(measure, plan, load, starter, arguments.idle, console)
            finally:
                starter.stop()
    show(lines_of(samples), memory, Console(width=160))
    if arguments.json:
        arguments.json.write_text(json.dumps(figures_of(samples, memory), indent=2) + "\n")


if __name__ == "__main__":
    asyncio.run(main())
