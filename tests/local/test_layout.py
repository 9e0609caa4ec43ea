"""The directory of a local cluster: what makes one, what is refused, what is left when making it fails."""

from __future__ import annotations

import json
import socket
import stat
from dataclasses import replace
from pathlib import Path

import pytest

from holdfast.local import layout as rooms
from holdfast.local import machine
from holdfast.local.layout import ClusterFile, Layout, Program
from holdfast.local.ports import free_ports, is_free, proxy_ports
from holdfast.model.errors import ConfigurationError, EnvironmentFault


def cluster_file(count: int = 3) -> ClusterFile:
    names = rooms.node_names(count)
    return ClusterFile(
        "main",
        names,
        rooms.draw_ports(names, None, anywhere=True),
        Program("17.10", "wheel", "/somewhere/bin"),
        Program("3.5.1", "wheel", "/somewhere/etcd"),
        os_user=machine.server_user(),
    )


def made(root: Path) -> tuple[Layout, ClusterFile]:
    layout = Layout.at(root)
    return layout, rooms.make_directories(layout, cluster_file(), None)


def test_it_is_read_as_it_was_written(place: Path) -> None:
    layout, file = made(place / "c")
    assert layout.load() == file
    assert layout.exists()


def test_secrets_are_random_and_for_the_owner_alone(place: Path) -> None:
    layout, _ = made(place / "c")
    other, _ = made(place / "d")
    for name in rooms.SECRETS:
        assert stat.S_IMODE(layout.secret_file(name).stat().st_mode) == 0o600
        assert len(layout.read_secret(name)) >= 24
        assert layout.read_secret(name) != other.read_secret(name)
    assert stat.S_IMODE(layout.secrets.stat().st_mode) == 0o700
    assert layout.users_file.read_text() == f"app {layout.read_secret('app')}\n"


def test_every_port_is_another_one() -> None:
    ports = [port for _, port in cluster_file(9).ports.labelled()]
    assert len(ports) == len(set(ports)) == 5 + 2 * 9


def test_a_directory_that_is_none(place: Path) -> None:
    with pytest.raises(ConfigurationError, match="holds no Holdfast cluster: create one with `holdfast up"):
        Layout.at(place / "nothing").load()
    (place / "file").write_text("x")
    with pytest.raises(ConfigurationError, match="holds no Holdfast cluster"):
        Layout.at(place / "file").load()
    with pytest.raises(ConfigurationError, match="is not a directory"):
        rooms.check_new(Layout.at(place / "file"))
    with pytest.raises(ConfigurationError, match="is not empty and holds no Holdfast cluster"):
        rooms.check_new(Layout.at(place))


def test_a_newer_format_is_refused(place: Path) -> None:
    layout, file = made(place / "c")
    layout.save(replace(file, format=rooms.FORMAT + 1))
    with pytest.raises(ConfigurationError, match=f"has format {rooms.FORMAT + 1}, this version of Holdfast reads"):
        layout.load()


@pytest.mark.parametrize("text", ["", "[]", "{}", "null", '{"format": 1}', '{"format": 1, "nodes": 3, "ports": []}'])
def test_a_damaged_file_is_refused(place: Path, text: str) -> None:
    layout, _ = made(place / "c")
    layout.cluster_file.write_text(text)
    with pytest.raises(ConfigurationError, match=r"cluster\.json.*correct it, restore the file"):
        layout.load()


