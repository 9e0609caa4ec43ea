"""Fifty rejoins in a row under load: is the lost primary always back, by itself, as a standby, and nothing lost?

    python bench/rejoins.py [--rounds 50] [--minutes M] [--rate 100] [--plain-every 4] [--spoil-every 10] [--json FILE]

Makes a cluster of its own. In each round every process of the primary is killed while clients write, and the next
round begins when all nodes stream again. The primary's walsenders stand still for a moment before, so that its log goes
beyond the fork and it must be rewound; in every fourth round they do not, and it may just start. In every tenth round
the old primary's directory is spoiled so that pg_rewind fails, and a clone must mend it. At
the end every row is compared with what its client was told, and all nodes with each other. Memory and file descriptors
of the agents are noted after each round. Exit status 1 if a node is not back within ``--patience-s``, if a row is lost,
doubled or altered, if a standby has not the primary's rows, or if an agent grows without bound.
"""

from __future__ import annotations

import argparse
import asyncio
import json
import statistics
import sys
import time
from collections import Counter
from collections.abc import Sequence
from contextlib import suppress
from dataclasses import asdict, dataclass
from pathlib import Path

import psutil
from rich.console import Console

from holdfast.drill.checker import Verdict
from holdfast.drill.judge import verdict_of
from holdfast.drill.workload import Workload
from holdfast.local.bringup import temporary_cluster
from holdfast.local.cluster import LocalCluster
from holdfast.local.parity import Pace, compare_standbys
from holdfast.local.processes import hold_postgres, postmaster_of
from holdfast.model.event import Event
from holdfast.model.register import Phase, Register
from holdfast.postgres.files import remove_durably

SPOILED = "pg_ident.conf"
"""pg_rewind refuses a directory where the source has a file; the server needs it for nothing here."""
POLL_S = 0.02
ALONE_S = 0.2
"""For some statements of each writer; no voter holds the primary for lost so soon."""
GROWTH_MAX = 1.5
"""An agent whose memory at the end is this many times what it was after the first quarter, grows without bound."""
FDS_GROWTH_MAX = 32


@dataclass(frozen=True, slots=True)
class Agent:
    """One agent after a round. ``threads`` and ``fds`` are counts."""

    resident_bytes: int
    fds: int
    threads: int


@dataclass(frozen=True, slots=True)
class Round:
    """One rejoin. ``how`` the node came back: start, rewind or clone; a clone after a rewind that failed is a clone."""

    number: int
    node: str
    epoch: int
    spoiled: bool
    how: str
    serving_ms: float
    """From the kill until another epoch serves."""
    back_ms: float
    """From the kill until every node streams."""
    agents: dict[str, Agent]


def how_it_came_back(events: Sequence[Event], node: str, epoch: int) -> str:
    """From the journal: what was done to the directory of a node since an epoch was opened against it."""
    began = max((n for n, e in enumerate(events) if e.kind == "epoch.opened" and e.epoch == epoch), default=0)
    kinds = [e.kind for e in events[began:] if e.source == node]
    return "clone" if "clone.done" in kinds else "rewind" if "rewind.done" in kinds else "start"


