"""Hours of load on hosts of their own, with faults at random or with none: false failovers, losses, leaks.

    .venv/bin/python bench/soak.py --minutes 60                       # faults at random, seed 1
    .venv/bin/python bench/soak.py --minutes 60 --no-faults           # no fault: both cores busy, jitter, pauses
    .venv/bin/python bench/soak.py --minutes 5 --only host-loss --only agent-crash --json soak.json

With ``--no-faults`` every failover is a false one: a cluster that nobody harms must not change its leader, however slow
its machine and its network are. Cables are delayed by up to ``--jitter-ms`` / 2 in each direction, so that the delay
between two hosts wanders between 0 and ``--jitter-ms``; every few seconds all processes of one host stand still for
``--pause-ms``; and ``--burners`` processes that only count take every core. Exit status 0 only if nothing was lost,
stale, doubled or acknowledged twice, nobody failed over without a reason, and nothing grew without bound.
"""

from __future__ import annotations

import argparse
import asyncio
import contextlib
import json
import os
import random
import subprocess
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

from holdfast.drill import hosts
from holdfast.drill.catalogue import CATALOGUE
from holdfast.drill.checker import Verdict
from holdfast.drill.hosted import HostedCluster, hosted_cluster
from holdfast.drill.judge import verdict_of
from holdfast.drill.scenario import Drill, NotInjected, Scene
from holdfast.drill.workload import Workload
from holdfast.model.errors import HoldfastError, StoreUnavailable

UNFIT = frozenset({"store-restored", "disk-full", "disk-full-everywhere", "storage-stall", "asynchronous-crash"})
"""Need a cluster that was made for them, or leave one that needs a person."""
SAMPLE_S = 10.0
WATCH_S = 0.5
GROWTH_MAX = 1.5
"""A process whose memory is this many times what it was after the first quarter, grew without bound."""
GROWTH_MIN_KB = 65_536
FDS_GROWTH_MAX = 64


@dataclass
class Growth:
    """Memory and file descriptors of one process: after the start, at most, at last."""

    first_kb: int = 0
    most_kb: int = 0
    last_kb: int = 0
    first_fds: int = 0
    most_fds: int = 0
    last_fds: int = 0
    settled_kb: int = 0
    settled_fds: int = 0
    samples: int = 0


@dataclass
class Found:
    """What the soak has found so far."""

    rounds: list[dict[str, Any]] = field(default_factory=list)
    failovers: int = 0
    false_failovers: list[str] = field(default_factory=list)
    problems: list[str] = field(default_factory=list)
    processes: dict[str, Growth] = field(default_factory=dict)
    pauses: int = 0


