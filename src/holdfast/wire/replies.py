"""What a server says, on its way to the client: every message is walked, so that it is known what it answers."""

from __future__ import annotations

from typing import Final

from holdfast.wire import messages as m
from holdfast.wire.frames import CONTINUED, FrameCutter
from holdfast.wire.held import Held
from holdfast.wire.owed import Ledger, Owed, Reply, Step
from holdfast.wire.parameters import Parameters
from holdfast.wire.requests import Requests
from holdfast.wire.sharing import SharedNames
from holdfast.wire.state import SessionState

_PASSABLE: Final = frozenset((m.DATA_ROW, m.COPY_DATA, m.FUNCTION_RESULT))
_LOOKED_INTO: Final = frozenset((m.ERROR, m.NOTICE, m.PARAMETER_STATUS))
_ACK_HOLE: Final = "SyncRepWaitForLSN"
"""The routine that warns when a commit stopped waiting for its standbys: the row is local only, yet success follows."""


class Replies:
    """The direction from the server of one session."""

    def __init__(self, requests: Requests, state: SessionState, names: SharedNames | None) -> None:
        self.ledger = Ledger()
        """What the server of the moment owes."""
        self.reported = Parameters()
        """The parameters that the client was told."""
        self.given_up: str | None = None
        """Why the server must be given up: what it said last is not for the client."""
        self.is_unconfirmed = False
        """It was given up because it did not wait for its standbys."""
        self.is_over = False
        """What was taken last ended all that was owed, and no transaction is open."""
        self.has_failed = False
        """An error came in what the last ReadyForQuery ended."""
        self._requests = requests
        self._state = state
        self._names = names
        self._cutter = FrameCutter(_PASSABLE)
        self._parameters = Parameters()
        self._held = Held()
        self._kept_parts: list[bytes] = []
        self.guard_row: bytes | None = None
        """What the guard's statement answered last."""

    @property
    def inside_frame(self) -> bool:
        """Whether a half of a large message was passed on."""
        return self._cutter.inside_frame

    @property
    def is_between_messages(self) -> bool:
        """Whether no part of a message is kept, and none was passed on."""
        return self._cutter.is_empty

    def knows(self, parameters: dict[str, str]) -> None:
        """The client was told these at its login."""
        self.reported = Parameters(parameters)

    def begin(self, status: int, parameters: Parameters, held: Held) -> dict[str, str]:
        """Another server answers from now on; returns the parameters in which it differs from what the client knows."""
        self.ledger = Ledger(status)
        self._kept_parts.clear()
        self._parameters, self._held = parameters, held
        self.given_up, self.is_unconfirmed = None, False
        if not self.is_between_messages:
            self._cutter = FrameCutter(_PASSABLE)
        if parameters == self.reported:
            return {}
        changed = {name: value for name, value in parameters.items() if self.reported.get(name) != value}
        self.reported |= changed
        return changed

    def begin_at_once(self, parameters: Parameters, held: Held) -> bool:
        """The same, if the last server owes nothing and the next one differs in nothing that the client knows."""
        reported = self.reported
        if (parameters.stamp is None or parameters.stamp is not reported.stamp) and not parameters.are_those(reported):
            return False
        self._parameters, self._held = parameters, held
        self.given_up, self.is_unconfirmed = None, False
        return True

    def hold(self, data: bytes) -> None:
        """The beginning of a message that was kept elsewhere until now."""
        if data:
            self._cutter.hold(data)

    def take(self, data: bytes) -> bytes:
        """Walk what came; returns what the client gets of it. Raises ProtocolViolation."""
        buffer, frames = self._cutter.feed(data)
        ledger, names = self.ledger, self._names
        self.is_over = False
        out = b""  # what is the client's, before something that is not
        previous = CONTINUED
        begin = end = 0
        for kind, start, end in frames:
            if kind == CONTINUED or (kind == previous == m.DATA_ROW):
                continue
            previous = kind
            if kind in _LOOKED_INTO and self._must_give_up(kind, buffer[start + 5 : end]):
                return out + buffer[begin:start]
            head = ledger.head
            step = ledger.received(kind)
            if step is Step.GOES_ON:
                if head is not None and head.is_hidden:
                    out += buffer[begin:start]
                    begin = end
                    if kind == m.DATA_ROW:
                        self.guard_row = buffer[start + 5 : end]
                continue
            if self._kept_parts and head is not None and not (head.is_hidden or step is Step.ASIDE):
                out += buffer[begin:start] + self._take_kept(unless=kind == m.ERROR and head.is_plain)
                begin = start
            if kind == m.ERROR and head is not None and head.is_guard:
                self._guard_failed()
            if kind == m.ERROR and head is not None and head.sql is not None:
                self._state.failed(head.sql)
                if head.reply is Reply.PARSE and head.name == b"" and not head.is_hidden:
                    self._state.closed(b"")  # a Parse takes the unnamed statement away before it fails
            if kind == m.ERROR and head is not None and head.uses is not None and names is not None:
                names.failed(head.uses, m.read_report(buffer[start + 5 : end]), self._held)
            if step is Step.READY:
                self.has_failed = failed = ledger.batch_failed
                ledger.ready(buffer[start + 5])
                self._state.ended(ledger.status, failed)
                if head is not None and head.is_simple:
                    self._state.closed(b"")  # a simple Query takes the unnamed statement away
                self.is_over = ledger.is_idle
                if self.is_over:
                    self._requests.ended()
                if head is not None and head.is_hidden:
                    out += buffer[begin:start]
                    begin = end
            elif head is not None:
                self._requests.completed(self._state, kind, head, buffer, start, end)
                if step is Step.DONE or step is Step.COMPLETE:
                    if names is not None:
                        self._note_names(names, head)
                    if self._is_not_shown(kind, head, buffer, start, end):
                        out += buffer[begin:start]
                        begin = end
        return out + buffer[begin:end] if out else buffer[begin:end]

    def _must_give_up(self, kind: int, body: bytes) -> bool:
        """Read a message of `_LOOKED_INTO`."""
        if kind == m.PARAMETER_STATUS:
            name, value = m.read_parameter_status(body)
            self.reported[name] = self._parameters[name] = value
        elif kind == m.ERROR:
            report = m.read_report(body)
            if report.is_fatal:
                self.given_up = f"{report.severity}: {report.text}"
        elif _ACK_HOLE.encode() in body and m.read_report(body).routine == _ACK_HOLE:
            self.given_up = "the server gave up waiting for its standbys to confirm the commit"
            self.is_unconfirmed = True
        return self.given_up is not None

    @property
    def kept(self) -> bytes:
        """What the server said of a statement that is complete and not committed yet."""
        return b"".join(self._kept_parts)

    def _take_kept(self, *, unless: bool) -> bytes:
        kept = b"" if unless else self.kept
        self._kept_parts.clear()
        return kept

    def _guard_failed(self) -> None:
        """The client is told, in place of the COMMIT that comes to nothing now."""
        self._kept_parts.clear()
        for owed in self.ledger.pending():
            owed.is_muted = owed.token is not None

    def _is_not_shown(self, kind: int, head: Owed, buffer: bytes, start: int, end: int) -> bool:
        """``head``, or a statement of it, is complete; whether the client is not told, or not yet."""
        if head.is_kept:
            self._kept_parts.append(buffer[start:end])
        return head.is_hidden or head.is_kept or head.is_muted or (kind == m.NO_DATA and head.is_plain)

    def _note_names(self, names: SharedNames, head: Owed) -> None:
        """On a shared connection ``head`` is complete."""
        prepared = self._held.prepared
        if head.drops is not None:
            prepared.pop(head.drops, None)
        if head.makes is not None:
            prepared[head.makes] = None
        dropped = self._state.take_dropped()
        if dropped is not None:
            names.dropped(dropped, self._held)
