"""What is said of a transaction is what became of it, whatever was lost, given away again, or is not known."""

from __future__ import annotations

from dataclasses import dataclass, field, replace

import pytest
from hypothesis import example, given
from hypothesis import strategies as st

from holdfast.core.outcome import RULES, OutcomeEvidence, decide_outcome
from holdfast.model.errors import ConfigurationError, RegisterError
from holdfast.model.event import Event
from holdfast.model.lost import LostLog, LostTransaction
from holdfast.model.lsn import Lsn, TimelineSwitch
from holdfast.model.outcome import (
    EpochStart,
    Outcome,
    OutcomeAnswer,
    XactStatus,
    parse_epoch,
    parse_xid,
    widened,
)
from holdfast.model.register import Member

QUORUM, LOCAL = "ANY 1 (n2_0000000a, n3_0000000b)", "ANY 0 (n2_0000000a)"
SERVED = (Event(1, "n1", "epoch.serving", 1, None, {"leader": "n1"}),)


def opened(epoch: int, quorum: str) -> Event:
    return Event(epoch, "n2", "epoch.opened", epoch, None, {"quorum": quorum})


def joined(epoch: int, node: str, timeline: int, position: str) -> Event:
    return Event(epoch, node, "recruit.joined", epoch, None, {"timeline": timeline, "position": position})


def lost(xid: int, *subxids: int, prepared_as: str | None = None, open_as: str | None = None) -> LostTransaction:
    return LostTransaction(xid, Lsn(0x110), "then", subxids, prepared_as, {}, open_as)


def account(
    *transactions: LostTransaction, node: str = "n1", timeline: int = 1, fork: int = 0x100, unread: str = ""
) -> LostLog:
    return LostLog(Member(node, "0000000c"), 2, timeline, Lsn(fork), Lsn(0x200), "", transactions, unread=unread)


WHOLE = account(lost(1005, 1006))
FORKED = OutcomeEvidence(
    present=2,
    status=XactStatus.COMMITTED,
    is_confirmed=True,
    starts=(EpochStart(1, Lsn(0), 700), EpochStart(2, Lsn(0x100), 1000)),
    history=(TimelineSwitch(1, Lsn(0x100)),),
    accounts=(WHOLE,),
    events=(*SERVED, opened(2, LOCAL)),
)
"""Epoch 2 forked from epoch 1, whose next xid was 1000 there; n1 had committed 1005 beyond the fork."""


def said(status: XactStatus, evidence: OutcomeEvidence = FORKED) -> OutcomeEvidence:
    return replace(evidence, status=status)


NOT_LISTED = replace(FORKED, accounts=())
NOT_CONFIRMED = replace(FORKED, is_confirmed=False)
PREPARED = replace(FORKED, accounts=(account(lost(900, open_as="gid")),))
PARTIAL = replace(FORKED, accounts=(account(replace(lost(900), is_partial=True)),))
AHEAD = account(lost(999), lost(1005))
"""As seen from an earlier fork than the one that the present epoch began with."""
NO_RECORD = replace(FORKED, starts=FORKED.starts[:1])
OFF_LINE = replace(
    FORKED, present=3, starts=(FORKED.starts[0], EpochStart(3, Lsn(0x100), 1000)), accounts=(),
    events=(Event(2, "n2", "epoch.serving", 2, None, {"leader": "n2"}),),
)  # fmt: skip
OF_EPOCH_2 = replace(account(lost(1005), node="n2", timeline=2), epoch=3)
ABORTED, COMMITTED, IN_PROGRESS = XactStatus.ABORTED, XactStatus.COMMITTED, XactStatus.IN_PROGRESS


