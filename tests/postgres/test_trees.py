"""A copy of a directory: the same in everything that matters, and nobody writes on when it is given up."""

from __future__ import annotations

import asyncio
import os
import stat
import threading
from pathlib import Path

import pytest

from holdfast.postgres.salvage import trees
from holdfast.postgres.salvage.trees import can_share_blocks, copy_tree, on_thread


async def test_a_tree_is_copied_without_what_is_left_out(tmp_path: Path) -> None:
    source, target = tmp_path / "source", tmp_path / "target"
    (source / "base" / "pg_wal").mkdir(parents=True)
    (source / "pg_wal").mkdir()
    (source / "pg_wal" / "0001").write_bytes(b"log")
    (source / "base" / "pg_wal" / "kept").write_bytes(b"only at the top it is left out")
    large = os.urandom(3 * 1024 * 1024 + 17)
    (source / "base" / "large").write_bytes(large)
    (source / "base" / "empty").touch()
    (source / "link").symlink_to("/somewhere/else")
    os.mkfifo(source / "pipe")
    target.mkdir()
    await copy_tree(source, target, ["pg_wal"])
    found = {str(path.relative_to(target)) for path in target.rglob("*")}
    assert found == {"base", "base/pg_wal", "base/pg_wal/kept", "base/large", "base/empty", "link"}
    assert (target / "base" / "large").read_bytes() == large
    assert (target / "link").readlink() == Path("/somewhere/else")
    assert stat.S_IMODE((target / "base").stat().st_mode) == 0o700
    assert stat.S_IMODE((target / "base" / "large").stat().st_mode) == 0o600


async def test_nobody_writes_on_when_it_is_given_up(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    source, target = tmp_path / "source", tmp_path / "target"
    source.mkdir()
    target.mkdir()
    for number in range(20):
        (source / str(number)).write_bytes(b"x")
    begun, may_go_on = threading.Event(), threading.Event()

    def hang(original: int, copy: int) -> bool:
        begun.set()
        may_go_on.wait(60)
        return False

    monkeypatch.setattr(trees, "_shares_blocks", hang)
    work = asyncio.create_task(copy_tree(source, target))
    assert await asyncio.to_thread(begun.wait, 60)
    work.cancel()
    for _ in range(5):
        await asyncio.sleep(0)  # the task is told
    assert not work.done()
    may_go_on.set()
    with pytest.raises(asyncio.CancelledError):
        await work
    assert [path.stat().st_size for path in target.iterdir()] == [0]


async def test_what_cannot_be_read_is_told(tmp_path: Path) -> None:
    with pytest.raises(FileNotFoundError):
        await copy_tree(tmp_path / "no such directory", tmp_path)


def test_whether_blocks_are_shared_is_tried(tmp_path: Path) -> None:
    source, probe = tmp_path / "source", tmp_path / "probe"
    source.write_bytes(b"x" * 4096)
    assert can_share_blocks(source, probe) in (True, False)
    assert not probe.exists()
    assert can_share_blocks(tmp_path / "nothing", probe) is False


async def test_what_is_cancelled_on_a_thread_has_ended_when_the_cancellation_comes_back() -> None:
    begun, go_on, ended = threading.Event(), threading.Event(), threading.Event()

    def work() -> None:
        begun.set()
        go_on.wait(60)
        ended.set()

    task = asyncio.create_task(on_thread(work))
    await asyncio.to_thread(begun.wait, 60)
    task.cancel()
    await asyncio.sleep(0)
    assert not task.done()
    go_on.set()
    with pytest.raises(asyncio.CancelledError):
        await task
    assert ended.is_set()
