"""What every statement needs of a `server.ServerConnection`: its state, and the way to the socket."""

from __future__ import annotations

import asyncio
from typing import Any, Final, Protocol

from holdfast.proxy.reactor import Wire
from holdfast.proxy.streams import Output
from holdfast.wire import messages as m
from holdfast.wire.held import Held
from holdfast.wire.parameters import Parameters


class _Nowhere:
    """Takes what is sent before there is a connection."""

    def write(self, data: bytes) -> None:
        """Nobody hears it."""


_NOWHERE: Final = _Nowhere()


class Listener(Protocol):
    """Who hears what a server says."""

    def from_server(self, data: bytes) -> None:
        """The server sent bytes."""


class Link:
    """A connection to a server, whoever uses it.

    What `link.pxd` declares as a function of C only compiled modules can call.
    """

    def __init__(self) -> None:
        self.parameters = Parameters()
        self.held = Held()
        """What its session holds, where sessions share it."""
        self.status = m.IDLE
        self.on_hold = False
        """New statements must wait: a switchover is on its way."""
        self.opened_s = 0.0
        self.cancels = 0
        """Requests to cancel that are under way: whoever uses the connection next must not meet one."""
        self.is_doubtful = False
        """A request to cancel was sent, and may still arrive."""
        self.fit_version = -1
        """The routing's last version that spoke in no way against it (`Lane.is_fit`)."""
        self.is_full = False
        """The server has not taken yet what was written."""
        self.output: Output = _NOWHERE
        """Where to send, without asking whether the connection is there."""
        self.wire: Wire | None = None
        """The same, if it is a socket of the proxy's own."""
        self.rest: Any = None
        """Its place in a pool (`pool.Rest`), once it has had one."""
        self._transport: asyncio.Transport | None = None
        self._session: Any = None
        self._lost: str | None = None

    def stands(self) -> bool:
        """Whether it can be used."""
        if self._lost is not None:
            return False
        if self.wire is not None:
            return not self.wire.is_closing
        return self._transport is None or not self._transport.is_closing()

    @property
    def is_open(self) -> bool:
        """Whether it can be used."""
        return self.stands()

    @property
    def is_settled(self) -> bool:
        """Whether nothing is under way to the server; if it is, its session is told when that is over."""
        return not (self.cancels or self.is_full)

    def attach(self, session: Listener) -> None:
        """From now on everything goes to ``session``."""
        self.hand_to(session)

    def hand_to(self, session: Listener) -> None:
        """The same."""
        self._session = session
        if self.wire is not None:
            self.wire.received = session.from_server
