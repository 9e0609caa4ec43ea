"""One session between two sinks: the real classes of the proxy, a client that only listens and servers that make up
their answers from what they are sent.

What a world does follows from its events alone, so that two worlds can be compared event by event.
"""

from __future__ import annotations

import asyncio
import itertools
import math
import socket
from pathlib import Path
from typing import Any, cast

from holdfast.model.settings import ListenerSettings, ProxySettings, StoreSettings
from holdfast.model.suspect import Standing, Suspect
from holdfast.proxy.client import Client, Endpoint
from holdfast.proxy.footing import Trust
from holdfast.proxy.lane import Lane, Purpose
from holdfast.proxy.reactor import Reactor
from holdfast.proxy.relay import Relay
from holdfast.proxy.routing import Routing, Target
from holdfast.proxy.server import ServerConnection
from holdfast.proxy.users import Users
from holdfast.wire import messages as m
from holdfast.wire import state as wire_state
from holdfast.wire.fingerprint import fingerprint
from holdfast.wire.frames import FrameCutter
from holdfast.wire.loss import judge_loss
from holdfast.wire.owed import Owed
from holdfast.wire.parameters import Parameters
from holdfast.wire.startup import Login

HOLE = m.Report("WARNING", "01000", "canceling wait", routine="SyncRepWaitForLSN").encode(m.NOTICE)
BIG_BYTES = 300_000


class Sink(asyncio.Transport):
    """Writes down what it is told."""

    def __init__(self, sock: socket.socket) -> None:
        super().__init__({"socket": sock})
        self.written = bytearray()
        self.told: list[str] = []
        self._is_closing = False

    def write(self, data: bytes | bytearray | memoryview[Any]) -> None:
        if not self._is_closing:
            self.written += data

    def is_closing(self) -> bool:
        return self._is_closing

    def close(self) -> None:
        self._is_closing = True
        self.told.append("close")

    def abort(self) -> None:
        self._is_closing = True
        self.told.append("abort")

    def pause_reading(self) -> None:
        self.told.append("pause")

    def resume_reading(self) -> None:
        self.told.append("resume")

    def set_write_buffer_limits(self, high: int | None = None, low: int | None = None) -> None:
        """There is no buffer."""


def _complete(tag: bytes) -> bytes:
    return m.message(m.COMMAND_COMPLETE, tag + b"\0")


_ROW = m.message(m.DATA_ROW, b"\0\1\0\0\0\1x")
_ROW_LIKE_AN_END = m.message(m.DATA_ROW, b"\0\1\0\0\0\6" + m.ready_for_query(m.IDLE))
_GUARDED = m.message(m.DATA_ROW, b"\0\1\0\0\0\x040/10")
_DESCRIPTION = m.message(m.ROW_DESCRIPTION, b"\0\0")
_ERROR = m.error("22012", "division by zero").encode()