def arguments() -> argparse.Namespace:
    """The command line."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--minutes", type=float, default=60.0, help="how long [60]")
    parser.add_argument("--seed", type=int, default=1, help="of faults, pauses and load [1]")
    parser.add_argument("--rate", type=float, default=100.0, help="writes a second [100]")
    parser.add_argument("--json", type=Path, help="write what was found there")
    parser.add_argument("--only", action="append", choices=sorted(set(CATALOGUE) - UNFIT), help="only these drills")
    parser.add_argument("--no-faults", action="store_true", help="a bad machine and a bad network, but no fault")
    parser.add_argument("--jitter-ms", type=float, default=200.0, help="with --no-faults: delay between hosts [200]")
    parser.add_argument("--pause-ms", type=float, default=500.0, help="with --no-faults: a host stands still [500]")
    parser.add_argument("--pause-every-s", type=float, default=10.0, help="with --no-faults: between pauses [10]")
    parser.add_argument("--burners", type=int, default=os.cpu_count() or 1, help="with --no-faults [one a core]")
    return parser.parse_args()


class Soak:
    """One soak, from start to verdict."""

    def __init__(self, cluster: HostedCluster, options: argparse.Namespace) -> None:
        self._cluster = cluster
        self._options = options
        self._rng = random.Random(options.seed)
        self._until = time.monotonic() + options.minutes * 60
        self._epoch = 0
        self._may_fail_over = False
        self.found = Found()
        self.workload = Workload(
            (cluster.write_dsn, cluster.write_dsn_turned),
            cluster.read_dsn,
            run_id=f"soak_{options.seed}",
            idle=20,
            fresh_readers=2,
            long_writers=2,
            seed=options.seed,
            rate_per_s=options.rate,
        )

    async def run(self) -> Verdict:
        """Load, faults or none, and at the end every row."""
        if not await self._cluster.wait_until_whole(120):
            raise HoldfastError("the cluster was not whole within 120 s of its start")
        self._epoch = (await self._register_epoch()) or 0
        await self.workload.setup()
        await self.workload.start()
        say(f"the cluster is whole, the load runs; epoch {self._epoch}")
        self._cluster.worsen_network()
        began_ms = self.workload.now_ms()
        busy = contextlib.ExitStack()
        busy.enter_context(busy_cores(self._options.burners if self._options.no_faults else 0))
        watching = [asyncio.create_task(self._watch_epoch()), asyncio.create_task(self._sample())]
        try:
            await (self._pause_hosts() if self._options.no_faults else self._break_things())
        finally:
            for task in watching:
                task.cancel()
            await asyncio.gather(*watching, return_exceptions=True)
            busy.close()
        if not await self._cluster.wait_until_whole(120):
            self.found.problems.append("the cluster was not whole within 120 s of the end")
        await self.workload.stop()
        return await self._judge(began_ms)

    async def _register_epoch(self) -> int | None:
        try:
            register = await self._cluster.register()
        except StoreUnavailable:
            return None
        return register.epoch if register is not None else None

    async def _watch_epoch(self) -> None:
        while True:
            epoch = await self._register_epoch()
            if epoch is not None and epoch > self._epoch:
                self.found.failovers += 1
                if not self._may_fail_over:
                    events = await self._cluster.events()
                    why = next((e.detail.get("reason") for e in events if e.epoch == epoch and "opened" in e.kind), "?")
                    self.found.false_failovers.append(f"{time.strftime('%H:%M:%S')} epoch {epoch}: {why}")
                    say(f"FALSE FAILOVER to epoch {epoch}: {why}")
                self._epoch = epoch
            await asyncio.sleep(WATCH_S)

    # -- no faults ------------------------------------------------------------------------------------------------

    async def _pause_hosts(self) -> None:
        told_at = 0.0
        while (now := time.monotonic()) < self._until:
            if now - told_at > 60:
                told_at = now
                c = self.workload.counters()
                say(
                    f"{(self._until - now) / 60:.0f} min left: {c.acknowledged} writes, {c.errors + c.unknown} errors, "
                    f"{self.found.pauses} pauses, {len(self.found.false_failovers)} false failovers"
                )
            await asyncio.sleep(self._rng.uniform(0.5, 1.5) * self._options.pause_every_s)
            if self._options.pause_ms <= 0:
                continue
            name = self._rng.choice(list(self._cluster.hosts))
            frozen = await asyncio.to_thread(self._cluster.freeze, name)
            try:
                await asyncio.sleep(self._options.pause_ms / 1000)
            finally:
                frozen.thaw()
            self.found.pauses += 1

    # -- faults ---------------------------------------------------------------------------------------------------

    async def _break_things(self) -> None:
        names = self._options.only or sorted(set(CATALOGUE) - UNFIT)
        while time.monotonic() < self._until:
            if not await self._cluster.wait_until_whole(180):
                self.found.problems.append("the cluster was not whole within 180 s of a fault")
                return
            await asyncio.sleep(self._rng.uniform(2, 10))
            await self._round(CATALOGUE[self._rng.choice(names)])

    async def _round(self, drill: Drill) -> None:
        register = await self._cluster.register()
        if register is None:
            raise HoldfastError("the store holds no register")
        leader = register.committed.leader.node
        others = [node for node in self._cluster.nodes if node != leader]
        self._rng.shuffle(others)
        said: list[str] = []
        scene = Scene(
            self._cluster,
            self.workload,
            leader,
            tuple(others),
            register.epoch,
            self.workload.now_ms,
            said.append,
            self.found.problems.append,
        )
        began_ms = self.workload.now_ms()
        self._may_fail_over = drill.expect.failover is not False
        outcome = "done"
        try:
            for step in (*drill.prepare, *drill.steps):
                await asyncio.sleep(step.after_s)
                await step.action.perform(scene)
                await step.action.proof(scene)
            await asyncio.sleep(drill.watch_s)
            for step in drill.heal:
                await asyncio.sleep(step.after_s)
                await step.action.perform(scene)
        except NotInjected as error:
            outcome = f"not run: {error}"
        finally:
            while scene.undo:
                await scene.undo.pop()()
        if not await self._cluster.wait_until_whole(180):
            self.found.problems.append(f"{drill.name}: the cluster was not whole within 180 s")
        lasted_s = (self.workload.now_ms() - began_ms) / 1000
        self._epoch = await self._register_epoch() or self._epoch
        self._may_fail_over = False
        self.found.rounds.append({"drill": drill.name, "outcome": outcome, "lasted_s": round(lasted_s, 1)})
        left_min = max(0.0, self._until - time.monotonic()) / 60
        say(f"{drill.name:34} {outcome} ({lasted_s:.0f} s; {left_min:.0f} min left)")

    # -- leaks ----------------------------------------------------------------------------------------------------

    async def _sample(self) -> None:
        while True:
            for name, memory_kb, fds in await asyncio.to_thread(lambda: list(self._processes())):
                growth = self.found.processes.setdefault(name, Growth(first_kb=memory_kb, first_fds=fds))
                growth.samples += 1
                growth.last_kb, growth.last_fds = memory_kb, fds
                growth.most_kb, growth.most_fds = max(growth.most_kb, memory_kb), max(growth.most_fds, fds)
                if time.monotonic() < self._until - self._options.minutes * 45:
                    growth.settled_kb, growth.settled_fds = growth.most_kb, growth.most_fds
            await asyncio.sleep(SAMPLE_S)

    def _processes(self) -> Iterator[tuple[str, int, int]]:
        cluster = self._cluster
        found = {f"postmaster {node}": cluster.postmaster(node) for node in cluster.nodes}
        found |= {f"agent {node}": cluster.agent(node) for node in cluster.nodes}
        found |= {f"store {node}": cluster.store_member(node) for node in cluster.nodes}
        found |= {f"proxy {name}": cluster.proxy(name) for name in cluster.file.proxies}
        found |= {f"supervisor {name}": cluster.supervisor(name) for name in cluster.hosts}
        for name, process in found.items():
            with contextlib.suppress(OSError):
                if process is not None:
                    status = Path(f"/proc/{process.pid}/status").read_text()
                    memory = next(line for line in status.splitlines() if line.startswith("VmRSS"))
                    # A process that came anew after a fault begins with less, and is counted with the one before it.
                    yield name, int(memory.split()[1]), len(os.listdir(f"/proc/{process.pid}/fd"))

    # -- the end --------------------------------------------------------------------------------------------------

    async def _judge(self, began_ms: float) -> Verdict:
        verdict = await verdict_of(self._cluster, self.workload, began_ms)
        problems = self.found.problems
        for what in ("lost", "duplicated", "altered", "wrong_errors", "strangers", "stale_reads", "two_leaders"):
            if count := len(getattr(verdict, what)):
                problems.append(f"{what}: {count}")
        for name, growth in self.found.processes.items():
            if growth.settled_kb and growth.last_kb > max(GROWTH_MAX * growth.settled_kb, GROWTH_MIN_KB):
                problems.append(f"{name} grew from {growth.settled_kb} kB to {growth.last_kb} kB")
            if growth.settled_fds and growth.last_fds > growth.settled_fds + FDS_GROWTH_MAX:
                problems.append(f"{name} grew from {growth.settled_fds} to {growth.last_fds} file descriptors")
        return verdict


def say(words: str) -> None:
    """One line, with the time of day."""
    sys.stdout.write(f"{time.strftime('%H:%M:%S')}  {words}\n")
    sys.stdout.flush()


@contextmanager
def busy_cores(count: int) -> Iterator[None]:
    """Processes that take whatever the cores give them."""
    burners = [subprocess.Popen([sys.executable, "-c", "while True: pass"]) for _ in range(count)]
    try:
        yield
    finally:
        for burner in burners:
            burner.kill()
            burner.wait()


async def soak(options: argparse.Namespace) -> int:
    """Returns the exit status."""
    jitter_ms = options.jitter_ms / 2 if options.no_faults else 0.0
    began = time.strftime("%Y-%m-%dT%H:%M:%S")
    async with hosted_cluster(progress=say, jitter_ms=jitter_ms) as cluster:
        run = Soak(cluster, options)
        try:
            verdict = await run.run()
        finally:
            await run.workload.close()
        settings = cluster.settings_hash
    found = run.found
    result = {
        "began": began,
        "minutes": options.minutes,
        "seed": options.seed,
        "faults": not options.no_faults,
        "conditions": {
            "jitter_ms": options.jitter_ms,
            "pause_ms": options.pause_ms,
            "pauses": found.pauses,
            "burners": options.burners,
        }
        if options.no_faults
        else None,
        "settings": settings,
        "passed": not found.problems and not found.false_failovers,
        "problems": found.problems,
        "failovers": found.failovers,
        "false_failovers": found.false_failovers,
        "writes": {
            "acknowledged": verdict.acknowledged,
            "errors": verdict.errors,
            "unknown": verdict.unknown,
            "lost": len(verdict.lost),
            "duplicated": len(verdict.duplicated),
            "lost_by_choice": len(verdict.lost_by_choice),
        },
        "stale_reads": len(verdict.stale_reads),
        "fresh_reads": len(run.workload.history.fresh_reads),
        "longest_stall_ms": round(verdict.rto_ms, 1),
        "availability": round(verdict.availability, 6),
        "rounds": found.rounds,
        "processes": {name: asdict(growth) for name, growth in sorted(found.processes.items())},
    }
    text = json.dumps(result, indent=2) + "\n"
    if options.json is not None:
        options.json.write_text(text)
    else:
        sys.stdout.write(text)
    say(
        f"{'PASSED' if result['passed'] else 'FAILED'}: {verdict.acknowledged} writes acknowledged, "
        f"{len(verdict.lost)} lost, {len(verdict.stale_reads)} stale reads, {len(found.rounds)} faults, "
        f"{found.failovers} failovers, {len(found.false_failovers)} of them false"
    )
    for problem in found.problems:
        say(f"problem: {problem}")
    return 0 if result["passed"] else 1


def main() -> int:
    """Returns the exit status."""
    options = arguments()
    hosts.enter([sys.executable, *sys.argv])
    from holdfast.cli.logs import configure_quiet_logs

    configure_quiet_logs()
    return asyncio.run(soak(options))


if __name__ == "__main__":
    sys.exit(main())
