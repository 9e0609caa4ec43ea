"""Structured logs, configured once per process."""

from __future__ import annotations

import logging
import sys
from typing import Any

import structlog


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
        logger_factory=structlog.PrintLoggerFactory(sys.stderr),
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
