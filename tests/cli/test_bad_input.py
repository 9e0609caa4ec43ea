"""Wrong input and a wrong environment: one message with the setting's name and the fix, status 2, nothing left."""

from __future__ import annotations

import socket
from dataclasses import replace
from pathlib import Path

import pytest

from holdfast.local import layout as rooms
from holdfast.local import machine
from holdfast.local.configs import write_configs
from holdfast.local.layout import Layout
from holdfast.local.servers import find_servers
from tests.cli.running import assert_refused, holdfast
from tests.local.conftest import processes_below
from tests.local.test_layout import cluster_file


@pytest.fixture
def stopped(place: Path) -> Layout:
    """The directory of a cluster that does not run."""
    layout = Layout.at(place / "stopped")
    write_configs(layout, rooms.make_directories(layout, cluster_file(), None))
    return layout


@pytest.mark.parametrize("command", ["status", "down", "switchover", "ramp show", "drill run primary-crash"])
def test_commands_that_need_a_cluster(place: Path, command: str) -> None:
    typed = {"HOLDFAST_COMMAND": "../clone/holdfast"}
    done = holdfast(*command.split(), "--dir", place / "none", environment=typed)
    assert_refused(done, "holds no Holdfast cluster", "`../clone/holdfast up --dir")
    assert not (place / "none").exists()


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        (("--nodes", "2"), ("--nodes 2", "nobody to confirm a write")),
        (("--nodes", "10"), ("--nodes 10", "at most 9")),
        (("--nodes", "three"), ("--nodes", "not a valid integer")),
        (("--port", "70000"), ("--port", "70000")),
    ],
)
def test_up_with_wrong_numbers(place: Path, arguments: tuple[str, ...], words: tuple[str, ...]) -> None:
    assert_refused(holdfast("up", "--dir", place / "c", *arguments), *words)
    assert not (place / "c").exists()


def test_up_in_a_directory_of_something_else(place: Path) -> None:
    (place / "precious").write_text("x")
    assert_refused(holdfast("up", "--dir", place), f"--dir {place}", "is not empty", "choose another")
    assert (place / "precious").read_text() == "x"


def test_up_on_a_port_in_use(place: Path) -> None:
    with socket.create_server(("127.0.0.1", 0)) as server:
        port = server.getsockname()[1]
        assert_refused(holdfast("up", "--dir", place / "c", "--port", port), f"--port {port}", "in use")
    assert not (place / "c").exists()


@pytest.mark.live
def test_up_on_a_kept_port_that_somebody_took(stopped: Layout) -> None:
    file = stopped.load()
    postgresql, etcd = find_servers(machine.private_copy_dir(stopped), file.os_user)
    stopped.save(replace(file, postgresql=postgresql, etcd=etcd))
    port = file.ports.etcd_client
    with socket.create_server(("127.0.0.1", port)):
        assert_refused(holdfast("up", "--dir", stopped.root), f"port {port}", "ports.etcd_client", "in use")
    assert processes_below(stopped.root) == []


def script(path: Path, says: str) -> None:
    path.write_text(f"#!/bin/sh\necho '{says}'\n")
    path.chmod(0o755)


def test_up_without_a_usable_postgresql(place: Path) -> None:
    nowhere = {"HOLDFAST_PG_BINDIR": str(place / "nowhere")}
    assert_refused(holdfast("up", "--dir", place / "c", environment=nowhere), "HOLDFAST_PG_BINDIR", "nowhere")
    old = place / "old"
    old.mkdir()
    for program in ("initdb", "postgres", "pg_basebackup", "pg_rewind", "pg_waldump", "pg_controldata", "pg_ctl"):
        script(old / program, f"{program} (PostgreSQL) 12.22")
    too_old = {"HOLDFAST_PG_BINDIR": str(old)}
    assert_refused(holdfast("up", "--dir", place / "c", environment=too_old), "HOLDFAST_PG_BINDIR", "too old", "14")
    assert not (place / "c").exists()


def test_up_without_a_usable_etcd(place: Path) -> None:
    script(place / "etcd", "etcd Version: 3.3.25")
    too_old = {"HOLDFAST_ETCD": str(place / "etcd")}
    assert_refused(holdfast("up", "--dir", place / "c", environment=too_old), "HOLDFAST_ETCD", "too old", "3.4")
    missing = {"HOLDFAST_ETCD": str(place / "nowhere")}
    assert_refused(holdfast("up", "--dir", place / "c", environment=missing), "HOLDFAST_ETCD", "does not exist")
    assert not (place / "c").exists()


