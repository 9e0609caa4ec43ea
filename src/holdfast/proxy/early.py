"""A connection to the candidate, made while it is promoted: who waits for a primary need not wait for a login as well.

Logins cost both sides more than statements do, and all that wait would log in at the very moment in which the new
primary takes its settings and its first commits. The candidate is a standby until then and lets everybody in. What it
is, is asked when the register says that it serves, and nothing is sent on the connection before.
"""

from __future__ import annotations

import asyncio

import structlog

from holdfast.proxy.reactor import Reactor
from holdfast.proxy.routing import Target
from holdfast.proxy.server import ServerConnection, ServerRefused, ServerUnavailable, log_in
from holdfast.proxy.users import Users

log = structlog.get_logger(__name__)


class Early:
    """What one waiting session has begun ahead of time, if anything."""

    def __init__(self, reactor: Reactor, users: Users, connect_ms: int) -> None:
        self._reactor = reactor
        self._users = users
        self._connect_ms = connect_ms
        self._target: Target | None = None
        self._task: asyncio.Task[ServerConnection] | None = None

    def begin(self, target: Target | None, parameters: dict[str, str]) -> None:
        """From now on it is this server that may be needed, or none."""
        if target is not None and self._target is not None and target.is_same(self._target):
            return
        self.drop()
        if target is not None:
            self._target = target
            self._task = asyncio.create_task(
                log_in(self._reactor, target, parameters, self._users, self._connect_ms), name=f"early-{target.node}"
            )

    async def take(self, target: Target) -> ServerConnection | None:
        """The connection to this server, logged in and not checked; None if there is none, or it came to nothing."""
        task = self._task
        if task is None or self._target is None or not target.is_same(self._target):
            return None
        try:
            server = await task
        except (ServerUnavailable, ServerRefused) as error:
            log.debug("early.in_vain", node=target.node, reason=str(error))
            self._task = self._target = None
            return None
        self._task = self._target = None
        return server if server.is_open else None

    def drop(self) -> None:
        """It is not needed."""
        task, self._task, self._target = self._task, None, None
        if task is not None:
            task.cancel()
            task.add_done_callback(drop_unused)


def drop_unused(trying: asyncio.Task[ServerConnection] | asyncio.Task[ServerConnection | None]) -> None:
    """Nobody waits for this attempt any more; it may have ended well at the last moment."""
    if trying.cancelled() or trying.exception() is not None:
        return
    server = trying.result()
    if server is not None:
        server.drop()
