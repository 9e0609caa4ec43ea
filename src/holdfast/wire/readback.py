"""A read that a standby answers in place of the primary: what it is sent, and what the client gets of the answer.

The client is shown nothing until the answer is complete or large. Whatever goes wrong before (an error, a setting that
the standby does not take, a lost connection) is not its business: the same batch, which only reads, goes to the primary
after all.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from hashlib import blake2b
from typing import Final

from holdfast.wire import messages as m
from holdfast.wire.flight import Flight
from holdfast.wire.frames import HEADER_BYTES, FrameCutter
from holdfast.wire.held import Held
from holdfast.wire.sharing import PREPARED_MAX
from holdfast.wire.state import ReplayStep, SessionState

HELD_BYTES_MAX: Final = 64 * 1024
"""A larger answer is passed on as it comes; what goes wrong then is told to the client."""
_ORDINARY: Final = frozenset(
    (
        m.DATA_ROW,
        m.ROW_DESCRIPTION,
        m.COMMAND_COMPLETE,
        m.EMPTY_QUERY,
        m.NOTICE,
        m.PARSE_COMPLETE,
        m.BIND_COMPLETE,
        m.PARAMETER_DESCRIPTION,
        m.NO_DATA,
        m.PORTAL_SUSPENDED,
    )
)
_CANCELLED: Final = "57014"
"""query_canceled: by the client, its statement_timeout or a person; what is in the way of replay has another one."""
_UNNAMED: Final = b""
_OF_ONE_SERVER: Final = frozenset(("in_hot_standby", "default_transaction_read_only", "server_version"))
"""Reported parameters that may differ between servers without changing an answer."""


@dataclass(frozen=True, slots=True)
class Sent:
    """What goes to the standby, and how much of its answer is not the client's."""

    data: bytes
    readies: int
    """So many ReadyForQuery come before the client's answer begins,"""
    completions: int
    """and then so many completions of messages that the client did not send."""
    makes: bytes | None = None
    """The prepared statement that the standby has then,"""
    closes: bytes | None = None
    """and the one that it has not any more, because there were as many as may be."""


def read_batch(flight: Flight, state: SessionState, held: Held, application_name: str) -> Sent | None:
    """What to send a standby, on whose connection is what ``held`` says; None: the batch is not for a standby.

    It is a common batch (`Flight`) of a session that has nothing that cannot be told to another server.
    """
    steps = state.settings_shared(held, application_name)
    told = _translated(flight, state, held)
    return None if told is None else replace(told, data=_joined(steps) + told.data, readies=len(steps))


def _joined(steps: Sequence[ReplayStep]) -> bytes:
    return b"".join(step.message for step in steps)


def _translated(flight: Flight, state: SessionState, held: Held) -> Sent | None:
    """The batch with the names that the standby knows, after what makes sure that it does."""
    data = flight.data
    if flight.is_simple or flight.parse_end:
        is_kept = bool(flight.parse_end) and flight.name != _UNNAMED  # it is to be there for the next batch, too
        return None if is_kept else Sent(data, 0, 0)
    parse = state.prepared.get(flight.name)
    if parse is None or parse[0] != m.PARSE:
        return None
    tail = parse[HEADER_BYTES + 1 + len(flight.name) :]
    if flight.name == _UNNAMED:
        return Sent(m.message(m.PARSE, b"\0" + tail) + data, 0, 1)
    name = b"holdfast_" + blake2b(tail + state.mark, digest_size=16).hexdigest().encode()
    bind_body = data[flight.bind_at + HEADER_BYTES + len(flight.portal) + 1 + len(flight.name) : flight.bind_end]
    bind = m.message(m.BIND, flight.portal + b"\0" + name + bind_body)
    batch = data[: flight.bind_at] + bind + data[flight.bind_end :]
    if name in held.prepared:
        return Sent(batch, 0, 0, name)
    closes = next(iter(held.prepared)) if len(held.prepared) >= PREPARED_MAX else None
    before = [_close(name), m.message(m.PARSE, name + b"\0" + tail)]
    if closes is not None:
        before.insert(0, _close(closes))
    return Sent(b"".join(before) + batch, 0, len(before), name, closes)


