"""What a completed statement leaves behind in its session: the rules, one function each."""

from __future__ import annotations

import re
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from enum import StrEnum
from typing import Final

from holdfast.wire.sql import Kind, Statement, Token


class Pin(StrEnum):
    """What a session can hold that cannot be moved to another server; the value is what its owner is told."""

    LISTEN = "it listens for notifications (LISTEN)"
    TEMPORARY = "it has temporary tables"
    CURSOR = "it has cursors WITH HOLD"
    ADVISORY_LOCK = "it took session-level advisory locks"
    SETTING = "it changed a setting by set_config() with values that are not known"


class Verb(StrEnum):
    """What happens to the session's state."""

    SET = "set"
    RESET = "reset"
    RESET_ALL = "reset all"
    PIN = "pin"
    UNPIN = "unpin"
    PREPARE = "prepare"
    DEALLOCATE = "deallocate"
    DEALLOCATE_ALL = "deallocate all"
    DISCARD_ALL = "discard all"


TRANSACTIONAL: Final = frozenset((Verb.SET, Verb.RESET, Verb.RESET_ALL, Verb.PIN, Verb.UNPIN))
"""Undone by a rollback. (Advisory locks and prepared statements are not.)"""


@dataclass(frozen=True, slots=True)
class Effect:
    """One change. ``key`` is a setting's or statement's name, ``sql`` what brings it about again."""

    verb: Verb
    key: str = ""
    sql: str = ""
    pin: Pin | None = None

    @property
    def is_transactional(self) -> bool:
        """Whether a rollback undoes it."""
        return self.verb in TRANSACTIONAL and self.pin is not Pin.ADVISORY_LOCK


def _set(statement: Statement) -> list[Effect]:
    first = 2 if statement.word(1) == "session" else 1
    word = statement.word(first)
    if word in ("local", "transaction", "constraints"):
        return []
    if word == "characteristics":  # one may be about isolation, another about access
        return [Effect(Verb.SET, statement.text.lower(), statement.text)]
    if word == "authorization":
        return [Effect(Verb.SET, "session authorization", statement.text)]
    if word == "time" and statement.word(first + 1) == "zone":
        return [Effect(Verb.SET, "timezone", statement.text)]
    if word == "names":
        return [Effect(Verb.SET, "client_encoding", statement.text)]
    key = _dotted_name(statement, first)
    is_default = statement.word(len(statement.tokens) - 1) == "default" and word != "role"
    return [Effect(Verb.RESET, key) if is_default else Effect(Verb.SET, key, statement.text)]


def _dotted_name(statement: Statement, index: int) -> str:
    name = statement.name(index).lower()
    while index + 1 < len(statement.tokens) and statement.tokens[index + 1] == (Kind.SIGN, "."):
        index += 2
        name += "." + statement.name(index).lower()
    return name


def _reset(statement: Statement) -> list[Effect]:
    word = statement.word(1)
    if word == "all":
        return [Effect(Verb.RESET_ALL)]
    if word == "session":
        return [Effect(Verb.RESET, "session authorization"), Effect(Verb.RESET, "role")]
    return [Effect(Verb.RESET, "timezone" if word == "time" else _dotted_name(statement, 1))]


def _listen(statement: Statement) -> list[Effect]:
    return [Effect(Verb.PIN, pin=Pin.LISTEN)]


def _unlisten(statement: Statement) -> list[Effect]:
    everything = statement.tokens[-1] == (Kind.SIGN, "*")
    return [Effect(Verb.UNPIN, pin=Pin.LISTEN)] if everything else []


def _create(statement: Statement) -> list[Effect]:
    words = [statement.word(i) for i in range(1, 6)]
    temporary = "temp" in words or "temporary" in words or any(map(_names_temporary, statement.tokens))
    ends = [token.text for token in statement.tokens if token.kind is Kind.WORD]
    dropped = any(ends[i : i + 3] == ["on", "commit", "drop"] for i in range(len(ends)))
    return [Effect(Verb.PIN, pin=Pin.TEMPORARY)] if temporary and not dropped else []


