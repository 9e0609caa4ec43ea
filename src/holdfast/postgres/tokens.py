"""Tokens of guarded commits in the log of a running primary, and which of their transactions were committed."""

from __future__ import annotations

import asyncio
import contextlib
import os
import re
import shutil
import tempfile
from collections.abc import AsyncIterator, Callable, Collection
from pathlib import Path

from holdfast.core.own_token import OwnFound
from holdfast.core.token import Found, Stretch
from holdfast.model.errors import PostgresError
from holdfast.model.lsn import Lsn
from holdfast.postgres.control import dump_arguments
from holdfast.postgres.dump import each_line
from holdfast.postgres.instance import Instance
from holdfast.postgres.timelines import segment_name
from holdfast.postgres.waldump import mark_in, own_token_in

_COMMIT = re.compile(r"tx:\s+(?P<xid>\d+), lsn: .*?desc: COMMIT (?P<rest>.*)")
_SUBXIDS = re.compile(r"subxacts: ([\d ]+)")
_SEGMENT_BYTES = "SELECT setting::bigint FROM pg_settings WHERE name = 'wal_segment_size'"
_RUNNING = "SELECT pid FROM pg_stat_activity WHERE pid = ANY(%s)"


def committed_in(line: str) -> tuple[int, ...]:
    """The xids that the COMMIT of a line is about, subtransactions too."""
    match = _COMMIT.search(line)
    if match is None:
        return ()
    subxids = _SUBXIDS.search(match["rest"])
    return (int(match["xid"]), *(int(xid) for xid in (subxids[1].split() if subxids else ())))


async def running_sessions(instance: Instance, pids: Collection[int]) -> frozenset[int]:
    """Which of these server processes are there. Raises PostgresError."""
    rows = await instance.session("outcome").fetch(_RUNNING, (list(pids),))
    return frozenset(pid for (pid,) in rows)


async def find_tokens(instance: Instance, stretch: Stretch, wanted: Collection[str]) -> Found:
    """Read a stretch of the log for these tokens; raises PostgresError if it cannot be read."""
    async with _kept(instance, stretch) as (place, start, segment_bytes):
        return await _read(instance, place, stretch, start, segment_bytes, frozenset(wanted))


async def find_own_token(instance: Instance, stretch: Stretch, token: str) -> OwnFound:
    """Read a stretch of the log for a token that an application gave; raises PostgresError if it cannot be read."""
    xids: dict[int, None] = {}
    loose = False

    def take(line: str) -> None:
        nonlocal loose
        found = own_token_in(line)
        if found is None or found[1] != token:
            return
        if found[0] is None:
            loose = True
        else:
            xids[found[0]] = None

    async with _kept(instance, stretch) as (place, start, segment_bytes):
        if start < stretch.end:
            await _dump(instance, place, stretch, start, segment_bytes, "LogicalMessage", take)
    return OwnFound(start, tuple(xids), loose)


@contextlib.asynccontextmanager
async def _kept(instance: Instance, stretch: Stretch) -> AsyncIterator[tuple[Path, Lsn, int]]:
    """A directory with what is kept of a stretch, from where on that is, and the bytes of a segment."""
    ((segment_bytes,),) = await instance.session("outcome").fetch(_SEGMENT_BYTES)
    place = await asyncio.to_thread(_linked, instance, stretch, segment_bytes)
    try:
        yield place, await asyncio.to_thread(_kept_from, place, stretch, segment_bytes), segment_bytes
    finally:
        await asyncio.to_thread(shutil.rmtree, place, ignore_errors=True)


async def _read(
    instance: Instance, place: Path, stretch: Stretch, start: Lsn, segment_bytes: int, wanted: frozenset[str]
) -> Found:
    xids: dict[str, int] = {}
    first: list[Lsn] = []
    committed: set[int] = set()

    def take_message(line: str) -> None:
        found = mark_in(line)
        if found is not None and found[2].token in wanted:
            xids[found[2].token] = found[0]
            first.append(found[1])

    def take_commit(line: str) -> None:
        committed.update(committed_in(line))

    if start < stretch.end:
        await _dump(instance, place, stretch, start, segment_bytes, "LogicalMessage", take_message)
    if xids:
        await _dump(instance, place, stretch, min(first), segment_bytes, "Transaction", take_commit)
    return Found(start, xids, frozenset(committed) & frozenset(xids.values()))


async def _dump(
    instance: Instance,
    place: Path,
    stretch: Stretch,
    start: Lsn,
    segment_bytes: int,
    kind: str,
    take: Callable[[str], None],
) -> None:
    arguments = dump_arguments(place, stretch.timeline, start, stretch.end, segment_bytes)
    status, words = await each_line(instance, [f"--rmgr={kind}", *arguments], take)
    if status != 0:
        raise PostgresError(f"pg_waldump could not read the log from {start} to {stretch.end}: {words}")


def _linked(instance: Instance, stretch: Stretch, segment_bytes: int) -> Path:
    """A directory with the segments of the stretch, under the names of its timeline.

    The last one may be there only as the beginning of the next timeline's, or set aside for the archive.
    """
    layout = instance.layout
    place = Path(tempfile.mkdtemp(prefix="tokens-", dir=layout.side_dir))
    if layout.owner is not None:
        os.chown(place, layout.owner.uid, layout.owner.gid)
    last = segment_name(stretch.timeline, max(stretch.end - 1, 0), segment_bytes)
    position = Lsn(stretch.start - stretch.start % segment_bytes)
    while position < stretch.end:
        name = segment_name(stretch.timeline, position, segment_bytes)
        sources = [layout.wal_dir / name]
        if name == last and stretch.next_timeline is not None:
            sources.append(layout.wal_dir / f"{name}.partial")
            sources.append(layout.wal_dir / segment_name(stretch.next_timeline, position, segment_bytes))
        source = next((path for path in sources if path.exists()), None)
        if source is not None:
            (place / name).symlink_to(source)
        position = Lsn(position + segment_bytes)
    return place


def _kept_from(place: Path, stretch: Stretch, segment_bytes: int) -> Lsn:
    """From where on the stretch is there without a gap."""
    kept = stretch.end
    position = Lsn(max(stretch.end - 1, 0) // segment_bytes * segment_bytes)
    while position + segment_bytes > stretch.start:
        if not (place / segment_name(stretch.timeline, position, segment_bytes)).exists():
            return kept
        kept = max(position, stretch.start)
        if position == 0:
            break
        position = Lsn(position - segment_bytes)
    return Lsn(kept)
