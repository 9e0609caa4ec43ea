"""A token of an application is found in the log or in a list, or what was read says what its absence tells."""

from __future__ import annotations

from dataclasses import replace

import pytest

from holdfast.core.own_token import (
    OWN_TOKEN_RULES,
    SLACK_BYTES,
    OwnFound,
    Sighting,
    decide_absent,
    decide_seen,
    own_stretches,
    sightings,
)
from holdfast.core.token import LOOK_BYTES_MAX, Stretch
from holdfast.model.errors import ConfigurationError
from holdfast.model.lsn import Lsn, TimelineSwitch
from holdfast.model.outcome import EpochStart, Outcome, OutcomeAnswer, OwnQuestion, parse_position
from holdfast.model.token import OWN_TOKEN_MAX, is_own_token, parse_token
from tests.core.test_outcome import FORKED, LOCAL, QUORUM, SERVED, account, joined, lost, opened

PRESENT, END = 2, Lsn(0x300)
READ = {1: OwnFound(Lsn(0)), 2: OwnFound(Lsn(0x100))}
WHERE_EPOCHS_BEGIN = {start.epoch: start.fork_lsn for start in FORKED.starts}


def stretches(question: OwnQuestion, end: Lsn = END) -> tuple[Stretch, ...]:
    return own_stretches(question, PRESENT, FORKED.history, end, WHERE_EPOCHS_BEGIN)


def test_every_part_of_the_present_line_is_read_unless_the_epoch_is_known() -> None:
    newest, oldest = Stretch(2, None, Lsn(0x100), END), Stretch(1, 2, Lsn(0), Lsn(0x100))
    assert stretches(OwnQuestion("a")) == (newest, oldest)
    assert stretches(OwnQuestion("a", 2)) == (newest,)
    assert stretches(OwnQuestion("a", 1)) == (oldest,)
    with pytest.raises(ConfigurationError, match="epoch 3 has not begun"):
        stretches(OwnQuestion("a", 3))


def test_no_more_is_read_than_an_answer_is_worth_nor_before_the_token_can_be() -> None:
    far = Lsn(0x100 + 2 * LOOK_BYTES_MAX)
    assert stretches(OwnQuestion("a"), far) == (Stretch(2, None, Lsn(far - LOOK_BYTES_MAX), far),)
    near = Lsn(far - 5)
    assert stretches(OwnQuestion("a", None, near), far) == (Stretch(2, None, Lsn(near - SLACK_BYTES), far),)
    old = stretches(OwnQuestion("a", 1, Lsn(0x80)), far)
    assert old == (Stretch(1, 2, Lsn(0), Lsn(0x100)),)  # of the budget nothing goes to other epochs


def seen(question: OwnQuestion, found: dict[int, OwnFound], *lists: str) -> tuple[Sighting, ...]:
    listed = account(replace(lost(1005), tokens=lists))
    return sightings(question, found, (listed,), {1: 700, 2: 1000}, 2**32 + 50)


def test_a_transaction_is_known_by_the_log_and_by_the_lists() -> None:
    assert seen(OwnQuestion("a"), {1: OwnFound(Lsn(0), (900,)), 2: OwnFound(Lsn(0x100), (7, 2**32 - 1))}) == (
        Sighting(1, 900),
        Sighting(2, 2**32 - 1),
        Sighting(2, 2**32 + 7),
    )
    assert seen(OwnQuestion("a"), READ, "b", "a") == (Sighting(1, 1005),)
    assert seen(OwnQuestion("a"), READ, "b") == ()
    assert seen(OwnQuestion("a", 2), {1: OwnFound(Lsn(0), (900,))}, "a") == ()  # of another epoch
    assert seen(OwnQuestion("a"), {1: OwnFound(Lsn(0), (1005,))}, "a") == (Sighting(1, 1005),)  # one, told twice


def ended(xid: int, outcome: Outcome, rule: str = "x") -> OutcomeAnswer:
    return OutcomeAnswer(xid, 1, outcome, rule, "", outcome is Outcome.COMMITTED)


