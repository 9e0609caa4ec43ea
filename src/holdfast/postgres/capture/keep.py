"""The directory of captures: reading, verifying, decrypting and removing what is there."""

from __future__ import annotations

import contextlib
import fcntl
import hashlib
import json
import os
import shutil
from collections.abc import Iterator
from dataclasses import dataclass, replace
from pathlib import Path

from holdfast.core.capture import to_remove
from holdfast.model.capture import Capture, CapturedFile, State, file_from_json
from holdfast.model.errors import ConfigurationError, EnvironmentFault, RegisterError
from holdfast.model.settings import CaptureSettings
from holdfast.postgres.capture.copying import CHUNK_BYTES, make_private
from holdfast.postgres.capture.sealing import SUFFIX, Opener
from holdfast.postgres.files import make_directory, sync_directory, write_durably

MANIFEST = "manifest.json"
FILES = "files"
PROGRESS = "files.jsonl"
"""The list of what is taken so far; locked while somebody is at work, gone when the capture has ended."""
SENT = "sent.jsonl"
"""What has arrived where captures are sent: a line for each file, the manifest's last."""
MOMENTS = "moments"
MOMENTS_KEPT = 20


def base_of(settings: CaptureSettings, state_dir: Path) -> Path:
    """The directory of captures."""
    return settings.directory or state_dir / "captures"


@dataclass(frozen=True, slots=True)
class Problem:
    """What `verify` found wrong with one file."""

    path: str
    words: str


def read_capture(directory: Path) -> Capture:
    """The manifest of one capture, with what is taken so far; raises EnvironmentFault, RegisterError."""
    try:
        capture = Capture.from_json((directory / MANIFEST).read_bytes())
    except OSError as error:
        raise EnvironmentFault(f"{directory / MANIFEST} cannot be read: {error.strerror}") from error
    if capture.is_ended:
        return replace(capture, directory=str(directory), sent_to=_sent_to(directory))
    state = State.UNDERWAY if is_locked(directory) else State.INTERRUPTED
    return replace(capture, state=state, directory=str(directory), files=tuple(taken_so_far(directory)))


def read_captures(base: Path, node: str | None = None) -> list[Capture]:
    """All captures below a directory, or those of one node, oldest first; what is none is passed over."""
    found = []
    for path in base.glob(f"epoch-*/{MANIFEST}"):
        with contextlib.suppress(EnvironmentFault, RegisterError):
            capture = read_capture(path.parent)
            if node in (None, capture.node):
                found.append(capture)
    return sorted(found, key=lambda c: (c.begun_at_ms, c.node))


def taken_so_far(directory: Path) -> Iterator[CapturedFile]:
    """What the list of an interrupted capture names and is there, with its size."""
    try:
        lines = (directory / PROGRESS).read_bytes().splitlines()
    except OSError:
        return
    for line in lines:
        file = file_from_json(line)
        if file is None:
            continue
        with contextlib.suppress(OSError):
            if (directory / FILES / file.stored).stat().st_size == file.stored_bytes:
                yield file


def note_sent(directory: Path, to: str, name: str) -> None:
    """A file of a capture has arrived; raises OSError."""
    with (directory / SENT).open("a") as file:
        file.write(json.dumps({"to": to, "name": name}) + "\n")


def sent_of(directory: Path, to: str) -> set[str]:
    """The files of a capture that have arrived at one place."""
    return {name for place, name in _sent(directory) if place == to}


def _sent_to(directory: Path) -> str | None:
    """Where the manifest arrived last: it is sent after everything else."""
    return next((to for to, name in reversed(_sent(directory)) if name == MANIFEST), None)


def _sent(directory: Path) -> list[tuple[str, str]]:
    found: list[tuple[str, str]] = []
    with contextlib.suppress(OSError):
        for line in (directory / SENT).read_text().splitlines():
            with contextlib.suppress(ValueError, KeyError, TypeError):  # the last line may have been cut off
                entry = json.loads(line)
                found.append((str(entry["to"]), str(entry["name"])))
    return found


def is_locked(directory: Path) -> bool:
    """Whether somebody is at work on a capture."""
    try:
        with (directory / PROGRESS).open("rb") as file:
            fcntl.flock(file, fcntl.LOCK_SH | fcntl.LOCK_NB)
    except BlockingIOError:
        return True
    except OSError:
        return False
    return False


