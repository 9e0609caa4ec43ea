"""Which replies a server still owes: the table of legal moves, and the machine that walks it.

Everything a client sends that provokes a reply is queued; every message of the server is looked up under the state of
the queue's head. A pair that is not in the table raises ProtocolViolation. Nothing is ever inferred from bytes that
merely look like a message.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Iterator, Mapping
from enum import IntEnum
from typing import TYPE_CHECKING, Final

from holdfast.model.errors import ProtocolViolation
from holdfast.wire import messages as m
from holdfast.wire.frames import describe

if TYPE_CHECKING:
    from holdfast.wire.guard import Token


class Reply(IntEnum):
    """What the server is answering, and how far it has come."""

    QUERY = 1
    QUERY_COPY_IN = 2
    QUERY_COPY_OUT = 3
    QUERY_FAILED = 4
    PARSE = 5
    BIND = 6
    DESCRIBE = 7
    EXECUTE = 8
    EXECUTE_COPY_IN = 9
    EXECUTE_COPY_OUT = 10
    CLOSE = 11
    SYNC = 12
    CALL = 13
    COPY_END = 14
    """CopyDone or CopyFail, sent ahead of the copy it ends; a server that is not copying ignores it."""


class Step(IntEnum):
    """What one message of the server means."""

    GOES_ON = 1
    """More of the same answer follows."""
    COMPLETE = 2
    """A statement ended well (CommandComplete and its like); the answer may go on."""
    DONE = 3
    """This answer is complete."""
    COPY_IN = 4
    """The server now reads the client's copy data."""
    FAILED = 5
    """The statement failed; the answer goes on up to ReadyForQuery."""
    SKIPS = 6
    """The statement failed; the server ignores everything up to the next Sync."""
    READY = 7
    """ReadyForQuery."""
    ASIDE = 8
    """A message that may come at any time and answers nothing."""
    UNSOLICITED = 9
    """An ErrorResponse that answers nothing: the server is about to close the connection."""


_ROWS = {m.DATA_ROW: (Step.GOES_ON, None)}
_COPY_ROWS = {m.COPY_DATA: (Step.GOES_ON, None), m.COPY_DONE: (Step.GOES_ON, None)}
_SKIP = {m.ERROR: (Step.SKIPS, None)}
_READY = {m.READY_FOR_QUERY: (Step.READY, None)}

TABLE: Final[Mapping[Reply, Mapping[int, tuple[Step, Reply | None]]]] = {
    Reply.QUERY: {
        **_ROWS,
        **_READY,
        m.ROW_DESCRIPTION: (Step.GOES_ON, None),
        m.COMMAND_COMPLETE: (Step.COMPLETE, None),
        m.EMPTY_QUERY: (Step.GOES_ON, None),
        m.COPY_IN: (Step.COPY_IN, Reply.QUERY_COPY_IN),
        m.COPY_OUT: (Step.GOES_ON, Reply.QUERY_COPY_OUT),
        m.ERROR: (Step.FAILED, Reply.QUERY_FAILED),
    },
    Reply.QUERY_COPY_IN: {
        m.COMMAND_COMPLETE: (Step.COMPLETE, Reply.QUERY),
        m.ERROR: (Step.FAILED, Reply.QUERY_FAILED),
    },
    Reply.QUERY_COPY_OUT: {
        **_COPY_ROWS,
        m.COMMAND_COMPLETE: (Step.COMPLETE, Reply.QUERY),
        m.ERROR: (Step.FAILED, Reply.QUERY_FAILED),
    },
    Reply.QUERY_FAILED: _READY,
    Reply.PARSE: {m.PARSE_COMPLETE: (Step.DONE, None), **_SKIP},
    Reply.BIND: {m.BIND_COMPLETE: (Step.DONE, None), **_SKIP},
    Reply.DESCRIBE: {
        m.PARAMETER_DESCRIPTION: (Step.GOES_ON, None),
        m.ROW_DESCRIPTION: (Step.DONE, None),
        m.NO_DATA: (Step.DONE, None),
        **_SKIP,
    },
    Reply.EXECUTE: {
        **_ROWS,
        m.COMMAND_COMPLETE: (Step.COMPLETE, None),
        m.EMPTY_QUERY: (Step.DONE, None),
        m.PORTAL_SUSPENDED: (Step.DONE, None),
        m.COPY_IN: (Step.COPY_IN, Reply.EXECUTE_COPY_IN),
        m.COPY_OUT: (Step.GOES_ON, Reply.EXECUTE_COPY_OUT),
        **_SKIP,
    },
    Reply.EXECUTE_COPY_IN: {m.COMMAND_COMPLETE: (Step.COMPLETE, None), **_SKIP},
    Reply.EXECUTE_COPY_OUT: {**_COPY_ROWS, m.COMMAND_COMPLETE: (Step.COMPLETE, None), **_SKIP},
    Reply.CLOSE: {m.CLOSE_COMPLETE: (Step.DONE, None), **_SKIP},
    # A deferred constraint fails at Sync: an error, then ReadyForQuery.
    Reply.SYNC: {m.ERROR: (Step.FAILED, None), **_READY},
    Reply.CALL: {m.FUNCTION_RESULT: (Step.GOES_ON, None), m.ERROR: (Step.FAILED, None), **_READY},
    Reply.COPY_END: {},
}
"""State of the answer → type of the message → what it means, and the next state if it changes."""

