"""A ledger that is a query: asked of any PostgreSQL, read only, row by row through a cursor."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from pathlib import Path

import psycopg
from psycopg import pq, sql
from psycopg.conninfo import conninfo_to_dict, make_conninfo

from holdfast.core.match.matcher import Entry
from holdfast.local.match.files import Progress
from holdfast.model.errors import ConfigurationError

ROWS_AT_ONCE = 2000
_SETTINGS = (
    "SET datestyle = 'ISO, MDY'; SET intervalstyle = 'postgres'; SET timezone = 'UTC'; SET extra_float_digits = 1; "
    "SET bytea_output = 'hex'; SET client_encoding = 'UTF8'"
)
_DEFAULTS = {"application_name": "holdfast_match", "connect_timeout": "10"}
_HOW = "give it in PGPASSFILE (or ~/.pgpass), PGPASSWORD, or a service file, never in --ledger"


def is_dsn(ledger: str) -> bool:
    """Whether it names a database rather than a file."""
    if ledger.startswith(("postgresql://", "postgres://")):
        return True
    return "=" in ledger and not Path(ledger).exists()


class QueryLedger:
    """The rows of a query. Nothing of the connection string is printed but host, port and database."""

    name = "--query"

    def __init__(self, dsn: str, query: str) -> None:
        self._query = query
        try:
            settings = conninfo_to_dict(dsn)
        except psycopg.ProgrammingError as error:
            raise ConfigurationError(
                "--ledger: this is neither a file that is there nor a connection string of PostgreSQL "
                "(postgresql://user@host/database, or service=NAME)"
            ) from error
        if settings.get("password"):
            raise ConfigurationError(f"--ledger: a password on the command line is seen by everybody: {_HOW}")
        self._conninfo = make_conninfo(dsn, **{k: v for k, v in _DEFAULTS.items() if k not in settings})

    def entries(self, columns: Sequence[str], optional: Sequence[str], progress: Progress) -> Iterator[Entry]:
        """Every row with its values in these columns; raises ConfigurationError."""
        try:
            connection = psycopg.connect(self._conninfo, autocommit=True)
        except psycopg.Error as error:
            where = f" If it is the password: {_HOW}." if "password" in str(error) else ""
            raise ConfigurationError(f"--ledger: no connection: {str(error).strip()}.{where}") from error
        with connection:
            try:
                connection.execute(_SETTINGS)
                connection.execute("BEGIN TRANSACTION ISOLATION LEVEL REPEATABLE READ READ ONLY")
                query = sql.SQL("DECLARE holdfast_ledger NO SCROLL CURSOR FOR {}").format(
                    sql.SQL(self._query.strip().rstrip(";"))
                )
                connection.execute(query)
                yield from self._fetched(connection, [*columns, *optional], progress)
            except psycopg.Error as error:
                raise ConfigurationError(f"--query: {str(error).strip()}") from error

    def _fetched(
        self, connection: psycopg.Connection[tuple[object, ...]], columns: Sequence[str], progress: Progress
    ) -> Iterator[Entry]:
        places: dict[str, int] = {}
        done = 0
        while True:
            result = connection.execute(f"FETCH {ROWS_AT_ONCE} FROM holdfast_ledger".encode()).pgresult
            assert result is not None
            places = places or self._places(result, columns)
            for row in range(result.ntuples):
                done += 1
                try:
                    values = {c: _text(result.get_value(row, at)) for c, at in places.items()}
                except UnicodeDecodeError as error:
                    raise ConfigurationError(f"--query, row {done}: its text is no UTF-8: {error.reason}") from error
                yield Entry(f"row {done}", values)
            progress(None)
            if result.ntuples < ROWS_AT_ONCE:
                return

    def _places(self, result: pq.abc.PGresult, columns: Sequence[str]) -> dict[str, int]:
        names = [(result.fname(at) or b"").decode("utf-8", "replace") for at in range(result.nfields)]
        for column in columns:
            if names.count(column) != 1:
                what = "more than one column is named" if column in names else "it has no column"
                raise ConfigurationError(f"--query: {what} {column!r}; there are {', '.join(map(repr, names))}")
        return {column: names.index(column) for column in columns}


def _text(raw: bytes | None) -> str | None:
    return None if raw is None else raw.decode("utf-8")
