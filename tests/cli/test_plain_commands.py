"""Commands that need no cluster, and how a command ends when we are at fault."""

from __future__ import annotations

import json
import re
import sys
from pathlib import Path

import click
import pytest
from click.testing import CliRunner

from holdfast import __version__
from holdfast.cli import main
from holdfast.cli.failures import reported
from holdfast.local import layout as rooms
from holdfast.local.layout import Layout
from holdfast.model.errors import ConfigurationError, HoldfastError, StoreUnavailable
from tests.cli.running import holdfast
from tests.local.test_layout import cluster_file


def test_version() -> None:
    assert holdfast("version").stdout.startswith(f"holdfast {__version__} ")
    assert json.loads(holdfast("version", "--json").stdout)["holdfast"] == __version__
    assert holdfast("--version").stdout == f"holdfast {__version__}\n"


def test_version_waits_for_nothing_that_it_does_not_need() -> None:
    code = "import sys; from holdfast.cli.version import version; import holdfast.cli; print(*sys.modules)"
    import subprocess

    loaded = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True).stdout.split()
    assert not {"pydantic", "aiohttp", "psycopg", "structlog", "rich", "asyncio.base_events"} & set(loaded) - {
        "asyncio.base_events"
    }


def test_help_lists_every_command_but_the_hidden() -> None:
    text = holdfast("--help").stdout
    for command in ("up", "down", "status", "switchover", "demo", "drill", "explain", "version", "node", "proxy"):
        assert f"\n  {command} " in text
    assert "supervise" not in text


def test_explain_prints_every_rule() -> None:
    from holdfast.core.explain import rows

    text = holdfast("explain").stdout
    assert all(row.rule in text for row in rows())
    assert len(json.loads(holdfast("explain", "--json").stdout)) == len(rows())


def test_drill_list() -> None:
    assert "primary-crash" in holdfast("drill", "list").stdout
    assert json.loads(holdfast("drill", "list", "--json").stdout)[0]["name"] == "primary-crash"


def test_status_and_down_of_a_cluster_that_does_not_run(place: Path) -> None:
    layout = Layout.at(place / "c")
    rooms.make_directories(layout, cluster_file(), None)
    done = holdfast("status", "--dir", layout.root, "--json")
    assert done.returncode == 1
    found = json.loads(done.stdout)
    assert (found["running"], found["healthy"], found["tolerates"]) == (False, False, "nothing runs")
    done = holdfast("status", "--dir", layout.root)
    assert done.returncode == 1
    assert "stopped" in done.stdout
    done = holdfast("down", "--dir", layout.root, "--json")
    assert done.returncode == 0
    assert json.loads(done.stdout)["stopped"] is False


@pytest.mark.parametrize(
    ("error", "status"),
    [
        (ConfigurationError("x"), 2),
        (StoreUnavailable("x"), 2),
        (HoldfastError("x"), 1),
        (KeyboardInterrupt(), 130),
        (RuntimeError("x"), 70),
    ],
)
def test_exit_status(error: BaseException, status: int) -> None:
    @click.command()
    @click.pass_context
    def command(ctx: click.Context) -> None:
        with reported(ctx):
            raise error

    done = CliRunner().invoke(command)
    assert done.exit_code == status
    if status == 70:
        path = Path(done.output.split("the details are in ")[1].strip().rstrip(")"))
        try:
            assert "RuntimeError: x" in path.read_text()
        finally:
            path.unlink()


def test_the_group_is_what_the_entry_point_names() -> None:
    assert isinstance(main, click.Group)


def test_the_fingerprint_of_a_statement() -> None:
    said = holdfast("quarantine", "fingerprint", "SELECT * FROM prices WHERE product = 4711")
    assert re.fullmatch(r"[0-9a-f]{12}  select \* from prices where product = \?", said.stdout.strip())
    told = json.loads(holdfast("quarantine", "fingerprint", "select * from prices where product=$1", "--json").stdout)
    assert said.stdout.startswith(told["id"])
