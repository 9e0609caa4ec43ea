"""The supervisor and the killer with real servers: etcd is stopped gently, no PostgreSQL is left over."""

from __future__ import annotations

import json
import signal
import subprocess
import urllib.request
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path

import pytest

from holdfast.local import layout as rooms
from holdfast.local import machine
from holdfast.local.layout import Layout, Program
from holdfast.local.plan import Plan
from holdfast.local.ports import free_ports, is_free
from holdfast.local.processes import Process, descendants_of, kill_postgres, postmaster_of
from holdfast.local.servers import find_servers, make_plan
from holdfast.model.timeouts import LocalTimeouts
from holdfast.postgres.shared_memory import (
    SharedMemory,
    remove_shared_memory,
    shared_memory_left_in,
    shared_memory_of,
)
from tests.local.conftest import processes_below
from tests.local.supervision import DEADLINE_S, Supervised, stand_in, until
from tests.local.test_layout import cluster_file

pytestmark = pytest.mark.live


@pytest.fixture
def servers(place: Path) -> tuple[Program, Program]:
    return find_servers(place / "servers", machine.server_user())


def answers(port: int) -> bool:
    try:
        with urllib.request.urlopen(f"http://127.0.0.1:{port}/health", timeout=1) as answer:
            return bool(json.load(answer)["health"] == "true")
    except (OSError, ValueError):
        return False


def put(port: int, key: str, value: str) -> None:
    body = json.dumps({"key": key, "value": value}).encode()
    urllib.request.urlopen(urllib.request.Request(f"http://127.0.0.1:{port}/v3/kv/put", body), timeout=60).close()


def get(port: int, key: str) -> str:
    request = urllib.request.Request(f"http://127.0.0.1:{port}/v3/kv/range", json.dumps({"key": key}).encode())
    with urllib.request.urlopen(request, timeout=60) as answer:
        return str(json.load(answer)["kvs"][0]["value"])


def test_etcd_is_kept_and_stopped_with_its_data(place: Path, servers: tuple[Program, Program]) -> None:
    layout = Layout.at(place / "cluster")
    file = replace(cluster_file(), postgresql=servers[0], etcd=servers[1])
    rooms.make_directories(layout, file, machine.owner_ids(file.os_user))
    etcd = make_plan(layout, file, LocalTimeouts()).spec("etcd")
    assert etcd is not None
    supervised = Supervised(place, etcd)
    port = file.ports.etcd_client
    for attempt in range(2):
        supervisor = supervised.start(ready=False)
        until(lambda: answers(port), "etcd answers")
        if attempt == 0:
            put(port, "a2V5", "dmFsdWU=")
        assert get(port, "a2V5") == "dmFsdWU="
        supervisor.terminate()
        assert supervisor.wait(DEADLINE_S) == 0
        assert processes_below(place) == []
        assert is_free(port)


class Postgres:
    """A server on its own, started past every agent."""

    def __init__(self, place: Path, bin_dir: str) -> None:
        self.data_dir = place / "n1" / "data"
        self.port = next(free_ports(seed=hash(str(place))))
        owner = machine.owner_ids(machine.server_user())
        self.data_dir.parent.mkdir()
        if owner:
            import os

            os.chown(self.data_dir.parent, *owner)
        self._as = {"user": owner[0], "group": owner[1], "extra_groups": []} if owner else {}
        initdb = [f"{bin_dir}/initdb", "-D", str(self.data_dir), "-U", "postgres", "--auth=trust", "--no-sync"]
        subprocess.run(initdb, check=True, capture_output=True, cwd="/", **self._as)  # type: ignore[call-overload]
        self.start(bin_dir)

    def start(self, bin_dir: str) -> None:
        """Start it as a child of nobody who cares, as the agent that died left it."""
        words = [f"{bin_dir}/postgres", "-D", str(self.data_dir), "-p", str(self.port)]
        words += ["-c", "listen_addresses=127.0.0.1", "-c", f"unix_socket_directories={self.data_dir.parent}"]
        self.child = subprocess.Popen(words, stdout=-3, stderr=-3, cwd="/", start_new_session=True, **self._as)  # type: ignore[call-overload]
        until(self._serves, "PostgreSQL serves")

    def _serves(self) -> bool:
        path = self.data_dir / "postmaster.pid"
        return path.exists() and path.read_text().endswith("ready   \n")


