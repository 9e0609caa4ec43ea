"""Many runs, one after the other, each on a cluster of its own; what was done is not done again after a break."""

from __future__ import annotations

import json
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from datetime import UTC, datetime
from pathlib import Path

from holdfast.drill.archive import Archive, Entry
from holdfast.drill.hosted import hosted_cluster
from holdfast.drill.observer import Observer
from holdfast.drill.runner import DrillOptions, run_drill
from holdfast.drill.scenario import Drill, NotInjected
from holdfast.local.cluster import Progress
from holdfast.local.layout import write_atomically
from holdfast.model.errors import ConfigurationError

OVERHEAD_S = 40.0
"""Of a run, beside its own pauses: hosts, cluster and load come up, the cluster becomes whole, rows are compared."""


@dataclass(frozen=True, slots=True)
class Turn:
    """One run to do."""

    drill: Drill
    seed: int


def turns_of(drills: Sequence[Drill], runs: int, seed: int) -> list[Turn]:
    """Every drill once, then again, so that an early end leaves something of each."""
    return [Turn(drill, seed + number) for number in range(runs) for drill in drills]


async def run_on_hosts(turn: Turn, options: DrillOptions, observer: Observer, progress: Progress) -> Entry:
    """One run on hosts of its own; a fault that was not there makes it *not run*. Raises HoldfastError."""
    at = f"{datetime.now(UTC):%Y-%m-%dT%H:%M:%SZ}"
    drill = turn.drill
    try:
        made = hosted_cluster(progress=progress, parameters=dict(drill.parameters), volumes=dict(drill.volumes))
        async with made as cluster:
            result = await run_drill(drill, cluster, replace(options, seed=turn.seed), observer)
    except NotInjected as error:
        return Entry(drill.name, turn.seed, at, None, str(error))
    return Entry(drill.name, turn.seed, at, result)


@dataclass(slots=True)
class Campaign:
    """Turns, of which some are done; ``place`` remembers them until the last one is."""

    place: Path
    turns: list[Turn]
    done: list[tuple[str, int]]

    @classmethod
    def resume(cls, place: Path, turns: list[Turn], *, afresh: bool) -> Campaign:
        """Go on where an earlier one with the same turns ended, unless ``afresh``. Raises ConfigurationError."""
        wanted = [[turn.drill.name, turn.seed] for turn in turns]
        done: list[tuple[str, int]] = []
        if not afresh:
            try:
                raw = json.loads(place.read_text())
                if raw["turns"] == wanted:
                    done = [(str(name), int(seed)) for name, seed in raw["done"]]
            except FileNotFoundError:
                pass
            except (OSError, ValueError, KeyError, TypeError) as error:
                raise ConfigurationError(f"{place} cannot be read ({error}): remove it, or use --afresh") from error
        return cls(place, turns, done)

    @property
    def left(self) -> list[Turn]:
        """What is still to be done."""
        return [turn for turn in self.turns if (turn.drill.name, turn.seed) not in self.done]

    def finished(self, turn: Turn) -> None:
        """Remember that a turn is done; after the last one nothing is remembered."""
        self.done.append((turn.drill.name, turn.seed))
        if not self.left:
            self.place.unlink(missing_ok=True)
            return
        self.place.parent.mkdir(parents=True, exist_ok=True)
        wanted = [[each.drill.name, each.seed] for each in self.turns]
        write_atomically(self.place, json.dumps({"turns": wanted, "done": self.done}) + "\n", 0o644)

    def estimate_s(self, archive: Sequence[Entry]) -> float:
        """How long what is left will take: as long as each drill's last run, else by its own pauses."""
        lasted: dict[str, float] = {}
        for entry in archive:
            if entry.result is not None:
                lasted[entry.drill] = entry.result.duration_ms / 1000 + OVERHEAD_S / 2
        return sum(lasted.get(turn.drill.name, turn.drill.lasts_s + OVERHEAD_S) for turn in self.left)


async def run_campaign(
    campaign: Campaign,
    archive: Archive,
    options_of: Callable[[Turn], DrillOptions],
    make_observer: Callable[[], Observer],
    progress: Progress,
) -> list[Entry]:
    """Do what is left, one run after the other; each is in the archive as soon as it is over. Raises HoldfastError."""
    entries = []
    for turn in campaign.left:
        number = len(campaign.done) + 1
        estimate_s = campaign.estimate_s(archive.entries())
        until = f"{datetime.fromtimestamp(time.time() + estimate_s):%H:%M}"
        progress(
            f"run {number} of {len(campaign.turns)}: {turn.drill.name}, seed {turn.seed} "
            f"(about {estimate_s / 60:.0f} min left, until {until})"
        )
        entry = await run_on_hosts(turn, options_of(turn), make_observer(), progress)
        archive.add(entry)
        entries.append(entry)
        campaign.finished(turn)
        if entry.not_run is not None:
            progress(f"{turn.drill.name} was NOT RUN: {entry.not_run}")
    return entries
