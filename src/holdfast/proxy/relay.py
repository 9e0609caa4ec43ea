"""One session: every message in both directions, and what happens when its server is lost.

The messages of both are walked one by one, so that it is always known what the server owes. While there is no server,
or a switchover asks for patience, the first message of a statement waits and the rest behind it.
"""

from __future__ import annotations

import asyncio
from dataclasses import replace
from typing import TYPE_CHECKING

import structlog

from holdfast.model.errors import ProtocolViolation
from holdfast.model.report import ProxyOutcome
from holdfast.proxy.answers import answers_to, cannot_move, transaction_lost
from holdfast.proxy.entry import Entry
from holdfast.proxy.fates import BEGINS_WORK, IGNORED_WHEN_IDLE, WHOLE_STATEMENTS, Fate
from holdfast.proxy.lane import HoldEnded, Lane
from holdfast.proxy.limits import HELD_BYTES_MAX
from holdfast.proxy.pool import Pool, Waiter
from holdfast.proxy.server import ServerConnection, ServerRefused
from holdfast.proxy.sharing import Share
from holdfast.wire import messages as m
from holdfast.wire.frames import CONTINUED
from holdfast.wire.loss import judge_loss
from holdfast.wire.owed import Ledger
from holdfast.wire.own import with_own
from holdfast.wire.sql import Control, control_of, split_statements
from holdfast.wire.startup import Login
from holdfast.wire.state import ReplayStep

if TYPE_CHECKING:
    from holdfast.proxy.client import Client

log = structlog.get_logger(__name__)


