"""What sessions keep, as far as every statement asks for it: on a server connection, and on the client's side."""

from __future__ import annotations

from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from holdfast.wire.effects import Effect, Pin


class Held:
    """What the session on a server connection holds at the moment, whoever made it."""

    def __init__(self, application_name: str | None = "") -> None:
        self.application_name = application_name
        """None: not known."""
        self.settings: dict[str, str] = {}
        """As `Kept.settings`."""
        self.prepared: dict[bytes, None] = {}
        """Shared names of statements that are there for certain, in the order of their last use."""
        self.outdated_seen = 0
        """How many findings of `sharing.Outdated` it was told."""


class Kept:
    """The part of a `state.SessionState` that every statement asks for; its rules are there.

    What `held.pxd` declares as a function of C only compiled modules can call.
    """

    def __init__(self) -> None:
        self.settings: dict[str, str] = {}
        self.prepared: dict[bytes, bytes] = {}
        """Name of a prepared statement → the message that makes it (Parse, or Query with PREPARE)."""
        self.pins: set[Pin] = set()
        self.prepared_by_sql: set[bytes] = set()
        """Those of ``prepared`` that a PREPARE made."""
        self.has_reset_name = False
        """A RESET took the application's name back to what the connection was opened with."""
        self._uncommitted: list[Effect | str] = []  # a string is a savepoint's name
        self._settings_mark: bytes | None = None
        self._taint = b""

    @property
    def has_uncommitted(self) -> bool:
        """Whether the end of the open transaction decides about something that the session keeps."""
        return bool(self._uncommitted)

    @property
    def mark(self) -> bytes:
        """Tells sessions apart whose settings may make another statement of the same text; empty for most.

        Inside of a transaction that changed a setting, if only for itself, it is one that nobody else has.
        """
        if self._taint:
            return self._taint
        if self._settings_mark is None:
            self._settings_mark = repr(list(self.settings.values())).encode() if self.settings else b""
        return self._settings_mark

    def has_all_on(self, held: Held) -> bool:
        """Whether the settings are those of a server connection, in the same order."""
        mine, there = self.settings, held.settings
        return not (mine or there) or list(mine.items()) == list(there.items())

    def parsed(self, name: bytes, parse: bytes) -> None:
        """ParseComplete for a message that made the statement ``name``."""
        self.prepared[name] = parse

    def closed(self, name: bytes) -> None:
        """CloseComplete for a statement."""
        if self.prepared:
            self.prepared.pop(name, None)
            self.prepared_by_sql.discard(name)