class Rejoins:
    """The rounds on one cluster."""

    def __init__(self, cluster: LocalCluster, options: argparse.Namespace, console: Console) -> None:
        self._cluster = cluster
        self._options = options
        self._console = console
        self.rounds: list[Round] = []
        self.problems: list[str] = []
        self.workload = Workload(
            (cluster.write_dsn,),
            cluster.read_dsn,
            run_id="rejoins",
            idle=5,
            fresh_readers=1,
            long_writers=1,
            seed=1,
            rate_per_s=options.rate,
        )

    async def run(self) -> Verdict:
        """All rounds under load; then every row."""
        await self.workload.setup()
        await self.workload.start()
        began_ms = self.workload.now_ms()
        until_s = time.monotonic() + self._options.minutes * 60 if self._options.minutes else None
        for number in range(1, self._options.rounds + 1):
            if until_s is not None and time.monotonic() > until_s:
                break
            spoil = self._options.spoil_every > 0 and number % self._options.spoil_every == 0
            plain = self._options.plain_every > 0 and number % self._options.plain_every == 0 and not spoil
            if not await self._round(number, spoil=spoil, plain=plain):
                break
        await self.workload.stop()
        return await verdict_of(self._cluster, self.workload, began_ms)

    async def _register(self) -> Register:
        register = await self._cluster.register()
        if register is None:
            sys.exit("the store holds no register")
        return register

    async def _round(self, number: int, *, spoil: bool, plain: bool) -> bool:
        """Whether the node came back."""
        before = await self._register()
        node = before.committed.leader.node
        agent = psutil.Process(self._agent(node))
        if spoil:
            agent.suspend()  # nothing is done to the directory before it is spoiled
        try:
            if not plain:
                await self._write_alone(node)
            began_s = time.monotonic()
            held = await asyncio.to_thread(hold_postgres, self._cluster.layout.data_dir(node))
            if held is None:
                self.problems.append(f"round {number}: {node} leads and does not run")
                return False
            held.kill()
            if spoil:
                path = self._cluster.layout.data_dir(node) / SPOILED
                remove_durably(path)
                path.mkdir()
            serving_s = await self._until_another_serves(before)
        finally:
            agent.resume()
        if serving_s is None or not await self._cluster.wait_until_whole(self._options.patience_s):
            self.problems.append(f"round {number}: not every node was back within {self._options.patience_s:g} s")
            return False
        back_s = time.monotonic()
        after = await self._register()
        how = how_it_came_back(await self._cluster.events(), node, before.epoch + 1)
        if how != "clone" and (spoil or (how == "start" and not plain)):
            self.problems.append(f"round {number}: {node} was back by a {how}: the fault was not what it should be")
        agents = {name: look_at(self._agent(name)) for name in self._cluster.nodes}
        one = Round(
            number, node, after.epoch, spoil, how,
            round((serving_s - began_s) * 1000), round((back_s - began_s) * 1000), agents,
        )  # fmt: skip
        self.rounds.append(one)
        largest = max(agent.resident_bytes for agent in agents.values()) / 1e6
        self._console.print(
            f"  {number:3} {node} {how:6} serving after {one.serving_ms:6.0f} ms, whole after {one.back_ms:6.0f} ms, "
            f"agents up to {largest:.0f} MB"
        )
        return True

    async def _write_alone(self, node: str) -> None:
        """Have log written that nobody else gets; nobody is told that it is committed."""
        found = postmaster_of(self._cluster.layout.data_dir(node))
        if found is None:
            sys.exit(f"{node} leads and does not run")
        for child in psutil.Process(found.pid).children():
            with suppress(psutil.NoSuchProcess):
                if "walsender" in " ".join(child.cmdline()):
                    child.suspend()
        await asyncio.sleep(ALONE_S)

    async def _until_another_serves(self, before: Register) -> float | None:
        give_up_s = time.monotonic() + self._options.patience_s
        while time.monotonic() < give_up_s:
            now = await self._register()
            if now.phase is Phase.SERVING and now.epoch > before.epoch:
                return time.monotonic()
            await asyncio.sleep(POLL_S)
        return None

    def _agent(self, node: str) -> int:
        process = self._cluster.state().processes[node].process
        if process is None:
            sys.exit(f"the agent of {node} does not run")
        return process.pid


def look_at(pid: int) -> Agent:
    """What a process takes now."""
    process = psutil.Process(pid)
    with process.oneshot():
        return Agent(process.memory_info().rss, process.num_fds(), process.num_threads())