ASIDE: Final = frozenset((m.NOTICE, m.PARAMETER_STATUS, m.NOTIFICATION))

PROVOKES: Final[Mapping[int, Reply]] = {
    m.QUERY: Reply.QUERY,
    m.PARSE: Reply.PARSE,
    m.BIND: Reply.BIND,
    m.DESCRIBE: Reply.DESCRIBE,
    m.EXECUTE: Reply.EXECUTE,
    m.CLOSE: Reply.CLOSE,
    m.SYNC: Reply.SYNC,
    m.FUNCTION_CALL: Reply.CALL,
    m.COPY_DONE: Reply.COPY_END,
    m.COPY_FAIL: Reply.COPY_END,
}
"""What a client's message provokes."""

SILENT: Final = frozenset((m.FLUSH, m.COPY_DATA, m.TERMINATE))
"""What a client may send that is never answered."""

OPENS_BATCH: Final = frozenset((m.PARSE, m.BIND, m.DESCRIBE, m.EXECUTE, m.CLOSE))
"""Messages of the extended protocol: a Sync must follow before the session is between statements again."""

_SIMPLE: Final = frozenset((Reply.QUERY, Reply.QUERY_COPY_IN, Reply.QUERY_COPY_OUT, Reply.QUERY_FAILED))


class Owed:
    """One reply that is owed. ``sql`` is the statement's text (Query, Parse, Execute), ``name`` a statement's name.

    A reply that ``is_hidden`` is not the client's: it did not ask for it, and does not see it unless it is an error.
    On a shared connection a completed one ``makes`` or ``drops`` a prepared statement, by its shared name. One that
    ``uses`` a statement there fails if that has become outdated.

    Of the guard of commits (`wire.guard`): one that ``is_guard`` makes, binds or executes its statement; the one whose
    answer tells the client of the commit has the ``token``. What completes one that ``is_kept`` is not for the client
    before the next message, and what completes one that ``is_muted`` not at all. One that ``is_plain`` stands for a
    part of a simple Query.
    """

    __slots__ = (
        "body",
        "completed",
        "drops",
        "is_guard",
        "is_hidden",
        "is_kept",
        "is_muted",
        "is_plain",
        "makes",
        "name",
        "reply",
        "sql",
        "token",
        "uses",
        "values",
    )

    def __init__(
        self,
        reply: Reply,
        sql: bytes | None = None,
        name: bytes | None = None,
        body: bytes = b"",
        values: tuple[bytes | None, ...] = (),
        *,
        is_hidden: bool = False,
        makes: bytes | None = None,
        drops: bytes | None = None,
        is_guard: bool = False,
        is_plain: bool = False,
    ) -> None:
        self.reply = reply
        self.sql = sql
        self.name = name
        self.body = body
        self.values = values
        self.completed = 0
        self.is_hidden = is_hidden
        self.makes = makes
        self.drops = drops
        self.uses: bytes | None = None
        self.is_guard = is_guard
        self.is_plain = is_plain
        self.is_kept = False
        self.is_muted = False
        self.token: Token | None = None

    @property
    def is_simple(self) -> bool:
        """Whether it answers a simple Query."""
        return self.reply in _SIMPLE


