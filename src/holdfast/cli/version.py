"""``holdfast version``."""

from __future__ import annotations

import json
import platform

import click

from holdfast import __version__


@click.command()
@click.option("--json", "as_json", is_flag=True, help="Print one JSON object instead of text.")
def version(as_json: bool) -> None:
    """Say which version of Holdfast this is."""
    if as_json:
        click.echo(json.dumps({"holdfast": __version__, "python": platform.python_version()}, indent=2))
    else:
        click.echo(f"holdfast {__version__} (Python {platform.python_version()})")
