"""Runs PostgreSQL's own programs as the server's user, with nothing secret on the command line."""

from __future__ import annotations

import asyncio
import contextlib
import os
import re
import signal
import subprocess
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import structlog

from holdfast.model.errors import EnvironmentFault
from holdfast.postgres.account import OsUser
from holdfast.postgres.installation import Installation

_log = structlog.get_logger(__name__)
_KEPT_LINES = 400
_SEPARATOR = re.compile(rb"[\r\n]")


@dataclass(frozen=True, slots=True)
class Outcome:
    """How a program ended. ``errors`` holds the last lines of its standard error."""

    status: int
    output: str
    errors: str

    @property
    def said(self) -> str:
        """Everything it said, for searching and for messages."""
        return f"{self.output}\n{self.errors}".strip()

    @property
    def last_words(self) -> str:
        """The last line of its standard error that is no progress report."""
        lines = [line.strip() for line in self.errors.splitlines() if line.strip() and "kB (" not in line]
        return lines[-1] if lines else f"exit status {self.status}"


def environment(**extra: str) -> dict[str, str]:
    """The environment of the programs: nothing of ours but where programs are; messages in English."""
    return {"PATH": os.environ.get("PATH", "/usr/bin:/bin"), "LC_ALL": "C", "LANG": "C", **extra}


def identity(user: OsUser | None) -> dict[str, Any]:
    """Arguments for subprocess that make a child run as ``user``."""
    return {} if user is None else {"user": user.uid, "group": user.gid, "extra_groups": []}


async def run_program(
    installation: Installation,
    arguments: Sequence[str],
    user: OsUser | None,
    *,
    stdin: str | None = None,
    on_line: Callable[[str], None] | None = None,
    working_dir: Path | None = None,
) -> Outcome:
    """Run ``arguments[0]`` of the installation to its end; cancelled, it ends the program and all it started.

    ``on_line`` is given each line of standard error, progress reports too. Raises EnvironmentFault if it cannot start.
    """
    try:
        process = await asyncio.create_subprocess_exec(
            installation.program(arguments[0]),
            *arguments[1:],
            stdin=subprocess.DEVNULL if stdin is None else subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            cwd=working_dir or "/",
            env=environment(),
            start_new_session=True,
            **identity(user),
        )
    except OSError as error:
        raise EnvironmentFault(f"cannot run {installation.program(arguments[0])}: {error}") from error
    try:
        assert process.stdout is not None
        assert process.stderr is not None
        output, errors, _ = await asyncio.gather(
            process.stdout.read(), _lines(process.stderr, on_line), _feed(process, stdin)
        )
        status = await process.wait()
    except BaseException:
        await asyncio.shield(_end(process))
        raise
    outcome = Outcome(status, output.decode(errors="replace"), errors)
    _log.debug("program ended", program=arguments[0], status=status, last_words=outcome.last_words)
    return outcome


async def _feed(process: asyncio.subprocess.Process, text: str | None) -> None:
    if text is None or process.stdin is None:
        return
    try:
        process.stdin.write(text.encode())
        await process.stdin.drain()
        process.stdin.close()
    except (BrokenPipeError, ConnectionResetError):
        pass  # it ended early; its exit status tells


async def _lines(stream: asyncio.StreamReader, on_line: Callable[[str], None] | None) -> str:
    kept: list[str] = []
    rest = b""
    while chunk := await stream.read(65536):
        *complete, rest = _SEPARATOR.split(rest + chunk)
        for raw in complete:
            line = raw.decode(errors="replace").rstrip()
            if on_line is not None and line:
                on_line(line)
            kept.append(line)
        del kept[:-_KEPT_LINES]
    return "\n".join([*kept, rest.decode(errors="replace")]).strip()


async def _end(process: asyncio.subprocess.Process) -> None:
    """SIGKILL the program's whole session: it has a session, hence a process group, of its own."""
    with contextlib.suppress(ProcessLookupError):
        os.killpg(process.pid, signal.SIGKILL)
    await process.wait()