def _names_temporary(token: Token) -> bool:
    return token.kind in (Kind.WORD, Kind.QUOTED) and token.text.startswith("pg_temp")


def _makes_temporary(into: Sequence[Token]) -> bool:
    """Whether what follows INTO is a temporary table to be made: ``LOCAL TEMP TABLE t``, ``pg_temp.t``."""
    words = [token.text for token in into[:3] if token.kind is Kind.WORD]
    return "temp" in words[:2] or "temporary" in words[:2] or any(map(_names_temporary, into[:3]))


_TEMPORARY: Final = re.compile(rb"(?<![a-z0-9_$])temp(?:orary)?(?![a-z0-9_$])|pg_temp")


def names_temporary(lowered: bytes) -> bool:
    """Whether a text in lower case has the word TEMP or TEMPORARY in it, or the schema of temporary things."""
    return b"temp" in lowered and _TEMPORARY.search(lowered) is not None


_EXECUTE: Final = re.compile(rb"(?<![a-z0-9_$])execute(?![a-z0-9_$])")


def executes(lowered: bytes) -> bool:
    """Whether a text in lower case has the word EXECUTE in it: what it does is not there to be read."""
    return b"execute" in lowered and _EXECUTE.search(lowered) is not None


_SESSION_LOCK: Final = re.compile(r"pg_(?:try_)?advisory_lock", re.IGNORECASE)


def _do(statement: Statement) -> list[Effect]:
    """What the text of the block shows; what functions do that it calls is not seen."""
    texts = [token.text for token in statement.tokens if token.kind is Kind.STRING]
    effects: list[Effect] = []
    if any(_SESSION_LOCK.search(text) for text in texts):
        effects.append(Effect(Verb.PIN, pin=Pin.ADVISORY_LOCK))
    if any(names_temporary(text.lower().encode("latin-1")) for text in texts):
        effects.append(Effect(Verb.PIN, pin=Pin.TEMPORARY))
    if any("set_config" in text.lower() for text in texts):
        effects.append(Effect(Verb.PIN, pin=Pin.SETTING))
    return effects


def _select(statement: Statement, values: Sequence[bytes | None] = ()) -> list[Effect]:
    effects: list[Effect] = []
    for index, token in enumerate(statement.tokens[:-1]):
        if token.kind not in (Kind.WORD, Kind.QUOTED) or statement.tokens[index + 1] != (Kind.SIGN, "("):
            if token == (Kind.WORD, "into") and _makes_temporary(statement.tokens[index + 1 : index + 4]):
                effects.append(Effect(Verb.PIN, pin=Pin.TEMPORARY))
            continue
        if token.text == "set_config":
            effects.append(_set_config(statement.tokens[index + 2 :], values))
        elif token.text == "pg_advisory_unlock_all":
            effects.append(Effect(Verb.UNPIN, pin=Pin.ADVISORY_LOCK))
        elif token.text.startswith(("pg_advisory_lock", "pg_try_advisory_lock")):
            effects.append(Effect(Verb.PIN, pin=Pin.ADVISORY_LOCK))
    return [effect for effect in effects if effect.key or effect.pin]


def _set_config(tokens: Sequence[Token], values: Sequence[bytes | None]) -> Effect:
    """``set_config('name', 'value' or $n, false)``; anything less plain cannot be replayed."""
    arguments: list[list[Token]] = [[]]
    for token in tokens:
        if token == (Kind.SIGN, ")"):
            break
        if token == (Kind.SIGN, ","):
            arguments.append([])
        else:
            arguments[-1].append(token)
    unknown = Effect(Verb.PIN, pin=Pin.SETTING)
    if len(arguments) != 3:
        return unknown
    is_local = arguments[2][0].text if len(arguments[2]) == 1 else "?"
    if is_local in ("true", "t", "on", "1"):
        return Effect(Verb.RESET)
    name, value = (_literal(argument, values) for argument in arguments[:2])
    if name is None or value is None or is_local not in ("false", "f", "off", "0"):
        return unknown
    quoted = [part.replace("\\", "\\\\").replace("'", "''") for part in (name, value)]
    text = f"select set_config(E'{quoted[0]}', E'{quoted[1]}', false)"
    return Effect(Verb.SET, name.lower(), text)


