"""Structured logs, configured once per process."""

from __future__ import annotations

import atexit
import logging
import queue
import sys
import threading
from typing import Any, TextIO, cast

import structlog

LINES_WAITING_MAX = 20_000
_LAST_WORDS_S = 2.0


class BackgroundWriter:
    """Writes on a thread of its own: a disk that hangs below the log must not hold up an agent that has to say so.

    What does not fit into the queue meanwhile is dropped, and their number is told when it goes on.
    """

    def __init__(self, stream: TextIO, limit: int = LINES_WAITING_MAX) -> None:
        self._stream = stream
        self._waiting: queue.Queue[str] = queue.Queue(limit)
        self._dropped = 0
        self._idle = threading.Event()
        self._idle.set()
        threading.Thread(target=self._run, name="log", daemon=True).start()
        atexit.register(self.drain)

    def write(self, text: str) -> int:
        """Take it; returns at once."""
        self._idle.clear()
        try:
            self._waiting.put_nowait(text)
        except queue.Full:
            self._dropped += 1
        return len(text)

    def flush(self) -> None:
        """The thread does that."""

    def drain(self, timeout_s: float = _LAST_WORDS_S) -> None:
        """Wait until everything is written, at most that long."""
        self._idle.wait(timeout_s)

    def _run(self) -> None:
        while True:
            text = self._waiting.get()
            if self._dropped:
                text, self._dropped = f"... {self._dropped} writes to this log were dropped ...\n{text}", 0
            self._stream.write(text)
            if self._waiting.empty():
                self._stream.flush()
                self._idle.set()


def configure_process_logs(**context: Any) -> None:
    """Log to standard error: JSON lines, or for people if that is a terminal. ``context`` goes into every line."""
    people = sys.stderr.isatty()
    structlog.configure(
        processors=[
            structlog.contextvars.merge_contextvars,
            structlog.processors.add_log_level,
            structlog.processors.TimeStamper(fmt="iso", utc=True),
            structlog.processors.StackInfoRenderer(),
            *([] if people else [structlog.processors.format_exc_info]),
            structlog.dev.ConsoleRenderer() if people else structlog.processors.JSONRenderer(),
        ],
        wrapper_class=structlog.make_filtering_bound_logger(logging.INFO),
        logger_factory=structlog.PrintLoggerFactory(cast(TextIO, BackgroundWriter(sys.stderr))),
        cache_logger_on_first_use=True,
    )
    structlog.contextvars.bind_contextvars(**context)
    # What strangers send to an HTTP port is answered, not logged with a traceback each.
    logging.getLogger("aiohttp.server").setLevel(logging.CRITICAL)


def configure_quiet_logs() -> None:
    """For commands that talk to people: they say themselves what is worth saying; only errors go to standard error."""
    structlog.configure(
        wrapper_class=structlog.make_filtering_bound_logger(logging.ERROR),
        logger_factory=structlog.PrintLoggerFactory(sys.stderr),
        cache_logger_on_first_use=True,
    )
