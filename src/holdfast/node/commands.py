"""Runs a command that people configured: bounded in time, killed with all it started, and told in one line."""

from __future__ import annotations

import asyncio
import contextlib
import os
import signal
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

_SAID_BYTES_MAX = 4096


@dataclass(frozen=True, slots=True)
class CommandOutcome:
    """How it ended. ``words`` are for people."""

    ok: bool
    words: str


async def run_command(
    command: Sequence[str], variables: Mapping[str, str], timeout_s: float, kill_ms: int
) -> CommandOutcome:
    """Run ``command`` with our environment and these variables; never raises for a command that fails.

    One that is killed is gone before this returns, or its outcome says that something of it was left after ``kill_ms``.
    """
    try:
        process = await _start(command, variables, kill_ms)
    except OSError as error:
        return CommandOutcome(False, f"cannot be run: {error.strerror or error}")
    said = bytearray()
    try:
        async with asyncio.timeout(timeout_s):
            await _read(process, said)
            status = await process.wait()
    except TimeoutError:
        left = "" if await _kill(process, kill_ms) else f"; some of it was still there {kill_ms / 1000:g} s later"
        return CommandOutcome(False, f"killed after {timeout_s:g} s without an end{left}{_last_line(said)}")
    except asyncio.CancelledError:
        await _kill(process, kill_ms)
        raise
    return CommandOutcome(status == 0, f"exit status {status}{_last_line(said)}")


async def _start(command: Sequence[str], variables: Mapping[str, str], kill_ms: int) -> asyncio.subprocess.Process:
    starting = asyncio.ensure_future(
        asyncio.create_subprocess_exec(
            *command,
            stdin=asyncio.subprocess.DEVNULL,
            stdout=asyncio.subprocess.PIPE,
            stderr=asyncio.subprocess.STDOUT,
            env={**os.environ, **variables},
            start_new_session=True,
        )
    )
    try:
        return await asyncio.shield(starting)
    except asyncio.CancelledError:
        # It runs before it counts as started; asyncio itself would kill it then without what it has started.
        with contextlib.suppress(OSError):
            await _kill(await starting, kill_ms)
        raise


async def _kill(process: asyncio.subprocess.Process, kill_ms: int) -> bool:
    """Kill it with its session, also what is left of that without it; whether all that held its output is gone."""
    with contextlib.suppress(ProcessLookupError, PermissionError):
        os.killpg(process.pid, signal.SIGKILL)
    try:
        async with asyncio.timeout(kill_ms / 1000):
            await _read(process, bytearray())
            await process.wait()
    except TimeoutError:
        return False  # in uninterruptible sleep, in a session of its own, or another user's
    return True


async def _read(process: asyncio.subprocess.Process, said: bytearray) -> None:
    assert process.stdout is not None
    while chunk := await process.stdout.read(_SAID_BYTES_MAX):
        said += chunk
        del said[:-_SAID_BYTES_MAX]


def _last_line(said: bytearray) -> str:
    lines = said.decode(errors="replace").strip().splitlines()
    return f"; it said: {lines[-1].strip()}" if lines else ""
