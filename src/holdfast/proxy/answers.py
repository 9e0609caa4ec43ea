"""What a client is told in place of a server's answer: what became of its statement, and what to do."""

from __future__ import annotations

from holdfast.model.outcome import Outcome
from holdfast.model.timeouts import ProxyTimeouts
from holdfast.wire import messages as m
from holdfast.wire.loss import CANNOT_SERVE, SERVER_GONE, Loss

COMMITTED_UNANSWERED = "VC001"
"""A class of our own: no SQLSTATE of PostgreSQL says that something is committed and that its answer is missing."""


def answers_to(loss: Loss, reason: str, outcome: Outcome = Outcome.UNKNOWN) -> bytes:
    """The messages that end what the server owed; ``outcome``: what was found out since, if anything was."""
    report = _outcome_unknown(reason) if loss.unknown else transaction_lost(reason)
    if outcome is Outcome.ABORTED:
        report = _rolled_back(reason)
    elif outcome is Outcome.COMMITTED:
        report = _committed_unanswered(reason)
    out = []
    for answer in loss.answers:
        if answer.needs_error:
            out.append(report.encode())
        if answer.status is not None:
            out.append(m.ready_for_query(answer.status))
    return b"".join(out)


def _outcome_unknown(reason: str) -> m.Report:
    return m.error(
        "08007",
        "the server was lost before it confirmed the statement: it may or may not have been committed",
        detail=reason,
        hint="Check whether the change is there before you repeat it.",
    )


def _rolled_back(reason: str) -> m.Report:
    return m.error(
        "40001",
        "the server was lost, and the transaction was rolled back: it is safe to retry",
        detail=f"{reason}. The log of the primary does not have its commit.",
        hint="Repeat the transaction; the connection can be used again.",
    )


def _committed_unanswered(reason: str) -> m.Report:
    return m.error(
        COMMITTED_UNANSWERED,
        "the transaction was committed, and the server was lost before it said what the statements did",
        detail=f"{reason}. The log of the primary has the commit.",
        hint="Do not repeat it. Look what the rows are, if the answer matters.",
    )


def transaction_lost(reason: str) -> m.Report:
    """The error of an open transaction that the server took with it."""
    return m.error(
        SERVER_GONE,
        "the server was lost and nothing of the transaction was committed",
        detail=reason,
        hint="Repeat the transaction; the connection can be used again.",
    )


def cannot_move(loss: Loss, reason: str, pins: list[str]) -> m.Report:
    """The last word to a session that holds what no other server has."""
    unknown = loss.unknown and any(answer.needs_error for answer in loss.answers)
    outcome = " The statement that was running may or may not have been committed." if unknown else ""
    return m.fatal(
        SERVER_GONE,
        f"the server was lost, and this session cannot be moved to another: {'; '.join(pins)}",
        detail=reason + "." + outcome,
        hint="Connect again.",
    )


def none_reached(what: str, hold_max_ms: int) -> m.Report:
    """A statement was held for as long as it may; ``what`` it was held for."""
    return m.error(CANNOT_SERVE, f"no {what} could be reached within {hold_max_ms} ms", hint=_retry_hint())


def pool_is_busy(size: int, hold_max_ms: int) -> m.Report:
    """A statement waited as long as it may for one of a pool's ``size`` connections."""
    text = f"all {size} server connections of this user and database were in use for {hold_max_ms} ms"
    return m.error("53300", text, hint=f"{_retry_hint()} Or raise proxy.pool_size, or shorten transactions.")


def too_many_wait(limit: int) -> m.Report:
    """A statement cannot be held beside the ``limit`` that are."""
    text = f"no server can be reached now, and {limit} clients wait already"
    return m.error(CANNOT_SERVE, text, hint=_retry_hint())


def _retry_hint() -> str:
    return f"Nothing was executed. Try again in {ProxyTimeouts().retry_hint_ms} ms."
