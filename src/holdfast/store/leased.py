"""One record of a process in the store, kept under a lease: it leaves when the process does."""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable

import structlog

from holdfast.model.errors import StoreUnavailable
from holdfast.model.timeouts import Timeouts
from holdfast.store.contract import Lease, Store

log = structlog.get_logger(__name__)


class LeasedRecord:
    """Publishes the newest record and renews its lease; nobody waits for it."""

    def __init__(
        self, store: Store, timeouts: Timeouts, first: Callable[[bool], Awaitable[None]] | None = None
    ) -> None:
        """``first`` is awaited before each write, and told whether the lease is a new one."""
        self._first = first
        self._store = store
        self._timeouts = timeouts
        self._wanted: tuple[str, bytes] | None = None
        self._changed = asyncio.Event()
        self._lease: Lease | None = None

    def publish(self, key: str, value: bytes) -> None:
        """Say this from now on; returns at once."""
        if (key, value) != self._wanted:
            self._wanted = key, value
            self._changed.set()

    async def run(self) -> None:
        """Write changes and renew the lease, for ever."""
        renew_s = self._timeouts.node_lease_s / 3
        while True:
            try:
                async with asyncio.timeout(renew_s):
                    await self._changed.wait()
            except TimeoutError:
                pass
            try:
                await self._once()
            except StoreUnavailable as error:
                log.debug("record.unpublished", error=str(error))
                await asyncio.sleep(self._timeouts.retry_min_ms / 1000)

    async def withdraw(self) -> None:
        """Take the record back: for a clean stop."""
        if self._lease is not None:
            try:
                await self._store.revoke_lease(self._lease)
            except StoreUnavailable as error:
                log.debug("record.left", error=str(error))

    async def _once(self) -> None:
        if self._lease is not None and not await self._store.keep_alive(self._lease):
            self._lease = None
        if self._wanted is None:
            return
        fresh = self._lease is None
        if self._first is not None:
            await self._first(fresh)
        if self._lease is None:
            self._lease = await self._store.grant_lease(self._timeouts.node_lease_s)
        if fresh or self._changed.is_set():
            key, value = self._wanted
            self._changed.clear()
            try:
                await self._store.put(key, value, self._lease)
            except StoreUnavailable:
                self._changed.set()
                raise