class Relay(Entry):
    """A session between a logged-in client and the server of the moment: the full way."""

    def __init__(self, client: Client, lane: Lane, login: Login, process_id: int, secret: bytes) -> None:
        super().__init__(client, lane, login)
        self.process_id = process_id
        self.secret = secret
        self._attaching: asyncio.Task[None] | None = None
        self._refusal: m.Report | None = None
        self._is_over = False
        self._is_forwarding = False  # the message that continues goes to the server
        self._translation = b""  # what goes to the server in place of the message at hand
        self._withheld = b""  # said by a server that may not be the primary any more
        self._lost_transaction: str | None = None  # why it was lost; its owner does not know yet
        self._last_word: m.Report | None = None  # why the session ends; None: the client said goodbye

    def _is_in_order(self) -> bool:
        is_waiting = self._attaching is not None or self._refusal is not None or self._is_discarding
        return not (is_waiting or self._is_over or self._withheld or self._lost_transaction is not None)

    @property
    def server_parameters(self) -> dict[str, str]:
        """The client's own start-up parameters."""
        return self._login.parameters

    @property
    def pool(self) -> Pool | None:
        """Where its servers come from, if it shares them."""
        return self._share.pool if self._share is not None else None

    @property
    def traffic_class(self) -> str:
        """The class that the policy gave it when it last asked to be let in."""
        return self._permit.traffic_class

    def steps(self, server: ServerConnection) -> list[ReplayStep]:
        """What a server must be told."""
        if self._share is not None:
            return self._share.steps(self._state, server, self._ledger.status)
        return self._state.replay(self._ledger.status)

    def forget(self, names: set[bytes]) -> None:
        """These prepared statements could not be made again."""
        for name in names:
            self._state.closed(name)

    # beginning and end

    def begin(self, server: ServerConnection | None, parameters: dict[str, str]) -> None:
        """The client was told ``parameters`` and that it may go on."""
        self._replies.knows(parameters)
        if server is not None:
            self._adopt(server)
            self.settle()

    def client_lost(self) -> None:
        """The client is gone: end its server session. What was sent still runs, as on a direct connection. Idempotent:
        after a goodbye the connection ends, too, and what runs then is an orphan's.
        """
        if self._is_over:
            return
        self.land()
        self._is_over = True
        if self._attaching is not None:
            self._stop_waiting(self._attaching)
        server, self.current = self.current, None
        if server is not None and self._has_sent_half:
            server.drop()  # it would wait for the other half
        elif server is not None and self._permit.is_in and self._ledger.head is not None:
            self.lane.orphans.adopt(server, self._permit, self._leave_quarantine)
            return
        self.lane.admission.give_back(self._permit)
        self._leave_quarantine()
        if server is not None:
            server.close()

    def end(self, report: m.Report | None) -> None:
        """Close both sides, telling the client why, if there is a reason."""
        self.client_lost()
        self._client.close(report)

    def client_busy(self, busy: bool) -> None:
        """The client reads slowly, or has caught up."""
        self._is_client_busy = busy
        if self.current is not None:
            self.current.pause_reading(busy)

    def server_busy(self, busy: bool) -> None:
        """The server reads slowly, or has caught up."""
        self._client.pause_reading(busy)
        if not busy:
            self.settle()

    # from the client

    def _from_client_fully(self, data: bytes) -> None:
        if self._is_over:
            return
        self._is_unused = False
        if self._attaching is not None:
            self._client_cutter.hold(data)
            if self._client_cutter.waiting_bytes > HELD_BYTES_MAX:
                self._client.pause_reading(True)
            return
        try:
            self._pump(data)
        except ProtocolViolation as violation:
            log.info("client.malformed", port=self.lane.purpose, reason=str(violation))
            self.end(m.fatal("08P01", str(violation)))

    def _pump(self, data: bytes) -> None:
        buffer, frames = with_own(*self._client_cutter.feed(data))
        begin = end = 0
        for kind, start, end in frames:
            try:
                fate = self._fate_of(kind, buffer, start, end)
            except ProtocolViolation:
                self._to_server(buffer[begin:start])  # what came before it runs, as on a direct connection
                raise
            if fate is Fate.FORWARD:
                if self._translation:
                    self._to_server(buffer[begin:start] + self._translation)
                    self._translation, begin = b"", end
                continue
            if begin < start:
                self._to_server(buffer[begin:start])
            begin = end
            if fate is Fate.END:
                self.end(self._last_word)
                return
            if fate is Fate.WAIT or fate is Fate.QUEUE:
                self._client_cutter.push_back(buffer[start : frames[-1][2]])
                if fate is Fate.WAIT:
                    if self._share is None or not self.lane.can_serve():
                        self.lane.admission.give_back(self._permit)  # it was let in, and meanwhile has no server
                    self._wait(self._attach())
                return
        if begin < end:
            self._to_server(buffer[begin:end])

    def _to_server(self, data: bytes) -> None:
        if self.current is not None:
            self.current.write(data)

    def _fate_of(self, kind: int, buffer: bytes, start: int, end: int) -> Fate:
        if kind == CONTINUED:
            return Fate.FORWARD if self._is_forwarding and self.current is not None else Fate.DROP
        self._is_forwarding = False
        if self._is_over:
            return Fate.DROP
        if kind == m.TERMINATE:
            return Fate.END
        if self._is_discarding:
            return self._discard(kind, buffer, start, end)
        if self._refusal is not None and kind in BEGINS_WORK:
            refusal, self._refusal = self._refusal, None
            self.lane.admission.give_back(self._permit)
            return self._turn_away(kind, refusal, buffer[start:])
        if kind == m.SYNC and self._ledger.is_between_statements:
            self._client.write(m.ready_for_query(self._ledger.status))
            return Fate.DROP
        server = self.current
        if server is None and self._share is not None and kind in BEGINS_WORK and self._lost_transaction is None:
            server = self._borrow(self._share)
        if server is None or self._must_ask_first(server):
            fate = self._without_server(kind, buffer, start, end)
            if fate is not Fate.FORWARD:
                return fate
        if kind in BEGINS_WORK:
            fate = self._pass_quarantine(kind, buffer, start, end) if self.lane.quarantine.is_on else Fate.FORWARD
            if fate is Fate.FORWARD and not self._permit.is_in:
                fate = self._enter(kind, buffer, start)
            if fate is not Fate.FORWARD:
                return fate
            self._note_beginning()
        owed = self._requests.read(kind, buffer, start, end)
        guarded = self._guard(kind, owed) if self.lane.guard.is_on else None
        if self._share is not None and self.current is not None:
            names, held = self._share.names, self.current.held
            self._translation = names.send(kind, owed, buffer[start:end], held, self._ledger, self._state.mark)
        if guarded is not None:
            own = b"" if guarded.is_whole else self._translation or buffer[start:end]
            self._translation, owed = guarded.data + own, guarded.owed
        if guarded is None or not guarded.is_whole:
            self._ledger.sent(kind, owed)
        self._is_forwarding = True
        return Fate.FORWARD

    @property
    def _has_sent_half(self) -> bool:
        """Whether the server has got the beginning of a message whose end the client still owes."""
        return self._is_forwarding and self._client_cutter.inside_frame

    def _must_ask_first(self, server: ServerConnection) -> bool:
        """Whether a statement that begins now may not simply go to the server that is there."""
        if not self._ledger.is_idle:
            return False
        if server.on_hold or self.lane.must_withhold(server):
            return True
        return not self._state.pins and self.lane.has_better(server)

    def _without_server(self, kind: int, buffer: bytes, start: int, end: int) -> Fate:
        """A message that finds no server, or one it must not use; nothing is owed to the client."""
        if self.current is None and kind in IGNORED_WHEN_IDLE:
            return Fate.DROP
        if kind == m.SYNC or kind in IGNORED_WHEN_IDLE:
            if self.current is not None:
                return Fate.FORWARD
            self._client.write(m.ready_for_query(self._ledger.status))
            return Fate.DROP
        if self._lost_transaction is not None:
            return self._tell_of_lost_transaction(kind, buffer, start, end)
        return Fate.WAIT

    def _fail(self, kind: int, report: m.Report, batch: bytes = b"") -> Fate:
        """Answer a statement with an error of our own, or with an older answer; the session goes on."""
        instead = self._instead_of(report, batch) if batch else None
        self._leave_quarantine()  # it may have been let in there, and does not run
        self._client.write(report.encode() if instead is None else instead)
        if kind in WHOLE_STATEMENTS:
            self._client.write(m.ready_for_query(self._ledger.status))
        else:
            self._is_discarding = True
        return Fate.DROP

    def _tell_of_lost_transaction(self, kind: int, buffer: bytes, start: int, end: int) -> Fate:
        """The first statement after the server took an open transaction with it."""
        reason, self._lost_transaction = self._lost_transaction or "", None
        control = Control.OTHER
        if kind == m.QUERY and (statements := split_statements(buffer[start + 5 : end - 1])):
            control = control_of(statements[0])
        if control is Control.ROLLBACK:
            return Fate.WAIT  # in the failed transaction that the next server is given
        ends = control is Control.COMMIT
        self._ledger.status = m.IDLE if ends else m.IN_FAILED_TRANSACTION
        fate = self._fail(kind, transaction_lost(reason))
        if self._is_discarding:
            self._discard(kind, buffer, start, end)
        return fate

    def _discard(self, kind: int, buffer: bytes, start: int, end: int) -> Fate:
        if kind == m.SYNC:
            self._is_discarding = False
            self._client.write(m.ready_for_query(self._ledger.status))
            return Fate.DROP
        owed = self._requests.read(kind, buffer, start, end)
        if kind in (m.PARSE, m.EXECUTE) and owed is not None and owed.sql is not None:
            statements = split_statements(owed.sql)
            if statements and control_of(statements[0]) in (Control.COMMIT, Control.ROLLBACK):
                self._ledger.status = m.IDLE
        return Fate.DROP

    # waiting for a server; to be let in is `entry`

    def _wait_fully(self, data: bytes, waiter: Waiter) -> None:
        self._client_cutter.hold(data)
        self._wait(self._attach(waiter))
        pool = self.pool
        if self._attaching is not None and pool is not None:
            self._attaching.add_done_callback(lambda task: waiter.forsake(pool))

    def _refuse_fully(self, data: bytes) -> None:
        self._refusal = self.lane.waited_in_vain(self.pool, self.traffic_class)
        self._from_client_fully(data)

    async def _attach(self, waiter: Waiter | None = None) -> None:
        server: ServerConnection | None = None
        try:
            server = await self.lane.acquire(self, waiter=waiter)
        except HoldEnded as ended:
            self._refusal = ended.report
        except ServerRefused as refused:
            self._attaching = None
            self.end(replace(refused.report, severity="FATAL"))
            return
        self._go_on(server)

    def _go_on(self, server: ServerConnection | None) -> None:
        self._attaching = None
        if server is not None and server is not self.current:
            if self.current is not None and self._state.pins:
                server.close()
                self.end(cannot_move(judge_loss(self._ledger), "another server is named", sorted(self._state.pins)))
                return
            if self.current is not None:
                self.current.close()
            self._adopt(server)
        self._client.pause_reading(False)
        self._from_client_fully(b"")

    def _adopt(self, server: ServerConnection) -> None:
        changed = self._replies.begin(server.status, server.parameters, server.held)
        if changed:
            self._client.write(b"".join(m.parameter_status(name, value) for name, value in changed.items()))
        self.current = server
        server.attach(self)
        if self._share is not None:
            self._share.has(self._state, server)
        if self._is_client_busy:
            server.pause_reading(True)
        self.reroute()

    def _borrow(self, share: Share) -> ServerConnection | None:
        """A shared server that can be used at once."""
        server = share.borrow(self._state, self._ledger.status)
        if server is not None:
            self._adopt(server)
        return server

    def settle(self) -> None:
        """Between transactions a shared server is given back, unless the session has something on it."""
        server, share = self.current, self._share
        if server is None or share is None or self._flight.data:
            return
        if not self._ledger.is_idle or self._withheld or not server.is_settled:
            return
        if not (self._replies.is_between_messages and share.may_give_back(self._state)):
            return
        # A COPY may fail in the middle of a message, or before it has read all that was sent.
        is_unfit = self._has_sent_half or self._ledger.may_answer_more or server.is_doubtful
        self.current, self._is_forwarding = None, False
        self._requests.ended()
        if is_unfit:
            server.drop()
            return
        server.status = m.IDLE
        if self._is_client_busy:
            server.pause_reading(False)
        share.give_back(self._state, server)

    def mark_unused(self) -> None:
        """From now on see whether the client uses its server."""
        self._is_unused = self.current is not None

    def let_go(self) -> None:
        """End the server session if the client has not used it since `mark_unused`; the next statement gets another.

        Only between statements, outside of a transaction, and if all of the session can be told to another server.
        """
        self.land()
        server = self.current
        busy = self._attaching is not None or not self._ledger.is_idle or self._state.pins or self._withheld
        if server is None or not self._is_unused or busy or self._replies.inside_frame or not server.is_settled:
            return
        self.current = None
        self._requests.ended()
        self._is_forwarding = False
        self.lane.counters.servers_let_go += 1
        server.close()

    def reroute(self) -> None:
        """The routing has changed: leave a server that must not be used any more, and hold or release."""
        self.land()
        server = self.current
        if server is None:
            return
        reason = self.lane.must_drop(server)
        if reason is not None:
            server.abort(reason)
            return
        server.on_hold = self.lane.must_hold(server)
        if self._withheld and not self.lane.must_withhold(server):
            withheld, self._withheld = self._withheld, b""
            server.pause_reading(self._is_client_busy)
            self._from_server_fully(withheld)

    def cancel(self) -> ServerConnection | None:
        """A cancel request: ends a wait here; otherwise returns the server to ask, if it may be asked.

        A commit that may be waiting for its standbys is not cancelled: it would end in success without them.
        """
        self.land()
        if self._is_finding_out or self._is_committing:
            return None
        if self._ledger.head is not None:  # if something waits behind it, it goes on waiting
            return self.current
        if self._attaching is not None:
            self._stop_waiting(self._attaching)
            self._refusal = m.error("57014", "canceling statement due to user request")
            self._go_on(None)
        return None

    # from the server

    def _from_server_fully(self, data: bytes) -> None:
        """What may be no longer true is kept back until it is known to be."""
        server = self.current
        if server is not None and self.lane.must_withhold(server):
            self._withheld += data
            server.pause_reading(True)
            return
        try:
            self._answer(data)
        except ProtocolViolation as violation:
            log.error("server.malformed", port=self.lane.purpose, reason=str(violation))
            if self.current is not None:
                self.current.abort(f"protocol violation: {violation}")

    def _answer(self, data: bytes) -> None:
        replies = self._replies
        out = replies.take(data)
        if out:
            self._client.write(out)
        if replies.guard_row is not None:
            self._note_guard(replies.guard_row)
        if replies.given_up is not None:
            self._lose(replies.given_up, commit_unconfirmed=replies.is_unconfirmed)
            return
        if replies.is_over:
            self.lane.admission.leave(self._permit)
        if self._custody.cell is not None and self._ledger.is_between_statements and self._attaching is None:
            self.lane.quarantine.ended(self._custody, failed=replies.has_failed)
        if self._share is not None and self._ledger.is_idle:
            self._share.names.settled(self._state.prepared)
            self.settle()
        if self._state.own:
            self._client.heed(self)

    # loss

    def server_lost(self, server: ServerConnection, reason: str) -> None:
        """The connection is gone."""
        if server is self.current:
            self.land()
            self.lane.saw(server.target, ProxyOutcome.RESET)
            self._lose(reason)

    def _lose(self, reason: str, *, commit_unconfirmed: bool = False) -> None:
        server, self.current = self.current, None
        self._withheld = b""
        if server is None:
            return
        server.drop()
        self.lane.note_in_flight(server, self._permit)
        if self._attaching is None:  # else it keeps the places of what waits, and has none of what is lost
            self._leave_quarantine()
            self.lane.admission.lost(self._permit)
        self.lane.counters.servers_lost += 1
        if self._replies.inside_frame:
            log.warning("client.cut", reason="half of a large row was already sent")
            self._client.abort()
            return
        ledger = self._ledger
        held_open = ledger.is_between_statements and ledger.status == m.IN_TRANSACTION
        loss = judge_loss(ledger, commit_unconfirmed=commit_unconfirmed)
        self._requests.ended()
        self._batch.clear()
        self._is_forwarding = False
        if loss.token is not None and self._attaching is None and not self._state.pins:
            self._attaching = self._begin_finding_out(server, reason, loss)
            return
        self._replies.ledger = Ledger(loss.status)
        self._state.lost()
        self.lane.lost(self._client.owner(self._login), self.traffic_class, server.target, loss, held_open=held_open)
        if self._state.pins:
            self.end(cannot_move(loss, reason, sorted(self._state.pins)))
            return
        self._lost_transaction = reason if held_open else None
        self._is_discarding = loss.awaits_sync
        self._client.write(answers_to(loss, reason))
        self._client.pause_reading(False)
