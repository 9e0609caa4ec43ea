"""Shared memory that a killed PostgreSQL leaves behind, until one is started in its data directory again.

There are files in ``/dev/shm`` (PostgreSQL manual, section 20.4.1, ``dynamic_shared_memory_type``) and, for every
postmaster, one small System V segment that tells others that it runs (section 19.4.1). The kernel has room for a few
thousand of those (``kernel.shmmni``), and without one no server starts. So where a directory goes for good, what its
servers left goes with it.
"""

from __future__ import annotations

import contextlib
import ctypes
import struct
from dataclasses import dataclass
from pathlib import Path

_FILES = "/dev/shm/PostgreSQL."
_SEGMENT = "/SYSV"
_SEGMENTS = Path("/proc/sysvipc/shm")
_KEY_LINE = 6
"""In ``postmaster.pid``: the key and the id of the segment."""
_IPC_RMID = 0
_SHM_RDONLY = 0o10000
_SEGMENT_HEADER = struct.Struct("=I20xI")
_SEGMENT_MAGIC = 679834894
_CONTROL_HEADER = struct.Struct("=II8x")
_CONTROL_MAGIC = 0x9A503D32
_CONTROL_ITEM = struct.Struct("=I36x")
"""As in PostgreSQL 14 to 18, on 64 bits; where a magic number is another, nothing is removed."""


@dataclass(frozen=True, slots=True)
class SharedMemory:
    """What is to be removed once nobody uses it."""

    files: frozenset[Path] = frozenset()
    segments: frozenset[int] = frozenset()
    """Ids of System V segments."""

    def __or__(self, other: SharedMemory) -> SharedMemory:
        return SharedMemory(self.files | other.files, self.segments | other.segments)


def shared_memory_of(*pids: int) -> SharedMemory:
    """What processes of PostgreSQL have mapped."""
    files: set[Path] = set()
    segments: set[int] = set()
    for pid in pids:
        try:
            maps = Path(f"/proc/{pid}/maps").read_text()
        except OSError:
            continue
        for line in maps.splitlines():
            if f" {_FILES}" in line:
                files.add(Path(line.split()[5]))
            elif f" {_SEGMENT}" in line:
                segments.add(int(line.split()[4]))  # its id stands where files have their inode
    return SharedMemory(frozenset(files), frozenset(segments))


def shared_memory_left_in(data_dir: Path) -> SharedMemory:
    """What the last server of a data directory left, if that was killed and none was started after it."""
    try:
        key, segment = map(int, (data_dir / "postmaster.pid").read_text().splitlines()[_KEY_LINE].split())
    except (OSError, ValueError, IndexError):
        return SharedMemory()
    if (key, 0) != _known().get(segment):
        return SharedMemory()  # it is another's by now, or a server uses it
    return SharedMemory(_files_of(segment), frozenset({segment}))


def _files_of(segment: int) -> frozenset[Path]:
    """The files that a segment leads to: it names one (storage/pg_shmem.h), and that the others (storage/ipc/dsm.c)."""
    libc = ctypes.CDLL(None)
    libc.shmat.restype = ctypes.c_void_p
    address = libc.shmat(segment, None, _SHM_RDONLY)
    if address in (None, ctypes.c_void_p(-1).value):
        return frozenset()
    magic, control = _SEGMENT_HEADER.unpack(ctypes.string_at(address, _SEGMENT_HEADER.size))
    libc.shmdt(ctypes.c_void_p(address))
    first = Path(f"{_FILES}{control}")
    try:
        raw = first.read_bytes() if magic == _SEGMENT_MAGIC else b""
    except OSError:
        raw = b""
    if len(raw) < _CONTROL_HEADER.size:
        return frozenset()
    magic, count = _CONTROL_HEADER.unpack_from(raw)
    if magic != _CONTROL_MAGIC:
        return frozenset()
    items = raw[_CONTROL_HEADER.size : _CONTROL_HEADER.size + count * _CONTROL_ITEM.size]
    others = (Path(f"{_FILES}{handle}") for (handle,) in _CONTROL_ITEM.iter_unpack(items))
    return frozenset({first, *(file for file in others if file.exists())})


def remove_shared_memory(shared: SharedMemory) -> None:
    """Remove what killed processes had; a segment goes with the last of them that ends."""
    for file in shared.files:
        with contextlib.suppress(OSError):
            file.unlink()
    libc = ctypes.CDLL(None)
    for segment in shared.segments:
        libc.shmctl(segment, _IPC_RMID, None)


def _known() -> dict[int, tuple[int, int]]:
    """Every segment: its key, and how many processes use it (proc(5), ``/proc/sysvipc``)."""
    try:
        lines = _SEGMENTS.read_text().splitlines()[1:]
    except OSError:
        return {}
    fields = [line.split() for line in lines]
    return {int(f[1]): (int(f[0]) & 0xFFFFFFFF, int(f[6])) for f in fields}
