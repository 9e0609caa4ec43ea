"""Many seeds over several processes: counted as they come in, the same whatever the number of processes."""

from __future__ import annotations

import gc
import multiprocessing
import os
import time
from collections.abc import Iterator
from dataclasses import dataclass, field
from functools import partial

import structlog

from holdfast.testing.breaks import VARIANTS
from holdfast.testing.plan import plan_of
from holdfast.testing.run import Result, run
from holdfast.testing.wiring import Wiring

_CHUNK = 20


@dataclass(frozen=True, slots=True)
class Found:
    """A violation: which seed, which property, in which words."""

    seed: int
    kind: str
    words: str


@dataclass(slots=True)
class Tally:
    """What many runs came to."""

    seeds: int = 0
    steps: int = 0
    failovers: int = 0
    writes: int = 0
    acknowledged: int = 0
    recovered: int = 0
    simulated_s: float = 0.0
    seconds: float = 0.0
    violations: list[Found] = field(default_factory=list)

    @property
    def seeds_per_s(self) -> float:
        """How many runs in a second of real time."""
        return self.seeds / self.seconds if self.seconds else 0.0

    def add(self, other: Tally) -> None:
        """Count the runs of another."""
        self.seeds += other.seeds
        self.steps += other.steps
        self.failovers += other.failovers
        self.writes += other.writes
        self.acknowledged += other.acknowledged
        self.recovered += other.recovered
        self.simulated_s += other.simulated_s
        self.violations.extend(other.violations)

    def count(self, result: Result) -> None:
        """Count one run."""
        self.seeds += 1
        self.steps += result.steps
        self.failovers += result.failovers
        self.writes += result.writes
        self.acknowledged += result.acknowledged
        self.recovered += result.recovered
        self.simulated_s += result.simulated_ms / 1000
        if result.violation is not None:
            self.violations.append(Found(result.plan.seed, result.violation.kind, result.violation.words))


def wiring_of(left_out: str | None) -> Wiring:
    """The product as it is, or without one rule; raises KeyError for a rule that is not known."""
    return Wiring() if left_out is None else VARIANTS[left_out]()


def hush() -> None:
    """Nobody reads the logs of simulated agents; the timeline says it better."""
    structlog.configure(wrapper_class=structlog.make_filtering_bound_logger("critical"), cache_logger_on_first_use=True)


def run_seeds(first: int, count: int, left_out: str | None = None) -> Tally:
    """Run some seeds in this process."""
    tally = Tally()
    for seed in range(first, first + count):
        tally.count(run(plan_of(seed), wiring_of(left_out)))
    return tally


def campaign(first: int, count: int, *, left_out: str | None = None, jobs: int | None = None) -> Iterator[Tally]:
    """Run many seeds; yields the tally so far, again and again, and at last the whole.

    ``jobs`` defaults to the number of processors that this process may use.
    """
    began_s = time.monotonic()
    total = Tally()
    jobs = jobs if jobs is not None else len(os.sched_getaffinity(0))
    chunks = [(at, min(_CHUNK, first + count - at)) for at in range(first, first + count, _CHUNK)]
    work = partial(_run_chunk, left_out=left_out)
    # Forked, so that nothing is imported twice; nothing here has threads.
    with multiprocessing.get_context("fork").Pool(min(jobs, len(chunks)), _begin_worker) as pool:
        for part in pool.imap_unordered(work, chunks):
            total.add(part)
            total.seconds = time.monotonic() - began_s
            yield total
    total.violations.sort(key=lambda found: found.seed)


def _begin_worker() -> None:
    hush()
    if hasattr(gc, "freeze"):  # not in PyPy
        gc.freeze()


def _run_chunk(chunk: tuple[int, int], left_out: str | None) -> Tally:
    gc.disable()  # runs leave cycles behind; one collection for several of them is enough
    try:
        return run_seeds(*chunk, left_out=left_out)
    finally:
        gc.enable()
        gc.collect()