@pytest.mark.parametrize(
    ("xid", "epoch", "evidence", "rule"),
    [
        (1005, 2, FORKED, "committed.confirmed"),
        (1005, 2, said(ABORTED), "aborted.here"),
        (1005, 2, said(IN_PROGRESS), "progress.here"),
        (1005, 2, said(XactStatus.FUTURE), "unknown.not-given"),
        (1005, 2, said(XactStatus.FORGOTTEN), "unknown.forgotten"),
        (1005, 2, NOT_CONFIRMED, "unknown.unconfirmed"),
        (1005, 2, said(XactStatus.UNREADABLE), "unknown.untold"),
        (1005, 1, FORKED, "lost.listed"),
        (1005, 1, said(XactStatus.UNREADABLE), "lost.listed"),
        (1005, 1, replace(FORKED, accounts=(AHEAD,)), "lost.listed"),
        (999, 1, replace(FORKED, history=(TimelineSwitch(1, Lsn(0x118)),), accounts=(AHEAD,)), "committed.confirmed"),
        (1006, 1, FORKED, "lost.listed"),
        (1005, 1, replace(FORKED, accounts=(account(lost(1005, prepared_as="gid")),)), "lost.listed"),
        (1005, 1, replace(FORKED, accounts=(account(lost(1005), node="n3"),)), "lost.listed"),
        (1000, 1, FORKED, "aborted.not-listed"),
        (1000, 1, said(XactStatus.FUTURE), "aborted.not-listed"),
        (1000, 1, NOT_LISTED, "unknown.not-listed"),
        (1000, 1, replace(NOT_LISTED, silent=("n1",)), "unknown.not-listed"),
        (1000, 1, replace(FORKED, events=()), "unknown.not-listed"),
        (1000, 1, replace(FORKED, accounts=(account(unread="a record is broken"),)), "unknown.not-listed"),
        (1000, 1, replace(FORKED, accounts=(account(node="n3"),)), "unknown.not-listed"),
        (1000, 1, replace(FORKED, accounts=(account(fork=0x180),)), "unknown.not-listed"),
        (1000, 1, replace(NOT_LISTED, events=(*SERVED, joined(2, "n1", 1, "0/100"))), "aborted.not-listed"),
        (1000, 1, replace(NOT_LISTED, events=(*SERVED, joined(2, "n1", 1, "0/101"))), "unknown.not-listed"),
        (1000, 1, replace(NOT_LISTED, events=(*SERVED, joined(2, "n3", 1, "0/100"))), "unknown.not-listed"),
        (1000, 1, replace(NOT_LISTED, events=(*SERVED, joined(1, "n1", 1, "0/100"))), "unknown.not-listed"),
        (1000, 1, replace(NOT_LISTED, events=(*SERVED, joined(2, "n1", 2, "0/100"))), "unknown.not-listed"),
        (1000, 1, replace(NOT_LISTED, events=(*SERVED, joined(2, "n1", 1, "?"))), "unknown.not-listed"),
        (1000, 1, NO_RECORD, "unknown.no-record"),
        (999, 1, FORKED, "committed.confirmed"),
        (999, 1, NOT_LISTED, "committed.confirmed"),
        (999, 1, NOT_CONFIRMED, "unknown.unconfirmed"),
        (999, 1, said(IN_PROGRESS), "progress.prepared"),
        (999, 1, said(XactStatus.FORGOTTEN), "unknown.forgotten"),
        (999, 1, said(ABORTED), "aborted.before-fork"),
        (999, 1, said(ABORTED, NOT_LISTED), "unknown.may-be-lost"),
        (999, 1, said(ABORTED, replace(NOT_LISTED, events=(opened(2, QUORUM),))), "aborted.before-fork"),
        (999, 2, said(ABORTED, NOT_LISTED), "unknown.may-be-lost"),  # the id was given away before that epoch
        (999, 1, said(ABORTED, replace(FORKED, accounts=(account(lost(999)),))), "lost.listed"),
        (900, 1, PREPARED, "committed.again"),
        (900, 1, replace(PREPARED, is_confirmed=False), "unknown.unconfirmed"),
        (900, 1, said(IN_PROGRESS, PREPARED), "progress.prepared"),
        (900, 1, said(ABORTED, PREPARED), "lost.listed"),
        (900, 1, said(XactStatus.FORGOTTEN, PREPARED), "unknown.forgotten"),
        (900, 1, PARTIAL, "committed.again"),
        (900, 1, said(IN_PROGRESS, PARTIAL), "progress.prepared"),
        (900, 1, said(ABORTED, PARTIAL), "lost.listed"),
        (1005, 2, OFF_LINE, "unknown.off-line"),
        (1005, 2, replace(OFF_LINE, accounts=(OF_EPOCH_2,)), "lost.listed"),
        (1004, 2, replace(OFF_LINE, accounts=(OF_EPOCH_2,)), "aborted.not-listed"),
        (999, 2, replace(OFF_LINE, accounts=(OF_EPOCH_2,)), "unknown.off-line"),
        (1004, 2, replace(OFF_LINE, accounts=(replace(OF_EPOCH_2, epoch=2),)), "unknown.off-line"),
        (999, None, FORKED, "committed.confirmed"),
        (1005, None, FORKED, "unknown.twice"),
        (1003, None, FORKED, "unknown.twice"),
        (1007, None, FORKED, "committed.confirmed"),
        (1005, None, said(XactStatus.FUTURE), "lost.listed"),
        (1007, None, replace(FORKED, accounts=(replace(WHOLE, next_xid=1008),)), "unknown.twice"),
        (1008, None, replace(FORKED, accounts=(replace(WHOLE, next_xid=1008),)), "committed.confirmed"),
        (1005, None, NOT_LISTED, "unknown.may-be-twice"),
        (1009, None, replace(FORKED, accounts=(replace(WHOLE, unread="a record is broken"),)), "unknown.may-be-twice"),
        (1005, None, replace(NOT_LISTED, events=(*SERVED, joined(2, "n1", 1, "0/100"))), "committed.confirmed"),
        (999, None, NOT_LISTED, "committed.confirmed"),
        (1005, None, OFF_LINE, "unknown.may-be-twice"),
        (1005, None, said(XactStatus.FUTURE, NOT_LISTED), "unknown.not-listed"),
        (1005, None, said(XactStatus.FUTURE, replace(NOT_LISTED, events=())), "unknown.not-given"),
        (900, None, PREPARED, "committed.again"),
    ],
)  # fmt: skip
def test_every_rule(xid: int, epoch: int | None, evidence: OutcomeEvidence, rule: str) -> None:
    answer = decide_outcome(xid, epoch, evidence)
    assert (answer.rule, answer.outcome) == (rule, RULES[rule][0])
    assert answer.why == RULES[rule][1] != ""
    assert OutcomeAnswer.from_json(answer.to_json()) == answer


