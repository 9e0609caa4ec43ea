"""A place for clusters that is gone after the test, with every process that names it."""

from __future__ import annotations

import os
import shutil
import signal
import tempfile
from collections.abc import Iterator
from pathlib import Path

import pytest

from holdfast.local.processes import Process, descendants_of


def processes_below(directory: Path) -> list[Process]:
    """Processes whose command line names the directory, with their descendants."""
    found = []
    for entry in os.listdir("/proc"):
        if entry.isdigit() and int(entry) != os.getpid():
            try:
                words = Path(f"/proc/{entry}/cmdline").read_bytes()
            except OSError:
                continue
            if os.fsencode(directory) in words:
                found.append(int(entry))
    return [p for p in map(Process.of, {*found, *descendants_of(*found)}) if p is not None]


@pytest.fixture
def place() -> Iterator[Path]:
    """A directory that the servers' user can enter (pytest's own is root's alone)."""
    directory = Path(tempfile.mkdtemp(prefix="holdfast-test-"))
    directory.chmod(0o711)
    try:
        yield directory
    finally:
        for process in processes_below(directory):
            process.send(signal.SIGKILL)
            process.wait(10)
        shutil.rmtree(directory, ignore_errors=True)
