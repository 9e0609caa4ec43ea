"""Captures of real data directories: whole, killed half-way, out of room, with files that go away, encrypted."""

from __future__ import annotations

import asyncio
import hashlib
import json
import os
import shutil
import signal
import subprocess
import sys
import threading
from dataclasses import replace
from pathlib import Path

import psutil
import psycopg
import pyrage
import pytest

from holdfast.core.symptoms import symptoms_of
from holdfast.model.capture import Capture, CaptureOrder, Kind, Occasion, Reason, State
from holdfast.model.errors import ConfigurationError, EnvironmentFault
from holdfast.model.lsn import Lsn
from holdfast.model.server import ServerStatus
from holdfast.model.settings import CaptureSettings, PostgresSettings
from holdfast.postgres.capture import copying
from holdfast.postgres.capture.collect import LogRange
from holdfast.postgres.capture.keep import (
    FILES,
    MANIFEST,
    decrypt,
    is_locked,
    moments_of,
    read_capture,
    read_captures,
    verify,
)
from holdfast.postgres.capture.taking import Captures
from holdfast.postgres.capture.work import Task, Work, identity_of
from holdfast.postgres.layout import Layout
from holdfast.postgres.server import Server
from holdfast.postgres.timelines import segment_name
from tests.postgres.lab import PASSWORD, Lab, nothing
from tests.postgres.test_rejoin import diverged_pair

pytestmark = pytest.mark.live
SEGMENT_BYTES = 16 * 1024 * 1024


def captures(server: Server, **settings: object) -> Captures:
    return Captures(server._instance, CaptureSettings.model_validate(settings))


def file_of_fork(taken: Capture) -> str:
    """The one file of the old timeline that has log beyond the fork."""
    assert taken.fork_lsn is not None
    segment_bytes = PostgresSettings.model_fields["wal_segment_mib"].default * 1024 * 1024
    return f"data/pg_wal/{segment_name(1, taken.fork_lsn, segment_bytes)}"


async def order_of(old: Server, new: Server, seconds: float = 60, **more: object) -> CaptureOrder:
    end = await old.end_of_log()
    view = await new.view()
    assert view.position is not None
    leading = (view.position.timeline, await new.history_of(view.position.timeline))
    order = CaptureOrder(view.position.timeline, Occasion.REWIND, end, leading, seconds)
    return replace(order, **more)  # type: ignore[arg-type]


def files_in(directory: Path) -> list[Path]:
    return [path for path in directory.rglob("*") if path.is_file()]


def digest(path: Path) -> str:
    return hashlib.sha256(path.read_bytes()).hexdigest()


async def test_a_diverged_primary_is_captured_and_verified(lab: Lab) -> None:
    old, new = await diverged_pair(lab)
    data_dir = lab.data_dir("a")
    (data_dir / "server.key").write_text("-----BEGIN PRIVATE KEY-----\nno\n-----END PRIVATE KEY-----\n")
    (data_dir / "odd.name").write_text("-----BEGIN RSA PRIVATE KEY-----\nno\n")
    words = "primary_conninfo = 'host=h password=sesame user=u'\nwork_mem = 4MB\n"
    (data_dir / "postgresql.auto.conf").write_text(words)
    taken = await captures(old).take(await order_of(old, new), nothing)
    assert taken is not None
    assert (taken.state, taken.lacking, taken.attempts) == (State.COMPLETE, (), 1)
    by_path = {file.path: file for file in taken.files}
    fork = (await new.history_of(3))[0].switch_lsn
    assert taken.fork_lsn == fork
    divergent = [file for file in taken.files if file.kind is Kind.DIVERGENT_LOG]
    assert [file.path for file in divergent] == [file_of_fork(taken)]
    for path in ("data/global/pg_control", "data/pg_hba.conf", "data/PG_VERSION", divergent[0].path):
        assert by_path[path].sha256 == digest(data_dir / path.removeprefix("data/")), path
    assert any(file.kind is Kind.SERVER_LOG for file in taken.files)
    assert any(file.kind is Kind.STATE for file in taken.files)
    directory = Path(taken.directory)
    said = (directory / FILES / "data/postgresql.auto.conf").read_text()
    assert "sesame" not in said
    assert "work_mem = 4MB" in said
    assert "user=u" in said
    left = {one.what: one.reason for one in taken.left_out}
    assert left == {
        "data/server.key": Reason.SECRET, "data/odd.name": Reason.SECRET, "data/base": Reason.NOT_ASKED
    }  # fmt: skip
    assert not any(b"PRIVATE KEY" in p.read_bytes() for p in files_in(directory))
    assert verify(directory) == (taken, [])
    assert all((p.stat().st_mode | p.parent.stat().st_mode) & 0o077 == 0 for p in files_in(directory))
    # What was taken stays as it was, whatever becomes of the directory.
    await old.rewind(lab.upstream("b"), await old.end_of_log(), nothing)
    assert verify(directory) == (taken, [])
    assert await captures(old).take(replace(await order_of_stopped(old), occasion=Occasion.START), nothing) is None


