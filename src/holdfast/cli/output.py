"""What commands print: progress for people, one object for programs."""

from __future__ import annotations

import json
import os
import time
from pathlib import Path
from typing import Any

import click

DEFAULT_DIRECTORY = Path("holdfast-data")

directory_option = click.option(
    "--dir",
    "directory",
    type=click.Path(file_okay=False, path_type=Path),
    default=DEFAULT_DIRECTORY,
    show_default=True,
    help="Directory of the cluster.",
)
json_option = click.option("--json", "as_json", is_flag=True, help="Print one JSON object instead of text.")


COMMAND_VARIABLE = "HOLDFAST_COMMAND"
"""How the command was typed; `./holdfast` hands it down."""


def command_name() -> str:
    """The command as people type it here."""
    return os.environ.get(COMMAND_VARIABLE) or "holdfast"


def as_typed(text: str) -> str:
    """A text in which the commands in backquotes can be typed as they stand."""
    return text.replace("`holdfast ", f"`{command_name()} ")


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
