"""What a standby still says when its answer is not wanted any more."""

from __future__ import annotations

from holdfast.model.errors import ProtocolViolation
from holdfast.proxy.pools import PoolKey
from holdfast.proxy.replicas import Replica
from holdfast.proxy.server import ServerConnection
from holdfast.wire.readback import Readback


class Unwanted:
    """In the place of a session: the rest of an answer that nobody wants."""

    def __init__(self, key: PoolKey, replica: Replica, server: ServerConnection, readback: Readback) -> None:
        self._key = key
        self._replica = replica
        self._server = server
        self._readback = readback
        server.attach(self)
        self._look()

    def from_server(self, data: bytes) -> None:
        """More of it."""
        try:
            self._readback.take(data)
        except ProtocolViolation as violation:
            self._server.abort(str(violation))
            return
        self._look()

    def _look(self) -> None:
        readback, server = self._readback, self._server
        if readback.is_unfit or readback.is_over:
            is_unfit = readback.is_unfit or server.cancels or server.is_doubtful
            self._replica.give_back(self._key, server, is_fit=not is_unfit)

    def server_lost(self, server: ServerConnection, reason: str) -> None:
        """The connection is gone."""
        self._replica.give_back(self._key, server, is_fit=False)

    def server_busy(self, busy: bool) -> None:
        """Nothing is sent."""
