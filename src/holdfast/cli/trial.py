"""What ``demo`` and ``drill run`` share: the options, the cluster, the watching, the report."""

from __future__ import annotations

import functools
import os
import tempfile
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from holdfast.cli.output import Steps

if TYPE_CHECKING:
    from holdfast.drill.result import DrillResult
    from holdfast.local.cluster import LocalCluster

STANDARD_OUTPUT = Path("-")


@dataclass(frozen=True, slots=True)
class Trial:
    """What was asked for on the command line."""

    seed: int
    plain: bool
    hard: bool
    json_file: Path | None
    report_dir: Path


def drill_options(command: Callable[..., Any]) -> Callable[..., Any]:
    """Add the options of a drill to a command, which takes them as one `Trial`."""

    @functools.wraps(command)
    def with_trial(
        *args: Any, seed: int, plain: bool, hard: bool, json_file: Path | None, report_dir: Path, **rest: Any
    ) -> Any:
        return command(*args, trial=Trial(seed, plain, hard, json_file, report_dir), **rest)

    options = (
        click.option("--json", "json_file", type=click.Path(path_type=Path), help="Write the result there (- prints)."),
        click.option("--seed", type=int, default=1, show_default=True, help="Seed of load and fault."),
        click.option("--plain", is_flag=True, help="Print lines instead of a moving picture."),
        click.option(
            "--report",
            "report_dir",
            type=click.Path(file_okay=False, path_type=Path),
            default=Path("holdfast-report"),
            show_default=True,
            help="Directory of the report page.",
        ),
        click.option(
            "--hard", is_flag=True, help="With much data, a long reader on each standby and a checkpoint under way."
        ),
    )
    for option in reversed(options):
        with_trial = option(with_trial)
    return with_trial


async def try_on_own_cluster(trial: Trial, *, nodes: int, keep: bool = False, directory: Path | None = None) -> bool:
    """Run the drill on a cluster that is made for it; True if it passed."""
    from holdfast.cli.logs import configure_quiet_logs
    from holdfast.local.bringup import temporary_cluster

    configure_quiet_logs()
    check_places(trial)
    steps = Steps(err=trial.json_file == STANDARD_OUTPUT)
    cluster_made = temporary_cluster(nodes=nodes, progress=steps, directory=directory, meanwhile=_load_drill)
    async with cluster_made as cluster:
        result = await _drill(trial, cluster, steps)
        if keep:
            cluster.keep()
    if keep:
        root = cluster.layout.root
        steps(f"the cluster runs on in {root}: writes at port {cluster.file.ports.write}")
        steps(f"look with `holdfast status --dir {root}`, stop with `holdfast down --dir {root}`")
    return result.passed


async def try_on_running_cluster(trial: Trial, directory: Path) -> bool:
    """Run the drill on the cluster of a directory, which must run; True if it passed."""
    from holdfast.cli.logs import configure_quiet_logs
    from holdfast.local.cluster import LocalCluster
    from holdfast.model.errors import ConfigurationError

    configure_quiet_logs()
    check_places(trial)
    cluster = LocalCluster.open(directory)
    if not cluster.state().is_alive:
        raise ConfigurationError(
            f"--dir {directory}: the cluster does not run; `holdfast up --dir {directory}` starts it"
        )
    try:
        result = await _drill(trial, cluster, Steps(err=trial.json_file == STANDARD_OUTPUT))
    finally:
        await cluster.close()
    return result.passed


def _load_drill() -> None:
    import holdfast.drill.primary_crash
    import holdfast.drill.progress  # noqa: F401


async def _drill(trial: Trial, cluster: LocalCluster, steps: Steps) -> DrillResult:
    from holdfast.drill.primary_crash import run_primary_crash
    from holdfast.drill.progress import make_observer
    from holdfast.drill.runner import DrillOptions

    options = DrillOptions(
        seed=trial.seed,
        large_data=trial.hard,
        long_readers=trial.hard,
        checkpoint=trial.hard,
        report_path=trial.report_dir.absolute() / "report.html",
    )
    observer = make_observer(plain=trial.plain, err=trial.json_file == STANDARD_OUTPUT)
    try:
        result = await run_primary_crash(cluster, options, observer)
    finally:
        observer.close()
    if trial.json_file == STANDARD_OUTPUT:
        click.echo(result.to_json(), nl=False)
    elif trial.json_file is not None:
        trial.json_file.write_text(result.to_json())
    return result


def check_places(trial: Trial) -> None:
    """Say now, not after the drill, that its result could not be written."""
    from holdfast.model.errors import ConfigurationError

    if trial.json_file is not None and trial.json_file != STANDARD_OUTPUT:
        parent = trial.json_file.absolute().parent
        if trial.json_file.is_dir() or not parent.is_dir() or not os.access(parent, os.W_OK):
            raise ConfigurationError(
                f"--json {trial.json_file}: cannot be written: choose a file in a directory that exists"
            )
    place = trial.report_dir.absolute()
    while not place.exists():
        place = place.parent
    try:
        tempfile.TemporaryFile(dir=place).close()  # what the permissions say is not always true (/proc, for root)
    except OSError:
        raise ConfigurationError(
            f"--report {trial.report_dir}: {place} is not a directory that can be written to: choose another"
        ) from None
