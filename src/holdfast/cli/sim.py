"""``holdfast sim``: the real agents in a simulated world that does its worst."""

from __future__ import annotations

from dataclasses import asdict
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from holdfast.cli.failures import FAILED
from holdfast.cli.output import json_option, print_json
from holdfast.core.words import plural

if TYPE_CHECKING:
    from click._termui_impl import ProgressBar

    from holdfast.testing.campaign import Tally

DEFAULT_SEEDS = 1000
_SHOWN_VIOLATIONS = 10


@click.group()
def sim() -> None:
    """Try the protocol in a simulated world: the same agents, every fault, checked at every step."""


@sim.command("rules")
@json_option
def list_rules(as_json: bool) -> None:
    """Say which rules can be left out, to see that the simulator notices."""
    from holdfast.testing.breaks import RULES

    if as_json:
        print_json([{"rule": name, "instead": words} for name, words in RULES.items()])
        return
    width = max(map(len, RULES))
    for name, words in RULES.items():
        click.echo(f"{name:{width}}  {words}")


@sim.command("run")
@click.option("--seeds", type=click.IntRange(1), default=None, help=f"How many seeds.  [default: {DEFAULT_SEEDS}]")
@click.option("--first", type=click.IntRange(0), default=None, help="The first of these seeds.  [default: 0]")
@click.option("--seed", type=click.IntRange(0), default=None, help="Run this seed alone, and print its timeline.")
@click.option("--break", "left_out", default=None, metavar="RULE", help="Leave a rule out (see `holdfast sim rules`).")
@click.option("--jobs", type=click.IntRange(1), default=None, help="Processes.  [default: one per processor]")
@click.option(
    "--json", "file", type=click.Path(dir_okay=False, path_type=Path), default=None, help="Write the figures there."
)
@click.pass_context
def run_seeds(
    ctx: click.Context,
    seeds: int | None,
    first: int | None,
    seed: int | None,
    left_out: str | None,
    jobs: int | None,
    file: Path | None,
) -> None:
    """Run seeds; exit status 1 if a property was violated in one of them."""
    from holdfast.testing.breaks import RULES
    from holdfast.testing.campaign import hush

    if left_out is not None and left_out not in RULES:
        raise click.UsageError(f"--break {left_out}: there is no such rule; known are {', '.join(RULES)}.")
    if seed is not None and (seeds is not None or first is not None):
        raise click.UsageError("--seed runs one seed alone; for many give --seeds and --first.")
    hush()
    if seed is not None:
        ctx.exit(_show_one(seed, left_out, file))
    ctx.exit(_run_many(first or 0, seeds or DEFAULT_SEEDS, left_out, jobs, file))


def _show_one(seed: int, left_out: str | None, file: Path | None) -> int:
    from holdfast.testing.campaign import Tally, wiring_of
    from holdfast.testing.plan import plan_of
    from holdfast.testing.run import run

    result = run(plan_of(seed), wiring_of(left_out))
    for note in result.timeline:
        click.echo(str(note))
    tally = Tally()
    tally.count(result)
    verdict = str(result.violation) if result.violation is not None else "no property was violated"
    click.echo(f"\nseed {seed}: {plural(result.plan.nodes, 'node')}, {result.steps} steps, digest {result.digest}")
    click.echo(f"{verdict}; {result.acknowledged} writes acknowledged, {plural(result.failovers, 'failover')}")
    if result.violation is not None:
        _show_shrunk(seed, left_out)
    _write(file, seed, tally, left_out)
    return FAILED if result.violation is not None else 0


def _run_many(first: int, count: int, left_out: str | None, jobs: int | None, file: Path | None) -> int:
    from holdfast.testing.campaign import Tally, campaign

    tally = Tally()
    shown = 0
    bar: ProgressBar[Tally] = click.progressbar(length=count, label="seeds", item_show_func=_progress)
    with bar:
        for tally in campaign(first, count, left_out=left_out, jobs=jobs):
            bar.update(tally.seeds - shown, tally)
            shown = tally.seeds
    words = "no violation" if not tally.violations else plural(len(tally.violations), "violation")
    click.echo(
        f"{words} in {plural(tally.seeds, 'seed')}: {tally.steps} steps, {plural(tally.failovers, 'failover')}, "
        f"{tally.acknowledged} of {tally.writes} writes acknowledged, {tally.seeds - tally.recovered} clusters that "
        f"had lost too much; {tally.simulated_s / 3600:.1f} h simulated in {tally.seconds:.0f} s, "
        f"{tally.seeds_per_s:.0f} seeds/s"
    )
    for found in tally.violations[:_SHOWN_VIOLATIONS]:
        click.echo(f"  seed {found.seed}: {found.kind}: {found.words}")
    if len(tally.violations) > _SHOWN_VIOLATIONS:
        click.echo(f"  … and {len(tally.violations) - _SHOWN_VIOLATIONS} more")
    if tally.violations:
        _show_shrunk(tally.violations[0].seed, left_out)
    _write(file, first, tally, left_out)
    return FAILED if tally.violations else 0


def _progress(tally: Tally | None) -> str | None:
    if tally is None:
        return None
    return f"{tally.seeds_per_s:.0f}/s, {plural(len(tally.violations), 'violation')}"


def _show_shrunk(seed: int, left_out: str | None) -> None:
    from holdfast.testing.campaign import wiring_of
    from holdfast.testing.plan import plan_of
    from holdfast.testing.run import run
    from holdfast.testing.shrink import shrink

    wiring = wiring_of(left_out)
    small = shrink(run(plan_of(seed), wiring), wiring)
    click.echo(f"\nthe smallest run found that fails like seed {seed}: {plural(small.plan.nodes, 'node')},")
    for fault in small.plan.faults:
        click.echo(f"  {fault}")
    click.echo("")
    for note in small.timeline:
        click.echo(str(note))


def _write(file: Path | None, first: int, tally: Tally, left_out: str | None) -> None:
    if file is None:
        return
    import json

    figures: dict[str, Any] = {
        "first": first,
        "seeds": tally.seeds,
        "steps": tally.steps,
        "violations": [asdict(found) for found in tally.violations],
        "failovers": tally.failovers,
        "seeds_per_s": round(tally.seeds_per_s, 1),
        "left_out": left_out,
        "writes": tally.writes,
        "acknowledged": tally.acknowledged,
        "recovered": tally.recovered,
        "simulated_s": round(tally.simulated_s, 1),
        "seconds": round(tally.seconds, 1),
    }
    try:
        file.write_text(json.dumps(figures, indent=2) + "\n")
    except OSError as error:
        raise click.UsageError(f"--json {file}: cannot be written ({error.strerror}).") from error