def _literal(argument: Sequence[Token], values: Sequence[bytes | None]) -> str | None:
    plain = [token for token in argument if token.kind in (Kind.STRING, Kind.PARAMETER)]
    casts = {token.text for token in argument if token not in plain}
    if len(plain) != 1 or not casts <= {":", "text"}:
        return None
    if plain[0].kind is Kind.STRING:
        return plain[0].text
    index = int(plain[0].text[1:]) - 1
    value = values[index] if 0 <= index < len(values) else None
    return None if value is None else value.decode("latin-1")


def _declare(statement: Statement) -> list[Effect]:
    words = [token.text for token in statement.tokens if token.kind is Kind.WORD]
    held = any(words[i : i + 2] == ["with", "hold"] for i in range(len(words)))
    return [Effect(Verb.PIN, pin=Pin.CURSOR)] if held else []


def _close(statement: Statement) -> list[Effect]:
    return [Effect(Verb.UNPIN, pin=Pin.CURSOR)] if statement.word(1) == "all" else []


def _prepare(statement: Statement) -> list[Effect]:
    if statement.word(1) == "transaction":
        return []
    return [Effect(Verb.PREPARE, statement.name(1), statement.text)]


def body_of(statement: Statement) -> Statement:
    """What a PREPARE prepares; any other statement is itself."""
    if statement.word(0) != "prepare":
        return statement
    begin = next((i for i, token in enumerate(statement.tokens) if token == (Kind.WORD, "as")), len(statement.tokens))
    return replace(statement, tokens=statement.tokens[begin + 1 :])


def _deallocate(statement: Statement) -> list[Effect]:
    index = 2 if statement.word(1) == "prepare" else 1
    if statement.word(index) == "all":
        return [Effect(Verb.DEALLOCATE_ALL)]
    return [Effect(Verb.DEALLOCATE, statement.name(index))]


def _discard(statement: Statement) -> list[Effect]:
    word = statement.word(1)
    if word == "all":
        return [Effect(Verb.DISCARD_ALL)]
    return [Effect(Verb.UNPIN, pin=Pin.TEMPORARY)] if word in ("temp", "temporary") else []


def _load(statement: Statement) -> list[Effect]:
    return [Effect(Verb.SET, statement.text, statement.text)]


_RULES: Final[dict[str, Callable[[Statement], list[Effect]]]] = {
    "set": _set,
    "reset": _reset,
    "listen": _listen,
    "unlisten": _unlisten,
    "create": _create,
    "declare": _declare,
    "close": _close,
    "prepare": _prepare,
    "deallocate": _deallocate,
    "discard": _discard,
    "do": _do,
    "load": _load,
}
PLAIN_TAGS: Final = (b"SELECT", b"INSERT", b"UPDATE", b"DELETE", b"MERGE", b"COPY", b"BEGIN", b"EXPLAIN", b"CALL")


def may_have_effect(tag: bytes, sql: bytes) -> bool:
    """A quick look at a CommandComplete's tag and the statement's text that rules out nearly everything."""
    if not tag.startswith(PLAIN_TAGS):
        return True
    lowered = sql.lower()
    return b"set_config" in lowered or b"advisory" in lowered or executes(lowered) or names_temporary(lowered)


def effects_of(statement: Statement, values: Sequence[bytes | None] = ()) -> list[Effect]:
    """What the statement, completed, leaves behind; ``values`` are the parameters that were bound to it."""
    rule = _RULES.get(statement.word(0))
    return rule(statement) if rule is not None else _select(statement, values)
