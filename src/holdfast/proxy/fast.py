"""The fast way of a session: common batches go through as they are, beside the full way (`relay`).

While a session is quiet, a common batch (`wire.flight`) goes to the server at once and is only remembered; its answer
is passed on, and the batch is forgotten. Everything else *lands* it first: the batch is told to the machines of the
full way as if they had followed it all along, and the session goes on there. So whoever touches the state of a session
calls `land` before.
"""

from __future__ import annotations

import time
from abc import abstractmethod
from typing import TYPE_CHECKING

from holdfast.core.admission.gate import Permit
from holdfast.proxy.door import Door
from holdfast.proxy.fates import FROM_CLIENT
from holdfast.proxy.footing import Switched
from holdfast.proxy.lane import Lane
from holdfast.proxy.pool import Waiter
from holdfast.proxy.quarantine import Custody
from holdfast.proxy.reactor import Wire
from holdfast.proxy.server import ServerConnection
from holdfast.proxy.sharing import Share
from holdfast.proxy.stale import Keeping
from holdfast.wire import messages as m
from holdfast.wire.flight import Flight
from holdfast.wire.frames import HEADER_BYTES, FrameCutter
from holdfast.wire.guard import may_need_guard
from holdfast.wire.owed import Ledger
from holdfast.wire.replies import Replies
from holdfast.wire.requests import Requests
from holdfast.wire.startup import Login
from holdfast.wire.state import SessionState

_IDLE = m.IDLE  # a constant of C where this is compiled

if TYPE_CHECKING:
    from holdfast.proxy.client import Client


