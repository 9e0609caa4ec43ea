"""The postmaster as a process: it outlives its starter, is adopted, watched, and killed with all its children."""

from __future__ import annotations

import asyncio
import contextlib
import os
import signal
import sys
from collections.abc import Iterator
from pathlib import Path

import psycopg
import pytest
from pydantic import ValidationError

from holdfast.model.errors import ConfigurationError, EnvironmentFault, PostgresError
from holdfast.model.server import ServerStatus
from holdfast.model.settings import PostgresSettings
from holdfast.model.timeouts import Timeouts
from holdfast.postgres.config import BARRIER
from holdfast.postgres.disk import DiskSilent
from holdfast.postgres.process import PidFile, Postmaster, processes_in
from tests.postgres.lab import DEADLINE_S, Lab

pytestmark = pytest.mark.live

STARTER = """
import asyncio, sys, time
from collections.abc import Iterator
from pathlib import Path
from holdfast.model.settings import PostgresSettings
from holdfast.model.timeouts import Timeouts
from holdfast.postgres.installation import find_installation
from holdfast.postgres.server import Server

async def main():
    settings = PostgresSettings.model_validate_json(sys.argv[1])
    server = Server(settings, "a", find_installation(Path(sys.argv[2])), Timeouts(), Path(sys.argv[3]))
    await server.start(standby=False)
    print(server.pid, flush=True)
    await asyncio.sleep(3600)

asyncio.run(main())
"""


async def test_kill_leaves_nothing(lab: Lab) -> None:
    primary = await lab.primary("a")
    standby, _ = await lab.standby("b")
    sessions = [await lab.connect("a") for _ in range(5)]
    writers = [asyncio.create_task(s.execute("SELECT pg_sleep(3600)")) for s in sessions]
    assert primary.pid is not None
    assert len(processes_in(lab.data_dir("a"))) > 8
    await primary.kill()
    assert processes_in(lab.data_dir("a")) == []
    assert primary.exited.is_set()
    assert primary.pid is None
    assert (await primary.view()).status is ServerStatus.STOPPED
    assert processes_in(lab.data_dir("b")) != []
    results = await asyncio.gather(*writers, return_exceptions=True)
    assert all(isinstance(r, psycopg.OperationalError) for r in results)
    await primary.kill()
    await standby.kill()


async def test_kill_reaches_a_frozen_postmaster_and_its_orphans(lab: Lab) -> None:
    primary = await lab.primary("a")
    assert primary.pid is not None
    backend = await lab.connect("a")
    os.kill(primary.pid, signal.SIGSTOP)
    assert not await primary.accepts_sessions(300)
    with pytest.raises(PostgresError, match="did not stop"):
        await primary.stop("fast", 50, escalate=False)
    os.kill(backend.info.backend_pid, signal.SIGSTOP)
    os.kill(primary.pid, signal.SIGKILL)
    await primary.exited.wait()
    assert processes_in(lab.data_dir("a")) != []
    await primary.start(standby=False)  # ends the frozen orphan first
    await lab.until(primary, lambda v: v.status is ServerStatus.PRIMARY)
    assert backend.info.backend_pid not in [p.pid for p in processes_in(lab.data_dir("a"))]


async def test_a_frozen_server_is_unresponsive_and_then_well_again(lab: Lab) -> None:
    primary = await lab.primary("a")
    with lab.frozen("a"):
        view = await primary.view(deadline_ms=100)
        assert view.status is ServerStatus.UNRESPONSIVE
        assert (await primary.view(deadline_ms=100)).status is ServerStatus.UNRESPONSIVE
    await lab.until(primary, lambda v: v.status is ServerStatus.PRIMARY)


async def test_the_end_is_noticed(lab: Lab) -> None:
    primary = await lab.primary("a")
    assert not primary.exited.is_set()
    assert primary.pid is not None
    os.kill(primary.pid, signal.SIGQUIT)
    await asyncio.wait_for(primary.exited.wait(), DEADLINE_S)
    assert (await primary.view()).status is ServerStatus.STOPPED


async def test_a_server_survives_its_starter_and_is_adopted(lab: Lab) -> None:
    primary = await lab.primary("a", quorum=None)
    await primary.stop("fast", 10_000)
    settings = lab.settings_of("a").model_dump_json()
    starter = await asyncio.create_subprocess_exec(
        sys.executable,
        *("-c", STARTER, settings, str(lab.installation.bin_dir), str(lab.root / "a" / "state")),
        stdout=asyncio.subprocess.PIPE,
    )
    assert starter.stdout is not None
    lines = [line async for line in _until_number(starter.stdout)]
    starter.kill()
    await starter.wait()
    assert await primary.adopt()
    assert await primary.adopt()
    assert primary.pid == int(lines[-1])
    assert not primary.exited.is_set()
    view = await lab.until(primary, lambda v: v.status is ServerStatus.PRIMARY)
    assert view.synchronous_names == BARRIER
    os.kill(int(lines[-1]), signal.SIGQUIT)
    await asyncio.wait_for(primary.exited.wait(), DEADLINE_S)
    assert not await primary.adopt()


async def _until_number(stream: asyncio.StreamReader):  # type: ignore[no-untyped-def]
    while line := (await stream.readline()).decode().strip():
        yield line
        if line.isdigit():
            return


