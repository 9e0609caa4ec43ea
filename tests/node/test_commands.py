"""Commands that people configure."""

from __future__ import annotations

import asyncio
import contextlib
import os
import signal
from collections.abc import Iterator
from pathlib import Path

import pytest

from holdfast.node.commands import run_command

KILL_MS = 60_000


async def test_its_end_and_its_last_words_are_told() -> None:
    outcome = await run_command(["sh", "-c", "echo first; echo $WHO >&2; exit 3"], {"WHO": "n1"}, 10, KILL_MS)
    assert (outcome.ok, outcome.words) == (False, "exit status 3; it said: n1")
    assert (await run_command(["true"], {}, 10, KILL_MS)).ok


async def test_one_that_cannot_be_run_says_why() -> None:
    outcome = await run_command(["/nonexistent/fence"], {}, 10, KILL_MS)
    assert (outcome.ok, outcome.words) == (False, "cannot be run: No such file or directory")


class Life:
    """A FIFO that a script and all it starts hold open: it ends with the last of them."""

    def __init__(self, path: Path) -> None:
        os.mkfifo(path)
        self._descriptor = os.open(path, os.O_RDONLY | os.O_NONBLOCK)

    async def read(self) -> bytes:
        """What they say next; nothing once they have ended (or before the first has begun)."""
        async with asyncio.timeout(30):
            while True:
                with contextlib.suppress(BlockingIOError):
                    return os.read(self._descriptor, 4096)
                await asyncio.sleep(0.01)

    def close(self) -> None:
        os.close(self._descriptor)


@pytest.fixture
def life(tmp_path: Path) -> Iterator[Life]:
    made = Life(tmp_path / "life")
    yield made
    made.close()


async def test_one_that_does_not_end_is_killed_with_all_it_started(life: Life, tmp_path: Path) -> None:
    script = f"exec 9> {tmp_path}/life; sleep 600 & echo begun >&9; wait"
    outcome = await run_command(["sh", "-c", script], {}, 3, KILL_MS)
    assert outcome.words.startswith("killed after 3 s without an end")
    assert await life.read() == b"begun\n"
    assert await life.read() == b""


async def test_what_outlives_the_command_is_killed_too(life: Life, tmp_path: Path) -> None:
    """It is gone itself; what it left behind in its session still holds its output."""
    script = f"exec 9> {tmp_path}/life; sleep 600 & echo begun >&9"
    outcome = await run_command(["sh", "-c", script], {}, 3, KILL_MS)
    assert outcome.words == "killed after 3 s without an end"
    assert await life.read() == b"begun\n"
    assert await life.read() == b""


async def test_what_left_its_session_is_not_waited_for_for_ever(life: Life, tmp_path: Path) -> None:
    script = f"exec 9> {tmp_path}/life; setsid sh -c 'echo $$ >&9; exec sleep 600' & wait"
    outcome = await run_command(["sh", "-c", script], {}, 3, 100)
    left = int(await life.read())
    assert outcome.words == "killed after 3 s without an end; some of it was still there 0.1 s later"
    os.kill(left, signal.SIGKILL)
    assert await life.read() == b""


async def test_one_that_is_given_up_is_killed_as_well(life: Life, tmp_path: Path) -> None:
    script = f"exec 9> {tmp_path}/life; sleep 600 & echo begun >&9; wait"
    running = asyncio.ensure_future(run_command(["sh", "-c", script], {}, 60, KILL_MS))
    while await life.read() != b"begun\n":  # noqa: ASYNC110 - the end of a FIFO that nobody has opened yet
        await asyncio.sleep(0.01)
    running.cancel()
    with pytest.raises(asyncio.CancelledError):
        await running
    assert await life.read() == b""
