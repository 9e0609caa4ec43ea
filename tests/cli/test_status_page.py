"""What `holdfast status` shows beside the table, read as text."""

from __future__ import annotations

import io
from dataclasses import replace
from pathlib import Path

import click
import pytest
from click.testing import CliRunner
from rich.console import Console

from holdfast.cli import _COMMANDS, main
from holdfast.cli.output import as_typed, directory_option
from holdfast.cli.status import _picture
from holdfast.local.status import ClusterStatus, NodeStatus

PRIMARY = NodeStatus("n1", "primary", 3, "3:0/5000000", None, False, False, True, 5001, None)
COPIED = NodeStatus("n2", "absent", None, None, None, False, False, True, 5002, None, "copying 34%")
NOW = ClusterStatus(
    directory="/data", running=True, supervised=True, store_reachable=True, epoch=3, phase="serving", primary="n1",
    primary_lost=None,
    durability="ANY 1 of n2, n3", quorum="ANY 1", paused=False,
    unread=(), waiting=None, tolerates_primary=True,
    tolerates_standbys=1, tolerates="the primary", write_address="127.0.0.1:1", read_address="127.0.0.1:2",
    healthy=True, nodes=(PRIMARY, COPIED), voters=(), votes_needed=2, planned_switchover=None, obstacles=(),
    held_back=(), troubles=(),
)  # fmt: skip


def shown(now: ClusterStatus) -> list[str]:
    page = io.StringIO()
    Console(file=page, width=200, highlight=False).print(_picture(now))
    return page.getvalue().splitlines()


def test_a_copy_under_way_says_how_far_it_is() -> None:
    assert "n2: copying 34%" in shown(NOW)


def test_a_cluster_without_its_supervisor_is_not_stopped(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("HOLDFAST_COMMAND", "./holdfast")
    lines = shown(replace(NOW, supervised=False, healthy=False))
    assert lines[0] == "/data: epoch 3, serving"
    assert "its supervisor is gone: what dies stays dead until `./holdfast up --dir /data`" in lines
    assert shown(replace(NOW, running=False, supervised=False))[0] == "/data: stopped"


def test_a_failover_under_way_reads_as_one() -> None:
    silent = replace(PRIMARY, agent_alive=False)
    lines = shown(replace(NOW, primary_lost="unreachable", nodes=(silent, COPIED)))
    assert lines[0] == "/data: epoch 3, n1 is lost (unreachable)"
    assert any(line.startswith("n1") and "was primary" in line and "silent" in line for line in lines)
    assert shown(replace(NOW, epoch=4, phase="promoting"))[0].endswith("promoting: the chosen one is taking over")


@click.command()
@directory_option
def hinting(directory: Path) -> None:
    """Hints of four kinds."""
    click.echo(as_typed("`holdfast approve`, `holdfast policy set a=b`, `holdfast up --dir x`, `holdfast version`"))


def test_hints_can_be_typed_for_the_cluster_that_was_asked_for(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(_COMMANDS, "hinting", f"{__name__}:hinting")
    plain = CliRunner().invoke(main, ["hinting"]).output
    elsewhere = CliRunner().invoke(main, ["hinting", "--dir", "/data/my cluster"]).output
    assert plain.strip() == "`holdfast approve`, `holdfast policy set a=b`, `holdfast up --dir x`, `holdfast version`"
    assert elsewhere.strip() == (
        "`holdfast approve --dir '/data/my cluster'`, `holdfast policy set a=b --dir '/data/my cluster'`, "
        "`holdfast up --dir x`, `holdfast version`"
    )


def test_troubles_and_alarms_are_told_once() -> None:
    dead = "n3: does not stay up (exit status 2): no such setting; its log is /data/n3/log/agent.log"
    alarm = "n2: ALARM: the register is older than this node's promise: run `holdfast recover`; its log is /data/log"
    nodes = (PRIMARY, replace(COPIED, alarm="the register is older than this node's promise: run `holdfast recover`"))
    lines = shown(replace(NOW, troubles=(dead, alarm), nodes=nodes))
    assert dead in lines
    assert sum("ALARM" in line for line in lines) == 1


def test_what_the_proxy_keeps_back_is_told() -> None:
    words = "the proxy only probes n3, for 1.2 s now: 5 connections in a row came to nothing"
    assert words in shown(replace(NOW, held_back=(words,)))