def end_capture(directory: Path, capture: Capture) -> None:
    """Write the manifest for good; raises OSError."""
    for path in sorted({(directory / FILES / file.stored).parent for file in capture.files}):
        sync_directory(path)
    write_durably(directory / MANIFEST, capture.to_json(), None)
    (directory / PROGRESS).unlink(missing_ok=True)
    sync_directory(directory)


def remove_old(base: Path, node: str, keep: int, keep_bytes: int) -> list[str]:
    """Remove what is kept no longer; returns the names."""
    found = read_captures(base, node)
    kept = [(c.directory, c.size_bytes, c.is_ended) for c in found if c.state is not State.UNDERWAY]
    gone = to_remove(kept, keep, keep_bytes)
    for directory in gone:
        shutil.rmtree(directory, ignore_errors=True)
    return [Path(directory).name for directory in gone]


def moments_of(base: Path, node: str) -> list[Path]:
    """The volatile evidence that no capture has yet, oldest first."""
    return sorted((base / MOMENTS).glob(f"{node}-*.json*"))


def moments_place(base: Path, node: str) -> Path:
    """Where volatile evidence waits for a capture; all but the newest is removed. Raises OSError."""
    make_directory(base, None)
    make_directory(base / MOMENTS, None)
    for old in moments_of(base, node)[: -MOMENTS_KEPT + 1]:
        old.unlink(missing_ok=True)
    return base / MOMENTS


def verify(directory: Path) -> tuple[Capture, list[Problem]]:
    """Compare every file with the manifest; raises EnvironmentFault, RegisterError if that cannot be read."""
    capture = read_capture(directory)
    problems = []
    known = set()
    for file in capture.files:
        known.add(file.stored)
        words = _compare(directory / FILES / file.stored, file)
        if words:
            problems.append(Problem(file.path, words))
    for path in sorted((directory / FILES).rglob("*")):
        name = str(path.relative_to(directory / FILES))
        if path.is_file() and name not in known and capture.is_ended:
            problems.append(Problem(name, "it is not in the manifest"))
    return capture, problems


def _compare(path: Path, file: CapturedFile) -> str:
    try:
        with path.open("rb") as stored:
            digest, size_bytes = hashlib.sha256(), 0
            while chunk := stored.read(CHUNK_BYTES):
                digest.update(chunk)
                size_bytes += len(chunk)
    except FileNotFoundError:
        return "it is missing"
    except OSError as error:
        return f"it cannot be read: {error.strerror}"
    if size_bytes != file.stored_bytes:
        return f"it has {size_bytes:,} bytes instead of {file.stored_bytes:,}"
    return "" if digest.hexdigest() == file.sha256 else "its checksum is another one"


def decrypt(directory: Path, identity_file: Path, target: Path) -> list[Path]:
    """Write every file of a capture, decrypted, below ``target``, which is made; returns what was written.

    Raises ConfigurationError for a wrong argument, EnvironmentFault where a key does not fit or there is no room.
    """
    opener, capture = Opener(identity_file), read_capture(directory)
    try:
        target.mkdir(mode=0o700, parents=True)
    except OSError as error:
        raise ConfigurationError(f"--to {target} cannot be made ({error.strerror}): name a new directory") from error
    written = []
    for file in capture.files:
        stored, plain = directory / FILES / file.stored, target / file.stored.removesuffix(SUFFIX)
        if not plain.resolve().is_relative_to(target.resolve()):
            raise EnvironmentFault(f"the manifest names {file.stored!r}, which is outside of the capture")
        try:
            make_private(plain.parent)
            descriptor = os.open(plain, os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_NOFOLLOW, 0o600)
            with stored.open("rb") as source, os.fdopen(descriptor, "wb") as out:
                if file.stored.endswith(SUFFIX):
                    opener.open(source, out, file.path)
                else:
                    shutil.copyfileobj(source, out, CHUNK_BYTES)
        except OSError as error:
            raise EnvironmentFault(f"{file.path} cannot be written below {target}: {error}") from error
        written.append(plain)
    return written