def _close(name: bytes) -> bytes:
    return m.message(m.CLOSE, b"S" + name + b"\0")


def note(held: Held, state: SessionState, application_name: str, made: bytes | None) -> None:
    """The standby has answered well: what is on its connection now."""
    held.application_name = application_name
    held.settings = dict(state.settings)
    if made is not None:
        if made not in held.prepared and len(held.prepared) >= PREPARED_MAX:
            del held.prepared[next(iter(held.prepared))]
        held.prepared.pop(made, None)
        held.prepared[made] = None


def are_alike(parameters: dict[str, str], reported: dict[str, str]) -> bool:
    """Whether a client that knows one server's reported parameters can read the other one's answers."""
    if parameters == reported:
        return True
    names = (parameters.keys() | reported.keys()) - _OF_ONE_SERVER - {"application_name"}
    return all(parameters.get(name) == reported.get(name) for name in names)


class Readback:
    """The answer of a standby to one batch."""

    def __init__(self, sent: Sent) -> None:
        self.has_failed = False
        """It is not for the client; the primary must be asked."""
        self.is_over = False
        """The standby has said all."""
        self.is_unfit = False
        """What is on the connection is not known."""
        self.is_given = False
        """The client has got a part of it."""
        self.sqlstate = ""
        """Of the error that was met."""
        self.refusal = ""
        """The SQLSTATE with which the standby refused a setting of the session."""
        self.passes_errors = False
        """The client is told of an error: it asked for one, by a request to cancel."""
        self.parameters: dict[str, str] = {}
        """What changed while the session's settings were told."""
        self._readies = sent.readies
        self._completions = sent.completions
        self._cutter = FrameCutter()  # whole messages: what the primary may say meanwhile does not come inside of one
        self._kept: list[bytes] = []
        self._kept_bytes = 0

    def take(self, data: bytes) -> bytes:
        """Walk what came; returns what the client gets now. Raises ProtocolViolation."""
        buffer, frames = self._cutter.feed(data)
        for kind, start, end in frames:
            if self._is_hidden(kind, buffer, start, end):
                continue
            if kind == m.READY_FOR_QUERY:
                self.is_over = True
                if buffer[start + HEADER_BYTES] != m.IDLE:
                    self._fail(is_unfit=True)
            elif kind == m.ERROR:
                self.sqlstate = m.read_report(buffer[start + HEADER_BYTES : end]).sqlstate
                if self.sqlstate != _CANCELLED and not (self.is_given or self.passes_errors):
                    self._fail()
            elif kind not in _ORDINARY:
                self._fail(is_unfit=True)
            if not self.has_failed:
                self._kept.append(buffer[start:end])
                self._kept_bytes += end - start
        if self.has_failed or not (self.is_over or self.is_given or self._kept_bytes > HELD_BYTES_MAX):
            return b""
        out = b"".join(self._kept)
        self._kept, self._kept_bytes = [], 0
        return out

    def _is_hidden(self, kind: int, buffer: bytes, start: int, end: int) -> bool:
        """Whether a message is not the client's; what it says is noted."""
        if kind == m.PARAMETER_STATUS:
            name, value = m.read_parameter_status(buffer[start + HEADER_BYTES : end])
            self.parameters[name] = value
            if not self._readies:
                self._fail(is_unfit=True)  # a read changes no setting
            return True
        if self._readies:
            if kind == m.READY_FOR_QUERY:
                self._readies -= 1
            elif kind == m.ERROR:
                self.refusal = m.read_report(buffer[start + HEADER_BYTES : end]).sqlstate
                self._fail(is_unfit=True)
            return True
        if self._completions:
            self._completions -= kind in (m.PARSE_COMPLETE, m.CLOSE_COMPLETE)
            return kind != m.ERROR and kind != m.READY_FOR_QUERY
        return False

    def refuse(self) -> None:
        """The client cannot be given this answer."""
        self._fail()

    def _fail(self, *, is_unfit: bool = False) -> None:
        self.is_unfit = self.is_unfit or is_unfit
        if not self.is_given:
            self.has_failed = True
            self._kept, self._kept_bytes = [], 0
