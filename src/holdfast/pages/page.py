"""What every page has: its template, its style, and how it gets onto the disk."""

from __future__ import annotations

import re
from contextlib import suppress
from datetime import UTC, datetime
from importlib import resources
from pathlib import Path

from jinja2 import DictLoader, Environment, StrictUndefined, Template
from markupsafe import Markup, escape

from holdfast.core.words import duration
from holdfast.model.errors import EnvironmentFault

_BACKQUOTED = re.compile(r"`([^`]+)`")


def template(source: str) -> Template:
    """A template with the filters ``duration`` (of milliseconds), ``day`` and ``clock`` (of a time), ``code``."""
    environment = Environment(loader=DictLoader({"page": source}), autoescape=True, undefined=StrictUndefined)
    environment.filters |= {"duration": duration, "day": day, "clock": clock, "code": code}
    return environment.get_template("page")


def source(package: str, *path: str) -> str:
    """A file of a package."""
    return resources.files(package).joinpath(*path).read_text(encoding="utf-8")


def asset(package: str, *path: str) -> Markup:
    """One of our own files, which goes into a page as it is."""
    return Markup(source(package, *path))


def style() -> Markup:
    """The style sheet of all pages."""
    return asset("holdfast.pages", "style.css")


def code(text: str) -> Markup:
    """A text in which what stands in backquotes is set as code."""
    return Markup(_BACKQUOTED.sub(r"<code>\1</code>", str(escape(text))))


def day(at: datetime) -> str:
    """``3 May 2024``."""
    return f"{at.day} {at:%B %Y}"


def clock(at: datetime) -> str:
    """``14:03:07``."""
    return f"{at:%H:%M:%S}"


def moment(at_ms: float) -> datetime:
    """Unix milliseconds as a time, UTC."""
    return datetime.fromtimestamp(at_ms / 1000, UTC)


def write_whole(path: Path, text: str) -> None:
    """Write a file, whole or not at all; raises EnvironmentFault."""
    half_made = path.with_name(f".{path.name}.part")
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        half_made.write_text(text, encoding="utf-8")
        half_made.replace(path)
    except OSError as error:
        with suppress(OSError):
            half_made.unlink(missing_ok=True)
        raise EnvironmentFault(
            f"the report cannot be written to {path}: {error.strerror}. Choose another place for it, or free some space"
        ) from error
