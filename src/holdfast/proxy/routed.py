"""A session whose reads go to standbys (``route=auto``): beside the ordinary ways, in front of them.

Between two transactions a batch that surely only reads is sent to a standby that shows what the session has written.
All else goes its ordinary way, to the primary; so does the read itself if the standby cannot answer it, and the client
does not notice. Nothing waits for a standby, but for a position that a token names.
"""

from __future__ import annotations

import asyncio
from contextlib import suppress
from typing import TYPE_CHECKING, Final

import structlog

from holdfast.core.freshness import Mark, Reached
from holdfast.model.errors import ProtocolViolation
from holdfast.model.policy import Route
from holdfast.proxy.lane import Lane, Purpose
from holdfast.proxy.limits import HELD_BYTES_MAX
from holdfast.proxy.pools import key_of
from holdfast.proxy.reactor import Wire
from holdfast.proxy.relay import Relay
from holdfast.proxy.replicas import Replica
from holdfast.proxy.server import ServerConnection
from holdfast.proxy.unwanted import Unwanted
from holdfast.wire import messages as m
from holdfast.wire.flight import Flight
from holdfast.wire.frames import HEADER_BYTES
from holdfast.wire.loss import SERVER_GONE
from holdfast.wire.owed import Owed, Reply
from holdfast.wire.own import AUTO, ROUTE, WAIT_FOR, is_mere_setting, route_at_login, setting_of, token_of
from holdfast.wire.readback import Readback, Sent, are_alike, note, read_batch
from holdfast.wire.readonly import is_read_only
from holdfast.wire.startup import Login

if TYPE_CHECKING:
    from holdfast.proxy.client import Client

log = structlog.get_logger(__name__)

_PARSE: Final = bytes((m.PARSE,))


class Routed(Relay):
    """A session that is looked at before the ordinary ways see its batches."""

    _reads: Reads

    def from_client(self, data: bytes) -> None:
        """Take bytes of the client."""
        if not self._reads.take(data):
            super().from_client(data)

    def go_home(self, data: bytes) -> None:
        """Take bytes of the client, the ordinary way."""
        super().from_client(data)

    def _go_on(self, server: ServerConnection | None) -> None:
        if server is not None:
            self._reads.restore_before_going_on(server)
        super()._go_on(server)

    def answered(self) -> None:
        """The primary has answered a batch on the fast way."""
        self._reads.answered()

    def _answer(self, data: bytes) -> None:
        super()._answer(data)
        self._reads.answered()

    def client_lost(self) -> None:
        """The client is gone."""
        self._reads.forsake()
        super().client_lost()

    def client_busy(self, busy: bool) -> None:
        """The client reads slowly, or has caught up."""
        super().client_busy(busy)
        self._reads.client_busy(busy)

    def cancel(self) -> ServerConnection | None:
        """A cancel request: of a read, if a standby answers one."""
        return self._reads.cancel() if self._reads.is_under_way else super().cancel()

    def follow(self, route: Route) -> Routed:
        """Begin to look; ``route`` is that of the session unless it says something itself."""
        self._reads = Reads(self, self._client, route)
        self.hears_answers = True
        self.lane.replicas.log_in_as(self._login.user, self._login.database)
        return self


