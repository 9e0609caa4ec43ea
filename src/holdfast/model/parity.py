"""What a comparison of a standby's rows with its primary's has found."""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(frozen=True, slots=True)
class Mismatch:
    """Rows of one table that a standby does not have as its primary has them.

    ``table`` is ``database.schema.table``. ``missing``: the standby does not show them; ``extra``: only the standby
    shows them; ``different``: the same row version with other values. ``keys`` are some of them: the primary key as
    text, or where the row lies if the table has none. All of them lie in ``first_block`` to ``last_block``, and from
    ``first_key`` to ``last_key`` in the order of their numbers and texts (empty without a primary key).
    """

    table: str
    missing: int
    extra: int
    different: int
    first_block: int
    last_block: int
    first_key: str
    last_key: str
    keys: tuple[str, ...]


@dataclass(frozen=True, slots=True)
class Damage:
    """What PostgreSQL itself says against a table or an index of one node: an invalid page, say."""

    node: str
    what: str


@dataclass(frozen=True, slots=True)
class Parity:
    """The comparison of one standby.

    The positions are those at the beginning. ``undecided``: rows that were being changed whenever they were looked at.
    ``skipped`` says what was not compared, and why; ``indexes`` counts those that amcheck has gone through on the
    standby.
    """

    node: str
    primary: str
    timeline: int
    primary_lsn: str
    replayed_lsn: str
    tables: int
    rows: int
    size_bytes: int
    seconds: float
    mismatches: tuple[Mismatch, ...] = ()
    undecided: int = 0
    skipped: tuple[str, ...] = ()
    indexes: int = 0
    damage: tuple[Damage, ...] = ()

    @property
    def holds(self) -> bool:
        """Whether nothing was found that differs, and nothing that cannot be read."""
        return not self.mismatches and not self.damage

    @property
    def is_standby_sound(self) -> bool:
        """Whether nothing speaks against reading from the standby; a damaged primary does not."""
        return not self.mismatches and all(damage.node != self.node for damage in self.damage)
