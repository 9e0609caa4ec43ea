"""Tokens in the log: which transaction of a client a commit in the log belongs to, whatever the client still knows."""

from __future__ import annotations

import json
from dataclasses import dataclass
from typing import Final

from pydantic import TypeAdapter, ValidationError

from holdfast.model.errors import ConfigurationError, RegisterError
from holdfast.model.lsn import Lsn
from holdfast.model.outcome import Outcome
from holdfast.model.owner import Owner

PREFIX: Final = "holdfast"
"""Of the logical messages (PostgreSQL manual, ``pg_logical_emit_message``)."""
QUESTIONS_MAX: Final = 1000
"""That an agent takes at once."""
OWN_TOKEN_MAX: Final = 200
"""Characters of a token that an application gives."""
_TEXT_MAX: Final = 200
"""Of each name in a mark: a client may call itself anything."""


@dataclass(frozen=True, slots=True)
class Mark:
    """What a transaction has in its log: the token, and whose the transaction is."""

    token: str
    owner: Owner

    def to_text(self) -> str:
        """The content of the message: ASCII, whatever encoding the session has."""
        owner = self.owner
        names = (owner.user, owner.database, owner.application, owner.address)
        return json.dumps([self.token, *(name[:_TEXT_MAX] for name in names)])

    @classmethod
    def from_text(cls, text: str) -> Mark | None:
        """Read that; None for what somebody else has written under the same prefix."""
        try:
            found = json.loads(text)
        except ValueError:
            return None
        if not isinstance(found, list) or len(found) != 5 or not all(isinstance(part, str) for part in found):
            return None
        token, user, database, application, address = found
        return cls(token, Owner(user, database, application, address))


def parse_token(text: str) -> str:
    """A token that an application gives; raises ConfigurationError, which names the fix."""
    if not text:
        raise ConfigurationError("TOKEN is empty: give what the application passed to pg_logical_emit_message")
    if len(text) > OWN_TOKEN_MAX:
        raise ConfigurationError(
            f"TOKEN has {len(text)} characters, and a token at most {OWN_TOKEN_MAX}: a longer one is never found"
        )
    if not (text.isascii() and text.isprintable()):
        raise ConfigurationError(
            f"TOKEN {text!r} has characters that are not printable ASCII, which is never found: databases differ in "
            "how they encode them"
        )
    return text


def is_own_token(text: str) -> bool:
    """Whether the content of a message can be a token that an application gave."""
    return 0 < len(text) <= OWN_TOKEN_MAX and text.isascii() and text.isprintable()


@dataclass(frozen=True, slots=True)
class TokenQuestion:
    """What became of the transaction that was to carry a token.

    It was sent to the primary of ``epoch`` when that had written its log up to ``after`` (0/0: not known), in the
    session of server process ``pid`` (0: not known).
    """

    token: str
    epoch: int
    after: Lsn
    pid: int = 0


@dataclass(frozen=True, slots=True)
class TokenAnswer:
    """``outcome`` is COMMITTED, ABORTED, IN_PROGRESS (ask again) or UNKNOWN; ``xid`` (32 bits) if the log has it."""

    token: str
    outcome: Outcome
    rule: str
    why: str
    xid: int | None = None


def read_questions(raw: bytes) -> tuple[TokenQuestion, ...]:
    """Read a list of questions; raises ConfigurationError."""
    try:
        found = _QUESTIONS.validate_json(raw)
    except ValidationError as error:
        where = ".".join(map(str, error.errors()[0]["loc"]))
        raise ConfigurationError(f"the questions cannot be read: {where}: {error.errors()[0]['msg']}") from error
    if len(found) > QUESTIONS_MAX:
        raise ConfigurationError(f"{len(found)} questions at once: ask at most {QUESTIONS_MAX}")
    return found


def write_questions(questions: tuple[TokenQuestion, ...]) -> bytes:
    """Their form as JSON."""
    return _QUESTIONS.dump_json(questions)


def read_answers(raw: bytes) -> tuple[TokenAnswer, ...]:
    """Read the answers of an agent; raises RegisterError."""
    try:
        return _ANSWERS.validate_json(raw)
    except ValidationError as error:
        raise RegisterError(f"answers about tokens cannot be read: {error.errors()[0]['msg']}") from error


def write_answers(answers: tuple[TokenAnswer, ...]) -> bytes:
    """Their form as JSON."""
    return _ANSWERS.dump_json(answers)


_QUESTIONS = TypeAdapter(tuple[TokenQuestion, ...])
_ANSWERS = TypeAdapter(tuple[TokenAnswer, ...])