class Backend:
    """A server's side of one connection: no PostgreSQL, but as consistent as the proxy can tell."""

    def __init__(self, target: Target, sink: Sink, parameters: dict[str, str]) -> None:
        self.sink = sink
        self.connection = ServerConnection(target)
        self.connection.connection_made(sink)
        self.connection.parameters = Parameters(parameters)
        self.pending = bytearray()
        self._heard = 0
        self._cutter = FrameCutter()
        self._status = m.IDLE
        self._texts: dict[bytes, bytes] = {}
        self._portals: dict[bytes, bytes] = {}
        self._is_skipping = False
        self._is_copying = False

    def listen(self) -> None:
        """Answer what has come since the last time."""
        new, self._heard = bytes(self.sink.written[self._heard :]), len(self.sink.written)
        buffer, frames = self._cutter.feed(new)
        for kind, start, end in frames:
            self._message(kind, buffer[start + 5 : end])

    def _message(self, kind: int, body: bytes) -> None:
        if self._is_copying:
            if kind in (m.COPY_DONE, m.COPY_FAIL):
                self._is_copying = False
                self._say(_complete(b"COPY 1") + self._ready())
            elif kind == m.TERMINATE:  # to COPY it is a wrong message (copyfromparse.c, CopyGetData)
                self._is_copying = False
                self._say(_ERROR + self._ready())
            return
        if kind == m.QUERY:
            self._texts.pop(b"", None)
            self._query(body[:-1])
        elif kind == m.SYNC:
            self._is_skipping = False
            self._say(self._ready())
        elif kind == m.FUNCTION_CALL:
            self._say(m.message(m.FUNCTION_RESULT, b"\xff\xff\xff\xff") + self._ready())
        elif not self._is_skipping:
            self._extended(kind, body)

    def _query(self, sql: bytes) -> None:
        for statement in [part.strip() for part in sql.split(b";") if part.strip()] or [b""]:
            if not statement:
                self._say(m.message(m.EMPTY_QUERY))
                continue
            answer = self._run(statement)
            self._say(answer)
            if self._is_copying:
                return
            if answer.endswith(_ERROR):
                break
        self._say(self._ready())

    def _extended(self, kind: int, body: bytes) -> None:
        first = body.find(b"\0")
        if kind == m.PARSE:
            self._texts[body[:first]] = body[first + 1 : body.find(b"\0", first + 1)]
            self._say(m.message(m.PARSE_COMPLETE))
        elif kind == m.BIND:
            name = body[first + 1 : body.find(b"\0", first + 1)]
            if name not in self._texts:
                self._fail()
                return
            self._portals[body[:first]] = self._texts[name]
            self._say(m.message(m.BIND_COMPLETE))
        elif kind == m.DESCRIBE:
            parameters = m.message(m.PARAMETER_DESCRIPTION, b"\0\0") if body[:1] == b"S" else b""
            self._say(parameters + (_DESCRIPTION if len(body) % 2 else m.message(m.NO_DATA)))
        elif kind == m.CLOSE:
            if body[:1] == b"S":
                self._texts.pop(body[1:-1], None)
            self._say(m.message(m.CLOSE_COMPLETE))
        elif kind == m.EXECUTE:
            self._execute(self._portals.get(body[:first]), body[first + 1 :])

    def _execute(self, sql: bytes | None, most: bytes) -> None:
        if sql is None:
            self._fail()
        elif not sql.strip():
            self._say(m.message(m.EMPTY_QUERY))
        elif most != bytes(4) and sql.startswith(b"select"):
            self._say(_ROW + m.message(m.PORTAL_SUSPENDED))
        else:
            answer = self._run(sql).removeprefix(_DESCRIPTION)
            self._say(answer)
            self._is_skipping = answer.endswith(_ERROR)

    def _fail(self) -> None:
        self._say(_ERROR)
        self._is_skipping = True
        self._status = m.IN_FAILED_TRANSACTION if self._status != m.IDLE else m.IDLE

    def _run(self, sql: bytes) -> bytes:
        words = sql.lower().split()
        word = words[0]
        if word in (b"commit", b"rollback") and b"to" not in words:
            failed, self._status = self._status == m.IN_FAILED_TRANSACTION, m.IDLE
            return _complete(b"ROLLBACK" if failed else word.upper())
        if self._status == m.IN_FAILED_TRANSACTION or b"1/0" in sql:
            self._status = m.IN_FAILED_TRANSACTION if self._status != m.IDLE else m.IDLE
            return (_ROW if b"late" in words else b"") + _ERROR
        if word == b"begin":
            self._status = m.IN_TRANSACTION
            return _complete(b"BEGIN")
        if b"pg_logical_emit_message" in sql:
            return _GUARDED + _complete(b"SELECT 1")
        if word == b"select":
            rows = next((int(w) for w in words if w.isdigit()), 1)
            big = m.message(m.DATA_ROW, bytes(BIG_BYTES)) if b"big" in words else b""
            return _DESCRIPTION + _ROW * rows + _ROW_LIKE_AN_END + big + _complete(b"SELECT %d" % rows)
        if word == b"insert":
            return (HOLE if b"hole" in words else b"") + _complete(b"INSERT 0 1")
        if word == b"notice":
            return m.Report("NOTICE", "00000", "hello").encode(m.NOTICE) + _complete(b"CALL")
        if word == b"set":
            return m.parameter_status("x", "changed") + _complete(b"SET")
        if word == b"copy":
            self._is_copying = True
            return m.message(m.COPY_IN, b"\0\0\0")
        if word == b"dump":
            return (
                m.message(m.COPY_OUT, b"\0\0\0")
                + m.message(m.COPY_DATA, b"x")
                + m.message(m.COPY_DONE)
                + _complete(b"COPY 1")
            )
        if word == b"die":
            return m.fatal("57P01", "terminating").encode()
        return _complete(b" ".join(words[:2]).upper() if word in (b"create", b"drop", b"discard") else word.upper())

    def _ready(self) -> bytes:
        return m.ready_for_query(self._status)

    def _say(self, data: bytes) -> None:
        self.pending += data