class Reads:
    """What a session has read and written, as far as it decides who may answer; and the read that is under way."""

    def __init__(self, relay: Routed, client: Client, route: Route) -> None:
        self._relay = relay
        self._client = client
        self._route = route
        self._replicas = relay.lane.replicas
        self._verdicts = self._replicas.verdicts
        login = relay._login
        self._key = key_of(login.user, login.database, login.parameters.items())
        self._application_name = login.parameters.get("application_name", "")
        self._flight = Flight()
        self._may_write = True
        """Something went to the primary that may write, and it is not known yet that its answer has come."""
        self._mark: Mark | None = None
        """Then it had come; what was written is not known yet."""
        self._written: Reached | None = None
        """All that the session has written is there."""
        self._unnamed_is_elsewhere = False
        """The primary has not the client's unnamed statement."""
        self._data = b""
        self._held = b""
        self._replica: Replica | None = None
        self._server: ServerConnection | None = None
        self._readback: Readback | None = None
        self._sent: Sent | None = None
        self._waiting: asyncio.Task[None] | None = None

    @property
    def is_under_way(self) -> bool:
        """Whether a read is answered by a standby, or waits for one."""
        return self._server is not None or self._waiting is not None

    # from the client

    def take(self, data: bytes) -> bool:
        """Whether the bytes are taken care of; if not, they go the ordinary way."""
        if self.is_under_way:
            self._held += data
            if len(self._held) > HELD_BYTES_MAX:
                self._client.pause_reading(True)
            return True
        flight, relay = self._flight, self._relay
        is_quiet = self._is_between_transactions()
        if is_quiet and flight.begin(data, relay._requests.texts) and self._reads_only(flight):
            if self._is_auto and self._may_leave(flight.text) and self._read(data, may_wait=True):
                return True
            self._note_asked_at_home()
        elif not (is_quiet and is_mere_setting(data)):
            self._may_write = True
        self._restore(data)
        return False

    def _note_asked_at_home(self) -> None:
        """The primary is asked what seems to read only: it may write even so, unless standbys answer its like."""
        mark, text = self._relay._state.mark, self._flight.text
        if not self._may_write and not self._verdicts.has_answered(self._key, mark, text):
            self._may_write = True

    def _reads_only(self, flight: Flight) -> bool:
        if flight.bind_end and not flight.parse_end:  # its text is the last that was sent: was it taken?
            made = self._relay._state.prepared.get(flight.name, b"")
            named = HEADER_BYTES + len(flight.name) + 1
            if made[:1] != _PARSE or not made.startswith(flight.sql + b"\0", named):
                return False
        return is_read_only(flight.text) and not self._verdicts.writes(flight.text)

    def _is_between_transactions(self) -> bool:
        relay = self._relay
        return (
            not relay._flight.data
            and relay._ledger.status == m.IDLE
            and relay._ledger.is_quiet
            and relay._is_in_order()
            and relay._replies.is_between_messages
            and relay._client_cutter.is_empty
        )

    @property
    def _is_auto(self) -> bool:
        own = self._relay._state.own
        return (setting_of(own, ROUTE) or self._route.value) == AUTO if own else self._route is Route.AUTO

    def _may_leave(self, text: bytes) -> bool:
        """Whether the session has nothing that only its own server has, and the statement is no suspect."""
        relay = self._relay
        quarantine = relay.lane.quarantine
        return (
            not relay._state.pins
            and relay._replies.reported.get("standard_conforming_strings") == "on"  # else texts are cut in other ways
            and not self._verdicts.is_refused(text)
            and not self._verdicts.are_refused(self._key, relay._state.mark)
            and not (quarantine.is_on and quarantine.holds(text))
        )

    def _needed(self) -> list[Reached] | None:
        """What a standby must show; None: it is not known."""
        if self._may_write:
            self._mark, self._may_write = self._replicas.mark(), False
        if self._mark is not None:
            reached = self._replicas.primary.covers(self._mark)
            if reached is None:
                self._replicas.mark()
                return None
            self._written, self._mark = reached, None
        token = self._token()
        return [reached for reached in (self._written, token) if reached is not None]

    def _token(self) -> Reached | None:
        own = self._relay._state.own
        named = token_of(setting_of(own, WAIT_FOR)) if WAIT_FOR in own else None
        return None if named is None else Reached(*named)

    def _read(self, data: bytes, *, may_wait: bool) -> bool:
        """Send the batch of the flight to a standby; False: the primary must be asked."""
        replicas, counters = self._replicas, self._replicas.counters
        needed, near = self._needed(), replicas.near()
        fresh = [replica for replica in near if needed is not None and replicas.shows(replica, needed)]
        for replica in fresh:
            server = replica.borrow(self._key, self._application_name)
            if server is None:
                continue
            sent = read_batch(self._flight, self._relay._state, server.held, self._application_name)
            if sent is None:
                replica.give_back(self._key, server, is_fit=True)
                return False
            self._send(data, replica, server, sent)
            return True
        if may_wait and near and not fresh and not self._is_token_shown(near):
            self._data = data
            self._waiting = asyncio.get_running_loop().create_task(self._wait())
            return True
        counters.on_primary_busy += bool(fresh)
        counters.on_primary_written += bool(near) and not fresh
        counters.on_primary_none += not near
        return False

    def _send(self, data: bytes, replica: Replica, server: ServerConnection, sent: Sent) -> None:
        self._data, self._replica, self._server, self._sent = data, replica, server, sent
        self._readback = replica.reading[server] = Readback(sent)
        server.attach(self)
        server.pause_reading(self._relay._is_client_busy)
        server.output.write(sent.data)

    async def _wait(self) -> None:
        """Until a standby shows what a token names, or no longer than the policy says."""
        replicas = self._replicas
        replicas.counters.waited += 1
        with suppress(TimeoutError):
            async with asyncio.timeout(replicas.policy.read_wait_ms / 1000):
                while not self._is_token_shown(replicas.near()):
                    await replicas.wait_heard()
        self._waiting = None
        data, self._data = self._data, b""
        if not self._read(data, may_wait=False):
            replicas.counters.waited_in_vain += 1
            self._note_asked_at_home()
            self._go_home(data)

    def _is_token_shown(self, near: list[Replica]) -> bool:
        token = self._token()
        return token is None or any(self._replicas.shows(replica, [token]) for replica in near)

    # from the standby (`server.Session`)

    def from_server(self, data: bytes) -> None:
        """The standby sent bytes."""
        server, readback = self._server, self._readback
        if server is None or readback is None:
            return
        try:
            out = readback.take(data)
        except ProtocolViolation as violation:
            server.abort(f"protocol violation: {violation}")
            return
        if readback.parameters:
            server.parameters.update(readback.parameters)
            readback.parameters = {}
        if out and not readback.is_given:
            if are_alike(server.parameters, self._relay._replies.reported):
                readback.is_given = True
            else:
                self._differs(server)
                readback.refuse()
        if readback.has_failed:
            self._redo(readback)
            return
        if out:
            self._client.output.write(out)
        if readback.is_over:
            self._arrive(readback)

    def server_lost(self, server: ServerConnection, reason: str) -> None:
        """The connection to the standby is gone."""
        readback, replica = self._readback, self._replica
        if server is not self._server or readback is None or replica is None:
            return
        if not readback.is_given:
            self._redo(readback)
            return
        replica.give_back(self._key, server, is_fit=False)
        self._forget()
        report = m.error(SERVER_GONE, f"the standby was lost: {reason}", hint="Nothing was changed. Try again.")
        self._client.write(report.encode() + m.ready_for_query(m.IDLE))
        self._go_on()

    def server_busy(self, busy: bool) -> None:
        """The standby reads slowly: what is sent is small, and nothing more is sent before it has answered."""

    def _differs(self, server: ServerConnection) -> None:
        reported = self._relay._replies.reported
        names = sorted(n for n in reported if server.parameters.get(n) != reported[n] and n != "application_name")
        fix = "let all nodes have the same configuration"
        log.warning("replica.differs", node=server.target.node, parameters=names, fix=fix)
        self._verdicts.refused(self._flight.text, "0A000")

    def _arrive(self, readback: Readback) -> None:
        """The answer is complete."""
        relay, server, replica, sent = self._relay, self._server, self._replica, self._sent
        if server is None or replica is None or sent is None:
            return
        state = relay._state
        note(server.held, state, self._application_name, sent.makes)
        self._note_unnamed(relay)
        is_fit = not (readback.is_unfit or readback.sqlstate or server.cancels or server.is_doubtful)
        if not readback.sqlstate:
            self._verdicts.answered(self._key, state.mark, self._flight.text)
        replica.served += 1
        self._replicas.counters.on_standbys += 1
        server.pause_reading(False)  # the last of a large answer may have been more than the client takes at once
        replica.give_back(self._key, server, is_fit=is_fit)
        self._forget()
        self._go_on()

    def _note_unnamed(self, relay: Routed) -> None:
        """What became of the client's unnamed statement, which its own server does not know."""
        relay.answered_elsewhere(self._flight)
        if self._flight.parse_end:
            self._unnamed_is_elsewhere = relay._share is None

    def _redo(self, readback: Readback) -> None:
        """The primary is asked after all; the standby may finish what it says."""
        server, replica = self._server, self._replica
        if server is None or replica is None:
            return
        if readback.sqlstate:
            log.debug("read.redone", node=replica.target.node, sqlstate=readback.sqlstate)
        self._replicas.counters.redone += not readback.passes_errors
        self._verdicts.refused(self._flight.text, readback.sqlstate)
        self._verdicts.refused_settings(self._key, self._relay._state.mark, readback.refusal)
        for name in () if self._sent is None else (self._sent.makes, self._sent.closes):
            if name is not None:
                server.held.prepared.pop(name, None)  # its plan may be outdated, or it could not be made
        is_unfit = readback.is_unfit or not server.is_open or readback.passes_errors
        if is_unfit or server.cancels or server.is_doubtful:
            replica.give_back(self._key, server, is_fit=False)
        else:
            server.pause_reading(False)
            note(server.held, self._relay._state, self._application_name, None)  # else it would be unfit
            Unwanted(self._key, replica, server, readback)
        data = self._data
        self._forget()
        if readback.passes_errors:
            self._note_unnamed(self._relay)
            self._tell_of_cancel()
            return
        self._may_write = True
        self._go_home(data)

    # home

    def _forget(self) -> None:
        self._server = self._replica = self._readback = self._sent = None
        self._data = b""

    def _go_home(self, data: bytes) -> None:
        self._restore(data)
        self._relay.go_home(data)
        self._go_on()

    def _go_on(self) -> None:
        """What the client has sent meanwhile."""
        held, self._held = self._held, b""
        self._client.pause_reading(False)
        if held:
            self._relay.from_client(held)

    def answered(self) -> None:
        """The primary has said something: maybe that was the end of all that may write."""
        if self._may_write and self._is_between_transactions():
            self._may_write, self._mark = False, self._replicas.mark()

    def _restore(self, data: bytes) -> None:
        """The client's next batch is the primary's: if it may use the unnamed statement, that must be there."""
        relay, server = self._relay, self._relay.current
        if not self._unnamed_is_elsewhere or relay._attaching is not None:
            return
        is_replaced = data[0] == m.QUERY or (data[0] == m.PARSE and data[5:6] == b"\0")
        if is_replaced or server is None:
            self._unnamed_is_elsewhere = False  # a server that is yet to come is told all that the session has
        elif not relay._must_ask_first(server):
            self._restore_on(server)

    def restore_before_going_on(self, server: ServerConnection) -> None:
        """What the client has sent may begin now on this server, which may be the one that it had to wait for."""
        if not self._unnamed_is_elsewhere:
            return
        if server is self._relay.current:
            self._restore_on(server)
        self._unnamed_is_elsewhere = False

    def _restore_on(self, server: ServerConnection) -> None:
        self._unnamed_is_elsewhere = False
        relay = self._relay
        parse = relay._state.prepared.get(b"")
        if parse is not None and relay._ledger.is_quiet:
            relay.land()
            relay._ledger.sent(m.PARSE, Owed(Reply.PARSE, is_hidden=True))
            server.write(parse)

    # the client

    def client_busy(self, busy: bool) -> None:
        """The client reads slowly, or has caught up."""
        if self._server is not None:
            self._server.pause_reading(busy)

    def cancel(self) -> ServerConnection | None:
        """End the wait; or the server to ask."""
        if self._waiting is not None:
            self._waiting.cancel()
            self._waiting = None
            self._data = b""
            self._tell_of_cancel()
            return None
        if self._readback is not None:
            self._readback.passes_errors = True
        return self._server

    def _tell_of_cancel(self) -> None:
        report = m.error("57014", "canceling statement due to user request")
        self._client.write(report.encode() + m.ready_for_query(m.IDLE))
        self._go_on()

    def forsake(self) -> None:
        """The client is gone."""
        if self._waiting is not None:
            self._waiting.cancel()
            self._waiting = None
        server, replica = self._server, self._replica
        if server is not None and replica is not None:
            replica.give_back(self._key, server, is_fit=False)
        self._forget()
        self._held = b""


def session_of(client: Client, lane: Lane, login: Login, process_id: int, secret: bytes) -> Relay:
    """A session of the kind that its route asks for."""
    if lane.purpose is Purpose.WRITE:
        route = Route(route_at_login(login.parameters) or lane.routing.policy.route_of(login.user, login.database))
        if route is Route.AUTO:
            return Routed(client, lane, login, process_id, secret).follow(route)
    return Relay(client, lane, login, process_id, secret)


def heed(relay: Relay) -> None:
    """A session has said something to the proxy: it may want to be routed from now on."""
    wanted = relay.lane.purpose is Purpose.WRITE and setting_of(relay._state.own, ROUTE) == AUTO
    if not wanted or isinstance(relay, Routed):
        return
    relay.__class__ = Routed
    assert isinstance(relay, Routed)
    relay.follow(Route.PRIMARY)
    if isinstance(relay._client.output, Wire):
        relay._client.output.received = relay.from_client
    if relay.current is not None:
        relay.current.attach(relay)
