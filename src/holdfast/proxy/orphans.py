"""Statements whose clients have gone while the server still works on them.

They keep their places until the server has done with them: otherwise clients that give up early and come again would
pile up in the database what the gate keeps out.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Protocol

from holdfast.core.admission.gate import Permit
from holdfast.proxy.admission import Admission
from holdfast.proxy.server import ServerConnection


class Ended(Protocol):
    """Told that an orphan's session is over."""

    def __call__(self, orphan: _Orphan, *, by_itself: bool) -> None:
        """``by_itself``: the statement was done."""


class Orphans:
    """The orphans of one port."""

    def __init__(self, admission: Admission, lost: Callable[[ServerConnection, Permit], None]) -> None:
        """``lost`` is told of each whose server is lost."""
        self._admission = admission
        self._lost = lost
        self._all: set[_Orphan] = set()

    def __len__(self) -> int:
        return len(self._all)

    def adopt(self, server: ServerConnection, permit: Permit, done: Callable[[], None]) -> None:
        """Nobody waits for the answer any more: the first byte of it ends the session, and ``done`` is called."""
        orphan = _Orphan(server, permit, self._ended, self._lost, done)
        self._all.add(orphan)
        server.attach(orphan)
        server.say_goodbye()
        server.pause_reading(False)

    def reroute(self, must_drop: Callable[[ServerConnection], str | None]) -> None:
        """The routing has changed: what must not be used any more is not waited for either."""
        for orphan in list(self._all):
            reason = must_drop(orphan.server)
            if reason is not None:
                orphan.server.abort(reason)

    def close(self) -> None:
        """Wait for none of them; what was sent still runs."""
        for orphan in list(self._all):
            orphan.server.close()
            self._ended(orphan, by_itself=False)

    def _ended(self, orphan: _Orphan, *, by_itself: bool) -> None:
        self._all.discard(orphan)
        orphan.done()
        if by_itself:
            self._admission.leave(orphan.permit)
        else:
            self._admission.give_back(orphan.permit)


class _Orphan:
    """In the place of a client."""

    def __init__(
        self,
        server: ServerConnection,
        permit: Permit,
        ended: Ended,
        lost: Callable[[ServerConnection, Permit], None],
        done: Callable[[], None],
    ) -> None:
        self.server = server
        self.permit = permit
        self.done = done
        self._ended = ended
        self._lost = lost

    def from_server(self, data: bytes) -> None:
        """The statement is done, or has begun to answer: what it sends from now on meets a closed connection."""
        self.server.drop()
        self._ended(self, by_itself=True)

    def server_lost(self, server: ServerConnection, reason: str) -> None:
        """The session has ended without a word."""
        self._lost(server, self.permit)
        self._ended(self, by_itself=False)

    def server_busy(self, busy: bool) -> None:
        """Nothing is sent any more."""
