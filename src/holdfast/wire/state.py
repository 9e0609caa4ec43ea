"""What a session holds, and how it is replayed on another server."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from holdfast.wire import messages as m
from holdfast.wire.effects import Effect, Pin, Verb, effects_of, may_have_effect
from holdfast.wire.sql import Control, Statement, control_of, savepoint_of, split_statements

LOST_SAVEPOINT = "holdfast_transaction_lost_with_its_server"
"""Rolling back to it, which does not exist, makes a fresh transaction a failed one; the server's log shows the name."""


@dataclass(frozen=True, slots=True)
class ReplayStep:
    """One thing to send to a fresh server before the client's next statement.

    ``name`` is the prepared statement that it makes, if any: if that fails the name is forgotten, and the client is
    told by the server when it uses it. ``may_fail`` steps are meant to.
    """

    message: bytes
    name: bytes | None = None
    may_fail: bool = False


class SessionState:
    """The part of a session that its server keeps and that another server must be told again."""

    def __init__(self) -> None:
        self.settings: dict[str, str] = {}
        self.prepared: dict[bytes, bytes] = {}
        """Name of a prepared statement → the message that makes it (Parse, or Query with PREPARE)."""
        self.pins: set[Pin] = set()
        self._uncommitted: list[Effect | str] = []  # a string is a savepoint's name

    def completed(self, sql: bytes, index: int, tag: bytes, values: Sequence[bytes | None] = ()) -> None:
        """Statement ``index`` of ``sql`` ended with the CommandComplete ``tag``."""
        if not may_have_effect(tag, sql):
            return
        statements = split_statements(sql)
        if index >= len(statements):
            return
        statement = statements[index]
        control = control_of(statement)
        if control in (Control.COMMIT, Control.ROLLBACK, Control.SAVEPOINT, Control.ROLLBACK_TO):
            self._controlled(control, statement, tag)
            return
        for effect in effects_of(statement, values):
            if effect.is_transactional:
                self._uncommitted.append(effect)
            else:
                self._apply(effect)

    def _controlled(self, control: Control, statement: Statement, tag: bytes) -> None:
        if control is Control.SAVEPOINT:
            self._uncommitted.append(savepoint_of(statement))
        elif control is Control.ROLLBACK_TO:
            name = savepoint_of(statement)
            while self._uncommitted and self._uncommitted[-1] != name:
                self._uncommitted.pop()
        elif tag.startswith(b"ROLLBACK"):  # also the answer to COMMIT in a failed transaction
            self._uncommitted.clear()
        else:
            self._commit()

    def ended(self, status: int, failed: bool) -> None:
        """ReadyForQuery: ends an implicit transaction."""
        if not self._uncommitted or status != m.IDLE:
            return
        if failed:
            self._uncommitted.clear()
        else:
            self._commit()

    def lost(self) -> None:
        """The server is gone, and what was not committed with it."""
        self._uncommitted.clear()

    def parsed(self, name: bytes, parse: bytes) -> None:
        """ParseComplete for a message that made the statement ``name``."""
        self.prepared[name] = parse

    def closed(self, name: bytes) -> None:
        """CloseComplete for a statement."""
        self.prepared.pop(name, None)

    def _commit(self) -> None:
        for effect in self._uncommitted:
            if isinstance(effect, Effect):
                self._apply(effect)
        self._uncommitted.clear()

    def _apply(self, effect: Effect) -> None:
        match effect.verb:
            case Verb.SET:
                self.settings.pop(effect.key, None)
                self.settings[effect.key] = effect.sql
            case Verb.RESET:
                self.settings.pop(effect.key, None)
            case Verb.RESET_ALL:
                kept = ("session authorization", "role")
                self.settings = {key: sql for key, sql in self.settings.items() if key in kept}
            case Verb.PIN if effect.pin is not None:
                self.pins.add(effect.pin)
            case Verb.UNPIN if effect.pin is not None:
                self.pins.discard(effect.pin)
            case Verb.PREPARE:
                self.prepared[effect.key.encode("latin-1")] = m.query(effect.sql.encode("latin-1"))
            case Verb.DEALLOCATE:
                self.prepared.pop(effect.key.encode("latin-1"), None)
            case Verb.DEALLOCATE_ALL:
                self.prepared.clear()
            case Verb.DISCARD_ALL:
                self.settings.clear()
                self.prepared.clear()
                self.pins.clear()

    def replay(self, status: int) -> list[ReplayStep]:
        """What makes a fresh server's session this one; ``status`` other than idle makes a failed transaction of it.

        Each step is answered up to one ReadyForQuery.
        """
        steps = [ReplayStep(m.query(sql.encode("latin-1"))) for sql in self.settings.values()]
        for name, message in self.prepared.items():
            steps.append(ReplayStep(message if message[0] == m.QUERY else message + m.SYNC_MESSAGE, name))
        if status != m.IDLE:
            steps.append(ReplayStep(m.query("begin")))
            steps.append(ReplayStep(m.query(f"rollback to savepoint {LOST_SAVEPOINT}"), may_fail=True))
        return steps
