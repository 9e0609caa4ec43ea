"""Keeps the lease of a leader that acknowledges alone (docs/protocol.md, "Asynchronous and degraded clusters")."""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable
from dataclasses import dataclass

import structlog

from holdfast.core.durability import may_take
from holdfast.model.errors import PostgresError, StoreUnavailable
from holdfast.model.keys import Keys
from holdfast.model.lease import LeaseRecord
from holdfast.model.lsn import Lsn
from holdfast.model.register import Member
from holdfast.model.timeouts import Timeouts
from holdfast.node.clock import monotonic_ms
from holdfast.node.parts import LocalServer
from holdfast.node.registry import Registry
from holdfast.store.contract import Entry, Store

log = structlog.get_logger(__name__)


@dataclass(frozen=True, slots=True)
class Leadership:
    """Whose lease it is: a leader, its epoch, and where its log ends now."""

    leader: Member
    epoch: int
    lsn: Lsn | None


class LeaseKeeper:
    """Takes and renews the lease while it is wanted. The server is guarded before anybody may rely on a renewal."""

    def __init__(
        self,
        server: LocalServer,
        store: Store,
        registry: Registry,
        keys: Keys,
        timeouts: Timeouts,
        ask_members: Callable[[Leadership], Awaitable[bool]],
        on_change: Callable[[], None],
    ) -> None:
        """``ask_members``: whether every other voter pledges to join no epoch for the length of a lease."""
        self._server = server
        self._store = store
        self._registry = registry
        self._keys = keys
        self._timeouts = timeouts
        self._ask_members = ask_members
        self._on_change = on_change
        self._wanted: Leadership | None = None
        self._is_told = False
        """Whether anybody has said yet what is wanted: until then the guard of a former agent is left alone."""
        self._kick = asyncio.Event()
        self._held_for: tuple[Member, int] | None = None
        self._until_ms: int | None = None
        self._found: tuple[int, str] | None = None
        """What a former agent left: until when, and for whom."""

    def until_ms(self, leader: Member | None, epoch: int) -> int | None:
        """Until when this leadership may acknowledge alone, the time for a kill taken off."""
        if self._found is not None and leader is not None and self._found[1] == _about(leader, epoch):
            return self._found[0]
        return self._until_ms if self._held_for == (leader, epoch) else None

    async def adopt(self) -> None:
        """Take over the lease of a former agent of the server that runs."""
        self._found = await self._server.held_until()

    def want(self, leadership: Leadership | None) -> None:
        """Keep this lease from now on, or none."""
        self._is_told = True
        before, self._wanted = self._wanted, leadership
        if (before and _whose(before)) != (leadership and _whose(leadership)):
            self._kick.set()

    def server_started(self) -> None:
        """Another server process: nobody guards it yet."""
        self._held_for = self._until_ms = self._found = None
        self._kick.set()

    async def run(self) -> None:
        """Take, renew and let go, for ever."""
        while True:
            try:
                async with asyncio.timeout(self._timeouts.heartbeat_interval_ms / 1000):
                    await self._kick.wait()
            except TimeoutError:
                pass
            self._kick.clear()
            if self._wanted is None:
                if self._is_told and (self._held_for is not None or self._found is not None):
                    await self._let_go()
                continue
            before_ms = self._until_ms
            await self._extend(self._wanted)
            if before_ms is None and self._until_ms is not None:
                self._on_change()

    async def _let_go(self) -> None:
        self._held_for = self._until_ms = self._found = None
        await self._server.release()

    async def _extend(self, wanted: Leadership) -> None:
        began_ms = monotonic_ms()
        try:
            async with asyncio.timeout(2 * self._timeouts.heartbeat_interval_ms / 1000):
                extended = await self._renew(wanted)
        except (StoreUnavailable, TimeoutError) as error:
            # Members can lengthen what the store has granted, and only for as long as the store is away.
            log.warning("lease.store_away", error=str(error))
            began_ms, held_ms = monotonic_ms(), self.until_ms(*_whose(wanted))
            extended = held_ms is not None and held_ms > began_ms and await self._ask_members(wanted)
        if not extended:
            return
        until_ms = began_ms + self._timeouts.lease_ms - self._timeouts.lease_margin_ms
        try:
            await self._server.hold_until(until_ms, _about(*_whose(wanted)))
        except (PostgresError, OSError) as error:
            log.warning("lease.unguarded", error=str(error))
            return
        self._held_for, self._until_ms = _whose(wanted), until_ms
        self._found = None

    async def _renew(self, wanted: Leadership) -> bool:
        record, revision = self._registry.lease, self._registry.lease_revision
        if not may_take(record, wanted.epoch):
            return False
        new = LeaseRecord(wanted.leader, wanted.epoch, wanted.lsn)
        swapped = await self._store.compare_and_swap(self._keys.lease, new.to_json(), revision)
        if swapped is not None:
            self._registry.lease_is_now(Entry(self._keys.lease, new.to_json(), swapped))
            return True
        entry = await self._store.get(self._keys.lease)
        if entry is None:
            self._registry.lease_is_gone()
        else:
            self._registry.lease_is_now(entry)
        self._kick.set()
        return False


def _whose(leadership: Leadership) -> tuple[Member, int]:
    return leadership.leader, leadership.epoch


def _about(leader: Member, epoch: int) -> str:
    return f"{leader} {epoch}"
