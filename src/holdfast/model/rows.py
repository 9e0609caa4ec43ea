"""Rows of lost transactions: a table, and what a transaction changed in it, each value as PostgreSQL prints it."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

Row = Mapping[str, str | None]
"""Values by column, as the type's output function prints them; None is NULL."""


@dataclass(frozen=True, slots=True)
class Column:
    """``is_generated``: computed by the server, never written. ``is_comparable``: its type has an equality operator."""

    name: str
    type: str
    is_generated: bool = False
    is_always_identity: bool = False
    is_comparable: bool = True


@dataclass(frozen=True, slots=True)
class Table:
    """A table. Of a partition it is the partitioned table that people know; ``partition`` names where the row lay.

    ``key`` holds the columns of the primary key or the replica identity, and is empty if there is neither.
    """

    database: str
    schema: str
    name: str
    columns: tuple[Column, ...]
    key: tuple[str, ...] = ()
    partition: str | None = None

    @property
    def full_name(self) -> str:
        """Database, schema and table."""
        return f"{self.database}.{self.schema}.{self.name}"


@dataclass(frozen=True, slots=True)
class RowChange:
    """One row that a transaction changed: inserted (no ``before``), deleted (no ``after``), or updated.

    ``missing`` names the image that should be there and could not be read: before or after.
    """

    table: Table
    before: Row | None
    after: Row | None
    missing: str | None = None

    @property
    def kind(self) -> str:
        """What was done."""
        if self.before is None and self.missing != "before":
            return "insert"
        return "delete" if self.after is None and self.missing != "after" else "update"
