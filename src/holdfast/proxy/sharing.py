"""A session's part in a pool of server connections (transaction pooling)."""

from __future__ import annotations

from holdfast.proxy.pool import Pool
from holdfast.proxy.server import ServerConnection
from holdfast.wire.sharing import SharedNames
from holdfast.wire.state import ReplayStep, SessionState


class Share:
    """Joins a session's state to the connection that it has for a transaction."""

    def __init__(self, pool: Pool, application_name: str) -> None:
        self.pool = pool
        self.names = SharedNames(pool.outdated)
        self._application_name = application_name

    def steps(self, state: SessionState, server: ServerConnection, status: int) -> list[ReplayStep]:
        """What makes the connection's session this one."""
        return state.replay_shared(status, server.held, self._application_name)

    def borrow(self, state: SessionState, status: int) -> ServerConnection | None:
        """A connection that can be used as it is, without waiting for anything."""
        server = self.pool.peek()
        if server is None or self.steps(state, server, status):
            return None
        return self.pool.take()

    def peek_at_once(self, state: SessionState) -> ServerConnection | None:
        """The connection that may be used next, if nothing must be told to it; it stays in the pool."""
        server = self.pool.peek()
        return server if server is not None and self.is_there(state, server) else None

    def is_there(self, state: SessionState, server: ServerConnection) -> bool:
        """Whether the session's state is on the connection, so that nothing must be told to it."""
        held = server.held
        if (held.settings or state.settings) and not state.has_all_on(held):
            return False
        return held.application_name == self._application_name

    def has(self, state: SessionState, server: ServerConnection) -> None:
        """The session has the connection, and its state is on it."""
        self.names.attached(server.held)
        self._note(state, server)

    @staticmethod
    def may_give_back(state: SessionState) -> bool:
        """Whether the session, between transactions, has nothing that it would miss on another connection."""
        return not (state.pins or state.prepared_by_sql)

    def give_back(self, state: SessionState, server: ServerConnection) -> None:
        """The session's transaction is over."""
        held = server.held
        if held.settings or state.settings:
            self._note(state, server)
        else:
            held.application_name = self._application_name
        if state.has_reset_name:
            held.application_name, state.has_reset_name = None, False
        self.pool.give(server)

    def _note(self, state: SessionState, server: ServerConnection) -> None:
        held = server.held
        held.application_name = self._application_name
        if not state.has_all_on(held):
            held.settings = dict(state.settings)
