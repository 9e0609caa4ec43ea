"""Runs pg_waldump and hands on what it prints, line by line."""

from __future__ import annotations

import asyncio
import subprocess
from collections.abc import AsyncIterator, Callable

from holdfast.model.errors import EnvironmentFault
from holdfast.postgres.instance import Instance
from holdfast.postgres.programs import environment, identity

LINE_BYTES_MAX = 4 * 1024 * 1024
"""Of what pg_waldump prints for one record: enough for a commit with a few hundred thousand subtransactions."""
_READ_BYTES = 64 * 1024


async def each_line(instance: Instance, arguments: list[str], take: Callable[[str], None]) -> tuple[int, str]:
    """Run pg_waldump and hand on its lines: a gigabyte of log must not become a gigabyte of text.

    Returns its exit status and what it complained of. Raises EnvironmentFault.
    """
    program = instance.installation.program("pg_waldump")
    try:
        process = await asyncio.create_subprocess_exec(
            program, *arguments, cwd="/", env=environment(TZ="UTC"), stdin=subprocess.DEVNULL,
            stdout=subprocess.PIPE, stderr=subprocess.PIPE, **identity(instance.user),
        )  # fmt: skip
    except OSError as error:
        raise EnvironmentFault(f"cannot run {program}: {error}") from error
    assert process.stdout is not None
    assert process.stderr is not None
    try:
        async for raw in _lines_of(process.stdout):
            take(raw.decode(errors="replace").rstrip())
        words = (await process.stderr.read()).decode(errors="replace").strip()
        return await process.wait(), words
    except BaseException:
        process.kill()
        await process.wait()
        raise


async def _lines_of(stream: asyncio.StreamReader) -> AsyncIterator[bytes]:
    """Its lines, each up to `LINE_BYTES_MAX`: a message in the log is printed with all of its bytes, in one line."""
    line = bytearray()
    while chunk := await stream.read(_READ_BYTES):
        *ended, rest = chunk.split(b"\n")
        for part in ended:
            line += part[: LINE_BYTES_MAX - len(line)]
            yield bytes(line)
            line.clear()
        line += rest[: LINE_BYTES_MAX - len(line)]
    if line:
        yield bytes(line)
