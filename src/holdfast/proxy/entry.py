"""How a statement of a session gets into the database: by the quarantine first, then by the gate."""

from __future__ import annotations

import asyncio
import time
from abc import abstractmethod
from collections.abc import Coroutine

from holdfast.proxy.admission import Waiting
from holdfast.proxy.fates import Fate
from holdfast.proxy.guarded import GuardedPath
from holdfast.proxy.server import ServerConnection
from holdfast.wire import messages as m
from holdfast.wire.effects import Pin
from holdfast.wire.owed import Reply

_RUNS = frozenset((m.QUERY, m.EXECUTE))


class Entry(GuardedPath):
    """The waiting of a session, for whatever it may be."""

    _attaching: asyncio.Task[None] | None
    _refusal: m.Report | None
    _last_word: m.Report | None

    @abstractmethod
    def _fail(self, kind: int, report: m.Report, batch: bytes = b"") -> Fate:
        """Answer a statement with an error of our own; the session goes on.

        ``batch`` is all that was sent, the statement first, where an older answer may be given in its place.
        """

    @abstractmethod
    def _go_on(self, server: ServerConnection | None) -> None:
        """The wait is over."""

    def _wait(self, until: Coroutine[None, None, None]) -> None:
        self._attaching = asyncio.get_running_loop().create_task(until)

    def _stop_waiting(self, task: asyncio.Task[None]) -> None:
        task.cancel()
        self.lane.admission.withdraw(self._permit)
        self._leave_quarantine()

    @property
    def _has_locks(self) -> bool:
        """Whether others may wait for what the session has open."""
        ledger = self._ledger
        if ledger.status != m.IDLE or Pin.ADVISORY_LOCK in self._state.pins:
            return True
        return ledger.in_batch and (ledger.executed or any(owed.reply is Reply.EXECUTE for owed in ledger.pending()))

    def _leave_quarantine(self) -> None:
        """Of what the session has let in, or waits for, nothing is to be learnt."""
        self.lane.quarantine.left(self._custody)

    def _turn_away(self, kind: int, report: m.Report, batch: bytes = b"") -> Fate:
        """Refuse a statement.

        In a transaction the session ends: else the rest of it could be committed without the statement. So it does in
        the middle of a batch, of which the server has the beginning.
        """
        if self._ledger.is_between_statements and self._ledger.status != m.IN_TRANSACTION:
            return self._fail(kind, report, batch)
        self._last_word = m.fatal(report.sqlstate, report.text, detail=report.detail, hint=report.hint)
        return Fate.END

    def _pass_quarantine(self, kind: int, buffer: bytes, start: int, end: int) -> Fate:
        """A suspect waits for its turn; whoever has something open that others may wait for does not wait himself."""
        if self._ledger.status == m.IN_FAILED_TRANSACTION:
            return Fate.FORWARD  # nothing runs there
        sql = self._requests.text_of(kind, buffer, start, end)
        may_wait, is_run = not self._has_locks, kind in _RUNS
        asked = self.lane.quarantine.ask(self._custody, sql, self._permit, may_wait=may_wait, is_run=is_run)
        if asked is None:
            return Fate.FORWARD
        if isinstance(asked, m.Report):
            self.lane.counters.shed(self._permit.traffic_class)
            return self._turn_away(kind, asked, buffer[start:])
        self.settle()
        self._wait(self._go_in(asked))
        return Fate.QUEUE

    def _enter(self, kind: int, buffer: bytes, start: int) -> Fate:
        """Ask for a place; whoever has something open that others may wait for is let in without."""
        admission = self.lane.admission
        if self._permit_version != admission.version:
            self._permit, self._permit_version = self._new_permit(), admission.version
        if admission.enter(self._permit, must=self._has_locks):
            return Fate.FORWARD
        self.settle()  # nobody keeps a shared server while he waits to be let in
        waiting = admission.queue(self._permit)
        if isinstance(waiting, m.Report):
            self.lane.counters.shed(self._permit.traffic_class)
            return self._fail(kind, waiting, buffer[start:])
        self._wait(self._go_in(waiting))
        return Fate.QUEUE

    async def _go_in(self, waiting: Waiting) -> None:
        self._refusal = await waiting
        if self._refusal is not None:
            self.lane.counters.shed(self._permit.traffic_class)
        if self.current is None and self._share is None:
            self.lane.admission.give_back(self._permit)
        self._go_on(None)

    def _note_beginning(self) -> None:
        """A statement begins inside of an open transaction."""
        if self._ledger.status != m.IDLE and self._ledger.is_between_statements:
            self._asked_ms = time.monotonic() * 1000
