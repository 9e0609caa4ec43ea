"""What is known when a server is lost, for every way in which it can be lost."""

from __future__ import annotations

import pytest

from holdfast.wire import messages as m
from holdfast.wire.loss import Answer, judge_loss
from holdfast.wire.owed import Ledger, Owed, Reply, Step

IDLE, T, E = m.IDLE, m.IN_TRANSACTION, m.IN_FAILED_TRANSACTION
ERROR_AND_IDLE = Answer(True, IDLE)
ERROR_AND_FAILED = Answer(True, E)


def ledger_of(status: int, *sent: str) -> Ledger:
    """``Q:text`` and ``X:text`` (an Execute) are sent; other letters are messages; ``<`` receives the letters."""
    ledger = Ledger(status)
    for word in sent:
        kind, _, sql = word.partition(":")
        if kind == "Q":
            ledger.sent(m.QUERY, Owed(Reply.QUERY, sql.encode()))
        elif kind == "X":
            ledger.sent(m.EXECUTE, Owed(Reply.EXECUTE, sql.encode()))
        elif kind.startswith("<"):
            for letter in kind[1:]:
                if ledger.received(ord(letter)) is Step.READY:
                    ledger.ready(status)
        else:
            for letter in kind:
                ledger.sent(ord(letter))
    return ledger


@pytest.mark.parametrize(
    ("status", "sent", "unknown", "answers", "after"),
    [
        (IDLE, [], False, (), IDLE),
        (T, [], False, (), E),
        (E, [], False, (), E),
        (IDLE, ["Q:insert into t"], True, (ERROR_AND_IDLE,), IDLE),
        (IDLE, ["Q:select f()"], True, (ERROR_AND_IDLE,), IDLE),
        (IDLE, ["Q:begin"], False, (ERROR_AND_FAILED,), E),
        (IDLE, ["Q:show all"], False, (ERROR_AND_IDLE,), IDLE),
        (IDLE, ["Q:begin; insert into t; commit"], True, (ERROR_AND_IDLE,), IDLE),
        (IDLE, ["Q:begin; insert into t"], False, (ERROR_AND_FAILED,), E),
        (IDLE, ["Q:insert into t", "<C"], True, (ERROR_AND_IDLE,), IDLE),
        (IDLE, ["Q:insert into t", "<E"], False, (Answer(False, IDLE),), IDLE),
        (T, ["Q:insert into t"], False, (ERROR_AND_FAILED,), E),
        (T, ["Q:insert into t", "<E"], False, (Answer(False, E),), E),
        (T, ["Q:commit"], True, (ERROR_AND_IDLE,), IDLE),
        (T, ["Q:end"], True, (ERROR_AND_IDLE,), IDLE),
        (T, ["Q:prepare transaction 'x'"], True, (ERROR_AND_IDLE,), IDLE),
        (T, ["Q:commit", "<C"], True, (ERROR_AND_IDLE,), IDLE),
        (T, ["Q:rollback"], False, (ERROR_AND_IDLE,), IDLE),
        (T, ["Q:rollback; insert into t"], True, (ERROR_AND_IDLE,), IDLE),
        (E, ["Q:commit"], False, (ERROR_AND_IDLE,), IDLE),
        (E, ["Q:select 1"], False, (ERROR_AND_FAILED,), E),
        (IDLE, ["PB", "X:insert into t", "S"], True, (ERROR_AND_IDLE,), IDLE),
        (IDLE, ["PB", "X:insert into t", "S", "<12C"], True, (ERROR_AND_IDLE,), IDLE),
        (IDLE, ["PDS"], False, (ERROR_AND_IDLE,), IDLE),
        (IDLE, ["PDS", "<1tn"], False, (ERROR_AND_IDLE,), IDLE),
        (IDLE, ["PB", "X:insert into t", "S", "<1E"], False, (Answer(False, IDLE),), IDLE),
        (
            IDLE,
            ["PB", "X:insert into t", "S", "<1E", "Q:insert into t"],
            True,
            (Answer(False, IDLE), ERROR_AND_IDLE),
            IDLE,
        ),
        (T, ["PB", "X:insert into t", "S"], False, (ERROR_AND_FAILED,), E),
        (T, ["PB", "X:commit", "S"], True, (ERROR_AND_IDLE,), IDLE),
        (IDLE, ["PB", "X:insert into t", "H"], True, (Answer(True, None),), IDLE),
        (IDLE, ["PB", "X:insert into t", "H", "<12C"], True, (Answer(True, None),), IDLE),
        (IDLE, ["PB", "X:insert into t", "H", "<1E"], False, (Answer(False, None),), IDLE),
        (IDLE, ["Q:begin", "Q:insert into t"], False, (ERROR_AND_FAILED, ERROR_AND_FAILED), E),
        (
            IDLE,
            ["Q:begin", "Q:insert into t", "Q:commit"],
            True,
            (ERROR_AND_FAILED, ERROR_AND_FAILED, ERROR_AND_IDLE),
            IDLE,
        ),
        (IDLE, ["F"], True, (ERROR_AND_IDLE,), IDLE),
        (IDLE, ["Q:copy t from stdin", "<G"], True, (ERROR_AND_IDLE,), IDLE),
        (T, ["Q:copy t from stdin", "<G", "dd"], False, (ERROR_AND_FAILED,), E),
    ],
)
def test_verdicts(status: int, sent: list[str], unknown: bool, answers: tuple[Answer, ...], after: int) -> None:
    loss = judge_loss(ledger_of(status, *sent))
    assert (loss.unknown, loss.answers, loss.status) == (unknown, answers, after)
    assert loss.awaits_sync == (bool(answers) and answers[-1].status is None)


def test_an_unconfirmed_commit_is_unknown() -> None:
    loss = judge_loss(ledger_of(T, "Q:insert into t"), commit_unconfirmed=True)
    assert loss.sqlstate == "08007"
    assert judge_loss(ledger_of(T, "Q:insert into t")).sqlstate == "57P01"
