"""What a client is told when its server connection is lost: never more than is known.

An outcome is *unknown* if anything that was sent and not acknowledged could have committed: a COMMIT, or any statement
outside of a transaction (a SELECT may call a function that writes). Otherwise it surely did not commit.
"""

from __future__ import annotations

from dataclasses import dataclass

from holdfast.wire import messages as m
from holdfast.wire.guard import Token, token_of
from holdfast.wire.owed import Ledger, Owed, Reply
from holdfast.wire.sql import Control, control_of, split_statements

OUTCOME_UNKNOWN = "08007"
"""transaction_resolution_unknown"""
SERVER_GONE = "57P01"
"""admin_shutdown, which client libraries know as a lost connection that may be retried"""
CANNOT_SERVE = "57P03"
"""cannot_connect_now"""


@dataclass(frozen=True, slots=True)
class Answer:
    """What one batch of the client (up to its ReadyForQuery) still gets: an error unless it had one, and the end."""

    needs_error: bool
    status: int | None
    """Of the ReadyForQuery; None if the client has not sent its Sync yet."""


@dataclass(frozen=True, slots=True)
class Loss:
    """The verdict on a lost server connection."""

    unknown: bool
    answers: tuple[Answer, ...]
    status: int
    """The session's transaction status afterwards: idle, or a failed transaction."""
    awaits_sync: bool
    """The client must still send a Sync; all before it is ignored."""
    token: Token | None = None
    """If the outcome is unknown: the token that the transaction has in the log if it was committed."""

    @property
    def sqlstate(self) -> str:
        """`OUTCOME_UNKNOWN` or `SERVER_GONE`."""
        return OUTCOME_UNKNOWN if self.unknown else SERVER_GONE


class _Walk:
    """The transaction as the server may have driven it, had it executed everything that was sent."""

    def __init__(self, ledger: Ledger) -> None:
        self.status = ledger.status
        self.unknown = ledger.executed and ledger.status == m.IDLE

    def statement(self, control: Control) -> None:
        match control:
            case Control.BEGIN if self.status == m.IDLE:
                self.status = m.IN_TRANSACTION
            case Control.COMMIT:
                self.unknown = self.unknown or self.status == m.IN_TRANSACTION
                self.status = m.IDLE
            case Control.ROLLBACK:
                self.status = m.IDLE
            case Control.OTHER if self.status == m.IDLE:
                self.unknown = True
            case _:
                pass

    def owed(self, owed: Owed) -> None:
        if owed.reply is Reply.QUERY_FAILED:
            for statement in split_statements(owed.sql or b"")[: owed.completed]:
                self.statement(control_of(statement))
        elif owed.is_simple or owed.reply in (Reply.EXECUTE, Reply.EXECUTE_COPY_IN, Reply.EXECUTE_COPY_OUT):
            if owed.sql is None:
                self.statement(Control.OTHER)
            for statement in split_statements(owed.sql or b""):
                self.statement(control_of(statement))
        elif owed.reply is Reply.CALL:
            self.statement(Control.OTHER)

    @property
    def status_after(self) -> int:
        return m.IDLE if self.status == m.IDLE else m.IN_FAILED_TRANSACTION


def judge_loss(ledger: Ledger, *, commit_unconfirmed: bool = False) -> Loss:
    """Decide what is known. ``commit_unconfirmed``: the server itself said that it gave up waiting for its standbys."""
    walk = _Walk(ledger)
    answers: list[Answer] = []
    failed = ledger.batch_failed
    in_batch = ledger.in_batch or ledger.skipping
    if failed and not any(True for _ in ledger.pending()):
        walk.unknown = False
    for owed in ledger.pending():
        if owed.is_hidden:
            continue
        already_failed = failed and not answers
        if already_failed and owed.reply in (Reply.SYNC, Reply.CALL):
            walk.unknown = False  # what came before it in this batch was rolled back
        walk.owed(owed)
        if owed.is_simple or owed.reply in (Reply.SYNC, Reply.CALL):
            answers.append(Answer(not already_failed, walk.status_after))
    if in_batch:
        answers.append(Answer(not (failed and not answers), None))
    elif not answers and ledger.status == m.IN_TRANSACTION:
        walk.status = m.IN_FAILED_TRANSACTION
    unknown = walk.unknown or commit_unconfirmed
    token = token_of(ledger.pending()) if unknown and len(answers) == 1 else None
    return Loss(unknown, tuple(answers), walk.status_after, in_batch, token)