def test_what_was_tried_again_counts_and_what_ended_twice_is_not_told() -> None:
    two = (Sighting(1, 5), Sighting(1, 6))
    undone, done = ended(5, Outcome.ABORTED), ended(6, Outcome.COMMITTED)
    answer = decide_seen("a", two, (undone, done))
    assert (answer.xid, answer.outcome, answer.token) == (6, Outcome.COMMITTED, "a")
    assert answer.evidence[0] == "transaction 5 of epoch 1 has the token: aborted"
    assert decide_seen("a", two, (ended(5, Outcome.COMMITTED), done)).outcome is Outcome.COMMITTED
    assert decide_seen("a", two, (undone, ended(6, Outcome.ABORTED))).outcome is Outcome.ABORTED
    twice = decide_seen("a", two, (ended(5, Outcome.LOST), done))
    assert (twice.rule, twice.xid, len(twice.evidence)) == ("unknown.token-twice", None, 2)
    many = tuple(Sighting(1, xid) for xid in range(9))
    assert decide_seen("a", many, (done,)).rule == "unknown.token-twice"


def absent(question: OwnQuestion, found: dict[int, OwnFound] = READ, **changes: object) -> OutcomeAnswer:
    evidence = replace(FORKED, **{"accounts": (), **changes})  # type: ignore[arg-type]
    answer = decide_absent(question, found, evidence, END)
    assert (answer.outcome, answer.why) == OWN_TOKEN_RULES[answer.rule]
    assert (answer.xid, answer.token) == (None, "a")
    return answer


def test_absence_tells_only_of_an_epoch_that_is_over_and_wholly_read() -> None:
    of_1 = OwnQuestion("a", 1)
    assert absent(of_1, events=(*SERVED, opened(2, QUORUM))).rule == "aborted.token-absent"
    assert absent(of_1, accounts=(account(lost(1005)),)).rule == "aborted.token-absent"
    assert absent(of_1, events=(*SERVED, joined(2, "n1", 1, "0/F0"))).rule == "aborted.token-absent"
    assert absent(of_1, events=(*SERVED, opened(2, LOCAL))).rule == "unknown.token-may-be-lost"
    assert absent(of_1, accounts=(account(unread="torn"),)).rule == "unknown.token-may-be-lost"
    assert absent(of_1, {1: OwnFound(Lsn(0x40))}).rule == "unknown.token-unread"
    assert absent(of_1, {}).rule == "unknown.token-unread"
    beyond = OwnQuestion("a", 1, Lsn(0x100 + SLACK_BYTES))  # nothing of it can be in the present line
    assert absent(beyond, {}, events=(*SERVED, opened(2, QUORUM))).rule == "aborted.token-absent"


def test_absence_tells_nothing_of_who_is_still_at_work_nor_of_an_epoch_that_is_not_known() -> None:
    assert (absent(OwnQuestion("a", 2)).rule, absent(OwnQuestion("a", 2)).is_there) == ("unknown.token-not-yet", False)
    assert absent(OwnQuestion("a", 2), {2: OwnFound(Lsn(0x200))}).is_there is None
    answer = absent(OwnQuestion("a"))
    assert (answer.rule, answer.is_there, len(answer.evidence)) == ("unknown.token-not-found", None, 2)
    assert absent(OwnQuestion("a", 1), {1: OwnFound(Lsn(0), (), True)}).rule == "unknown.token-loose"


def test_of_an_epoch_that_is_not_in_the_present_line_a_whole_list_decides() -> None:
    off = {
        "present": 3,
        "history": (TimelineSwitch(1, Lsn(0x100)),),
        "starts": (FORKED.starts[0], EpochStart(3, Lsn(0x100), 1000)),
    }
    assert absent(OwnQuestion("a", 2), {}, **off).rule == "unknown.token-may-be-lost"
    led = (replace(SERVED[0], source="n2", epoch=2, detail={"leader": "n2"}),)
    listed = replace(account(lost(1005), node="n2", timeline=2), epoch=3)
    assert absent(OwnQuestion("a", 2), {}, **off, events=led, accounts=(listed,)).rule == "aborted.token-absent"


@pytest.mark.parametrize("token", ["order-4711", "4711", "3f2a 0b:?", "x" * 200])
def test_what_can_be_a_token(token: str) -> None:
    assert parse_token(token) == token
    assert is_own_token(token)


@pytest.mark.parametrize(
    ("token", "says"),
    [
        ("", "empty"),
        ("x" * (OWN_TOKEN_MAX + 1), "201 characters, and a token at most 200"),
        ("ü", "ASCII"),
        ("a\n", "ASCII"),
    ],
)
def test_what_cannot_be_a_token_says_why(token: str, says: str) -> None:
    with pytest.raises(ConfigurationError, match=says):
        parse_token(token)
    assert not is_own_token(token)


def test_a_position_is_read_or_says_what_to_give() -> None:
    assert (parse_position(None), parse_position("0/5F")) == (None, Lsn(0x5F))
    with pytest.raises(ConfigurationError, match="pg_logical_emit_message returned"):
        parse_position("here")
