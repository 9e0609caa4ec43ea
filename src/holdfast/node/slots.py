"""Slots keep log for every member on every node, so that whoever wins can feed the others."""

from __future__ import annotations

import asyncio
from collections.abc import Callable

import structlog

from holdfast.core.observation import Observation
from holdfast.model.errors import PostgresError
from holdfast.model.lsn import Lsn
from holdfast.model.server import ServerStatus
from holdfast.model.timeouts import Timeouts
from holdfast.node.parts import LocalServer
from holdfast.node.peers import Peers

log = structlog.get_logger(__name__)


class SlotKeeper:
    """Makes the slots of a server once after each of its starts, and moves a standby's forward."""

    def __init__(
        self, server: LocalServer, timeouts: Timeouts, peers: Peers, last: Callable[[], Observation | None]
    ) -> None:
        self._server = server
        self._timeouts = timeouts
        self._peers = peers
        self._last = last
        self._ready = False

    def server_started(self) -> None:
        """They have to be looked at again."""
        self._ready = False

    async def ensure(self, o: Observation) -> None:
        """Make those that are missing, and drop those of nodes that are gone; tried again at the next turn."""
        if self._ready or o.register is None or o.server.status not in (ServerStatus.STANDBY, ServerStatus.PRIMARY):
            return
        try:
            await self._server.ensure_slots([n for n in o.register.data_nodes if n != o.node])
            self._ready = True
        except PostgresError as error:
            log.warning("slots.failed", error=str(error))

    async def run(self) -> None:
        """Move them forward, for ever."""
        while True:
            await asyncio.sleep(self._timeouts.slot_interval_ms / 1000)
            o = self._last()
            if o is None or not self._ready or o.server.status is not ServerStatus.STANDBY:
                continue
            try:
                await self._server.advance_slots(self._peer_positions())
            except PostgresError as error:
                log.warning("slots.stuck", error=str(error))

    def _peer_positions(self) -> dict[str, Lsn]:
        return {
            name: peer.report.position.lsn
            for name, peer in self._peers.known.items()
            if peer.report is not None and peer.report.position is not None
        }