class Ledger:
    """What one server owes to one client."""

    __slots__ = ("_copying", "_queue", "_swallowed_syncs", "batch_failed", "executed", "in_batch", "skipping", "status")

    def __init__(self, status: int = m.IDLE) -> None:
        self._queue: deque[Owed] = deque()
        self._copying = False
        self._swallowed_syncs = 0
        self.status = status
        """Of the last ReadyForQuery."""
        self.skipping = False
        """The server failed and ignores everything until a Sync that the client has not sent yet."""
        self.in_batch = False
        """The client sent messages of the extended protocol and no Sync after them."""
        self.executed = False
        """Since the last ReadyForQuery a statement was executed whose transaction has not ended."""
        self.batch_failed = False
        """An ErrorResponse came since the last ReadyForQuery."""

    @property
    def is_between_statements(self) -> bool:
        """Nothing is owed and no batch is open; a transaction may be."""
        return not self._queue and not self.in_batch and not self._copying and not self.skipping

    @property
    def is_quiet(self) -> bool:
        """Between statements, and nothing of those before can have an effect any more."""
        return self.is_between_statements and not (self.executed or self.batch_failed or self._swallowed_syncs)

    @property
    def is_idle(self) -> bool:
        """Nothing is owed and no transaction is open."""
        return self.status == m.IDLE and self.is_between_statements

    @property
    def may_answer_more(self) -> bool:
        """Although nothing is owed: a Sync in the middle of a COPY is answered if the COPY had failed before."""
        return self._swallowed_syncs > 0

    @property
    def is_copying_in(self) -> bool:
        """The server reads copy data."""
        return self._copying

    @property
    def head(self) -> Owed | None:
        """What is being answered now."""
        return self._queue[0] if self._queue else None

    def pending(self) -> Iterator[Owed]:
        """All that is owed, in order."""
        return iter(self._queue)

    def sent(self, kind: int, owed: Owed | None = None) -> None:
        """The client's message ``kind`` goes to the server. Raises ProtocolViolation if it must not."""
        reply = PROVOKES.get(kind)
        if reply is None and kind not in SILENT:
            raise ProtocolViolation(f"a client must not send a message of type {describe(kind)} now")
        if self._copying:
            self._sent_while_copying(kind)
            return
        if kind == m.SYNC:
            self.in_batch = self.skipping = False
        elif kind in OPENS_BATCH:
            self.in_batch = True
        if reply is None or self.skipping or (reply is Reply.COPY_END and not self._queue):
            return
        self._queue.append(owed or Owed(reply))

    def _sent_while_copying(self, kind: int) -> None:
        if kind == m.SYNC:
            self._swallowed_syncs += 1
        elif kind in (m.COPY_DONE, m.COPY_FAIL):
            self._copying = False
        elif kind not in SILENT:
            raise ProtocolViolation(f"a client must not send a message of type {describe(kind)} during COPY")

    def received(self, kind: int) -> Step:
        """The server's message ``kind``; the head of the queue advances with it. Raises ProtocolViolation."""
        if kind in ASIDE:
            return Step.ASIDE
        if not self._queue:
            return self._received_unasked(kind)
        head = self._queue[0]
        move = TABLE[head.reply].get(kind)
        if move is None:
            raise ProtocolViolation(f"a server sent {describe(kind)} while it owed {head.reply.name.lower()}")
        step, then = move
        if step is Step.GOES_ON:
            if then is not None:
                head.reply = then
            return step
        self._advance(head, step, then)
        return step

    def _advance(self, head: Owed, step: Step, then: Reply | None) -> None:
        if step is Step.COMPLETE:
            self._copying = False
            self._swallowed_syncs = 0
            head.completed += 1
            self.executed = True
            if not head.is_simple:
                self._queue.popleft()
            self._ignore_ends_of_no_copy()
        elif step is Step.DONE:
            self._queue.popleft()
            self._ignore_ends_of_no_copy()
        elif step is Step.COPY_IN:
            self._begin_copy()
        elif step is Step.FAILED:
            self._copying = False
            self.batch_failed = True
        elif step is Step.SKIPS:
            self._copying = False
            self.batch_failed = True
            self._skip_to_sync()
        if then is not None:
            head.reply = then

    def ready(self, status: int) -> None:
        """Finish the head at ReadyForQuery with its status byte. Raises ProtocolViolation on an impossible one."""
        if status not in (m.IDLE, m.IN_TRANSACTION, m.IN_FAILED_TRANSACTION):
            raise ProtocolViolation(f"a server sent the unknown transaction status {describe(status)}")
        if self._queue:
            self._queue.popleft()
        else:
            self._swallowed_syncs -= 1
        self._ignore_ends_of_no_copy()
        self.status = status
        self.executed = self.batch_failed = False

    def _ignore_ends_of_no_copy(self) -> None:
        while self._queue and self._queue[0].reply is Reply.COPY_END:
            self._queue.popleft()

    def _received_unasked(self, kind: int) -> Step:
        if kind == m.ERROR:
            return Step.UNSOLICITED
        if kind == m.READY_FOR_QUERY and self._swallowed_syncs > 0:
            self.skipping = self.in_batch = False  # the copy had failed before the server read that Sync
            return Step.READY
        raise ProtocolViolation(f"a server sent {describe(kind)} while it owed nothing")

    def _begin_copy(self) -> None:
        """Sync and Flush are ignored during COPY IN, so what was sent ahead must be taken back."""
        self._copying = True
        queue = self._queue
        while len(queue) > 1:
            reply = queue[1].reply
            if reply is Reply.SYNC:
                self._swallowed_syncs += 1
            elif reply is Reply.COPY_END:
                self._copying = False
            else:
                raise ProtocolViolation("a client sent other messages ahead of the end of its COPY")
            del queue[1]
            if not self._copying:
                break
        if not queue[0].is_simple:
            self.in_batch = not any(owed.reply is Reply.SYNC for owed in queue)

    def _skip_to_sync(self) -> None:
        queue = self._queue
        while queue and queue[0].reply is not Reply.SYNC:
            queue.popleft()  # also a simple Query: it is ignored as everything is
        self.skipping = not queue
        self.in_batch = self.in_batch or self.skipping