def test_every_rule_is_tried_here() -> None:
    (parameters,) = (m for m in test_every_rule.pytestmark if m.name == "parametrize")  # type: ignore[attr-defined]
    assert {rule for *_, rule in parameters.args[1]} == set(RULES)


def test_an_id_that_was_given_away_twice_wants_its_epoch() -> None:
    answer = decide_outcome(1005, None, FORKED)
    assert (answer.outcome, answer.epoch, answer.epochs, answer.is_there) == (Outcome.UNKNOWN, None, (1, 2), None)
    assert [decide_outcome(1005, epoch, FORKED).outcome for epoch in answer.epochs] == [
        Outcome.LOST,
        Outcome.COMMITTED,
    ]


def test_what_is_surely_not_there_is_said_to_be_so() -> None:
    answers = [decide_outcome(1000, 1, NOT_LISTED), decide_outcome(999, 1, said(ABORTED, NOT_LISTED))]
    assert [(a.outcome, a.is_there) for a in answers] == [(Outcome.UNKNOWN, False)] * 2
    assert "the list of the log of n1, which led epoch 1, is not there" in answers[0].evidence


def test_an_epoch_to_come_is_refused() -> None:
    with pytest.raises(ConfigurationError, match="epoch 3 has not begun: the present one is 2"):
        decide_outcome(1005, 3, FORKED)


# -- a cluster whose every transaction is known ------------------------------------------------------------------------


@dataclass
class Life:
    """A transaction: what the log that was kept and the logs that were not say of it."""

    epoch: int
    xid: int
    kept: str = "assigned"
    beyond: set[str] = field(default_factory=set)

    def truth(self, present: int) -> Outcome:
        if self.kept == "commit":
            return Outcome.COMMITTED
        if self.kept == "prepare" or (self.kept in ("assigned", "write") and self.epoch == present):
            return Outcome.IN_PROGRESS
        return Outcome.LOST if self.beyond & {"commit", "prepare"} else Outcome.ABORTED


Record = tuple[int, int, str, int]
"""LSN, epoch, what, xid; an epoch begins with a record ``start`` that has its next xid."""


