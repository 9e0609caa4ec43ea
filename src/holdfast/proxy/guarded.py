"""A session whose commits are guarded: what the proxy puts into its transactions, and how their outcome is told."""

from __future__ import annotations

import asyncio
from abc import abstractmethod
from dataclasses import dataclass, field, replace
from typing import TYPE_CHECKING, Final, NamedTuple

from holdfast.model.errors import ProtocolViolation
from holdfast.model.lsn import Lsn
from holdfast.model.outcome import Outcome
from holdfast.model.token import Mark
from holdfast.proxy.answers import answers_to
from holdfast.proxy.degraded import DegradedPath
from holdfast.proxy.lane import Lane
from holdfast.proxy.server import ServerConnection
from holdfast.wire import messages as m
from holdfast.wire.guard import (
    Sort,
    Told,
    answer_if_committed,
    guard_messages,
    has_parameters,
    plain_messages,
    sort_of,
)
from holdfast.wire.loss import Loss
from holdfast.wire.owed import Ledger, Owed, Reply
from holdfast.wire.sql import Control, control_of, split_statements
from holdfast.wire.startup import Login

if TYPE_CHECKING:
    from holdfast.proxy.client import Client


class Guarded(NamedTuple):
    """What goes to the server in front of the client's message, or in place of it; and how that will be answered."""

    data: bytes
    owed: Owed | None
    is_whole: bool = False
    """The client's message does not go there itself."""


@dataclass(slots=True)
class _Batch:
    """What was executed by the extended protocol since the last Sync."""

    executed: list[Owed] = field(default_factory=list)
    sorts: set[Sort] = field(default_factory=set)
    commit: Owed | None = None
    """The COMMIT among it that has a token."""

    def clear(self) -> None:
        self.executed.clear()
        self.sorts.clear()
        self.commit = None


