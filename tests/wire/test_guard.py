"""Which statements are guarded, and what a client gets of a commit whose answer was lost."""

from __future__ import annotations

import pytest

from holdfast.model.lsn import Lsn
from holdfast.wire import messages as m
from holdfast.wire.guard import (
    TEXT_BYTES_MAX,
    Sort,
    Token,
    answer_if_committed,
    guard_messages,
    has_parameters,
    may_need_guard,
    plain_messages,
    sort_of,
    token_of,
)
from holdfast.wire.loss import judge_loss
from holdfast.wire.owed import Ledger, Owed, Reply

TOKEN = Token("t-1", 3, Lsn(5), 7)
COMMIT, READY = m.message(m.COMMAND_COMPLETE, b"COMMIT\0"), m.ready_for_query(m.IDLE)


@pytest.mark.parametrize(
    ("text", "sort"),
    [
        *((text, Sort.COMMIT) for text in ("commit", "END;", "Commit Work", "end transaction", "commit and no chain")),
        *((text, Sort.COMMIT) for text in ("/* why */ commit", "-- why\ncommit", "commit transaction and no chain ;")),
        *((text, Sort.OTHER) for text in ("commit and chain", "commit prepared 'x'", "prepare transaction 'x'")),
        *((text, Sort.OTHER) for text in ("commit; select 1", "commit foo", "", ";", "rollback", "begin", "call p()")),
        *((text, Sort.WRITE) for text in ("insert into t values (1)", "UPDATE t SET a = 1;", "delete from t")),
        *((text, Sort.WRITE) for text in ("merge into t using s on true when matched then delete",)),
        *((text, Sort.WRITE) for text in ("with x as (insert into t values (1) returning 1) select * from x",)),
        *(
            (text, Sort.OTHER)
            for text in ("insert into t values (1); select 1", "select 1 into t", "explain analyze delete from t")
        ),
        *((text, Sort.READ) for text in ("select 1", "with x as (select 1) select * from x", "values (1)", "table t")),
        ("insert into t values ('" + "x" * TEXT_BYTES_MAX + "')", Sort.OTHER),
    ],
)
def test_what_a_text_is_to_the_guard(text: str, sort: Sort) -> None:
    assert sort_of(text.encode()) is sort
    if sort in (Sort.COMMIT, Sort.WRITE):
        assert may_need_guard(text.encode())


def test_the_quick_look_rules_out_what_is_common() -> None:
    for text in (b"select 1", b"begin", b"rollback", b"SELECT abalance FROM accounts", b"set x = 1", b""):
        assert not may_need_guard(text)


def test_parameters_of_a_simple_query() -> None:
    assert has_parameters(b"insert into t values ($1)")
    assert not has_parameters(b"insert into t values ('$1', $$2$$)")


def owing(*owed: Owed) -> list[Owed]:
    return list(owed)


def test_a_commit_is_answered_as_ever() -> None:
    assert answer_if_committed(owing(Owed(Reply.QUERY, b"commit")), b"") == COMMIT + READY
    done = Owed(Reply.QUERY, b"commit")
    done.completed = 1
    assert answer_if_committed(owing(done), b"") == READY
    described = Owed(Reply.DESCRIBE, body=b"P")
    batch = owing(Owed(Reply.PARSE, b"commit"), Owed(Reply.BIND), described, Owed(Reply.EXECUTE, b"commit"))
    begun = m.message(m.PARSE_COMPLETE) + m.message(m.BIND_COMPLETE) + m.message(m.NO_DATA) + COMMIT
    assert answer_if_committed([*batch, Owed(Reply.SYNC)], b"") == begun + READY
    assert answer_if_committed(batch, b"") == begun  # its Sync is still to come


def test_rows_and_counts_that_were_not_heard_are_not_made_up() -> None:
    tag = m.message(m.COMMAND_COMPLETE, b"INSERT 0 3\0")
    assert answer_if_committed(owing(Owed(Reply.SYNC)), tag) == tag + READY
    assert answer_if_committed(owing(Owed(Reply.EXECUTE, b"insert into t values (1)"), Owed(Reply.SYNC)), b"") is None
    assert answer_if_committed(owing(Owed(Reply.QUERY, b"select 1"), Owed(Reply.QUERY, b"commit")), b"") is None
    statement = Owed(Reply.DESCRIBE, body=b"S")
    assert answer_if_committed(owing(statement, Owed(Reply.EXECUTE, b"commit"), Owed(Reply.SYNC)), b"") is None


def test_what_the_proxy_asked_itself_is_not_answered() -> None:
    told = guard_messages('["t-1"]')
    assert [message[:1] for message, _ in told] == [b"C", b"P", b"B", b"E"]
    assert all(owed is not None and owed.is_hidden for _, owed in told)
    hidden = [owed for _, owed in told if owed is not None]
    assert answer_if_committed([*hidden, Owed(Reply.QUERY, b"commit")], b"") == COMMIT + READY


def test_a_plain_statement_shows_only_its_rows_and_its_tag() -> None:
    told = plain_messages(b"insert into t values (1)")
    assert [message[:1] for message, _ in told] == [b"C", b"C", b"P", b"B", b"D", b"E"]
    shown = [owed for _, owed in told if owed is not None and not owed.is_hidden]
    assert [owed.reply for owed in shown] == [Reply.DESCRIBE, Reply.EXECUTE]
    assert shown[1].is_kept


def lost(status: int, *pending: tuple[int, Owed]) -> Token | None:
    ledger = Ledger(status)
    for kind, owed in pending:
        ledger.sent(kind, owed)
    return judge_loss(ledger).token


def with_token(owed: Owed) -> Owed:
    owed.token = TOKEN
    return owed


def test_a_loss_has_the_token_of_its_only_doubt() -> None:
    commit = (m.QUERY, with_token(Owed(Reply.QUERY, b"commit")))
    later = (m.QUERY, Owed(Reply.QUERY, b"insert into t values (1)"))
    assert lost(m.IN_TRANSACTION, commit) == TOKEN
    assert lost(m.IN_TRANSACTION, commit, later) is None
    assert lost(m.IN_TRANSACTION, (m.QUERY, Owed(Reply.QUERY, b"commit"))) is None
    assert lost(m.IN_FAILED_TRANSACTION, commit) is None  # it was to be rolled back
    execute, sync = Owed(Reply.EXECUTE, b"insert into t values (1)"), with_token(Owed(Reply.SYNC))
    assert lost(m.IDLE, (m.EXECUTE, execute), (m.SYNC, sync)) == TOKEN
    assert token_of([with_token(Owed(Reply.SYNC)), with_token(Owed(Reply.SYNC))]) is None
