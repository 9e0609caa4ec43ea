"""``holdfast version``."""

from __future__ import annotations

import json
import platform
from importlib.machinery import EXTENSION_SUFFIXES
from importlib.util import find_spec

import click

from holdfast import __version__


@click.command()
@click.option("--json", "as_json", is_flag=True, help="Print one JSON object instead of text.")
def version(as_json: bool) -> None:
    """Say which version of Holdfast this is, and whether its proxy is compiled."""
    python, is_compiled = platform.python_version(), _is_proxy_compiled()
    if as_json:
        click.echo(json.dumps({"holdfast": __version__, "python": python, "proxy_compiled": is_compiled}, indent=2))
    else:
        proxy = "compiled" if is_compiled else "not compiled"
        click.echo(f"holdfast {__version__} (Python {python}, proxy {proxy})")


def _is_proxy_compiled() -> bool:
    spec = find_spec("holdfast.proxy.reactor")
    return spec is not None and spec.origin is not None and spec.origin.endswith(tuple(EXTENSION_SUFFIXES))