def growth_problems(rounds: Sequence[Round]) -> list[str]:
    """Agents that took more at the end than after the first quarter, by more than chance."""
    settled, last = rounds[: max(1, len(rounds) // 4)], rounds[-1]
    problems = []
    for node, agent in last.agents.items():
        resident_bytes = max(r.agents[node].resident_bytes for r in settled)
        fds = max(r.agents[node].fds for r in settled)
        if agent.resident_bytes > GROWTH_MAX * resident_bytes:
            problems.append(f"the agent of {node} grew from {resident_bytes:,} to {agent.resident_bytes:,} bytes")
        if agent.fds > fds + FDS_GROWTH_MAX:
            problems.append(f"the agent of {node} grew from {fds} to {agent.fds} file descriptors")
    return problems


async def parity_problems(cluster: LocalCluster) -> list[str]:
    """Standbys that have not what the primary has."""
    found = await compare_standbys(cluster, (), (), Pace(1.0), check_indexes=False, progress=lambda progress: None)
    return [f"{parity.node} has not the rows of {parity.primary}" for parity in found if not parity.holds]


def summary(rounds: Sequence[Round], verdict: Verdict, problems: Sequence[str]) -> dict[str, object]:
    """The figures, as JSON prints them."""
    back = sorted(r.back_ms for r in rounds)
    serving = sorted(r.serving_ms for r in rounds)
    agents = [agent for r in rounds for agent in r.agents.values()]
    return {
        "passed": not problems,
        "problems": list(problems),
        "rejoins": len(rounds),
        "how": dict(Counter(r.how for r in rounds)),
        "serving_ms": {"median": statistics.median(serving), "longest": serving[-1]},
        "back_ms": {"median": statistics.median(back), "longest": back[-1]},
        "writes": {
            "acknowledged": verdict.acknowledged,
            "errors": verdict.errors,
            "unknown": verdict.unknown,
            "lost": len(verdict.lost),
            "duplicated": len(verdict.duplicated),
            "altered": len(verdict.altered),
            "stale_reads": len(verdict.stale_reads),
        },
        "agents": {
            "resident_bytes_max": max(agent.resident_bytes for agent in agents),
            "resident_bytes": {n: [r.agents[n].resident_bytes for r in rounds] for n in rounds[0].agents},
            "fds": {n: [r.agents[n].fds for r in rounds] for n in rounds[0].agents},
        },
        "rounds": [asdict(r) for r in rounds],
    }


async def main() -> int:
    """Returns the exit status."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--rounds", type=int, default=50, help="rejoins in a row [50]")
    parser.add_argument("--minutes", type=float, default=0, help="begin with no more of them then; 0: with all [0]")
    parser.add_argument("--rate", type=float, default=100.0, help="writes a second [100]")
    parser.add_argument("--plain-every", type=int, default=4, help="kill without log of its own so often [4]")
    parser.add_argument("--spoil-every", type=int, default=10, help="make pg_rewind fail so often; 0: never [10]")
    parser.add_argument("--patience-s", type=float, default=300.0, help="for a node to be back [300]")
    parser.add_argument("--json", type=Path, help="write every round there")
    options = parser.parse_args()
    console = Console(stderr=True)
    async with temporary_cluster(nodes=3, progress=lambda step: console.print(f"  {step}")) as cluster:
        await cluster.wait_until_whole(options.patience_s)
        run = Rejoins(cluster, options, console)
        try:
            verdict = await run.run()
            problems = run.problems
            if not run.rounds:
                sys.exit("no node came back: " + "; ".join(problems))
            for what in ("lost", "duplicated", "altered", "wrong_errors", "strangers", "stale_reads", "two_leaders"):
                if count := len(getattr(verdict, what)):
                    problems.append(f"{what}: {count}")
            problems += growth_problems(run.rounds)
            if not run.problems:
                problems += await parity_problems(cluster)
        finally:
            await run.workload.close()
    found = summary(run.rounds, verdict, problems)
    if options.json is not None:
        options.json.write_text(json.dumps(found, indent=2) + "\n")
    told = {key: value for key, value in found.items() if key not in ("rounds", "agents")}
    sys.stdout.write(json.dumps(told, indent=2) + "\n")
    return 1 if problems else 0


if __name__ == "__main__":
    from holdfast.cli.logs import configure_quiet_logs

    configure_quiet_logs()
    sys.exit(asyncio.run(main()))
