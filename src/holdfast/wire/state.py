"""What a session holds, and how it is replayed on another server."""

from __future__ import annotations

import itertools
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass, field
from typing import Final

from holdfast.wire import messages as m
from holdfast.wire.effects import Effect, Pin, Verb, body_of, effects_of, executes, may_have_effect
from holdfast.wire.frames import HEADER_BYTES
from holdfast.wire.held import Held, Kept
from holdfast.wire.own import PREFIX
from holdfast.wire.sql import Control, Kind, Statement, control_of, savepoint_of, split_statements

LOST_SAVEPOINT = "holdfast_transaction_lost_with_its_server"
"""Rolling back to it, which does not exist, makes a fresh transaction a failed one; the server's log shows the name."""


_taints = itertools.count(1)
_ABOUT_TRANSACTIONS: Final = frozenset(
    (Control.COMMIT, Control.ROLLBACK, Control.SAVEPOINT, Control.ROLLBACK_TO, Control.RELEASE)
)


@dataclass(frozen=True, slots=True)
class ReplayStep:
    """One thing to send to a fresh server before the client's next statement.

    ``name`` is the prepared statement that it makes, if any: if that fails the name is forgotten, and the client is
    told by the server when it uses it. ``may_fail`` steps are meant to.
    """

    message: bytes
    name: bytes | None = None
    may_fail: bool = False


@dataclass(slots=True)
class Dropped:
    """Prepared statements that SQL took away: the names and messages of those that a Parse had made."""

    parses: dict[bytes, bytes] = field(default_factory=dict)
    all: bool = False
    """Everything on the server's session went with them."""