async def order_of_stopped(server: Server) -> CaptureOrder:
    return CaptureOrder(3, Occasion.REWIND, await server.end_of_log(), None, 60)


async def test_damage_is_found(lab: Lab) -> None:
    old, new = await diverged_pair(lab)
    taken = await captures(old).take(await order_of(old, new), nothing)
    assert taken is not None
    directory = Path(taken.directory)
    segment = directory / FILES / file_of_fork(taken)
    with segment.open("r+b") as file:
        file.seek(4096)
        file.write(b"\xff")
    (directory / FILES / "data/PG_VERSION").unlink()
    (directory / FILES / "data/added").touch()
    _, problems = verify(directory)
    assert {(p.path, p.words) for p in problems} == {
        (file_of_fork(taken), "its checksum is another one"),
        ("data/PG_VERSION", "it is missing"),
        ("data/added", "it is not in the manifest"),
    }


async def test_a_crashed_primary_is_captured_before_its_start_and_a_stopped_one_is_not(lab: Lab) -> None:
    server = await lab.primary("a")
    held = captures(server)
    order = CaptureOrder(2, Occasion.START, None, None, 60)
    assert await held.take(order, nothing) is None  # it runs
    await server.stop("fast", 10_000)
    assert await held.take(order, nothing) is None
    await server.start(standby=False)
    await lab.until(server, lambda view: view.status is ServerStatus.PRIMARY)
    await held.note_moment("the test says so")
    (moment,) = moments_of(held.base, "a")
    found = json.loads(moment.read_bytes())
    assert found["why"] == "the test says so"
    assert any(row["application_name"] == "holdfast_agent" for row in found["server"]["activity"])
    assert isinstance(found["server"]["locks"], list)
    assert {p["pid"] for p in found["processes"]} >= {server.pid, os.getpid()}
    assert found["kernel"]["meminfo"].startswith("MemTotal")
    assert "pg_control_base64" in found["control"]
    await server.kill()
    taken = await held.take(order, nothing)
    assert taken is not None
    assert taken.state is State.COMPLETE
    moments = {Path(f.path).name for f in taken.files if f.kind is Kind.MOMENT}
    assert moment.name in moments
    assert len(moments) == 2
    assert moments_of(held.base, "a") == []
    again = await held.take(order, nothing)
    assert again is not None
    assert again.begun_at_ms == taken.begun_at_ms, "nobody touched the directory: it is captured already"


async def test_a_server_that_hangs_does_not_hold_a_moment_up(lab: Lab) -> None:
    server = await lab.primary("a")
    assert server.pid is not None
    os.kill(server.pid, signal.SIGSTOP)
    try:
        async with asyncio.timeout(30):
            await captures(server).note_moment("it hangs")
    finally:
        os.kill(server.pid, signal.SIGCONT)
    (moment,) = moments_of(captures(server).base, "a")
    found = json.loads(moment.read_bytes())
    assert "no answer" in found["server"]["activity"]
    assert found["processes"]