def test_up_by_somebody_else_than_who_made_it(stopped: Layout) -> None:
    file = stopped.load()
    stopped.save(replace(file, os_user=None if file.os_user else "postgres"))
    assert_refused(holdfast("up", "--dir", stopped.root), "made this cluster, and only they can start it")


def test_up_with_another_number_of_nodes_than_there_are(stopped: Layout) -> None:
    assert_refused(holdfast("up", "--dir", stopped.root, "--nodes", 5), "--nodes 5", "has 3")


def test_a_directory_of_a_newer_version(stopped: Layout) -> None:
    text = stopped.cluster_file.read_text().replace('"format": 1', '"format": 2')
    stopped.cluster_file.write_text(text)
    for command in ("up", "status", "down"):
        assert_refused(holdfast(command, "--dir", stopped.root), "has format 2", "use the version that made it")


def test_a_drill_on_a_cluster_that_does_not_run(stopped: Layout) -> None:
    assert_refused(holdfast("drill", "run", "primary-crash", "--dir", stopped.root), "does not run", "holdfast up")


def test_results_that_could_not_be_written(place: Path) -> None:
    assert_refused(holdfast("demo", "--json", place / "no" / "file", cwd=place), "--json", "cannot be written")
    (place / "taken").write_text("x")
    for unwritable in (place / "taken", place / "taken" / "below", Path("/proc/holdfast")):
        assert_refused(holdfast("demo", "--report", unwritable), "--report", str(unwritable))


def test_words_that_are_no_command() -> None:
    assert_refused(holdfast("upp"), "No such command 'upp'")
    assert_refused(holdfast("up", "--colour"), "No such option", "--colour")
    assert_refused(holdfast("drill", "run", "flood"), "flood", "primary-crash")


@pytest.mark.parametrize("command", ["node", "proxy"])
@pytest.mark.parametrize(
    ("text", "words"),
    [
        (None, ("No such file",)),
        (b"\xff\xfe", ("not a text file",)),
        (b"[store\n", ("not valid TOML",)),
        (b"[storage]\n", ("unknown setting storage", "known here: ")),
        (b"[store]\nendpoints = 3\n", ("setting store.endpoints",)),
        (b"[store]\nendpoints = ['localhost:2379']\n", ("store.endpoints", "http://host:2379")),
        (b"[timeouts]\nsilence_ms = 'long'\n", ("timeouts.silence_ms", "whole number")),
        (b"[timeouts]\nsilence_ms = 900\n", ("timeouts.silence_ms = 900", "2 times timeouts.heartbeat_interval_ms")),
        (b"[timeouts]\npeer_timeout_ms = 600\n", ("timeouts.heartbeat_interval_ms = 500", "timeouts.peer_timeout_ms")),
        (b"[cluster]\nnodes = ['n1', 'n2', 'n1']\n", ("setting cluster.nodes: n1 is listed twice",)),
    ],
)
def test_wrong_configuration(place: Path, command: str, text: bytes | None, words: tuple[str, ...]) -> None:
    path = place / "x.toml"
    if text is not None:
        path.write_bytes(text)
    assert_refused(holdfast(command, "--config", path), str(path), *words)


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        (("--ledger", "l.csv"), ("Missing option", "--key")),
        (("--ledger", "l.csv", "--key", "id", "--query", "SELECT 1"), ("--query is for a database",)),
        (("--ledger", "service=x", "--key", "id"), ("add --query",)),
        (("--ledger", "service=x", "--key", "id", "--query", "SELECT 1", "--format", "csv"), ("--format",)),
        (("--ledger", "host=h password=hidden", "--key", "id", "--query", "SELECT 1"), ("PGPASSFILE",)),
        (("--ledger", "l.csv", "--key", "id="), ("--key 'id='", "COLUMN=LEDGER_COLUMN")),
        (("--ledger", "l.csv", "--key", "id", "--key", "id=x"), ("--key id", "given twice")),
        (("--ledger", "l.txt", "--key", "id"), ("--format csv",)),
        (("--ledger", "l.csv", "--key", "id", "--list", "/proc/no"), ("--list /proc/no", "cannot be written")),
    ],
)
def test_a_match_that_cannot_be_made(stopped: Layout, arguments: tuple[str, ...], words: tuple[str, ...]) -> None:
    refused = holdfast("lost", "match", "--dir", stopped.root, *arguments)
    assert_refused(refused, *words)
    assert "hidden" not in refused.stderr