class SessionState(Kept):
    """The part of a session that its server keeps and that another server must be told again."""

    def __init__(self) -> None:
        super().__init__()
        self.own: dict[str, str] = {}
        """As ``settings``, those that are meant for the proxy (`wire.own`): no other server needs to be told."""
        self._dropped = Dropped()

    def completed(self, sql: bytes, index: int, tag: bytes, values: Sequence[bytes | None] = ()) -> None:
        """Statement ``index`` of ``sql`` ended with the CommandComplete ``tag``."""
        if not may_have_effect(tag, sql):
            return
        if tag in (b"SET", b"RESET") or b"set_config" in sql.lower():
            self._taint = b"%d" % next(_taints)
        statements = split_statements(sql)
        if index >= len(statements):
            return
        statement = statements[index]
        control = control_of(statement)
        if control in _ABOUT_TRANSACTIONS:
            self._controlled(control, statement, tag)
            return
        for effect in self._effects_of(statement, values):
            if effect.is_transactional:
                self._uncommitted.append(effect)
            else:
                self._apply(effect)

    def _effects_of(self, statement: Statement, values: Sequence[bytes | None] = ()) -> list[Effect]:
        own = effects_of(statement, values)
        # The values are expressions here: a setting made of them is not known.
        return own + [effect for each in self._executed_by(statement) for effect in effects_of(body_of(each))]

    def _executed_by(self, statement: Statement) -> Iterator[Statement]:
        """What is prepared and executed: EXECUTE p, also behind EXPLAIN ANALYZE or CREATE TABLE … AS."""
        for index, token in enumerate(statement.tokens):
            if token == (Kind.WORD, "execute"):
                yield from split_statements(self._text_of(statement.name(index + 1).encode("latin-1")))

    def _text_of(self, name: bytes) -> bytes:
        """The text that made a prepared statement; empty if there is none of that name."""
        message = self.prepared.get(name)
        if message is None:
            return b""
        body = message[HEADER_BYTES:]
        return body.split(b"\0")[0 if message[0] == m.QUERY else 1]

    def _controlled(self, control: Control, statement: Statement, tag: bytes) -> None:
        if control is Control.SAVEPOINT:
            self._uncommitted.append(savepoint_of(statement))
        elif control is Control.ROLLBACK_TO:
            name = savepoint_of(statement)
            while self._uncommitted and self._uncommitted[-1] != name:
                self._uncommitted.pop()
        elif control is Control.RELEASE:
            self._release(savepoint_of(statement))
        elif tag.startswith(b"ROLLBACK"):  # also the answer to COMMIT in a failed transaction
            self._uncommitted.clear()
        else:
            self._commit()

    def _release(self, name: str) -> None:
        """A savepoint is gone, and those that were made after it; another one of that name may be before it."""
        kept: list[Effect | str] = []
        while self._uncommitted:
            last = self._uncommitted.pop()
            if isinstance(last, Effect):
                kept.append(last)
            elif last == name:
                break
        self._uncommitted += reversed(kept)

    def ended(self, status: int, failed: bool) -> None:
        """ReadyForQuery: ends an implicit transaction."""
        if status == m.IDLE:
            self._taint = b""
        if not self._uncommitted or status != m.IDLE:
            return
        if failed:
            self._uncommitted.clear()
        else:
            self._commit()

    def failed(self, sql: bytes) -> None:
        """A statement failed. A session-level advisory lock that it took before is kept nevertheless."""
        lowered = sql.lower()
        executed = split_statements(sql) if executes(lowered) else ()
        texts = [each.text.lower() for statement in executed for each in self._executed_by(statement)]
        if b"advisory" in lowered or any("advisory" in text for text in texts):
            self.pins.add(Pin.ADVISORY_LOCK)

    def lost(self) -> None:
        """The server is gone, and what was not committed with it."""
        self._uncommitted.clear()
        self._taint = b""

    def take_dropped(self) -> Dropped | None:
        """What DEALLOCATE and DISCARD took away since this was last asked, if anything."""
        dropped = self._dropped
        if not (dropped.parses or dropped.all):
            return None
        self._dropped = Dropped()
        return dropped

    def _commit(self) -> None:
        for effect in self._uncommitted:
            if isinstance(effect, Effect):
                self._apply(effect)
        self._uncommitted.clear()

    def _apply(self, effect: Effect) -> None:
        self._settings_mark = None
        match effect.verb:
            case Verb.SET:
                self._unset(effect.key)
                kept = self.own if effect.key.startswith(PREFIX) else self.settings
                kept[effect.key] = effect.sql
            case Verb.RESET:
                self._unset(effect.key)
                self.has_reset_name |= effect.key == "application_name"
            case Verb.RESET_ALL:
                self.has_reset_name = True
                whose = ("session authorization", "role")
                self.settings = {key: sql for key, sql in self.settings.items() if key in whose}
                self.own.clear()
            case Verb.PIN if effect.pin is not None:
                self.pins.add(effect.pin)
            case Verb.UNPIN if effect.pin is not None:
                self.pins.discard(effect.pin)
            case Verb.PREPARE:
                name = effect.key.encode("latin-1")
                self.prepared[name] = m.query(effect.sql.encode("latin-1"))
                self.prepared_by_sql.add(name)
            case Verb.DEALLOCATE:
                self._drop_prepared([effect.key.encode("latin-1")])
            case Verb.DEALLOCATE_ALL:
                self._drop_prepared(list(self.prepared))
                self._dropped.all = True
            case Verb.DISCARD_ALL:
                self.has_reset_name = True
                self.settings.clear()
                self.own.clear()
                self.pins.clear()
                self._drop_prepared(list(self.prepared))
                self._dropped.all = True

    def _unset(self, key: str) -> None:
        self.settings.pop(key, None)
        self.own.pop(key, None)
        if key == "session authorization":  # it takes the role with it
            self.settings.pop("role", None)

    def _drop_prepared(self, names: Iterable[bytes]) -> None:
        for name in names:
            message = self.prepared.get(name)
            if message is not None and message[0] == m.PARSE:
                self._dropped.parses[name] = message
            self.closed(name)

    def replay(self, status: int) -> list[ReplayStep]:
        """What makes a fresh server's session this one; ``status`` other than idle makes a failed transaction of it.

        Each step is answered up to one ReadyForQuery.
        """
        return [*self._settings_steps(), *self._prepared_steps(self.prepared), *_transaction_steps(status)]

    def replay_shared(self, status: int, held: Held, application_name: str) -> list[ReplayStep]:
        """The same for a connection that another session used before: only what differs.

        ``application_name`` is this client's own. Prepared statements of the protocol are made when they are used.
        """
        settings = self.settings_shared(held, application_name)
        return [*settings, *self._prepared_steps(self.prepared_by_sql), *_transaction_steps(status)]

    def settings_shared(self, held: Held, application_name: str) -> list[ReplayStep]:
        """Of `replay_shared`, what has to do with settings."""
        steps: list[ReplayStep] = []
        named = "application_name" in self.settings
        if list(held.settings.items()) != list(self.settings.items()) or not (
            named or held.application_name == application_name
        ):
            if held.settings:
                steps.append(ReplayStep(m.query("RESET SESSION AUTHORIZATION; RESET ALL")))
            if not named:
                quoted = application_name.replace("'", "''")
                steps.append(ReplayStep(m.query(f"SET application_name = '{quoted}'")))
            steps += self._settings_steps()
        return steps

    def _settings_steps(self) -> list[ReplayStep]:
        return [ReplayStep(m.query(sql.encode("latin-1"))) for sql in self.settings.values()]

    def _prepared_steps(self, names: Iterable[bytes]) -> list[ReplayStep]:
        messages = [(name, self.prepared[name]) for name in names]
        return [ReplayStep(msg if msg[0] == m.QUERY else msg + m.SYNC_MESSAGE, name) for name, msg in messages]


def _transaction_steps(status: int) -> list[ReplayStep]:
    if status == m.IDLE:
        return []
    begin = ReplayStep(m.query("begin"))
    return [begin, ReplayStep(m.query(f"rollback to savepoint {LOST_SAVEPOINT}"), may_fail=True)]
