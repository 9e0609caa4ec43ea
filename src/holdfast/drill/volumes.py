"""File systems of a drill's own: one that can be frozen, one that can be filled. In the drill's own mount namespace."""

from __future__ import annotations

import os
import shutil
import subprocess
from dataclasses import dataclass
from enum import StrEnum
from pathlib import Path

from holdfast.drill.scenario import NotInjected


class Kind(StrEnum):
    """What a volume is made of."""

    FREEZABLE = "ext4 on a loop device"
    SMALL = "a sized tmpfs"


@dataclass(frozen=True, slots=True)
class Volume:
    """The place of one node's data; with ``with_agent`` also of its agent's promise and log."""

    kind: Kind
    size_mb: int
    with_agent: bool = False


def mount(volume: Volume, place: Path) -> None:
    """Mount it on a directory that is made; raises NotInjected where that is not possible."""
    place.mkdir(mode=0o711)
    if volume.kind is Kind.SMALL:
        _run("mount", "-t", "tmpfs", "-o", f"size={volume.size_mb}m,mode=0711", "tmpfs", str(place))
        return
    image = place.with_name(f"{place.name}.img")
    with image.open("wb") as file:
        file.truncate(volume.size_mb << 20)
    _run("mkfs.ext4", "-q", "-E", "lazy_itable_init=0,nodiscard", str(image))
    _run("mount", "-o", "loop", str(image), str(place))
    shutil.rmtree(place / "lost+found", ignore_errors=True)


def unmount(place: Path) -> None:
    """Take it away, also when something of it is still in use."""
    subprocess.run(["umount", "--lazy", str(place)], capture_output=True, check=False)


class FrozenVolume:
    """A file system that takes no write. A process of its own thaws it, also when we are killed."""

    def __init__(self, place: Path) -> None:
        """Freeze it; raises NotInjected."""
        script = 'fsfreeze -f "$1" && echo frozen && { read -r line; fsfreeze -u "$1"; }'
        self._keeper = subprocess.Popen(
            ["sh", "-c", script, "sh", str(place)],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            start_new_session=True,
        )
        assert self._keeper.stdout is not None
        if self._keeper.stdout.readline().strip() != b"frozen":
            assert self._keeper.stderr is not None
            said = self._keeper.stderr.read().decode().strip()
            self.thaw()
            raise NotInjected(f"the file system cannot be frozen: {said}")

    def thaw(self) -> None:
        """Let it go on. Idempotent."""
        for stream in (self._keeper.stdin, self._keeper.stdout, self._keeper.stderr):
            if stream is not None and not stream.closed:
                stream.close()
        self._keeper.wait()


def fill(place: Path) -> int:
    """Leave not one byte free; returns how many were taken."""
    taken = 0
    descriptor = os.open(place / "ballast", os.O_WRONLY | os.O_CREAT | os.O_APPEND, 0o600)
    try:
        for block in (1 << 20, 4096):
            try:
                while True:
                    taken += os.write(descriptor, bytes(block))
            except OSError:
                continue
    finally:
        os.close(descriptor)
    return taken


def is_full(place: Path) -> bool:
    """Whether a page more does not fit."""
    probe = place / "probe"
    try:
        probe.write_bytes(bytes(8192))
    except OSError:
        return True
    finally:
        probe.unlink(missing_ok=True)
    return False


def free(place: Path) -> None:
    """Take the ballast away."""
    (place / "ballast").unlink(missing_ok=True)


def _run(*command: str) -> None:
    environment = {**os.environ, "PATH": os.environ.get("PATH", "") + ":/usr/sbin:/sbin"}
    try:
        done = subprocess.run(command, env=environment, capture_output=True, text=True, check=False)
    except OSError as error:
        raise NotInjected(f"`{command[0]}` cannot be run: {error.strerror}") from error
    if done.returncode != 0:
        raise NotInjected(f"`{' '.join(command)}` failed: {done.stderr.strip() or done.returncode}")