class World:
    """One session and its servers. Needs a running event loop, which is given no turn."""

    def __init__(self, pooling: str, *, fast: bool, guard: bool = False) -> None:
        wire_state._taints = itertools.count(1)
        self._sock, self._other = socket.socketpair()
        settings = ProxySettings(
            proxy=ListenerSettings(
                users_file=Path("unused"), write_port=1, read_port=2, pooling=cast(Any, pooling), pool_size=3
            ),
            store=StoreSettings(endpoints=("http://127.0.0.1:1",)),
        )
        self._target = Target("n1", "127.0.0.1", 1, 1, True)
        self._reactor = Reactor()
        self.trust = Trust()
        self.lane = Lane(Purpose.WRITE, self._reactor, Routing("main"), Users.parse(""), settings, trust=self.trust)
        self.lane.routing.primary = lambda: self._target  # type: ignore[method-assign]
        self.lane.guard.is_on, self.lane.guard._name = guard, "token"
        self.sink = Sink(self._sock)
        self.client = Client(cast(Endpoint, None), self.lane)
        self.client._transport = self.sink
        login = Login(0, {"user": "app", "database": "app", "application_name": "test"}, ())
        self.relay = Relay(self.client, self.lane, login, 1, b"key!")
        self.relay._may_fly = fast
        land = self.relay.land

        def count() -> None:
            self.landings += bool(self.relay._flight.data)
            land()

        self.relay.land = count  # type: ignore[method-assign]
        self.client.relay = self.relay
        self.backends: list[Backend] = []
        self.held_back = b""
        self.flights = self.landings = self.waits = 0
        if pooling == "session":
            self.relay.begin(self._new_server().connection, {"x": "y"})
        else:
            self.relay.begin(None, {"x": "y"})
            for _ in range(2):
                self._new_pooled()

    def close(self) -> None:
        for task in (self.relay._attaching, self.lane.guard._asking):
            if task is not None:
                task.cancel()
        self._reactor.close()
        self._sock.close()
        self._other.close()

    def _new_server(self) -> Backend:
        backend = Backend(self._target, Sink(self._sock), {"x": "y"})
        backend.connection.held.application_name = "test"
        self.backends.append(backend)
        return backend

    def _new_pooled(self) -> None:
        pool = self.relay.pool
        if pool is not None and pool.open < pool.limits.size:
            pool.open += 1
            server = self._new_server().connection
            pool.made(server)
            pool.give(server)

    # events

    def send(self, data: bytes, kept: int) -> None:
        """The client sends all but the last bytes of it, after what it kept before."""
        data = self.held_back + data
        kept = min(kept, len(data))
        self.held_back = data[len(data) - kept :]
        if kept < len(data):
            self.client.data_received(data[: len(data) - kept])
            self.flights += bool(self.relay._flight.data)

    def answer(self, percent: int) -> None:
        """A part of what the servers have to say arrives."""
        for backend in self.backends:
            count = -(-len(backend.pending) * percent // 100)
            if count and not backend.sink.is_closing():
                part = bytes(backend.pending[:count])
                del backend.pending[:count]
                backend.connection.data_received(part)

    def lose(self) -> None:
        """The server of the moment breaks."""
        server = self.relay.current
        if server is not None:
            server.connection_lost(None)

    def attach(self) -> None:
        """A session that waits for a server gets one."""
        relay = self.relay
        if relay._attaching is None and relay._waiter is None:
            self._new_pooled()
            return
        if not self.trust.is_fresh():
            relay.land()
        backend = self._new_server()
        if relay.pool is not None:
            relay.pool.open += relay.pool.open < relay.pool.limits.size  # else it is one of those that others had
            relay.pool.made(backend.connection)
        if relay._waiter is not None and relay.pool is not None:
            self.waits += 1
            relay.pool.give(backend.connection)
        if relay._attaching is not None:
            self._cancel_wait(relay._attaching)
            relay._go_on(backend.connection)

    def crowd(self) -> None:
        """Others have taken all the connections that are shared."""
        pool = self.relay.pool
        if pool is not None:
            while pool.take() is not None:
                pass
            pool.open = max(pool.open, pool.limits.size)

    def _cancel_wait(self, task: asyncio.Task[None]) -> None:
        task.cancel()
        self._leave_line()

    def _leave_line(self) -> None:
        """What a task that was cancelled does in its next turn, which it is not given."""
        pool = self.relay.pool
        while pool is not None and pool._waiting:
            pool._waiting.popleft().forsake(pool)

    def give_up(self) -> None:
        """A session that waits has waited for too long."""
        relay = self.relay
        if relay._waiter is not None:
            relay.waited_in_vain()
        elif relay._attaching is not None:
            self._cancel_wait(relay._attaching)
            relay._refusal = self.lane.waited_in_vain(relay.pool, relay.traffic_class)
            relay._go_on(None)

    def cancel(self) -> None:
        server = self.relay.cancel()
        if server is not None:
            server.cancels += 1

    def cancelled(self) -> None:
        """All requests to cancel have arrived."""
        for backend in self.backends:
            backend.connection.cancels = 0
        self.relay.settle()

    def doubt(self, fresh: bool) -> None:
        """Whether the primary may be believed changes."""
        self.trust.until_s = math.inf if fresh else -math.inf
        if fresh:
            self.relay.reroute()
            self.lane.pools.reroute()

    def suspect(self, sql: bytes, standing: Standing) -> None:
        """A statement is suspected of the loss of a primary, and of no other one."""
        key, text = fingerprint(sql)
        self.lane.quarantine.are([Suspect(key, text, (1,), standing, "suspect.unusual", 1, 1, 0)])

    def busy(self, busy: bool) -> None:
        """The client reads slowly, or does not any more."""
        self.relay.client_busy(busy)

    def full(self, full: bool) -> None:
        """The server of the moment takes nothing, or all take again."""
        for backend in self.backends:
            if not full and backend.connection.is_full:
                backend.connection.resume_writing()
        if full and self.relay.current is not None:
            self.relay.current.pause_writing()

    def let_go(self) -> None:
        self.relay.mark_unused()
        self.relay.let_go()

    def say(self, data: bytes) -> None:
        """The server of the moment says something of its own accord, or all do."""
        for backend in self.backends:
            backend.pending += data

    def rest(self) -> None:
        """Nothing happens."""

    def look(self) -> None:
        """The session has to go on in the full way."""
        self.relay.land()

    def leave(self) -> None:
        self.relay.client_lost()
        self._leave_line()

    # comparing

    def heard(self) -> tuple[object, ...]:
        """All that the two sides have been told."""
        if self.relay._waiter is None and self.relay._attaching is None:
            self._leave_line()
        for backend in self.backends:
            backend.listen()
        servers = tuple((bytes(b.sink.written), tuple(b.sink.told)) for b in self.backends)
        return bytes(self.sink.written), tuple(self.sink.told), servers

    def _on_trial(self) -> list[dict[str, object]]:
        """Of the suspects all but what follows from the time that has passed."""
        return [{name: v for name, v in entry.items() if name != "limit"} for entry in self.lane.quarantine.status()]

    def known(self) -> dict[str, object]:
        """All that the session knows, in the terms of the full way."""
        relay = self.relay
        relay.land()
        ledger, state, replies, share = relay._ledger, relay._state, relay._replies, relay._share
        names = share.names if share is not None else None
        ids = {id(backend.connection): number for number, backend in enumerate(self.backends)}
        pool = relay.pool
        return {
            "ledger": (ledger.status, ledger.in_batch, ledger.skipping, ledger.executed, ledger.batch_failed),
            "copying": (ledger.is_copying_in, ledger.may_answer_more),
            "owed": [_described(owed) for owed in ledger.pending()],
            "loss": judge_loss(ledger),
            "reported": replies.reported,
            "given up": (replies.given_up, replies.is_unconfirmed),
            "cut": (replies._cutter._rest, replies._cutter._remaining, relay._client_cutter._rest),
            "settings": list(state.settings.items()),
            "prepared": state.prepared,
            "by sql": state.prepared_by_sql,
            "pins": state.pins,
            "uncommitted": state._uncommitted,
            "mark": state.mark,
            "texts": relay._requests.texts,
            "portals": relay._requests.portals,
            "names": None if names is None else (names._made, names._told, names._unnamed_is_there),
            "held": [
                (held.application_name, held.settings, list(held.prepared))
                for held in (backend.connection.held for backend in self.backends)
            ],
            "server": None if relay.current is None else ids[id(relay.current)],
            "pool": None if pool is None else ([ids[id(entry.server)] for entry in pool.idle], pool.open),
            "gate": (relay._permit.is_in, self.lane.admission.gate.inside, self.lane.admission.gate.done),
            "quarantine": (self._on_trial(), relay._custody.cell is not None),
            "orphans": len(self.lane.orphans),
            "counters": self.lane.counters,
            "flags": (relay._is_over, relay._is_discarding, relay._withheld, relay._lost_transaction, relay._refusal),
            "waits": relay._attaching is not None,
        }


def _described(owed: Owed) -> tuple[object, ...]:
    return tuple(getattr(owed, name) for name in Owed.__slots__)