@pytest.mark.parametrize(
    ("path", "value", "words"),
    [
        ("cluster", "../x", r"cluster: should be 1 to 32 of a-z, 0-9 and -"),
        ("nodes", ["n1", "n2", "n2"], r"nodes lists one twice"),
        ("nodes", ["n1"], r"nodes lists 1, not 3 to 9"),
        ("nodes", ["n1", "n2", "N3!"], r"nodes\.2"),
        ("nodes", ["n1", "n2", "n4"], r"ports\.nodes has n1, n2, n3, and nodes has n1, n2, n4"),
        ("ports.write", "6432", r"ports\.write: should be a whole number, not '6432'"),
        ("ports.read", 70_000, r"ports\.read: should be at most 65535, not 70000"),
        ("ports.nodes.n2.api", None, r"ports\.nodes\.n2\.api: should be a whole number"),
        ("ports.etcd_client", 0, r"ports\.etcd_client"),
        ("postgresql.path", 3, r"postgresql\.path: should be text"),
        ("parameters", {"work_mem": 4}, r"parameters\.work_mem: should be text"),
        ("os_user", 0, r"os_user: should be text"),
        ("complete", "yes", r"complete: should be true or false"),
    ],
)
def test_a_wrong_value_is_named(place: Path, path: str, value: object, words: str) -> None:
    layout, _ = made(place / "c")
    raw = json.loads(layout.cluster_file.read_text())
    *above, last = path.split(".")
    inner = raw
    for part in above:
        inner = inner[part]
    inner[last] = value
    layout.cluster_file.write_text(json.dumps(raw))
    with pytest.raises(ConfigurationError, match=words):
        layout.load()


def test_a_secret_that_is_gone_is_named(place: Path) -> None:
    layout, _ = made(place / "c")
    layout.secret_file("app").unlink()
    with pytest.raises(ConfigurationError, match=r"secrets/app: No such file or directory: restore the file"):
        layout.read_secret("app")


def test_a_port_that_two_have_is_named(place: Path) -> None:
    layout, file = made(place / "c")
    layout.save(replace(file, ports=replace(file.ports, read=file.ports.write)))
    with pytest.raises(ConfigurationError, match=r"ports\.write and ports\.read are both \d+"):
        layout.load()


def test_an_unknown_entry_is_refused(place: Path) -> None:
    layout, _ = made(place / "c")
    layout.cluster_file.write_text(json.dumps({**json.loads(layout.cluster_file.read_text()), "colour": "green"}))
    with pytest.raises(ConfigurationError, match="colour"):
        layout.load()


@pytest.mark.parametrize(
    ("count", "words"), [(2, "has nobody to confirm a write"), (0, "at least 3"), (10, "at most 9")]
)
def test_numbers_of_nodes_that_make_no_cluster(count: int, words: str) -> None:
    with pytest.raises(ConfigurationError, match=words):
        rooms.node_names(count)


def fail_half_way(layout: Layout) -> None:
    with rooms.claimed(layout):
        rooms.make_directories(layout, cluster_file(), None)
        raise RuntimeError


def test_two_who_make_the_same_directory_do_not_harm_each_other(place: Path) -> None:
    layout = Layout.at(place / "c")
    with rooms.claimed(layout):
        rooms.make_directories(layout, cluster_file(), None)
        with pytest.raises(ConfigurationError, match="another `holdfast up` is making a cluster there"):
            fail_half_way(layout)
    assert layout.exists()


def test_a_failure_leaves_nothing(place: Path) -> None:
    layout = Layout.at(place / "c")
    with pytest.raises(RuntimeError):
        fail_half_way(layout)
    assert not layout.root.exists()


def test_a_failure_leaves_the_empty_directory_that_was_there(place: Path) -> None:
    layout = Layout.at(place)
    with pytest.raises(RuntimeError):
        fail_half_way(layout)
    assert list(place.iterdir()) == []


def test_sockets_go_to_a_short_place_when_their_path_would_be_too_long(place: Path) -> None:
    layout, file = made(place / ("long" * 20))
    directory = layout.socket_dir(file, "n1")
    try:
        assert directory.is_dir()
        assert len(str(directory / ".s.PGSQL.65535")) <= 107
        rooms.remove(layout)
        assert not directory.parent.exists()
    finally:
        rooms.remove(layout)
    layout, file = made(place / "short")
    assert layout.socket_dir(file, "n1") == layout.root / "n1" / "socket"


def test_the_short_place_is_made_again_after_a_reboot_emptied_it(place: Path) -> None:
    layout, file = made(place / ("long" * 20))
    assert file.socket_root is not None
    import shutil

    shutil.rmtree(file.socket_root)
    again = rooms.ensure_socket_directories(layout, file, None)
    try:
        assert layout.socket_dir(again, "n2").is_dir()
    finally:
        layout.save(again)
        rooms.remove(layout)


