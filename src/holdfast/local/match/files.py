"""A ledger in a file: CSV with a line of names, or a JSON object on each line. Read bit by bit, however large it is."""

from __future__ import annotations

import csv
import json
import sys
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import BinaryIO

from holdfast.core.match.matcher import Entry
from holdfast.model.errors import ConfigurationError

FORMATS = ("csv", "jsonl")
_SUFFIXES = {".csv": "csv", ".tsv": "csv", ".jsonl": "jsonl", ".ndjson": "jsonl", ".json": "jsonl"}
FIELD_BYTES_MAX = 64 * 1024 * 1024
"""A longer field, or a longer line of JSON, is taken for a quote that was not closed, or a file of another kind."""

Progress = Callable[[float | None], None]
"""Told which share of the ledger was read; None if nobody knows how long it is."""


class FileLedger:
    """A ledger in ``path``; ``-`` is standard input. ``null``: the text that stands for NULL in CSV."""

    def __init__(self, path: str, kind: str | None, delimiter: str | None, null: str) -> None:
        self.name = "standard input" if path == "-" else path
        self._path = path
        self._kind = kind or _SUFFIXES.get(Path(path).suffix.lower()) or self._unknown_kind()
        self._delimiter = delimiter or ("\t" if path.lower().endswith(".tsv") else ",")
        self._null = null
        if len(self._delimiter) != 1 or self._delimiter in '"\r\n':
            raise ConfigurationError(f"--delimiter {delimiter!r}: it must be one character, and none of quote and line")

    def entries(self, columns: Sequence[str], optional: Sequence[str], progress: Progress) -> Iterator[Entry]:
        """Every entry with its values in these columns; raises ConfigurationError that names the line and the fix.

        An ``optional`` column that a JSON object does not have is NULL; CSV must have all of them.
        """
        with self._opened() as (file, size_bytes):
            lines = self._lines(file, size_bytes, progress)
            if self._kind == "csv":
                yield from self._csv_entries(lines, [*columns, *optional])
            else:
                yield from self._json_entries(lines, columns, optional)

    def _unknown_kind(self) -> str:
        raise ConfigurationError(
            f"--ledger {self.name}: its name does not say what it holds; add --format {' or --format '.join(FORMATS)}"
        )

    @contextmanager
    def _opened(self) -> Iterator[tuple[BinaryIO, int | None]]:
        if self._path == "-":
            yield sys.stdin.buffer, None
            return
        try:
            file = Path(self._path).open("rb")  # noqa: SIM115 - closed below
            size_bytes = Path(self._path).stat().st_size if Path(self._path).is_file() else None
        except OSError as error:
            raise ConfigurationError(f"--ledger {self._path}: it cannot be read: {error.strerror}") from error
        with file:
            yield file, size_bytes

    def _lines(self, file: BinaryIO, size_bytes: int | None, progress: Progress) -> Iterator[str]:
        number = done_bytes = 0
        try:
            while raw := file.readline(FIELD_BYTES_MAX + 1):
                number += 1
                done_bytes += len(raw)
                if len(raw) > FIELD_BYTES_MAX:
                    raise self._error(number, f"it is longer than {FIELD_BYTES_MAX:,} bytes: this is no such file")
                yield self._text(raw.removeprefix(b"\xef\xbb\xbf") if number == 1 else raw, number)
                progress(done_bytes / size_bytes if size_bytes else None)
        except OSError as error:
            raise self._error(number + 1, f"it cannot be read: {error.strerror}") from error

    def _text(self, raw: bytes, number: int) -> str:
        try:
            return raw.decode("utf-8")
        except UnicodeDecodeError as error:
            if number == 1 and raw.startswith((b"\xff\xfe", b"\xfe\xff")):
                found = "it is UTF-16"
            else:
                found = f"byte {error.start + 1} of it is 0x{raw[error.start]:02x}, which is no UTF-8"
            raise self._error(number, f"{found}; write the file as UTF-8 (iconv -f … -t UTF-8)") from error

    def _error(self, number: int, what: str) -> ConfigurationError:
        return ConfigurationError(f"--ledger {self.name}, line {number}: {what}")

    # -- CSV ---------------------------------------------------------------------------------------------------------

    def _csv_entries(self, lines: Iterator[str], columns: Sequence[str]) -> Iterator[Entry]:
        csv.field_size_limit(FIELD_BYTES_MAX)
        reader = csv.reader(lines, delimiter=self._delimiter, strict=True)
        names: list[str] = []
        while True:
            begin = reader.line_num + 1
            try:
                fields = next(reader)
            except StopIteration:
                break
            except csv.Error as error:
                last = "" if reader.line_num <= begin else f" (it goes on up to line {reader.line_num})"
                raise self._error(begin, f"this is no CSV: {error}{last}") from error
            if not fields:
                continue  # an empty line
            if not names:
                names = fields
                places = self._places(names, columns, begin)
                continue
            if len(fields) != len(names):
                raise self._error(begin, f"it has {len(fields)} fields, and the first line names {len(names)}")
            values = {column: None if fields[at] == self._null else fields[at] for column, at in places.items()}
            yield Entry(f"line {begin}", values)
        if not names:
            raise self._error(1, "it is empty: the first line must name the columns")

    def _places(self, names: Sequence[str], columns: Sequence[str], number: int) -> dict[str, int]:
        for column in columns:
            if names.count(column) != 1:
                what = "more than one column is named" if column in names else "there is no column"
                hint = f" (is the delimiter {self._delimiter!r} right?)" if len(names) == 1 else ""
                raise self._error(number, f"{what} {column!r}; there are {_listed(names)}{hint}")
        return {column: names.index(column) for column in columns}

    # -- JSON lines --------------------------------------------------------------------------------------------------

    def _json_entries(self, lines: Iterator[str], columns: Sequence[str], optional: Sequence[str]) -> Iterator[Entry]:
        for number, line in enumerate(lines, 1):
            if not line.strip():
                continue
            try:
                found = json.loads(line, parse_int=str, parse_float=str, parse_constant=str)
            except (ValueError, RecursionError) as error:
                what = "is the file one JSON text, not a line for each entry? " if number == 1 else ""
                raise self._error(number, f"this is no JSON: {what}{error}") from error
            if not isinstance(found, dict):
                raise self._error(number, "this is no JSON object")
            missing = [column for column in columns if column not in found]
            if missing:
                raise self._error(number, f"there is no {missing[0]!r}; there are {_listed(list(found))}")
            values = {column: _as_text(found.get(column)) for column in (*columns, *optional)}
            yield Entry(f"line {number}", values)


def _as_text(value: object) -> str | None:
    """As people would write it; numbers stand as they stood."""
    if value is None or isinstance(value, str):
        return value
    if isinstance(value, bool):
        return "true" if value else "false"
    return json.dumps(value, ensure_ascii=False)


def _listed(names: Sequence[str]) -> str:
    shown = ", ".join(repr(name) for name in names[:30])
    return f"{shown} and {len(names) - 30} more" if len(names) > 30 else shown or "none"
