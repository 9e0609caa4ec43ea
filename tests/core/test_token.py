"""What became of a transaction with a token, by the evidence of the present primary."""

from __future__ import annotations

from dataclasses import replace

import pytest

from holdfast.core.explain import comment_of
from holdfast.core.token import LOOK_BYTES_MAX, TOKEN_RULES, Found, Stretch, TokenEvidence, decide_token, stretches
from holdfast.model.errors import ConfigurationError
from holdfast.model.lsn import Lsn, TimelineSwitch
from holdfast.model.outcome import Outcome
from holdfast.model.owner import Owner
from holdfast.model.token import (
    QUESTIONS_MAX,
    Mark,
    TokenQuestion,
    read_answers,
    read_questions,
    write_answers,
    write_questions,
)

HISTORY = (TimelineSwitch(3, Lsn(5000)),)
"""Epoch 5 follows on 3; 4 left no log in it."""
QUESTION = TokenQuestion("a", 3, Lsn(1000), 77)
FOUND = Found(Lsn(1000), {"a": 700, "b": 701}, frozenset({700}))
EVIDENCE = TokenEvidence(5, HISTORY, True, frozenset(), {3: FOUND})


def rule(
    question: TokenQuestion = QUESTION, evidence: TokenEvidence = EVIDENCE, starts: dict[int, Lsn] | None = None
) -> str:
    answer = decide_token(question, evidence, starts or {})
    assert TOKEN_RULES[answer.rule] == (answer.outcome, answer.why)
    assert answer.token == question.token
    return answer.rule


def test_the_log_of_the_present_line_decides() -> None:
    assert rule() == "token.committed"
    assert rule(replace(QUESTION, token="b")) == "token.rolled-back"
    assert rule(replace(QUESTION, token="c")) == "token.absent"
    assert decide_token(QUESTION, EVIDENCE, {}).xid == 700


def test_what_an_epoch_wrote_that_is_not_in_the_present_line_is_nowhere() -> None:
    assert rule(replace(QUESTION, epoch=4)) == "token.off-line"


@pytest.mark.parametrize("token", ["a", "b", "c"])
def test_nothing_is_said_before_it_is_confirmed(token: str) -> None:
    assert rule(replace(QUESTION, token=token), replace(EVIDENCE, is_confirmed=False)) == "token.unconfirmed"


def test_within_one_epoch_the_session_must_have_ended() -> None:
    running = TokenEvidence(3, (), True, frozenset({77}), {3: FOUND})
    for token in "abc":
        assert rule(replace(QUESTION, token=token), running) == "token.running"
        assert rule(replace(QUESTION, token=token, pid=78), running) != "token.running"
    assert rule(QUESTION, replace(EVIDENCE, running=frozenset({77}))) == "token.committed"  # of another server
    assert rule(replace(QUESTION, epoch=6)) == "token.early"


def test_a_log_that_was_not_read_from_where_it_was_sent_proves_no_absence() -> None:
    late = replace(EVIDENCE, found={3: replace(FOUND, start=Lsn(1001))})
    assert rule(QUESTION, late) == "token.committed"
    assert rule(replace(QUESTION, token="c"), late) == "token.unread"
    assert rule(replace(QUESTION, token="c", after=Lsn(0)), late, {3: Lsn(1001)}) == "token.absent"
    assert rule(QUESTION, replace(EVIDENCE, found={})) == "token.unread"


def test_one_stretch_for_each_epoch_from_the_first_question_on() -> None:
    asked = [QUESTION, replace(QUESTION, after=Lsn(900)), replace(QUESTION, epoch=4), replace(QUESTION, epoch=6)]
    now = replace(QUESTION, epoch=5, after=Lsn(0))
    found = stretches([*asked, now], 5, HISTORY, Lsn(9000), {5: Lsn(5000)})
    assert found == {3: Stretch(3, 5, Lsn(900), Lsn(5000)), 5: Stretch(5, None, Lsn(5000), Lsn(9000))}


def test_what_is_read_is_bounded() -> None:
    end = Lsn(3 * LOOK_BYTES_MAX)
    assert stretches([QUESTION], 3, (), end, {})[3].start == end - LOOK_BYTES_MAX


def test_marks_and_questions_as_they_travel() -> None:
    mark = Mark("t-1", Owner("älice", "app", 'shop "x"\n' + "y" * 500, "[::1]:5"))
    assert mark.to_text().isascii()
    read = Mark.from_text(mark.to_text())
    assert read is not None
    assert (read.token, read.owner.user, len(read.owner.application)) == ("t-1", "älice", 200)
    for text in ("", "7", "{}", '["a"]', '["a", 1, 2, 3, 4]'):
        assert Mark.from_text(text) is None
    assert read_questions(write_questions((QUESTION,))) == (QUESTION,)
    answers = (decide_token(QUESTION, EVIDENCE, {}),)
    assert read_answers(write_answers(answers)) == answers
    with pytest.raises(ConfigurationError, match="at most 1000"):
        read_questions(write_questions((QUESTION,) * (QUESTIONS_MAX + 1)))
    with pytest.raises(ConfigurationError, match="cannot be read"):
        read_questions(b'[{"token": 1}]')


def test_every_rule_is_explained_and_outcomes_are_what_a_proxy_knows() -> None:
    for name, (outcome, why) in TOKEN_RULES.items():
        assert comment_of(name) == why
        assert outcome in (Outcome.COMMITTED, Outcome.ABORTED, Outcome.IN_PROGRESS, Outcome.UNKNOWN)
