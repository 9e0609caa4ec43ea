"""A slot for each node on every other one: it keeps log for whoever follows, and lets one connection of a node in."""

from __future__ import annotations

import asyncio
from collections.abc import Callable

import structlog

from holdfast.core.observation import Observation
from holdfast.model.errors import PostgresError
from holdfast.model.lsn import Lsn
from holdfast.model.register import Phase
from holdfast.model.server import ServerStatus, WalSender
from holdfast.model.timeouts import Timeouts
from holdfast.node.clock import monotonic_ms
from holdfast.node.parts import LocalServer
from holdfast.node.peers import Peers
from holdfast.store.journal import Journal

log = structlog.get_logger(__name__)
_RUNNING = (ServerStatus.STANDBY, ServerStatus.PRIMARY)


class SlotKeeper:
    """Makes a server's slots after its start, moves a standby's forward, and ends walsenders that hold one in vain.

    A node streams through its slot and through nothing else, so slots are there before anybody may follow: on a standby
    too, which others follow as soon as it is the candidate.
    """

    def __init__(
        self,
        server: LocalServer,
        timeouts: Timeouts,
        peers: Peers,
        journal: Journal,
        last: Callable[[], Observation | None],
    ) -> None:
        self._server = server
        self._timeouts = timeouts
        self._peers = peers
        self._journal = journal
        self._last = last
        self._made_for: tuple[str, ...] | None = None
        """The nodes whose slots were there at the last look."""
        self._looked_ms = 0
        self._seen: dict[str, tuple[WalSender, int]] = {}
        """Each node's walsender, and since when its standby has not been heard."""

    def server_started(self) -> None:
        """They have to be looked at again."""
        self._made_for = None

    async def ensure(self, o: Observation) -> None:
        """Make those that are missing, and drop those of nodes that are gone; tried again at the next turn."""
        if o.register is None or o.server.status not in _RUNNING or self._made_for == o.register.data_nodes:
            return
        await self._make(o.register.data_nodes)

    async def _make(self, nodes: tuple[str, ...]) -> None:
        try:
            await self._server.ensure_slots(nodes)
            self._made_for, self._looked_ms = nodes, monotonic_ms()
        except PostgresError as error:
            log.warning("slots.failed", error=str(error))

    async def run(self) -> None:
        """End those that are stale, replace slots that were lost, and move a standby's forward, for ever."""
        while True:
            await asyncio.sleep(self._timeouts.heartbeat_interval_ms / 1000)
            o = self._last()
            if o is None or self._made_for is None or o.server.status not in _RUNNING:
                self._seen.clear()
                continue
            try:
                if o.server.replicas or self._seen:
                    await self._end_stale(o)
                # A slot that is moved cannot be taken at that moment, so none is while others may begin to follow.
                serving = o.register is not None and o.register.phase is Phase.SERVING
                if serving and monotonic_ms() - self._looked_ms >= self._timeouts.slot_interval_ms:
                    await self._make(self._made_for)
                    if o.server.status is ServerStatus.STANDBY:
                        await self._server.advance_slots(self._peer_positions())
            except PostgresError as error:
                log.warning("slots.stuck", error=str(error))

    async def _end_stale(self, o: Observation) -> None:
        """End each walsender that hears nothing from a standby which says that it does not stream."""
        senders = await self._server.walsenders()
        now_ms = monotonic_ms()
        former = self._seen
        self._seen = {}
        for node, sender in senders.items():
            before, since_ms = former.get(node, (sender, now_ms))
            self._seen[node] = sender, since_ms if sender == before else now_ms
        for node, (sender, since_ms) in self._seen.items():
            silent_ms = now_ms - since_ms
            if silent_ms >= self._timeouts.walsender_silent_ms and self._is_without(node, since_ms):
                await self._server.end_walsender(node, sender)
                self._journal.record("walsender.ended", o.promised, None, node=node, silent_ms=silent_ms)

    def _is_without(self, node: str, since_ms: int) -> bool:
        """Whether the node has said since then that its standby does not stream."""
        peer = self._peers.known.get(node)
        if peer is None or peer.report is None or peer.answered_ms is None or peer.answered_ms <= since_ms:
            return False
        return peer.report.status is ServerStatus.STANDBY and not peer.report.streaming

    def _peer_positions(self) -> dict[str, Lsn]:
        return {
            name: peer.report.position.lsn
            for name, peer in self._peers.known.items()
            if peer.report is not None and peer.report.position is not None
        }