@pytest.fixture
def postgres(place: Path, servers: tuple[Program, Program]) -> Iterator[Postgres]:
    server = Postgres(place, servers[0].path)
    yield server
    shared = shared_memory_of(server.child.pid, *descendants_of(server.child.pid))
    if postmaster_of(server.data_dir):
        kill_postgres(server.data_dir)
    server.child.wait(DEADLINE_S)
    remove_shared_memory(shared)


def test_kill_takes_the_postmaster_and_every_child(place: Path, postgres: Postgres) -> None:
    postmaster = postmaster_of(postgres.data_dir)
    assert postmaster is not None
    children = [c for c in map(Process.of, descendants_of(postmaster.pid)) if c is not None]
    assert len(children) >= 3
    assert kill_postgres(postgres.data_dir) > 3  # autovacuum comes and goes
    assert postgres.child.wait(DEADLINE_S) == -signal.SIGKILL
    for child in children:
        assert child.wait(DEADLINE_S)
    assert postmaster_of(postgres.data_dir) is None
    assert kill_postgres(postgres.data_dir) == 0


def test_a_stale_number_in_the_lock_file_is_not_believed(place: Path) -> None:
    stranger = subprocess.Popen(["sleep", "1000"], cwd="/")
    try:
        (place / "postmaster.pid").write_text(f"{stranger.pid}\n{place}\n")
        assert postmaster_of(place) is None
        assert kill_postgres(place) == 0
        assert stranger.poll() is None
    finally:
        stranger.kill()
        stranger.wait(DEADLINE_S)


def segments() -> set[int]:
    return {int(line.split()[1]) for line in Path("/proc/sysvipc/shm").read_text().splitlines()[1:]}


def test_what_a_killed_server_left_goes_with_its_directory(place: Path, postgres: Postgres) -> None:
    shared = shared_memory_of(postgres.child.pid, *descendants_of(postgres.child.pid))
    assert shared_memory_left_in(postgres.data_dir) == SharedMemory(), "it is in use"
    kill_postgres(postgres.data_dir)
    postgres.child.wait(DEADLINE_S)
    until(lambda: shared_memory_left_in(postgres.data_dir) == shared, "the last of its processes has ended")
    left = shared_memory_left_in(postgres.data_dir)
    assert left.segments <= segments()
    assert all(file.exists() for file in left.files)
    remove_shared_memory(left)
    assert not left.segments & segments()
    assert not any(file.exists() for file in left.files)
    assert shared_memory_left_in(postgres.data_dir) == SharedMemory()


@pytest.mark.parametrize("remove", [False, True])
def test_a_postgresql_whose_agent_died_is_stopped_too(place: Path, postgres: Postgres, remove: bool) -> None:
    agent = replace(stand_in(place, "n1"), data_dir=str(postgres.data_dir))
    supervised = Supervised(place, agent)
    shared = shared_memory_of(postgres.child.pid, *descendants_of(postgres.child.pid))
    assert shared.files
    assert shared.segments
    supervisor = supervised.start(*(["--tied", "--remove"] if remove else []))
    supervisor.terminate()
    assert supervisor.wait(DEADLINE_S) == 0
    # Removed: killed. Otherwise: a fast shutdown, so that its control file says that it ended cleanly.
    assert postgres.child.wait(DEADLINE_S) == (-signal.SIGKILL if remove else 0)
    assert processes_below(place) == []
    assert not any(file.exists() for file in shared.files)
    until(lambda: not shared.segments & segments(), "its segment is gone")


def test_the_plan_is_read_as_it_was_written(place: Path, servers: tuple[Program, Program]) -> None:
    file = replace(cluster_file(), postgresql=servers[0], etcd=servers[1])
    plan = make_plan(Layout.at(place), file, LocalTimeouts())
    (place / "plan.json").write_text(plan.to_json())
    assert Plan.load(place / "plan.json") == plan
    assert [s.name for s in plan.processes] == ["etcd", "n1", "n2", "n3", "proxy"]
    assert [s.name for s in plan.processes if "--bootstrap" in s.extra] == ["n1"]
    complete = make_plan(Layout.at(place), replace(file, complete=True), LocalTimeouts())
    assert not any(s.extra for s in complete.processes)