class FastPath:
    """What both ways of a session share, and the fast one."""

    def __init__(self, client: Client, lane: Lane, login: Login) -> None:
        self.current: ServerConnection | None = None
        self.wire: Wire | None = None
        """The client's socket, if it is one of the proxy's own."""
        self._client = client
        self.lane = lane
        self._footing = lane.footing
        self._door: Door = lane.admission
        self._quarantine: Switched = lane.quarantine
        self._commit_guard: Switched = lane.guard
        self._stale: Switched = lane.stale
        self._login = login
        self._share: Share | None = lane.share(login)
        self._requests = Requests()
        self._state = SessionState()
        self._replies = Replies(self._requests, self._state, self._share.names if self._share is not None else None)
        self._client_cutter = FrameCutter(FROM_CLIENT)
        self._permit = self._new_permit()
        self._permit_version = lane.admission.version
        self._is_client_busy = False
        self._is_unused = False  # since `mark_unused`
        self._flight = Flight()
        self.hears_answers = False
        """Whether the session wants to know when a batch `answered` on the fast way."""
        self._may_fly = True  # but for tests that compare
        self._is_quiet = False  # as far as is known; `land` ends it
        self._asked_ms = 0.0  # when the last statement of an open transaction began
        self._custody = Custody()
        self._keeping: Keeping | None = None  # of the answer to the batch in flight
        self._waiter: Waiter | None = None  # the batch in flight is not sent yet: it waits for a shared server

    # of the others

    @abstractmethod
    def _begin_keeping(self) -> Keeping | None:
        """Keep the answer to the batch in flight, if it may be given again."""

    @abstractmethod
    def _answer_stale(self, data: bytes) -> bool:
        """Whether the bytes are answered by an older answer, because the database cannot be asked."""

    @property
    def _ledger(self) -> Ledger:
        return self._replies.ledger

    @abstractmethod
    def _is_in_order(self) -> bool:
        """Nothing is held, refused, discarded, withheld or lost."""

    @abstractmethod
    def _from_client_fully(self, data: bytes) -> None:
        """Take bytes of the client: whatever they are, and whatever is under way."""

    @abstractmethod
    def _from_server_fully(self, data: bytes) -> None:
        """Take bytes of the server: whatever they are."""

    @abstractmethod
    def _wait_fully(self, data: bytes, waiter: Waiter) -> None:
        """Wait in a task, in the place in line that the session has; ``data`` is the client's."""

    @abstractmethod
    def _refuse_fully(self, data: bytes) -> None:
        """Take bytes of the client, the beginning of a statement that has waited in vain for a shared server."""

    def answered(self) -> None:
        """A batch is answered; called if ``hears_answers``."""

    @abstractmethod
    def server_lost(self, server: ServerConnection, reason: str) -> None:
        """The connection is gone."""

    @abstractmethod
    def server_busy(self, busy: bool) -> None:
        """The server reads slowly, or has caught up."""

    @abstractmethod
    def settle(self) -> None:
        """Between transactions a shared server is given back."""

    def _new_permit(self) -> Permit:
        login = self._login
        application_name = login.parameters.get("application_name", "")
        permit = self.lane.admission.permit(login.user, login.database, application_name)
        permit.holder = self
        return permit

    def in_flight(self) -> tuple[bytes, float] | None:
        """The text of the statement that the server works on, and since when (monotonic, milliseconds)."""
        if self._flight.data:
            sql: bytes | None = self._flight.text
        else:
            sql = next((owed.sql for owed in self._ledger.pending() if owed.sql is not None), None)
        return None if sql is None else (sql, max(self._permit.since_ms, self._asked_ms))

    # both directions

    def from_client(self, data: bytes) -> None:
        """Take bytes of the client."""
        if not self._flight.data and (self._is_quiet or self._looks_quiet()) and self._take_off(data):
            return
        if self._stale.is_on and not self._flight.data and self._answer_stale(data):
            return
        self.land()
        self._from_client_fully(data)

    def from_server(self, data: bytes) -> None:
        """Take bytes of the server."""
        flight = self._flight
        if flight.data and self._footing.trust.is_fresh():
            answer = flight.answer(data)
            if answer is not None:
                if answer:
                    if self.wire is not None:
                        self.wire.write(answer)
                    else:
                        self._client.write(answer)
                    if self._keeping is not None and not self._keeping.add(answer):
                        self._keeping = None
                if flight.is_done:
                    self._arrive(flight)
                    if self.hears_answers:
                        self.answered()
                return
        self.land()
        self._from_server_fully(data)

    def _looks_quiet(self) -> bool:
        """Whether nothing is under way, and nothing about the session needs to be followed closely."""
        share, server, replies, ledger = self._share, self.current, self._replies, self._replies.ledger
        self._is_quiet = (
            self._may_fly
            and (server is not None or share is not None)
            and self._is_in_order()
            and ledger.is_quiet
            and ledger.status != m.IN_FAILED_TRANSACTION
            and replies.is_between_messages
            and self._client_cutter.is_empty
            and not self._state.pins
            and not (share is not None and self._state.prepared_by_sql)
            and not (server is not None and (server.on_hold or not server.stands() or self.lane.has_better(server)))
        )
        return self._is_quiet

    def _take_off(self, data: bytes) -> bool:
        """Send a batch of a common kind to the server; False: nothing was done."""
        flight, share, server = self._flight, self._share, self.current
        if not flight.begin(data, self._requests.texts):
            return False
        if (self._quarantine.is_on or self._commit_guard.is_on) and self._needs_full_way():
            flight.forget()
            return False
        is_idle = self._replies.ledger.status == _IDLE
        if is_idle and server is not None:
            if not self._footing.trust.is_fresh():
                flight.forget()
                return False
        elif server is None and share is not None and is_idle and not self._is_client_busy:
            server = self._borrow_at_once(share)
            if server is None and not self._permit.is_in and self._surely_serves():
                self._waiter = share.pool.stand_in_line(self)
                if self._waiter is not None:
                    self._is_unused = False
                    return True
        if server is None or not self._send(server, is_idle):
            flight.forget()
            return False
        return True

    def _surely_serves(self) -> bool:
        return self._footing.surely_serves() or self.lane.surely_serves()

    def _needs_full_way(self) -> bool:
        """Whether the statement of the flight may be a suspect, or a commit that is to be guarded."""
        if not (self._quarantine.is_on or self._commit_guard.is_on):
            return False
        flight, lane = self._flight, self.lane
        if lane.quarantine.is_on and lane.quarantine.holds(flight.text):
            return True
        return lane.guard.is_on and may_need_guard(flight.data[HEADER_BYTES:] if flight.is_simple else flight.sql)

    def _send(self, server: ServerConnection, is_idle: bool) -> bool:
        """Send the batch of the flight; False: nothing was done."""
        flight, share, permit, door = self._flight, self._share, self._permit, self._door
        data: bytes | None = flight.data
        if share is not None and not flight.is_simple:
            data = share.names.translate_at_once(flight, server.held, self._state.mark)
        if data is None:
            return False
        if not permit.is_in and (not is_idle or self._permit_version != door.version or not door.enter_at_once(permit)):
            return False
        if not is_idle:
            self._asked_ms = time.monotonic() * 1000
        flight.keeps_uncommitted = not is_idle and self._state.has_uncommitted
        self._is_unused = False
        self._keeping = self._begin_keeping() if is_idle and self._stale.is_on else None
        if server.wire is not None:
            server.wire.write(data)
        else:
            server.output.write(data)
        return True

    def _borrow_at_once(self, share: Share) -> ServerConnection | None:
        """A shared server that needs to be told nothing, nor the client of it."""
        server = share.peek_at_once(self._state)
        if server is None or not self._replies.begin_at_once(server.parameters, server.held):
            return None
        share.pool.take_shown()
        self._has_at_once(share, server)
        return server

    def _has_at_once(self, share: Share, server: ServerConnection) -> None:
        share.names.attached(server.held)
        server.on_hold = False
        self.current = server
        server.hand_to(self)

    def served(self, server: ServerConnection, waiter: Waiter) -> None:
        """The session was in line, and has this shared server now."""
        self._waiter = None
        share, replies, flight = self._share, self._replies, self._flight
        is_ready = (
            share is not None
            and self._footing.trust.is_fresh()
            and not (self._is_client_busy or self._needs_full_way())
            and share.is_there(self._state, server)
            and replies.begin_at_once(server.parameters, server.held)
        )
        if share is not None and is_ready:
            self._has_at_once(share, server)
            if self._send(server, True):
                return
            self.current = None
        server.detach()
        data = flight.data
        flight.forget()
        self._is_quiet = False
        # In a task: if it may not go in now, the connection is the next one's, and so on through the line.
        waiter.in_a_task()
        waiter.give_to_task(server)
        self._wait_fully(data, waiter)

    def waited_in_vain(self) -> None:
        """The session was in line for as long as it may."""
        data, self._waiter = self._flight.data, None
        self._flight.forget()
        self._is_quiet = False
        self._refuse_fully(data)

    def _arrive(self, flight: Flight) -> None:
        """The answer is complete: what the full way would have noted, and nothing is under way any more."""
        share, state, data = self._share, self._state, flight.data
        keeping, self._keeping = self._keeping, None
        if keeping is not None and flight.status == _IDLE:
            keeping.done()
        if flight.is_simple:
            if state.prepared:
                state.closed(b"")  # a simple Query takes the unnamed statement away
            if share is not None and share.names.has_made:
                share.names.sent_query_at_once()
        elif share is not None and self.current is not None:
            share.names.sent_at_once(flight, self.current.held, state.mark)
        if flight.parse_end:
            self._requests.texts[flight.name] = flight.sql
            state.parsed(flight.name, data[: flight.parse_end])
        flight.forget()
        ledger = self._replies.ledger
        was, ledger.status = ledger.status, flight.status
        if flight.status != _IDLE:
            if flight.bind_end:
                self._requests.portals[flight.portal] = (flight.sql, ())
            return
        if self._requests.portals:
            self._requests.ended()
        if was != _IDLE:
            state.ended(_IDLE, failed=False)
        self._door.went_out(self._permit)
        if share is not None:
            if share.names.is_supposed:
                share.names.settled(state.prepared)
            self._give_back(share)

    def _give_back(self, share: Share) -> None:
        """As `settle`, for a session of which it is known that it is quiet."""
        server = self.current
        if server is None or self._is_client_busy or server.cancels or server.is_full or server.is_doubtful:
            self.settle()
            return
        self.current = None
        server.status = _IDLE
        share.give_back(self._state, server)

    def land(self) -> None:
        """Go on in the full way."""
        self._is_quiet = False
        flight = self._flight
        if not flight.data:
            return
        if self._waiter is not None:
            data, waiter, self._waiter = flight.data, self._waiter, None
            flight.forget()
            waiter.in_a_task()
            self._wait_fully(data, waiter)
            return
        self._keeping = None
        data, server, ledger = flight.data, self.current, self._replies.ledger
        messages, seen, rest = flight.told()
        flight.forget()
        for kind, start, end in messages:
            owed = self._requests.read(kind, data, start, end)
            if self._share is not None and server is not None:
                self._share.names.send(kind, owed, data[start:end], server.held, ledger, self._state.mark)
            ledger.sent(kind, owed)
        if seen:
            self._replies.take(seen)
        self._replies.hold(rest)
