"""What became of a transaction that an application has given a token of its own. Pure.

The application writes the token into the log of the transaction (docs/outcomes.md), so that the log has it if and only
if it can have the commit. Where the log or a list of lost transactions has it, so is the transaction's id, and
`core.outcome` says the rest; where neither has it, what was read decides whether that tells anything.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Final

from holdfast.core.outcome import OutcomeEvidence, nothing_beyond
from holdfast.core.token import LOOK_BYTES_MAX, Stretch
from holdfast.model.errors import ConfigurationError
from holdfast.model.lost import LostLog
from holdfast.model.lsn import History, Lsn
from holdfast.model.outcome import Outcome, OutcomeAnswer, OwnQuestion, widened

SLACK_BYTES: Final = 64 * 1024
"""A message ends where the server says that it is; how far it may begin before that, with all that lies between."""
TOLD_MAX: Final = 5
"""Transactions with one token of which is found out what became of them; the newest ones, if there are more."""

OWN_TOKEN_RULES: Final[Mapping[str, tuple[Outcome, str]]] = {
    "aborted.token-absent": (
        Outcome.ABORTED,
        "no log that could have it has the token, and no old primary committed it beyond the fork for a client",
    ),
    "unknown.token-twice": (
        Outcome.UNKNOWN,
        "several transactions have the token, and did not end alike: say in which epoch (--epoch) the one meant was",
    ),
    "unknown.token-loose": (
        Outcome.UNKNOWN,
        "the token was written outside of its transaction: pg_logical_emit_message has to be given true first",
    ),
    "unknown.token-not-found": (
        Outcome.UNKNOWN,
        "what was read of the log does not have the token: say in which epoch it was written (--epoch)",
    ),
    "unknown.token-not-yet": (
        Outcome.UNKNOWN,
        "the log of the present epoch does not have the token so far; who wrote it may still be at work",
    ),
    "unknown.token-unread": (
        Outcome.UNKNOWN,
        "the log of that epoch is not kept from its beginning, or is more than is read for an answer: say where the "
        "token was written (--lsn)",
    ),
    "unknown.token-may-be-lost": (
        Outcome.UNKNOWN,
        "what is left of that epoch does not have the token; whether its primary had committed it beyond is not known",
    ),
}
"""Of answers that no transaction's id decides: what it is, and what the rule is for."""


@dataclass(frozen=True, slots=True)
class OwnFound:
    """What a stretch of log, read from ``start`` on, has of a token: the xids (32 bits) of its transactions.

    ``is_loose``: it has the token in a message that belongs to no transaction.
    """

    start: Lsn
    xids: tuple[int, ...] = ()
    is_loose: bool = False


@dataclass(frozen=True, slots=True)
class Sighting:
    """A transaction that has a token: ``xid`` has 64 bits."""

    epoch: int
    xid: int


def own_stretches(
    question: OwnQuestion, present: int, history: History, end: Lsn, starts: Mapping[int, Lsn]
) -> tuple[Stretch, ...]:
    """What has to be read for a token, the newest first. ``end`` is how far the log goes now.

    ``starts``: where each epoch begins, as far as that is known. Raises ConfigurationError for an epoch to come.
    """
    if question.epoch is not None and question.epoch > present:
        raise ConfigurationError(
            f"epoch {question.epoch} has not begun: the present one is {present} (`holdfast incident list` shows all)"
        )
    found: list[Stretch] = []
    left, following = LOOK_BYTES_MAX, None
    for epoch, begins, until in _line(present, history, end, starts):
        start = Lsn(max(begins, _begins(question), until - left))
        if question.epoch in (None, epoch) and start < until:
            found.append(Stretch(epoch, following, start, until))
            left -= until - start
        following = epoch
        if left <= 0:
            break
    return tuple(found)


def _line(present: int, history: History, end: Lsn, starts: Mapping[int, Lsn]) -> Iterable[tuple[int, Lsn, Lsn]]:
    """The epochs whose log the present one has, the newest first: each with where it begins and where it was left."""
    until = end
    switches = sorted((s for s in history if s.timeline < present), key=lambda s: s.timeline, reverse=True)
    for epoch, before in zip((present, *(s.timeline for s in switches)), (*switches, None), strict=True):
        begins = starts.get(epoch, Lsn(0)) if before is None else before.switch_lsn
        yield epoch, begins, until
        until = begins