class GuardedPath(DegradedPath):
    """The part of a session's full way that has to do with tokens (`wire.guard`)."""

    def __init__(self, client: Client, lane: Lane, login: Login) -> None:
        super().__init__(client, lane, login)
        self._batch = _Batch()
        self._is_discarding = False  # an error was sent: everything up to the client's Sync is ignored
        self._is_finding_out = False  # what became of a transaction; the client waits for that

    @abstractmethod
    def _go_on(self, server: ServerConnection | None) -> None:
        """What the session waited for has come: a server, or None."""

    # on the way to the server

    def _guard(self, kind: int, owed: Owed | None) -> Guarded | None:
        """What the client's message needs, if it commits something."""
        server, ledger, batch = self.current, self._ledger, self._batch
        if kind == m.QUERY:
            batch.clear()
            if server is None or owed is None or owed.sql is None or not ledger.is_between_statements:
                return None
            return self._guard_query(server, owed, owed.sql)
        if kind == m.EXECUTE and owed is not None:
            return self._guard_execute(server, owed)
        if kind == m.SYNC:
            guarded = self._guard_sync(server)
            batch.clear()
            return guarded
        return None

    def _guard_query(self, server: ServerConnection, owed: Owed, sql: bytes) -> Guarded | None:
        status, sort = self._ledger.status, sort_of(sql)
        if sort is Sort.COMMIT and status == m.IN_TRANSACTION:
            told = [*self._mark(server, owed), (m.SYNC_MESSAGE, Owed(Reply.SYNC, is_hidden=True))]
            return Guarded(self._sent(told), owed)
        if sort is Sort.WRITE and status == m.IDLE and not self._ledger.may_answer_more and not has_parameters(sql):
            end = Owed(Reply.SYNC, is_plain=True)
            told = [*plain_messages(sql), (_FLUSH, None), *self._mark(server, end), (m.SYNC_MESSAGE, end)]
            self._state.closed(b"")  # a simple Query takes the unnamed statement away
            return Guarded(self._sent(told), None, is_whole=True)
        return None

    def _guard_execute(self, server: ServerConnection | None, owed: Owed) -> Guarded | None:
        batch, ledger = self._batch, self._ledger
        sort = sort_of(owed.sql) if owed.sql is not None else Sort.OTHER
        batch.executed.append(owed)
        batch.sorts.add(sort)
        if batch.commit is not None:  # two transactions in one batch: one token does not tell of both
            batch.commit.token = None
        elif (
            sort is Sort.COMMIT and ledger.status == m.IN_TRANSACTION and server is not None and self._is_first_batch()
        ):
            batch.commit = owed
            return Guarded(self._sent(self._mark(server, owed)), owed)
        return None

    def _guard_sync(self, server: ServerConnection | None) -> Guarded | None:
        batch = self._batch
        is_transaction = Sort.WRITE in batch.sorts and batch.sorts <= {Sort.WRITE, Sort.READ}
        if not is_transaction or server is None or self._ledger.status != m.IDLE or not self._is_first_batch():
            return None
        for executed in batch.executed:
            executed.is_kept = True
        end = Owed(Reply.SYNC)
        return Guarded(self._sent([(_FLUSH, None), *self._mark(server, end)]), end)

    def _is_first_batch(self) -> bool:
        """Whether the end of no other batch is owed, nor has anything failed in this one."""
        ledger = self._ledger
        if ledger.skipping or ledger.batch_failed or ledger.is_copying_in or ledger.may_answer_more:
            return False
        return not any(owed.is_simple or owed.reply in (Reply.SYNC, Reply.CALL) for owed in ledger.pending())

    def _mark(self, server: ServerConnection, owed: Owed) -> Told:
        """The messages that write a token, which ``owed`` has from now on."""
        owed.token = self.lane.guard.token(server)
        mark = Mark(owed.token.text, self._client.owner(self._login))
        return guard_messages(mark.to_text())

    def _sent(self, told: Told) -> bytes:
        for message, owed in told:
            self._ledger.sent(message[0], owed)
        return b"".join(message for message, _ in told)

    # on the way back

    def _note_guard(self, row: bytes) -> None:
        """The guard's statement has answered."""
        self._replies.guard_row = None
        columns = m.read_data_row(row)
        if self.current is None or not columns or columns[0] is None:
            return
        try:
            lsn = Lsn.parse(columns[0].decode(errors="replace"))
        except ValueError as error:
            raise ProtocolViolation(f"a server answered the guard of a commit: {error}") from error
        self.lane.guard.wrote(self.current.target.epoch, lsn)

    @property
    def _is_committing(self) -> bool:
        """Whether the server has nothing to do before a commit, which must not be cancelled."""
        for owed in self._ledger.pending():
            if owed.is_simple or owed.reply in _WORKS:
                return owed.token is not None or owed.is_guard or _is_commit(owed.sql)
        return False

    # the server is gone

    async def _find_out(self, server: ServerConnection, reason: str, loss: Loss, normal: bytes | None) -> None:
        """Let the client wait until it is known what became of its commit, and tell it that.

        ``normal``: what it gets if it was committed, if that is known.
        """
        self._is_finding_out = True
        try:
            assert loss.token is not None
            outcome = await self.lane.guard.find_out(loss.token, self.lane.settings.timeouts.hold_max_ms)
        finally:
            self._is_finding_out = False
        self._tell(server, reason, loss, outcome, normal)

    def _tell(
        self, server: ServerConnection, reason: str, loss: Loss, outcome: Outcome, normal: bytes | None = None
    ) -> None:
        """What the client is told of a server that is gone; ``outcome`` is that of a guarded commit, else UNKNOWN."""
        if outcome is Outcome.COMMITTED:
            self._state.ended(m.IDLE, failed=False)
        self._state.lost()
        if outcome is Outcome.COMMITTED and normal is not None:
            self._client.write(normal)
            return
        if outcome is not Outcome.COMMITTED:
            told = replace(loss, unknown=False) if outcome is Outcome.ABORTED else loss
            owner, traffic_class = self._client.owner(self._login), self._permit.traffic_class
            self.lane.lost(owner, traffic_class, server.target, told, held_open=False)
        self._is_discarding = loss.awaits_sync
        self._client.write(answers_to(loss, reason, outcome))

    def _begin_finding_out(self, server: ServerConnection, reason: str, loss: Loss) -> asyncio.Task[None]:
        pending, kept = tuple(self._ledger.pending()), self._replies.kept
        normal = answer_if_committed(pending, kept)
        self._replies.ledger = Ledger(loss.status)

        async def find_out() -> None:
            await self._find_out(server, reason, loss, normal)
            self._go_on(None)

        return asyncio.get_running_loop().create_task(find_out())


def _is_commit(sql: bytes | None) -> bool:
    statements = split_statements(sql) if sql is not None else ()
    return len(statements) == 1 and control_of(statements[0]) is Control.COMMIT


_FLUSH: Final = m.message(m.FLUSH)
_WORKS: Final = frozenset((Reply.EXECUTE, Reply.EXECUTE_COPY_IN, Reply.EXECUTE_COPY_OUT, Reply.SYNC, Reply.CALL))
"""What the server may be busy with; the other messages of the extended protocol only prepare it."""