async def test_a_moment_shows_the_queue_of_locks_and_the_table_that_is_read_whole(lab: Lab) -> None:
    server = await lab.primary("a")
    await lab.execute("a", "create database shop")
    await lab.execute("a", "alter database shop set search_path = evil, pg_catalog")  # its owner may
    holder = await lab.connect("a", application_name="till")
    async with await psycopg.AsyncConnection.connect(holder.info.dsn, dbname="shop", password=PASSWORD) as session:
        await session.execute("create schema evil")
        await session.execute("create view evil.pg_stat_user_tables as select 1 / 0 as seq_tup_read")
        await session.execute("create table public.orders as select generate_series(1, 150000) as id")
        await session.commit()
        await session.execute("select count(*) from public.orders where id < 0")
    await holder.execute("create table accounts as select 1 as id, 'secret' as name")
    await holder.set_autocommit(False)
    await holder.execute("update accounts set name = 'secret' where id = 1")
    others = [await lab.connect("a") for _ in range(2)]
    scanning = await psycopg.AsyncConnection.connect(holder.info.dsn, dbname="shop", password=PASSWORD)
    tasks = [asyncio.create_task(other.execute("delete from accounts")) for other in others]
    tasks.append(asyncio.create_task(scanning.execute("select pg_sleep(60) from public.orders limit 1")))
    try:
        await lab.until_rows("a", "select from pg_stat_activity where wait_event_type = 'Lock' offset 1")
        await lab.until_rows("a", "select from pg_stat_activity where wait_event = 'PgSleep'")
        async with asyncio.timeout(60):  # statistics come late
            while len(found := symptoms_of(await captures(server).note_moment("it"))) < 2:  # noqa: ASYNC110
                await asyncio.sleep(0.1)
    finally:
        await holder.rollback()
        scanning.cancel()
        await asyncio.gather(*tasks, return_exceptions=True)
        await scanning.close()
    queue, scan = found
    head = f"2 sessions waited behind session {holder.info.backend_pid} of postgres (till) in postgres, idle in "
    assert queue.says.startswith(f"{head}transaction, in a transaction of ")
    assert queue.says.endswith("; its last statement was: update accounts set name = ? where id = ?")
    assert scan.says.startswith("shop.public.orders (150,000 rows) was read from end to end ")


# -- a directory without a server ----------------------------------------------------------------


@pytest.fixture
def stopped(template: Path, tmp_path: Path) -> Task:
    """A copy of a data directory with eight more segments, and the task to capture it."""
    data_dir = tmp_path / "data"
    shutil.copytree(template, data_dir)
    for number in range(2, 10):
        name = f"{1:08X}{0:08X}{number:08X}"
        (data_dir / "pg_wal" / name).write_bytes(os.urandom(1024 * 1024) * 4)
    return task_for(data_dir, tmp_path / "captures")


def task_for(data_dir: Path, base: Path, **settings: object) -> Task:
    log = LogRange(1, Lsn(10 * SEGMENT_BYTES), Lsn(2 * SEGMENT_BYTES), SEGMENT_BYTES)
    return Task(
        node="a",
        incarnation="00000001",
        identity=identity_of(data_dir, "00000001"),
        order=CaptureOrder(2, Occasion.REWIND, None, None, 300),
        layout=Layout(data_dir, data_dir.parent / "run", None),
        base=base,
        settings=CaptureSettings.model_validate(settings),
        sealer=None,
        log=log,
        moment=b"{}",
        tools={},
        room_left_bytes=0,
    )


def work(task: Task) -> Capture:
    return Work(task, threading.Event(), nothing).run()


KILLED = """
import os, signal, sys, threading
from pathlib import Path
from tests.postgres.test_capture import task_for
from holdfast.postgres.capture import copying
from holdfast.postgres.capture.work import Work

class Killing(threading.Event):
    looks = 0
    def is_set(self):
        Killing.looks += 1
        if Killing.looks == int(sys.argv[3]):
            os.kill(os.getpid(), signal.SIGKILL)
        return False

Work(task_for(Path(sys.argv[1]), Path(sys.argv[2])), Killing(), lambda step, share: None).run()
"""


@pytest.mark.parametrize("looks", [1, 40, 75])
def test_killed_half_way_it_says_so_and_is_resumed(stopped: Task, looks: int) -> None:
    data_dir, base = stopped.layout.data_dir, stopped.base
    root = Path(__file__).resolve().parents[2]
    environment = {**os.environ, "PYTHONPATH": os.pathsep.join([str(root / "src"), str(root), *sys.path])}
    command = [sys.executable, "-c", KILLED, str(data_dir), str(base), str(looks)]
    done = subprocess.run(command, env=environment, check=False, timeout=120)
    assert done.returncode == -signal.SIGKILL
    (half,) = read_captures(base)
    assert half.state is State.INTERRUPTED
    _, problems = verify(Path(half.directory))
    assert problems == []
    before = {f.path: (Path(half.directory) / FILES / f.stored).stat().st_ino for f in half.files}
    whole = work(stopped)
    assert (whole.state, whole.attempts, whole.directory) == (State.COMPLETE, 2, half.directory)
    assert whole.notes == (f"resumed after {len(before)} files",)
    assert looks == 1 or len(before) > 3
    after = {f.path: (Path(whole.directory) / FILES / f.stored).stat().st_ino for f in whole.files}
    assert before.items() <= after.items(), "what was there was taken again"
    assert len([f for f in whole.files if f.kind is Kind.DIVERGENT_LOG]) == 8
    assert verify(Path(whole.directory)) == (whole, [])
    assert [c.directory for c in read_captures(base)] == [whole.directory]