def sightings(
    question: OwnQuestion,
    found: Mapping[int, OwnFound],
    accounts: Iterable[LostLog],
    next_xids: Mapping[int, int],
    newest: int,
) -> tuple[Sighting, ...]:
    """The transactions that have a token. ``next_xids``: which id (64 bits) each epoch began with, where known.

    ``newest``: the next one of the present primary.
    """
    seen = [(epoch, xid) for epoch, what in found.items() for xid in what.xids]
    seen += [(a.timeline, t.xid) for a in accounts for t in a.transactions if question.token in t.tokens]

    def near(epoch: int) -> int:
        return next((first for later, first in sorted(next_xids.items()) if later > epoch), newest)

    wide = {Sighting(epoch, widened(xid, near(epoch))) for epoch, xid in seen if question.epoch in (None, epoch)}
    return tuple(sorted(wide, key=lambda s: (s.epoch, s.xid)))


def decide_seen(token: str, seen: Sequence[Sighting], answers: Sequence[OutcomeAnswer]) -> OutcomeAnswer:
    """The answer of a token that transactions have: ``answers`` say what became of them, the newest last."""
    words = tuple(
        f"transaction {s.xid} of epoch {s.epoch} has the token: {a.outcome.value}"
        for s, a in zip(seen[-len(answers) :], answers, strict=True)
    )
    if len(seen) > len(answers):
        words = (f"{len(seen)} transactions have the token; the newest of them:", *words)
    told = [a for a in answers if a.outcome is not Outcome.ABORTED] or [answers[-1]]
    if len({a.outcome for a in told}) > 1 or len(seen) > len(answers):
        outcome, why = OWN_TOKEN_RULES["unknown.token-twice"]
        return OutcomeAnswer(None, None, outcome, "unknown.token-twice", why, None, words, token=token)
    return replace(told[-1], token=token, evidence=(*words, *told[-1].evidence))


def decide_absent(
    question: OwnQuestion, found: Mapping[int, OwnFound], evidence: OutcomeEvidence, end: Lsn
) -> OutcomeAnswer:
    """The answer of a token that no transaction is known to have; of the evidence all counts but the status.

    ``found`` is what was read, by epoch, and ``end`` how far the log went before.
    """
    read = [f"the log of epoch {e} was read from {f.start} on, and does not have it" for e, f in sorted(found.items())]
    starts = {start.epoch: start.fork_lsn for start in evidence.starts}
    parts = {e: (begins, until) for e, begins, until in _line(evidence.present, evidence.history, end, starts)}
    epoch = question.epoch
    if any(what.is_loose for what in found.values()):
        return _answer(question, "unknown.token-loose")
    if epoch is None:
        return _answer(question, "unknown.token-not-found", *read)
    is_read = epoch not in parts
    if not is_read:
        begins, until = max(parts[epoch][0], _begins(question)), parts[epoch][1]
        is_read = begins >= until or (epoch in found and found[epoch].start <= begins)
    if epoch == evidence.present:
        return _answer(question, "unknown.token-not-yet", *read, is_there=False if is_read else None)
    if not is_read:
        return _answer(question, "unknown.token-unread", *read)
    proof, missing = nothing_beyond(epoch, evidence)
    if proof is None:
        return _answer(question, "unknown.token-may-be-lost", *read, *missing, is_there=False)
    return _answer(question, "aborted.token-absent", *read, proof, is_there=False)


def _begins(question: OwnQuestion) -> Lsn:
    """From where on the log may have the token."""
    return Lsn(0) if question.lsn is None else Lsn(max(0, question.lsn - SLACK_BYTES))


def _answer(question: OwnQuestion, rule: str, *evidence: str, is_there: bool | None = None) -> OutcomeAnswer:
    outcome, why = OWN_TOKEN_RULES[rule]
    return OutcomeAnswer(None, question.epoch, outcome, rule, why, is_there, evidence, token=question.token)
