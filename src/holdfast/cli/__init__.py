"""The command line: one file per command group; each parses, composes and runs, and decides nothing.

Commands are imported when they are called, so that ``holdfast version`` and the start of a demo do not wait for
what they do not need.

Exit status: 0 done; 1 a drill failed, or the cluster is not healthy or refused; 2 wrong input or environment;
70 a bug of ours; 130 Ctrl-C; 143 SIGTERM.
"""

from __future__ import annotations

import importlib

import click

from holdfast import __version__
from holdfast.cli.failures import reported

_COMMANDS = {
    "approve": "holdfast.cli.policy:approve",
    "capture": "holdfast.cli.capture:capture",
    "demo": "holdfast.cli.demo:demo",
    "down": "holdfast.cli.up:down",
    "drill": "holdfast.cli.drill:drill",
    "explain": "holdfast.cli.explain:explain",
    "forecast": "holdfast.cli.forecast:forecast",
    "history": "holdfast.cli.history:history",
    "incident": "holdfast.cli.incident:incident",
    "lost": "holdfast.cli.lost:lost",
    "node": "holdfast.cli.processes:node",
    "outcome": "holdfast.cli.outcome:outcome",
    "parity": "holdfast.cli.parity:parity",
    "pause": "holdfast.cli.policy:pause",
    "policy": "holdfast.cli.policy:policy",
    "proxy": "holdfast.cli.processes:proxy",
    "quarantine": "holdfast.cli.quarantine:quarantine",
    "ramp": "holdfast.cli.ramp:ramp",
    "resume": "holdfast.cli.policy:resume",
    "recover": "holdfast.cli.recover:recover",
    "sim": "holdfast.cli.sim:sim",
    "status": "holdfast.cli.status:status",
    "supervise": "holdfast.cli.processes:supervise",
    "switchover": "holdfast.cli.switchover:switchover",
    "up": "holdfast.cli.up:up",
    "version": "holdfast.cli.version:version",
    "witness": "holdfast.cli.processes:witness",
}


class _LazyGroup(click.Group):
    """Commands by name; the module of each is imported when it is asked for."""

    def list_commands(self, ctx: click.Context) -> list[str]:
        return sorted(_COMMANDS)

    def get_command(self, ctx: click.Context, cmd_name: str) -> click.Command | None:
        place = _COMMANDS.get(cmd_name)
        if place is None:
            return None
        module, _, name = place.partition(":")
        command = getattr(importlib.import_module(module), name)
        assert isinstance(command, click.Command)
        return command

    def invoke(self, ctx: click.Context) -> object:
        with reported(ctx):
            return super().invoke(ctx)


@click.group(cls=_LazyGroup, context_settings={"help_option_names": ["-h", "--help"]})
@click.version_option(__version__, prog_name="holdfast", message="%(prog)s %(version)s")
def main() -> None:
    """Keep a PostgreSQL cluster writing through failures, and account for every transaction afterwards."""