class Cluster:
    """Transactions and forks as they happen to a cluster of which everything is known."""

    def __init__(self, first_xid: int) -> None:
        self.epoch, self.next_xid, self.lsn = 1, first_xid, 0x100
        self.log: list[Record] = []
        self.lives: dict[tuple[int, int], Life] = {}
        self.mine: dict[int, Life] = {}
        """By the ids as the present line has them."""
        self.accounts: list[LostLog] = []
        self.write("start", first_xid)

    def write(self, what: str, xid: int) -> None:
        self.lsn += 8
        self.log.append((self.lsn, self.epoch, what, xid))

    def act(self, what: str, which: int) -> None:
        if what in ("assigned", "write"):
            life = self.mine[self.next_xid] = Life(self.epoch, self.next_xid, what)
            self.lives[self.epoch, self.next_xid] = life
            self.next_xid += 1
            if what == "write":
                self.write(what, life.xid)
            return
        able = {"commit": ("write", "prepare"), "abort": ("write", "prepare"), "prepare": ("write",)}[what]
        found = [x for x, life in self.mine.items() if life.kept in able]
        found = [x for x in found if self.mine[x].kept == "prepare" or self.mine[x].epoch == self.epoch]
        if found:
            xid = found[which % len(found)]
            self.mine[xid].kept = what
            self.write(what, xid)

    def fork(self, cut: int, *, whole: bool) -> None:
        """The next epoch begins after the record number ``cut``."""
        kept, gone = self.log[:cut], self.log[cut:]
        fork = gone[0][0] if gone else self.lsn + 8
        for _, _, what, xid in gone:
            if what != "start":
                self.mine[xid].beyond.add(what)
        if whole:
            self.accounts.append(self._account(kept, gone, fork))
        self.log, self.epoch, self.lsn = kept, self.epoch + 1, fork - 8
        self.next_xid = max(xid + (what != "start") for _, _, what, xid in kept)
        for xid in [x for x in self.mine if x >= self.next_xid]:
            self.mine.pop(xid).kept = "nothing"
        for xid, life in self.mine.items():
            states = [what for _, _, what, x in kept if x == xid and what != "start"]
            life.kept = states[-1] if states else "abort"  # given away, and never seen in the log
            if life.kept == "write":
                life.kept = "abort"  # what ran is over
        self.write("start", self.next_xid)

    def _account(self, kept: list[Record], gone: list[Record], fork: int) -> LostLog:
        """As an agent lists it: what the log of the last epoch has beyond the fork."""
        before = {xid for _, _, what, xid in kept if what == "prepare"}
        found: dict[int, LostTransaction] = {}
        for lsn, epoch, what, xid in gone:
            if epoch != self.epoch or what in ("start", "write"):
                continue
            found.pop(xid, None)
            if what != "abort":
                gid, open_as = ("gid" if what == "prepare" else None), ("gid" if xid in before else None)
                found[xid] = LostTransaction(xid % 2**32, Lsn(lsn), "then", (), gid, {}, open_as)
        member = Member(f"n{self.epoch}", "0000000c")
        newest = max((xid for _, _, what, xid in gone if what != "start"), default=None)
        following = None if newest is None else (newest + 1) % 2**32
        listed = tuple(found.values())
        end = Lsn(self.lsn)
        return LostLog(member, self.epoch + 1, self.epoch, Lsn(fork), end, "", listed, next_xid=following)

    def evidence(self, xid: int) -> OutcomeEvidence:
        starts = [EpochStart(e, Lsn(lsn), x) for lsn, e, what, x in self.log if what == "start"]
        line = [s.epoch for s in starts]
        switches = [TimelineSwitch(e, starts[n + 1].fork_lsn) for n, e in enumerate(line[:-1])]
        led = [Event(e, f"n{e}", "epoch.serving", e, None, {"leader": f"n{e}"}) for e in range(1, self.epoch + 1)]
        local = [opened(e, LOCAL) for e in range(2, self.epoch + 1)]
        return OutcomeEvidence(
            self.epoch, self._status(xid), True, tuple(starts), tuple(switches), tuple(self.accounts), (),
            (*led, *local),
        )  # fmt: skip

    def _status(self, xid: int) -> XactStatus:
        if xid >= self.next_xid:
            return XactStatus.FUTURE
        life = self.mine.get(xid)
        if life is None:
            return XactStatus.ABORTED
        if life.kept == "commit":
            return XactStatus.COMMITTED
        running = life.kept == "prepare" or (life.kept in ("assigned", "write") and life.epoch == self.epoch)
        return XactStatus.IN_PROGRESS if running else XactStatus.ABORTED


ACTS = ["assigned", "write", "write", "commit", "commit", "abort", "prepare"]
STEPS = st.lists(
    st.one_of(
        st.tuples(st.sampled_from(ACTS), st.integers(0, 9)),
        st.tuples(st.just("fork"), st.integers(0, 6)),
        st.tuples(st.just("fork unlisted"), st.integers(0, 6)),
    ),
    max_size=40,
)  # fmt: skip


def lived(first_xid: int, steps: list[tuple[str, int]]) -> Cluster:
    cluster = Cluster(first_xid)
    for what, number in steps:
        if what.startswith("fork"):
            cluster.fork(max(1, len(cluster.log) - number), whole=what == "fork")
        else:
            cluster.act(what, number)
    return cluster


