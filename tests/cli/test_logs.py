"""A log on a disk that hangs."""

from __future__ import annotations

import io
import threading
import time

from holdfast.cli.logs import BackgroundWriter


class Stuck(io.StringIO):
    """A stream whose first write hangs until it is let go."""

    def __init__(self) -> None:
        super().__init__()
        self.go_on = threading.Event()

    def write(self, text: str) -> int:
        assert self.go_on.wait(300)
        return super().write(text)


def test_a_log_that_hangs_holds_up_nobody_and_goes_on_in_order() -> None:
    stream = Stuck()
    writer = BackgroundWriter(stream, limit=5)
    began_at = time.monotonic()
    for number in range(20):
        writer.write(f"{number}\n")
    writer.drain(0.05)
    assert time.monotonic() - began_at < 100
    stream.go_on.set()
    writer.drain(100)
    lines = stream.getvalue().splitlines()
    told = next(line for line in lines if line.startswith("..."))
    kept = [int(line) for line in lines if line.isdigit()]
    assert kept == sorted(kept)
    assert int(told.split()[1]) == 20 - len(kept)


def test_what_is_written_is_there_at_the_end() -> None:
    stream = io.StringIO()
    writer = BackgroundWriter(stream)
    for number in range(1000):
        writer.write(f"{number}\n")
    writer.drain(100)
    assert stream.getvalue().count("\n") == 1000