def test_a_directory_that_was_touched_meanwhile_is_another_capture(stopped: Task) -> None:
    first = work(stopped)
    control = stopped.layout.data_dir / "global" / "pg_control"
    control.write_bytes(control.read_bytes()[:-1] + b"\x01")
    second = work(replace(stopped, identity=identity_of(stopped.layout.data_dir, "00000001")))
    assert second.directory != first.directory
    assert len(read_captures(stopped.base)) == 2


@pytest.mark.skipif(os.geteuid() != 0, reason="only root may mount a small file system")
def test_a_full_disk_is_told_and_what_is_worth_most_is_there(stopped: Task, tmp_path: Path) -> None:
    small = tmp_path / "small"
    small.mkdir()
    mount = ["mount", "-t", "tmpfs", "-o", "size=24m", "tmpfs", str(small)]
    if subprocess.run(mount, check=False, capture_output=True).returncode != 0:
        pytest.skip("no file system can be mounted here")
    try:
        made = work(replace(stopped, base=small / "captures"))
        assert made.state is State.PARTIAL
        assert {one.reason for one in made.lacking} == {Reason.ROOM}
        kinds = {f.kind for f in made.files}
        assert {Kind.CONTROL, Kind.CONFIGURATION} <= kinds
        assert verify(Path(made.directory)) == (made, [])
        # Planned with room that others have used up meanwhile:
        filler = small / "filler"
        room = os.statvfs(small)
        filler.write_bytes(b"x" * (room.f_bavail * room.f_frsize - 300_000))
        other = replace(stopped, base=small / "others", identity="other", room_left_bytes=-(1 << 40))
        late = work(other)
        assert late.state is State.PARTIAL
        assert {one.reason for one in late.lacking} == {Reason.ROOM}
        assert "data/global/pg_control" in {f.path for f in late.files}
        assert verify(Path(late.directory)) == (late, [])
    finally:
        subprocess.run(["umount", str(small)], check=True)


def test_files_that_vanish_or_change_are_named(stopped: Task, monkeypatch: pytest.MonkeyPatch) -> None:
    wal_dir = stopped.layout.wal_dir
    gone, changed = (wal_dir / f"{1:08X}{0:08X}{number:08X}" for number in (5, 6))
    plain = copying._Reader.read

    def read(reader: copying._Reader, size: int = -1) -> bytes:
        """The world moves on while the second segment is read."""
        if reader._source.name.endswith("02"):
            gone.unlink(missing_ok=True)
        chunk = plain(reader, size)
        if reader._source == changed and reader.read_bytes == len(chunk):
            with changed.open("r+b") as file:
                file.write(b"changed")
        return chunk

    monkeypatch.setattr(copying._Reader, "read", read)
    monkeypatch.setattr(copying._Writer, "shares", lambda writer, original: False)
    made = work(stopped)
    assert made.state is State.PARTIAL
    assert {(Path(one.what), one.reason) for one in made.lacking} == {
        (Path("data/pg_wal") / gone.name, Reason.VANISHED),
        (Path("data/pg_wal") / changed.name, Reason.CHANGED),
    }
    assert verify(Path(made.directory)) == (made, [])


def test_bounds_of_bytes_and_time_are_kept_and_told(stopped: Task) -> None:
    short = work(replace(stopped, settings=CaptureSettings(bytes_max=10 * 1024 * 1024)))
    assert short.size_bytes <= 10 * 1024 * 1024
    assert {one.reason for one in short.lacking} == {Reason.BYTES}
    assert [f.path[-2:] for f in short.files if f.kind is Kind.DIVERGENT_LOG] == ["02", "03"]
    hurried = work(replace(stopped, identity="hurried", order=replace(stopped.order, seconds=0.0)))
    assert hurried.files == ()
    assert {one.reason for one in hurried.lacking} == {Reason.TIME}


def test_with_data_files_everything_is_there(stopped: Task) -> None:
    made = work(replace(stopped, settings=CaptureSettings(data_files=True)))
    assert made.state is State.COMPLETE
    copies = Path(made.directory) / FILES / "data"
    wanted = {
        str(p.relative_to(stopped.layout.data_dir)): digest(p)
        for top in ("base", "global")
        for p in (stopped.layout.data_dir / top).rglob("*")
        if p.is_file()
    }
    assert {name: digest(copies / name) for name in wanted} == wanted


