"""``holdfast capture``: what was taken of failed nodes before anything touched them."""

from __future__ import annotations

from datetime import UTC, datetime
from pathlib import Path
from typing import TYPE_CHECKING

import click

from holdfast.cli.clusters import with_cluster
from holdfast.cli.failures import FAILED
from holdfast.cli.output import directory_option, json_option, print_json
from holdfast.core.words import amount, duration, plural

if TYPE_CHECKING:
    from holdfast.model.capture import Capture

node_option = click.option("--node", help="Only captures of this node.")
epoch_option = click.option("--epoch", type=int, help="Only captures of this epoch.")
path_option = click.option(
    "--path",
    type=click.Path(exists=True, file_okay=False, path_type=Path),
    help="A capture's own directory, anywhere: no cluster is asked then.",
)


@click.group()
def capture() -> None:
    """What was taken of a failed node before it was started, rewound or cloned again."""


@capture.command("list")
@directory_option
@json_option
@click.pass_context
def list_captures(ctx: click.Context, directory: Path, as_json: bool) -> None:
    """List every capture, oldest first. Exit status 1 if a node does not answer: its own are missing."""
    from holdfast.local.captures import read_all

    captures, silent = with_cluster(directory, read_all)
    if as_json:
        print_json({"captures": [_short(c) for c in captures], "silent": silent})
    else:
        for one in captures:
            lacks = f", lacks {plural(len(one.lacking), 'thing')}" if one.lacking else ""
            sent = f", sent to {one.sent_to}" if one.sent_to is not None else ""
            click.echo(
                f"{_at(one.begun_at_ms)}  {one.node:8} epoch {one.epoch:<5} {one.state.value:11} "
                f"{plural(len(one.files), 'file')}, {amount(one.size_bytes)} bytes{lacks}{sent}"
            )
        if not captures:
            click.echo("Nothing was captured: no node has failed, or the policy's capture_wait_s is 0.")
        if silent:
            click.echo(f"no answer from {', '.join(silent)}: their captures are missing here", err=True)
    ctx.exit(FAILED if silent else 0)


@capture.command("show")
@node_option
@epoch_option
@path_option
@directory_option
@json_option
def show(node: str | None, epoch: int | None, path: Path | None, directory: Path, as_json: bool) -> None:
    """Show one capture, the newest that is meant: what it has, what it lacks, and why."""
    import json

    one = _one(directory, node, epoch, path)
    if as_json:
        print_json(json.loads(one.to_json()))
        return
    _tell(one)


@capture.command("verify")
@node_option
@epoch_option
@path_option
@directory_option
@json_option
@click.pass_context
def verify(
    ctx: click.Context, node: str | None, epoch: int | None, path: Path | None, directory: Path, as_json: bool
) -> None:
    """Compare every file of a capture with the checksums in its manifest; an encrypted one needs no key for that.

    Run it on the host where the capture is. Exit status 1 if a file is missing, damaged or was added.
    """
    from dataclasses import asdict

    from holdfast.postgres.capture.keep import verify as compare

    found, problems = compare(path or Path(_one(directory, node, epoch, None).directory))
    if as_json:
        print_json(
            {"directory": found.directory, "state": found.state.value, "files": len(found.files),
             "is_intact": not problems, "problems": [asdict(p) for p in problems]}
        )  # fmt: skip
    else:
        for problem in problems:
            click.echo(f"{problem.path}: {problem.words}")
        verdict = "all as the manifest says" if not problems else plural(len(problems), "problem")
        click.echo(f"{plural(len(found.files), 'file')}, {amount(found.size_bytes)} bytes ({found.state}): {verdict}")
    ctx.exit(FAILED if problems else 0)


@capture.command("decrypt")
@click.option(
    "--identity",
    required=True,
    type=click.Path(exists=True, dir_okay=False, path_type=Path),
    help="File with a private key of age, as `age-keygen` writes it.",
)
@click.option(
    "--to", "target", required=True, type=click.Path(path_type=Path), help="Directory to make, for the plain files."
)
@node_option
@epoch_option
@path_option
@directory_option
@json_option
def decrypt(
    identity: Path,
    target: Path,
    node: str | None,
    epoch: int | None,
    path: Path | None,
    directory: Path,
    as_json: bool,
) -> None:
    """Write the files of an encrypted capture in plain, below a new directory. `age -d` reads each of them as well."""
    from holdfast.postgres.capture.keep import decrypt as open_all

    source = path or Path(_one(directory, node, epoch, None).directory)
    written = open_all(source, identity, target)
    if as_json:
        print_json({"to": str(target.absolute()), "files": len(written)})
    else:
        click.echo(f"{plural(len(written), 'file')} are in {target}; anybody who can read them can read your rows")


def _one(directory: Path, node: str | None, epoch: int | None, path: Path | None) -> Capture:
    from holdfast.local.captures import read_all, the_one
    from holdfast.postgres.capture.keep import read_capture

    if path is not None:
        return read_capture(path)
    return the_one(*with_cluster(directory, read_all), node, epoch)


def _tell(one: Capture) -> None:
    click.echo(f"{one.node}, epoch {one.epoch}, before a {one.occasion}: {one.state}")
    ended = "" if one.ended_at_ms is None else f", took {duration(one.ended_at_ms - one.begun_at_ms)}"
    click.echo(f"  begun {_at(one.begun_at_ms)}{ended}" + "".join(f"; {note}" for note in one.notes))
    if one.end is not None:
        fork = "" if one.fork_lsn is None else f", the fork was at {one.fork_lsn}"
        click.echo(f"  its log ended at {one.end.lsn} of timeline {one.end.timeline}{fork}")
    counts: dict[str, tuple[int, int]] = {}
    for file in one.files:
        files, size_bytes = counts.get(file.kind.value, (0, 0))
        counts[file.kind.value] = files + 1, size_bytes + file.size_bytes
    for kind, (files, size_bytes) in counts.items():
        click.echo(f"  {kind:14} {plural(files, 'file')}, {amount(size_bytes)} bytes")
    for left in one.left_out:
        more = f" ({plural(left.files, 'file')}, {amount(left.size_bytes)} bytes)" if left.size_bytes else ""
        detail = f": {left.detail}" if left.detail else ""
        click.echo(f"  without {left.what}{more}: {left.reason.explained}{detail}")
    if one.snapshot is not None:
        click.echo(f"  snapshot of the volume: {'made' if one.snapshot.ok else 'failed'}, {one.snapshot.words}")
    if one.encrypted_to:
        click.echo(f"  encrypted to {', '.join(one.encrypted_to)}")
    if one.sent_to is not None:
        click.echo(f"  sent to {one.sent_to}, as {Path(one.directory).name}")
    click.echo(f"  in {one.directory}")


def _short(one: Capture) -> dict[str, object]:
    return {
        "node": one.node,
        "epoch": one.epoch,
        "occasion": one.occasion.value,
        "state": one.state.value,
        "begun_at_ms": one.begun_at_ms,
        "ended_at_ms": one.ended_at_ms,
        "files": len(one.files),
        "bytes": one.size_bytes,
        "lacking": [item.what for item in one.lacking],
        "encrypted": bool(one.encrypted_to),
        "directory": one.directory,
        "sent_to": one.sent_to,
    }


def _at(at_ms: int) -> str:
    return f"{datetime.fromtimestamp(at_ms / 1000, UTC):%Y-%m-%d %H:%M:%S} UTC"
