"""What commands print: progress for people, one object for programs."""

from __future__ import annotations

import json
import os
import re
import shlex
import time
from pathlib import Path
from typing import Any

import click

DEFAULT_DIRECTORY = Path("holdfast-data")

_DIRECTORY_KEY = "holdfast.directory"


def _note_directory(ctx: click.Context, parameter: click.Parameter, value: Path) -> Path:
    ctx.meta[_DIRECTORY_KEY] = value
    return value


directory_option = click.option(
    "--dir",
    "directory",
    type=click.Path(file_okay=False, path_type=Path),
    default=DEFAULT_DIRECTORY,
    show_default=True,
    callback=_note_directory,
    help="Directory of the cluster.",
)
json_option = click.option("--json", "as_json", is_flag=True, help="Print one JSON object instead of text.")


COMMAND_VARIABLE = "HOLDFAST_COMMAND"
"""How the command was typed; `./holdfast` hands it down."""


def command_name() -> str:
    """The command as people type it here."""
    return os.environ.get(COMMAND_VARIABLE) or "holdfast"


def as_typed(text: str) -> str:
    """A text in which the commands in backquotes can be typed as they stand: for the cluster that was asked for."""
    return _COMMAND.sub(lambda found: f"`{command_name()} {found[1]}{_directory_of(found[1])}`", text)


_COMMAND = re.compile(r"`holdfast ([^`]+)`")


def _directory_of(words: str) -> str:
    """The ``--dir`` that a command needs to meet the same cluster as the one that is running."""
    ctx = click.get_current_context(silent=True)
    directory = ctx.meta.get(_DIRECTORY_KEY, DEFAULT_DIRECTORY) if ctx is not None else DEFAULT_DIRECTORY
    if ctx is None or directory == DEFAULT_DIRECTORY or " --dir" in words:
        return ""
    command: click.Command | None = ctx.find_root().command
    for word in words.split():
        if not isinstance(command, click.Group):
            break
        command = command.get_command(ctx, word)
    takes_one = command is not None and any("--dir" in parameter.opts for parameter in command.params)
    return f" --dir {shlex.quote(str(directory))}" if takes_one else ""


class Steps:
    """Lines that say what has just happened and how long it took so far; silent for programs."""

    def __init__(self, *, quiet: bool = False, err: bool = False) -> None:
        self._quiet = quiet
        self._err = err
        self._began_at = time.monotonic()

    def __call__(self, words: str) -> None:
        """Tell one step."""
        if not self._quiet:
            click.echo(f"{time.monotonic() - self._began_at:6.1f} s  {as_typed(words)}", err=self._err)


def print_json(value: Any) -> None:
    """One object, indented, on standard output."""
    click.echo(json.dumps(value, indent=2))
