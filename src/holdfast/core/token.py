"""What became of a transaction that was to carry a token, by the log of the present primary. Pure.

The primary of a later epoch has the log of an earlier one up to where it left it: a commit that is not in that part is
in no history that anybody will see. Within one epoch the answer is sure once the session that was to commit has ended.
"""

from __future__ import annotations

from collections.abc import Collection, Iterable, Mapping
from dataclasses import dataclass
from typing import Final

from holdfast.model.lsn import History, Lsn
from holdfast.model.outcome import Outcome
from holdfast.model.token import TokenAnswer, TokenQuestion

LOOK_BYTES_MAX: Final = 256 * 1024 * 1024
"""Of log that is read for one answer, up to where the epoch ended: about a second."""

TOKEN_RULES: Final[Mapping[str, tuple[Outcome, str]]] = {
    "token.committed": (Outcome.COMMITTED, "the log of the present primary has its token and its commit, confirmed"),
    "token.rolled-back": (Outcome.ABORTED, "the log of the present primary has its token, and no commit after it"),
    "token.absent": (Outcome.ABORTED, "the log of the present primary does not have its token"),
    "token.off-line": (Outcome.ABORTED, "the present primary has nothing of the epoch in which it was sent"),
    "token.running": (Outcome.IN_PROGRESS, "the session that was to commit it has not ended yet"),
    "token.unconfirmed": (Outcome.IN_PROGRESS, "nobody has confirmed in time what the present primary has"),
    "token.early": (Outcome.IN_PROGRESS, "the primary of the epoch in which it was sent does not serve yet"),
    "token.unread": (
        Outcome.UNKNOWN,
        "the log from when it was sent is not kept any more, or more than is read for an answer",
    ),
}
"""Every answer has one of these: what it is, and what the rule is for."""


@dataclass(frozen=True, slots=True)
class Stretch:
    """A part of the log that has to be read: of ``timeline``, which ``next_timeline`` (None: nobody) goes on from."""

    timeline: int
    next_timeline: int | None
    start: Lsn
    end: Lsn


@dataclass(frozen=True, slots=True)
class Found:
    """What a stretch holds: the xid of each token, and the xids (subtransactions too) that were committed.

    It was read from ``start`` on: what lies before is not kept.
    """

    start: Lsn
    xids: Mapping[str, int]
    committed: Collection[int]


@dataclass(frozen=True, slots=True)
class TokenEvidence:
    """``present`` is the epoch of the primary that was asked; ``running`` its server processes, as they were before
    ``is_confirmed`` was found out, and before the log was read. ``found`` has what was read, by epoch.
    """

    present: int
    history: History
    is_confirmed: bool
    running: frozenset[int]
    found: Mapping[int, Found]


def stretches(
    questions: Iterable[TokenQuestion], present: int, history: History, end: Lsn, starts: Mapping[int, Lsn]
) -> dict[int, Stretch]:
    """What has to be read, by the epoch of the questions. ``end`` is how far the log goes now.

    ``starts``: where each epoch begins, as far as that is known.
    """
    switches = {switch.timeline: switch.switch_lsn for switch in history}
    line = (*sorted(switches), present)
    first: dict[int, Lsn] = {}
    for question in questions:
        begins = max(question.after, starts.get(question.epoch, Lsn(0)))
        first[question.epoch] = min(begins, first.get(question.epoch, begins))
    found = {}
    for epoch, start in first.items():
        until = end if epoch == present else switches.get(epoch)
        if until is None or epoch > present:
            continue
        following = next((other for other in line if other > epoch), None)
        found[epoch] = Stretch(epoch, following, max(start, Lsn(max(0, until - LOOK_BYTES_MAX))), until)
    return found


def decide_token(question: TokenQuestion, evidence: TokenEvidence, starts: Mapping[int, Lsn]) -> TokenAnswer:
    """The answer to one question."""
    if question.epoch > evidence.present:
        return _answer(question, "token.early")
    is_same = question.epoch == evidence.present
    if is_same and question.pid in evidence.running:
        return _answer(question, "token.running")
    if not evidence.is_confirmed:
        return _answer(question, "token.unconfirmed")
    if not is_same and question.epoch not in {switch.timeline for switch in evidence.history}:
        return _answer(question, "token.off-line")
    found = evidence.found.get(question.epoch)
    xid = None if found is None else found.xids.get(question.token)
    if found is not None and xid is not None:
        return _answer(question, "token.committed" if xid in found.committed else "token.rolled-back", xid)
    begins = max(question.after, starts.get(question.epoch, Lsn(0)))
    if found is None or begins < found.start:
        return _answer(question, "token.unread")
    return _answer(question, "token.absent")


def _answer(question: TokenQuestion, rule: str, xid: int | None = None) -> TokenAnswer:
    outcome, why = TOKEN_RULES[rule]
    return TokenAnswer(question.token, outcome, rule, why, xid)
