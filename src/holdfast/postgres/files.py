"""Files made for the server: written durably, owned by the user that the server runs as."""

from __future__ import annotations

import os
import tempfile
from pathlib import Path

from holdfast.postgres.account import OsUser


def write_durably(path: Path, data: bytes | str, owner: OsUser | None, mode: int = 0o600) -> None:
    """Replace ``path`` atomically; when this returns, the new content survives a power failure."""
    write_atomically(path, data, owner, mode, synced=True)
    sync_directory(path.parent)


def write_atomically(
    path: Path, data: bytes | str, owner: OsUser | None, mode: int = 0o600, *, synced: bool = False
) -> None:
    """Replace ``path`` in one step; unless ``synced``, for files that are written anew before they matter again."""
    raw = data.encode() if isinstance(data, str) else data
    descriptor, temporary = tempfile.mkstemp(prefix=f".{path.name}.", dir=path.parent)
    try:
        with os.fdopen(descriptor, "wb") as stream:
            stream.write(raw)
            os.fchmod(stream.fileno(), mode)
            if owner is not None:
                os.fchown(stream.fileno(), owner.uid, owner.gid)
            if synced:
                stream.flush()
                os.fsync(stream.fileno())
        os.replace(temporary, path)
    except BaseException:
        Path(temporary).unlink(missing_ok=True)
        raise


def write_if_changed(path: Path, data: str, owner: OsUser | None, mode: int = 0o600) -> bool:
    """``write_atomically`` unless the file already says that; returns whether it wrote."""
    try:
        if path.read_bytes() == data.encode():
            return False
    except FileNotFoundError:
        pass
    write_atomically(path, data, owner, mode)
    return True


def remove_durably(path: Path) -> bool:
    """Remove a file; returns whether there was one."""
    try:
        path.unlink()
    except FileNotFoundError:
        return False
    sync_directory(path.parent)
    return True


def make_directory(path: Path, owner: OsUser | None, mode: int = 0o700) -> None:
    """Make a directory, and the missing ones above it, for ``owner``; one that exists is left as it is."""
    if path.is_dir():
        return
    if not path.parent.is_dir():
        make_directory(path.parent, owner, 0o711)
    path.mkdir(mode=mode)
    path.chmod(mode)
    if owner is not None:
        os.chown(path, owner.uid, owner.gid)
    sync_directory(path.parent)


def sync_file(path: Path) -> None:
    """Bring one file's content to the disk."""
    descriptor = os.open(path, os.O_RDWR)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


def sync_directory(path: Path) -> None:
    """Bring a directory's entries to the disk."""
    descriptor = os.open(path, os.O_RDONLY | os.O_DIRECTORY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)