def test_a_wished_port_that_is_taken_is_refused() -> None:
    with socket.create_server(("127.0.0.1", 0)) as server:
        port = server.getsockname()[1]
        assert not is_free(port)
        with pytest.raises(EnvironmentFault, match=f"--port {port}: the port is in use"):
            rooms.draw_ports(("n1", "n2", "n3"), port)


def test_the_port_for_reads_follows_the_one_for_writes_if_it_can() -> None:
    spare = free_ports(seed=1)
    port = next(p for p in free_ports(seed=2) if is_free(p + 1))
    assert proxy_ports(port, spare) == (port, port + 1)
    with socket.create_server(("127.0.0.1", port + 1)):
        write, read = proxy_ports(port, spare)
        assert write == port
        assert read != port + 1


def test_ports_are_drawn_by_seed_and_never_twice() -> None:
    first = free_ports(seed=3)
    drawn = [next(first) for _ in range(20)]
    assert len(set(drawn)) == 20
    assert set(drawn).isdisjoint([port for port, _ in zip(free_ports(seed=3, taken=drawn), range(20), strict=False)])


def test_a_port_that_somebody_else_took_meanwhile(place: Path) -> None:
    layout, file = made(place / "c")
    with (
        socket.create_server(("127.0.0.1", file.ports.nodes["n2"].postgres)),
        pytest.raises(EnvironmentFault, match=r"\(ports\.nodes\.n2\.postgres in .*cluster\.json\) is in use"),
    ):
        machine.check_ports(layout, file)


def test_a_place_without_space_or_right_is_refused(place: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    machine.check_place(place / "a" / "b", 3, None)
    monkeypatch.setattr(machine, "SPACE_PER_NODE_BYTES", 2**60)
    with pytest.raises(EnvironmentFault, match="MB are free there, 3 nodes need"):
        machine.check_place(place, 3, None)


@pytest.mark.skipif("os.geteuid() != 0", reason="only root runs its servers as another user")
def test_a_place_that_the_servers_user_cannot_enter_is_refused(place: Path) -> None:
    os_user = machine.server_user()
    machine.check_place(place / "a", 3, os_user)
    closed = place / "closed"
    closed.mkdir(mode=0o700)
    with pytest.raises(EnvironmentFault, match=r"cannot enter .*closed: choose a directory that everybody can enter"):
        machine.check_place(closed / "a", 3, os_user)


def test_a_temporary_place_passes_by_one_that_cannot_be_entered(place: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    import tempfile

    os_user = machine.server_user()
    closed = place / "closed"
    closed.mkdir(mode=0o700 if os_user else 0o000)
    monkeypatch.setattr(tempfile, "tempdir", str(closed))
    root = machine.temporary_root(3, os_user)
    try:
        assert not root.is_relative_to(closed)
    finally:
        root.rmdir()


def test_ports_come_from_the_range_that_was_asked_for(monkeypatch: pytest.MonkeyPatch) -> None:
    first = next(p for p in free_ports(seed=4) if is_free(p + 1))
    monkeypatch.setenv("HOLDFAST_PORTS", f"{first}-{first + 1}")
    spare = free_ports(seed=5)
    assert set(proxy_ports(None, spare)) == {first, first + 1}
    with pytest.raises(EnvironmentFault, match=r"not enough free ports between \d+ and \d+: .*HOLDFAST_PORTS"):
        next(spare)


@pytest.mark.parametrize("asked", ["20000", "a-b", "30000-20000", "0-10", "60000-70000"])
def test_a_range_of_ports_that_is_none_is_refused(monkeypatch: pytest.MonkeyPatch, asked: str) -> None:
    monkeypatch.setenv("HOLDFAST_PORTS", asked)
    with pytest.raises(ConfigurationError, match=f"HOLDFAST_PORTS={asked}: write it as FIRST-LAST"):
        next(free_ports(seed=1))