def test_it_goes_last_on_the_disk_and_is_not_starved_of_the_processor(stopped: Task) -> None:
    """At nice 19, beside a few busy processes, 32 MB took 12 s instead of 0.3 s, and a node's return waited for it."""
    seen = set()

    def look(_step: str, _share: float | None) -> None:
        thread = threading.get_native_id()
        seen.add((os.getpriority(os.PRIO_PROCESS, thread), tuple(psutil.Process(thread).ionice())))

    thread = threading.Thread(target=Work(stopped, threading.Event(), look).run)
    thread.start()
    thread.join()
    assert seen == {(os.getpriority(os.PRIO_PROCESS, os.getpid()), (psutil.IOPRIO_CLASS_BE, copying.LOWEST))}


def test_old_captures_go(stopped: Task) -> None:
    for number in range(4):
        made = work(replace(stopped, identity=f"{number}", settings=CaptureSettings(keep=2)))
        assert Path(made.directory, MANIFEST).exists()
    assert [c.identity for c in read_captures(stopped.base)] == ["2", "3"]


def test_somebody_at_work_is_seen(stopped: Task) -> None:
    seen: list[State] = []

    def look(step: str, share: float | None) -> None:
        (there,) = read_captures(stopped.base)
        seen.append(there.state)
        assert is_locked(Path(there.directory))

    Work(stopped, threading.Event(), look).run()
    assert set(seen) == {State.UNDERWAY}


# -- encryption -----------------------------------------------------------------------------------


async def test_an_encrypted_capture_shows_nothing_and_is_read_with_the_key(lab: Lab, tmp_path: Path) -> None:
    old, new = await diverged_pair(lab)
    key = pyrage.x25519.Identity.generate()
    held = captures(old, recipients=[str(key.to_public())], directory=str(lab.root / "a" / "elsewhere"))
    await held.note_moment("before")
    taken = await held.take(await order_of(old, new), nothing)
    assert taken is not None
    assert taken.state is State.COMPLETE
    assert taken.encrypted_to == (str(key.to_public()),)
    directory = Path(taken.directory)
    assert verify(directory) == (taken, [])
    stored = files_in(directory / FILES)
    assert stored
    assert all(p.suffix == ".age" and p.read_bytes().startswith(b"age-encryption.org/v1") for p in stored)
    identity = tmp_path / "key.txt"
    identity.write_text(f"# made by age-keygen\n{key}\n")
    decrypt(directory, identity, tmp_path / "plain")
    segment = file_of_fork(taken)
    assert digest(tmp_path / "plain" / segment) == digest(lab.data_dir("a") / "pg_wal" / Path(segment).name)
    assert {f.plain_sha256 for f in taken.files if f.path == segment} == {digest(tmp_path / "plain" / segment)}
    moments = [json.loads(p.read_bytes())["why"] for p in sorted((tmp_path / "plain" / "moments").iterdir())]
    assert "before" in moments
    assert len(moments) == 2
    wrong = tmp_path / "wrong.txt"
    wrong.write_text(str(pyrage.x25519.Identity.generate()))
    with pytest.raises(EnvironmentFault, match="is it the right --identity"):
        decrypt(directory, wrong, tmp_path / "nothing")


def test_wrong_keys_are_told_by_the_setting_and_not_shown(tmp_path: Path) -> None:
    secret = str(pyrage.x25519.Identity.generate())
    with pytest.raises(ValueError, match="is no public key of age"):
        CaptureSettings(recipients=(secret,))
    empty = tmp_path / "empty"
    empty.touch()
    with pytest.raises(ConfigurationError, match="has no private key"):
        decrypt(tmp_path, empty, tmp_path / "to")


async def test_a_directory_that_takes_nothing_is_named(lab: Lab) -> None:
    old, new = await diverged_pair(lab)
    in_the_way = lab.root / "a" / "file"
    in_the_way.touch()
    with pytest.raises(EnvironmentFault, match=r"capture\.directory .* does not take the capture"):
        await captures(old, directory=str(in_the_way / "below")).take(await order_of(old, new), nothing)


async def test_a_directory_inside_of_what_is_captured_is_refused(lab: Lab) -> None:
    with pytest.raises(ConfigurationError, match=r"capture\.directory = .* is inside postgres\.data_dir"):
        captures(lab.server("a"), directory=str(lab.data_dir("a") / "captures"))


def test_the_capture_of_an_unreadable_manifest_is_told(tmp_path: Path) -> None:
    with pytest.raises(EnvironmentFault, match=r"manifest\.json cannot be read"):
        read_capture(tmp_path)