async def test_adoption_keeps_upstream_and_names(lab: Lab) -> None:
    await lab.primary("a")
    standby, member = await lab.standby("b")
    other = lab.server("b")
    assert await other.adopt()
    await other.follow(lab.upstream("a"), member)  # nothing to do
    view = await lab.until(other, lambda v: v.streaming)
    assert view.upstream_host == f"127.0.0.1:{lab.settings_of('a').port}"
    await other.detach()
    assert not (await standby.view()).walreceiver


async def test_a_recycled_pid_is_not_adopted(lab: Lab) -> None:
    primary = await lab.primary("a")
    await primary.stop("fast", 10_000)
    pid_file = lab.data_dir("a") / "postmaster.pid"
    pid_file.write_text(f"{os.getpid()}\n{lab.data_dir('a')}\n0\n1\n\n\n\nready\n")
    assert PidFile.read(lab.data_dir("a")) == PidFile(os.getpid(), "ready")
    assert Postmaster.find(lab.data_dir("a"), asyncio.Event()) is None
    assert not await primary.adopt()
    pid_file.write_text(pid_file.read_text().replace(str(os.getpid()), f"-{os.getpid()}", 1))
    assert PidFile.read(lab.data_dir("a")) is None  # a single-user server's
    pid_file.unlink()


async def test_a_new_cluster_has_small_files_of_log_and_as_much_of_it_as_ever(lab: Lab) -> None:
    await lab.primary("a")
    sizes = "current_setting('wal_segment_size'), current_setting('min_wal_size'), current_setting('max_wal_size')"
    assert await lab.execute("a", f"SELECT {sizes}") == [("4MB", "80MB", "1GB")]


def test_the_size_of_a_file_of_log_is_a_power_of_two(lab: Lab) -> None:
    with pytest.raises(ValidationError, match=r"3 is no power of two: write 1, 2, 4, 8, 16"):
        PostgresSettings.model_validate({**lab.settings_of("a").model_dump(), "wal_segment_mib": 3})


async def test_faults_of_a_start_are_told_in_our_terms(lab: Lab) -> None:
    primary = await lab.primary("a")
    other = lab.server("b", port=lab.settings_of("a").port)
    await other.initialize()
    with pytest.raises(EnvironmentFault, match=r"postgres\.port"):
        await other.start(standby=False)
    await primary.stop("fast", 10_000)
    wrong = lab.server("a", parameters={"shared_buffers": "many"})
    with pytest.raises(ConfigurationError, match=r"postgres\.parameters"):
        await wrong.start(standby=False)
    version = lab.data_dir("a") / "PG_VERSION"
    right = version.read_text()
    version.write_text("99\n")
    with pytest.raises(ConfigurationError, match=r"made by PostgreSQL 99"):
        await primary.start(standby=False)
    version.write_text(right)


async def test_a_start_that_dies_later_says_why(lab: Lab) -> None:
    primary = await lab.primary("a")
    await primary.stop("immediate", 10_000)
    for segment in (lab.data_dir("a") / "pg_wal").glob("0000000100000000*"):
        segment.unlink()
    await primary.start(standby=False)
    await asyncio.wait_for(primary.exited.wait(), DEADLINE_S)
    assert "checkpoint record" in str(primary.why_it_ended())


def test_a_socket_path_that_is_too_long_is_refused(lab: Lab) -> None:
    with pytest.raises(ConfigurationError, match=r"postgres\.socket_dir"):
        lab.server("a", socket_dir=Path("/tmp") / ("x" * 100))


async def test_settings_that_the_disk_does_not_take_are_given_up_in_time_and_never_written_late(lab: Lab) -> None:
    primary = await lab.primary("a", timeouts=Timeouts(statement_ms=100))
    with hanging(lab.data_dir("a") / "pg_hba.conf"):
        with pytest.raises(DiskSilent, match="did not answer within 100 ms"):
            await primary.set_quorum(None)
        await primary.kill()
        with pytest.raises(DiskSilent, match="has not answered an earlier call yet"):
            await primary.start(standby=False)  # a write of before could come after its own
    async with asyncio.timeout(DEADLINE_S):
        while True:
            with contextlib.suppress(DiskSilent):
                await primary.start(standby=False)
                break
            await asyncio.sleep(0.01)  # the thread ends by itself
    view = await lab.until(primary, lambda v: v.status is ServerStatus.PRIMARY)
    assert view.synchronous_names == BARRIER


@contextlib.contextmanager
def hanging(file: Path) -> Iterator[None]:
    """Whoever reads the file hangs meanwhile: it is a FIFO that nobody writes to."""
    text, stat = file.read_text(), file.stat()
    file.unlink()
    os.mkfifo(file)
    os.chown(file, stat.st_uid, stat.st_gid)
    try:
        yield
    finally:
        writer = os.open(file, os.O_RDWR | os.O_NONBLOCK)
        file.rename(file.with_suffix(".hung"))
        file.write_text(text)
        os.chown(file, stat.st_uid, stat.st_gid)
        os.write(writer, text.encode())  # what waits goes on
        os.close(writer)
        file.with_suffix(".hung").unlink()
