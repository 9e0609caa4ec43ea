"""Older answers in a session's place in the protocol: kept on the fast way, given where the database cannot be asked.

That is while no server is to be had, and where a statement would be refused: because its class is shed, or it waited in
vain. Never in a transaction, never to another user, and only to whole batches of a common kind (`wire.flight`).
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Final

from holdfast.proxy.fast import FastPath
from holdfast.proxy.lane import Lane
from holdfast.proxy.pools import PoolKey, key_of
from holdfast.proxy.stale import Keeping
from holdfast.wire import messages as m
from holdfast.wire.flight import Flight
from holdfast.wire.stale import READY_BYTES, question_of
from holdfast.wire.startup import Login

if TYPE_CHECKING:
    from collections.abc import Hashable

    from holdfast.proxy.client import Client

_CANNOT_BE_ASKED: Final = ("53", "57P03")
"""Beginnings of the SQLSTATEs of refusals after which an older answer is welcome; not of a cancel."""


class DegradedPath(FastPath):
    """What a session keeps and is given of older answers."""

    def __init__(self, client: Client, lane: Lane, login: Login) -> None:
        super().__init__(client, lane, login)
        self._asker: PoolKey = key_of(login.user, login.database, login.parameters.items())

    def _begin_keeping(self) -> Keeping | None:
        stale = self.lane.stale
        if stale.tolerance_s(self._flight.text) is None:
            return None
        question = self._question(self._flight)
        return None if question is None else Keeping(stale, question)

    def _question(self, flight: Flight) -> tuple[Hashable, ...] | None:
        asked = question_of(flight)
        return None if asked is None else (self._asker, self._state.mark, asked)

    def _answer_stale(self, data: bytes) -> bool:
        is_quiet = self._is_in_order() and self._client_cutter.is_empty and self._replies.is_between_messages
        if not is_quiet or not self.lane.is_out_of_reach():
            return False
        answer = self._older_answer(data)
        if answer is None:
            return False
        self._client.write(answer)
        return True

    def _instead_of(self, report: m.Report, batch: bytes) -> bytes | None:
        """What is said in place of a refusal, up to the ReadyForQuery; ``batch`` is all that was sent."""
        if not self.lane.stale.is_on or not report.sqlstate.startswith(_CANNOT_BE_ASKED):
            return None
        answer = self._older_answer(batch)
        return None if answer is None else answer[:-READY_BYTES]

    def _older_answer(self, data: bytes) -> bytes | None:
        state, ledger, flight = self._state, self._ledger, Flight()
        if state.pins or ledger.status != m.IDLE or not ledger.is_between_statements:
            return None
        if not flight.begin(data, self._requests.texts) or (flight.parse_end and self.current is not None):
            return None  # the unnamed statement would not be on the server that is there
        tolerance_s = self.lane.stale.tolerance_s(flight.text)
        question = self._question(flight)
        if tolerance_s is None or question is None:
            return None
        answer = self.lane.stale.find(question, tolerance_s)
        if answer is not None:
            self.answered_elsewhere(flight)
        return answer

    def answered_elsewhere(self, flight: Flight) -> None:
        """The session's server knows nothing of this batch: what became of the client's unnamed statement."""
        if flight.bind_end and not flight.parse_end:
            return
        if flight.parse_end:
            self._requests.texts[flight.name] = flight.sql
            self._state.parsed(flight.name, flight.data[: flight.parse_end])
        else:
            self._state.closed(b"")
        if self._share is not None:
            self._share.names.answered_elsewhere(flight)