REUSED = [("write", 0), ("commit", 0), ("fork unlisted", 2), ("write", 0), ("commit", 0)]
"""The id of a lost commit is that of another one."""


@example(3, REUSED)
@example(3, [("write", 0), ("fork", 1), ("write", 0), ("commit", 0)])
@given(st.sampled_from([3, 700, 2**32 - 4, 5 * 2**32 + 3]), STEPS)
def test_no_answer_is_wrong(first_xid: int, steps: list[tuple[str, int]]) -> None:
    cluster = lived(first_xid, steps)
    for (epoch, xid), life in cluster.lives.items():
        answer = decide_outcome(xid, epoch, cluster.evidence(xid))
        truth = life.truth(cluster.epoch)
        assert answer.outcome in (truth, Outcome.UNKNOWN), (answer, life)
        if answer.is_there is not None:
            assert answer.is_there == (truth is Outcome.COMMITTED), (answer, life)


@given(st.sampled_from([3, 2**32 - 4]), STEPS)
def test_nothing_is_unknown_where_every_log_was_listed(first_xid: int, steps: list[tuple[str, int]]) -> None:
    """And no fork took place before the last epoch had begun."""
    cluster = Cluster(first_xid)
    for what, number in steps:
        if what.startswith("fork"):
            begun = max(n for n, (_, _, kind, _) in enumerate(cluster.log) if kind == "start")
            cluster.fork(max(begun + 1, len(cluster.log) - number), whole=True)
        else:
            cluster.act(what, number)
    for (epoch, xid), life in cluster.lives.items():
        answer = decide_outcome(xid, epoch, cluster.evidence(xid))
        assert answer.outcome is life.truth(cluster.epoch), (answer, life)


@example(3, REUSED)
@example(3, [("write", 0), ("fork", 1), ("write", 0), ("commit", 0)])
@given(st.sampled_from([3, 2**32 - 4]), STEPS)
def test_without_an_epoch_nobody_is_told_of_another_transaction(first_xid: int, steps: list[tuple[str, int]]) -> None:
    """But for what has left no trace in any log."""
    cluster = lived(first_xid, steps)
    for xid in {xid for _, xid in cluster.lives}:
        answer = decide_outcome(xid, None, cluster.evidence(xid))
        if answer.epoch is not None:
            assert answer == decide_outcome(xid, answer.epoch, cluster.evidence(xid))
        if answer.outcome is not Outcome.UNKNOWN:
            lives = [life for (_, x), life in cluster.lives.items() if x == xid]
            traced = [life for life in lives if life.beyond or cluster.mine.get(xid) is life]
            assert {life.truth(cluster.epoch) for life in traced} <= {answer.outcome}, (answer, lives)


# -- what is asked ---------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("text", ["3", "745", "4294967299", "18446744073709551615"])
def test_transaction_ids(text: str) -> None:
    assert parse_xid(text) == int(text)


@pytest.mark.parametrize(
    ("text", "words"),
    [
        ("", "is no transaction id"), ("-5", "is no transaction id"), ("0x10", "is no transaction id"),
        ("7.0", "is no transaction id"), ("٣", "is no transaction id"), (" 7", "is no transaction id"),
        ("18446744073709551616", "more than 64 bits"), ("9" * 5000, "more than 64 bits"),
        ("0", "never given"), ("2", "never given"), ("4294967296", "never given"),
    ],
)  # fmt: skip
def test_what_is_no_transaction_id_is_refused(text: str, words: str) -> None:
    with pytest.raises(ConfigurationError, match=words) as refused:
        parse_xid(text)
    assert "XID" in str(refused.value)
    assert "pg_current_xact_id()" in str(refused.value)


@pytest.mark.parametrize("text", ["", "0", "-1", "two", "1.5", "2147483648", "9" * 5000])
def test_what_is_no_epoch_is_refused(text: str) -> None:
    with pytest.raises(ConfigurationError, match=r"epoch .* is none: give the number"):
        parse_epoch(text)


@given(st.integers(0, 2**64 - 1), st.integers(-(2**31) + 1, 2**31 - 1))
def test_an_id_of_32_bits_is_widened_to_the_nearest(near: int, offset: int) -> None:
    xid = near + offset
    if xid >= 0:
        assert widened(xid % 2**32, near) == xid


def test_an_answer_that_cannot_be_read() -> None:
    with pytest.raises(RegisterError, match="an outcome cannot be read"):
        OutcomeAnswer.from_json(b"{}")
