"""What became of a transaction, by its id and the epoch in which a client wrote it. Pure.

After a failover the new primary gives the ids away again that the old one had used beyond the fork: what
``pg_xact_status`` says there of such an id is about another transaction (docs/outcomes.md).
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Final

from holdfast.core.losses import opened_under
from holdfast.core.whose import of_unknown, whose
from holdfast.model.errors import ConfigurationError
from holdfast.model.event import Event
from holdfast.model.lost import LostLog, LostTransaction
from holdfast.model.lsn import History, Lsn
from holdfast.model.outcome import FIRST_NORMAL_XID, EpochStart, Outcome, OutcomeAnswer, XactStatus, widened

NAMED_MAX: Final = 10
"""Clients that an answer names."""

RULES: Final[Mapping[str, tuple[Outcome, str]]] = {
    "committed.confirmed": (
        Outcome.COMMITTED,
        "the present primary has it, and what it had then is confirmed like any commit",
    ),
    "committed.again": (
        Outcome.COMMITTED,
        "it was prepared before the fork; that commit is lost, and it was committed again since",
    ),
    "progress.here": (Outcome.IN_PROGRESS, "the present primary has not decided it"),
    "progress.prepared": (Outcome.IN_PROGRESS, "it was prepared before the fork and waits for somebody to decide it"),
    "aborted.here": (Outcome.ABORTED, "it was given away in the present epoch, whose primary says so"),
    "aborted.before-fork": (
        Outcome.ABORTED,
        "the present primary says so, and no old one committed it beyond the fork for a client",
    ),
    "aborted.not-listed": (
        Outcome.ABORTED,
        "its id belongs to the old primary beyond the fork, whose log holds no commit of it up to its end",
    ),
    "lost.listed": (Outcome.LOST, "the log of an old primary beyond the fork has it as committed or prepared"),
    "unknown.unconfirmed": (Outcome.UNKNOWN, "committed on the primary, and not confirmed as commits have to be"),
    "unknown.may-be-lost": (
        Outcome.UNKNOWN,
        "it is not there; whether the old primary had committed it beyond the fork is not known",
    ),
    "unknown.not-listed": (
        Outcome.UNKNOWN,
        "its id belongs to the old primary beyond the fork, and there is no whole list of that log",
    ),
    "unknown.off-line": (Outcome.UNKNOWN, "nothing of its epoch is in the present one, and no whole list tells of it"),
    "unknown.no-record": (Outcome.UNKNOWN, "which ids the next epoch began with is not known"),
    "unknown.forgotten": (Outcome.UNKNOWN, "it is so old that the server does not keep its outcome any more"),
    "unknown.untold": (Outcome.UNKNOWN, "the server cannot read what became of it"),
    "unknown.not-given": (Outcome.UNKNOWN, "no transaction is known to have been given this id"),
    "unknown.may-be-twice": (
        Outcome.UNKNOWN,
        "an old primary whose log is not wholly known may have given the id away, too: say in which epoch",
    ),
    "unknown.twice": (Outcome.UNKNOWN, "the id was given away more than once: say in which epoch"),
}
"""Every answer has one of these: what it is, and what the rule is for."""


@dataclass(frozen=True, slots=True)
class OutcomeEvidence:
    """What is known. ``present`` is the epoch of the primary that was asked, and ``status`` what it said of the id.

    ``is_confirmed``: after it had said so it still led, and what it had then is as safe as a commit has to be.
    ``starts`` are the records that it has of epochs, ``history`` that of its timeline; ``accounts`` are the lists of
    lost transactions, ``silent`` the nodes that gave none, ``events`` the journal.
    """

    present: int
    status: XactStatus
    is_confirmed: bool
    starts: tuple[EpochStart, ...]
    history: History
    accounts: tuple[LostLog, ...] = ()
    silent: tuple[str, ...] = ()
    events: tuple[Event, ...] = ()


def decide_outcome(xid: int, epoch: int | None, evidence: OutcomeEvidence) -> OutcomeAnswer:
    """What became of transaction ``xid`` (64 bits), which a client wrote in ``epoch``.

    Without an epoch it is the only one that can have given this id away, as far as the journal reaches back. Raises
    ConfigurationError for an epoch to come.
    """
    case = _Case(xid, evidence)
    if epoch is None:
        given_in, perhaps = case.given_in(), case.perhaps_given_in()
        epochs = tuple(sorted({*given_in, *perhaps}))
        if len(epochs) == 1:
            return case.of_epoch(epochs[0])
        if not epochs:
            return case.answer("unknown.not-given", None)
        rule = "unknown.twice" if len(given_in) > 1 else "unknown.may-be-twice"
        return case.answer(rule, None, epochs=epochs)
    if epoch > evidence.present:
        raise ConfigurationError(
            f"epoch {epoch} has not begun: the present one is {evidence.present} (`holdfast incident list` shows all)"
        )
    return case.of_epoch(epoch)


def nothing_beyond(epoch: int, evidence: OutcomeEvidence) -> tuple[str | None, tuple[str, ...]]:
    """Why the primary of an earlier epoch committed nothing beyond the fork but what the lists have, for any client.

    None where that is not known, and what is missing then.
    """
    case = _Case(FIRST_NORMAL_XID, evidence)
    proof = case._whole(epoch) or (case._needed_quorum(epoch) if epoch in case._line else None)
    return (proof, ()) if proof is not None else (None, (*case._missing(epoch), *case._in_doubt(epoch)))


class _Case:
    """One question, and what was collected for it."""

    def __init__(self, xid: int, evidence: OutcomeEvidence) -> None:
        self._xid = xid
        self._known = evidence
        self._starts = {start.epoch: start for start in evidence.starts}
        self._switches = {s.timeline: s.switch_lsn for s in evidence.history if s.timeline < evidence.present}
        self._line = (*sorted(self._switches), evidence.present)
        """The epochs whose log is in the present one, up to where each was left."""

    # -- which epoch is meant --------------------------------------------------------------------------------------

    def given_in(self) -> tuple[int, ...]:
        """The epochs that are known to have given this id to a transaction of their own."""
        found = set() if self._known.status is XactStatus.FUTURE else {self._home(self._known.present)}
        for account in self._known.accounts:
            if self._is_before_fork(account.timeline):
                continue  # one transaction: the present line has it, too
            ids = [x for t in account.transactions for x in self._ids(account, t)]
            newest = max([*ids, *self._newest(account)], default=-1)
            if self._xid in ids or (self._may_have_given(account.timeline) and self._xid <= newest):
                found.add(account.timeline)
        return tuple(sorted(found))

    def perhaps_given_in(self) -> tuple[int, ...]:
        """The epochs whose primary, as far as the journal tells of it, may have given this id away beyond its fork."""
        led = {e.epoch for e in self._known.events if e.kind == "epoch.serving" and e.epoch < self._known.present}
        return tuple(sorted(e for e in led if self._may_have_given(e) and self._whole(e) is None))

    def _may_have_given(self, epoch: int) -> bool:
        if epoch in self._line:
            return not self._is_before_fork(epoch)
        left = max((e for e in self._line if e < epoch), default=None)  # what came off the line came off there
        return left not in self._starts or self._starts[left].next_xid <= self._xid

    def _home(self, epoch: int) -> int:
        """The epoch of the present line, up to ``epoch``, that gave this id away."""
        line = [e for e in self._line if e <= epoch]
        began = [e for e in line if e in self._starts and self._starts[e].next_xid <= self._xid]
        return began[-1] if began else line[0]

    def _bound(self, epoch: int) -> int | None:
        """The next xid where the present line left an epoch; of one that is not in it, where the next one began."""
        if epoch in self._line:
            after = next((e for e in self._line if e > epoch), None)
            return self._starts[after].next_xid if after in self._starts else None
        return next((s.next_xid for e, s in sorted(self._starts.items()) if e > epoch), None)

    def _is_before_fork(self, epoch: int) -> bool:
        bound = self._bound(epoch)
        return epoch in self._line and bound is not None and self._xid < bound

    # -- what became of it -----------------------------------------------------------------------------------------

    def of_epoch(self, epoch: int) -> OutcomeAnswer:
        """The answer for one epoch."""
        if epoch in self._line:
            epoch = self._home(epoch)
        listed = self._listed(epoch)
        if listed is not None:
            return self._of_listed(epoch, *listed)
        if epoch == self._known.present:
            return self._here(epoch)
        bound = self._bound(epoch)
        if bound is None:
            return self.answer("unknown.no-record", epoch)
        whole = self._whole(epoch)
        if epoch not in self._line:
            if whole is not None and self._xid >= bound:
                return self.answer("aborted.not-listed", epoch, whole)
            return self.answer("unknown.off-line", epoch, *self._missing(epoch))
        if self._xid >= bound:
            forked = self._fork_in_words(epoch)
            if whole is not None:
                return self.answer("aborted.not-listed", epoch, forked, whole)
            return self.answer("unknown.not-listed", epoch, forked, *self._missing(epoch), is_there=False)
        return self._before_fork(epoch)

    def _here(self, epoch: int) -> OutcomeAnswer:
        match self._known.status:
            case XactStatus.COMMITTED:
                return self._committed("committed.confirmed", epoch)
            case XactStatus.ABORTED:
                return self.answer("aborted.here", epoch, self._said())
            case XactStatus.IN_PROGRESS:
                return self.answer("progress.here", epoch, self._said())
            case XactStatus.FORGOTTEN:
                return self.answer("unknown.forgotten", epoch, self._said())
            case XactStatus.UNREADABLE:
                return self.answer("unknown.untold", epoch, self._said())
            case XactStatus.FUTURE:
                return self.answer("unknown.not-given", epoch, self._said())

    def _before_fork(self, epoch: int) -> OutcomeAnswer:
        """The present primary has it, too; but one that ran at the fork may have been committed beyond it.

        One that was prepared then may have been committed beyond any later fork.
        """
        status, forked = self._known.status, self._fork_in_words(epoch)
        if status is XactStatus.COMMITTED:
            return self._committed("committed.confirmed", epoch, forked)
        if status is XactStatus.IN_PROGRESS:
            return self.answer("progress.prepared", epoch, forked, self._said())
        if status is not XactStatus.ABORTED:
            return self._here(epoch)
        left = [e for e in self._line if epoch <= e < self._known.present]
        proofs = [self._whole(e) or self._needed_quorum(e) for e in left]
        if None in proofs:
            missing = self._missing(left[proofs.index(None)])
            return self.answer("unknown.may-be-lost", epoch, forked, self._said(), *missing, is_there=False)
        return self.answer("aborted.before-fork", epoch, forked, self._said(), *filter(None, proofs))

    def _of_listed(self, epoch: int, account: LostLog, lost: LostTransaction) -> OutcomeAnswer:
        how = "committed" if lost.prepared_as is None else f"prepared as {lost.prepared_as!r}"
        of = f", of {lost.owner.in_words}" if lost.owner is not None else ""
        words = f"the log of {account.member.node} beyond {account.fork_lsn} has it, {how} {lost.committed_at}{of}"
        # Of one that is partly listed the PREPARE may lie before what was read of the log.
        was_prepared = lost.open_as is not None or lost.is_partial
        if was_prepared and self._is_before_fork(account.timeline):
            match self._known.status:
                case XactStatus.COMMITTED:
                    return self._committed("committed.again", epoch, words)
                case XactStatus.IN_PROGRESS:
                    undecided = "COMMIT PREPARED or ROLLBACK PREPARED decides it (pg_prepared_xacts has its name)"
                    return self.answer("progress.prepared", epoch, words, undecided)
                case XactStatus.FORGOTTEN | XactStatus.UNREADABLE:
                    return self._here(epoch)
        return self.answer("lost.listed", epoch, words)

    def _committed(self, rule: str, epoch: int, *evidence: str) -> OutcomeAnswer:
        if self._known.is_confirmed:
            return self.answer(rule, epoch, *evidence, self._said(), "what it had then was confirmed afterwards")
        return self.answer("unknown.unconfirmed", epoch, *evidence, self._said(), "nobody has confirmed that in time")

    # -- the lists -------------------------------------------------------------------------------------------------

    def _ids(self, account: LostLog, lost: LostTransaction) -> list[int]:
        bound = self._bound(account.timeline)
        near = bound if bound is not None else self._xid
        return [widened(x, near) for x in (lost.xid, *lost.subxids)]

    def _newest(self, account: LostLog) -> list[int]:
        """The newest id that the log names, whatever became of it."""
        if account.next_xid is None:
            return []
        bound = self._bound(account.timeline)
        return [widened(account.next_xid, bound if bound is not None else self._xid) - 1]

    def _listed(self, epoch: int) -> tuple[LostLog, LostTransaction] | None:
        """The list that has it: of this epoch, or of a later one that had the same transaction, and committed it."""
        for account in sorted(self._known.accounts, key=lambda a: a.timeline != epoch):
            later = account.timeline > epoch and account.timeline in self._line
            if account.timeline == epoch or (later and self._is_before_fork(epoch)):
                kept = self._switches.get(account.timeline, Lsn(0))  # the present line may have gone on further
                for lost in account.transactions:
                    if lost.lsn >= kept and self._xid in self._ids(account, lost):
                        return account, lost
        return None

    def _whole(self, epoch: int) -> str | None:
        """Why it is known of all that the primary of an epoch had beyond the fork; None if it is not."""
        leader, switch = self._leader(epoch), self._switches.get(epoch)
        for account in self._known.accounts:
            is_leaders = account.timeline == epoch and account.member.node == leader
            begins = account.epoch in self._line if switch is None else account.fork_lsn <= switch
            if is_leaders and begins and not account.unread:
                return f"the log of {leader} was listed from {account.fork_lsn} to its end, and does not have it"
        for event in self._known.events:
            end = _end_of_log(event, leader, epoch)
            if end is not None and switch is not None and end <= switch:
                return f"the log of {leader} ended at {end}, and the present one has all of it"
        return None

    def _missing(self, epoch: int) -> list[str]:
        leader = self._leader(epoch)
        if leader is None:
            return [f"the journal does not tell who led epoch {epoch}"]
        if leader in self._known.silent:
            return [f"the agent of {leader}, which led epoch {epoch}, does not answer"]
        unread = [a.unread for a in self._known.accounts if a.timeline == epoch and a.member.node == leader]
        why = f"is not whole: {unread[0]}" if unread and unread[0] else "is not there"
        return [f"the list of the log of {leader}, which led epoch {epoch}, {why}"]

    def _leader(self, epoch: int) -> str | None:
        served = (e.detail.get("leader") for e in self._known.events if e.kind == "epoch.serving" and e.epoch == epoch)
        return next((str(leader) for leader in served if leader is not None), None)

    def _needed_quorum(self, epoch: int) -> str | None:
        after = next(e for e in self._line if e > epoch)
        opened = opened_under(self._known.events)
        quorums = [opened.get(e) for e in range(epoch + 1, after + 1)]
        if all(quorum is not None and quorum.k > 0 for quorum in quorums):
            return f"commits needed a quorum, which nobody had beyond the fork from epoch {epoch} to {after}"
        return None

    # -- words -----------------------------------------------------------------------------------------------------

    def _said(self) -> str:
        return f"pg_xact_status on the primary of epoch {self._known.present}: {self._known.status.value}"

    def _in_doubt(self, epoch: int) -> tuple[str, ...]:
        """The clients to ask: the proxies do not know the ids of their transactions."""
        clients = of_unknown(whose(self._known.events).in_epoch(epoch))
        named = [f"a client of epoch {epoch} that has no answer: {c.owner.in_words}" for c in clients[:NAMED_MAX]]
        more = len(clients) - NAMED_MAX
        return (*named, f"and {more} more: `holdfast lost show` has them all") if more > 0 else tuple(named)

    def _fork_in_words(self, epoch: int) -> str:
        start = self._starts[next(e for e in self._line if e > epoch)]
        return (
            f"epoch {start.epoch} left epoch {epoch} at {self._switches[epoch]} with {start.next_xid} as its next xid"
        )

    def answer(
        self,
        rule: str,
        epoch: int | None,
        *evidence: str,
        epochs: Sequence[int] = (),
        is_there: bool | None = None,
    ) -> OutcomeAnswer:
        """An answer by one of the rules."""
        outcome, why = RULES[rule]
        if outcome is not Outcome.UNKNOWN:
            is_there = outcome is Outcome.COMMITTED
        elif epoch is not None:
            evidence += self._in_doubt(epoch)
        return OutcomeAnswer(self._xid, epoch, outcome, rule, why, is_there, tuple(evidence), tuple(epochs))


def _end_of_log(event: Event, leader: str | None, epoch: int) -> Lsn | None:
    """Where the log of the stopped primary of ``epoch`` ended, if an entry of the journal tells it."""
    if event.kind != "recruit.joined" or event.source != leader or event.epoch <= epoch:
        return None
    if event.detail.get("timeline") != epoch:
        return None
    try:
        return Lsn.parse(str(event.detail.get("position")))
    except ValueError:
        return None
