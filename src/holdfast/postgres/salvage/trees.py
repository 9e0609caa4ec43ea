"""Copies a directory so that the copy can be given up at any time, and dies with us: no process of its own does it."""

from __future__ import annotations

import asyncio
import fcntl
import os
import stat
import threading
from collections.abc import Callable, Iterable
from pathlib import Path
from typing import ParamSpec, TypeVar

P = ParamSpec("P")
T = TypeVar("T")

_FICLONE = 0x40049409
"""ioctl_ficlone(2)."""
_CHUNK_BYTES = 8 * 1024 * 1024


async def copy_tree(source: Path, target: Path, left_out: Iterable[str] = ()) -> None:
    """Copy what is in ``source`` into ``target``, which is there; blocks are shared where the file system can.

    ``left_out`` names entries at the top. When it is cancelled nobody writes to ``target`` any more. Raises OSError.
    """
    given_up = threading.Event()
    work = asyncio.ensure_future(asyncio.to_thread(_copy_directory, source, target, frozenset(left_out), given_up))
    try:
        await asyncio.shield(work)
    except asyncio.CancelledError:
        given_up.set()
        await asyncio.wait([work])
        raise


async def on_thread(work: Callable[P, T], *arguments: P.args, **named: P.kwargs) -> T:
    """`asyncio.to_thread` that is not cancelled before the thread has ended: what follows may undo its work."""
    running = asyncio.ensure_future(asyncio.to_thread(work, *arguments, **named))
    try:
        return await asyncio.shield(running)
    except asyncio.CancelledError:
        await asyncio.wait([running])
        raise


def can_share_blocks(source: Path, probe: Path) -> bool:
    """Whether copies cost no room; ``probe`` is made and removed."""
    try:
        with source.open("rb") as original, probe.open("wb") as copy:
            return _shares_blocks(original.fileno(), copy.fileno())
    except OSError:
        return False
    finally:
        probe.unlink(missing_ok=True)


def _shares_blocks(original: int, copy: int) -> bool:
    try:
        fcntl.ioctl(copy, _FICLONE, original)
    except OSError:
        return False
    return True


def _copy_directory(source: Path, target: Path, left_out: frozenset[str], given_up: threading.Event) -> None:
    pending = [(source, target)]
    while pending:
        here, there = pending.pop()
        for entry in os.scandir(here):
            if given_up.is_set():
                return
            if here == source and entry.name in left_out:
                continue
            found, copy = entry.stat(follow_symlinks=False), there / entry.name
            if stat.S_ISLNK(found.st_mode):
                copy.symlink_to(os.readlink(entry.path))
            elif stat.S_ISDIR(found.st_mode):
                copy.mkdir(mode=0o700)
                _give_to_owner(copy, found)
                pending.append((Path(entry.path), copy))
            elif stat.S_ISREG(found.st_mode):
                _copy_file(Path(entry.path), copy, given_up)
                _give_to_owner(copy, found)


def _copy_file(source: Path, target: Path, given_up: threading.Event) -> None:
    with source.open("rb") as original, target.open("xb") as copy:
        os.fchmod(copy.fileno(), 0o600)
        if _shares_blocks(original.fileno(), copy.fileno()):
            return
        while not given_up.is_set() and os.sendfile(copy.fileno(), original.fileno(), None, _CHUNK_BYTES):
            pass


def _give_to_owner(copy: Path, found: os.stat_result) -> None:
    if os.geteuid() == 0:
        os.chown(copy, found.st_uid, found.st_gid)
