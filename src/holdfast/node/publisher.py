"""The node's record in the store, kept under a lease, and its address, which outlives that."""

from __future__ import annotations

import asyncio

import structlog

from holdfast.model.errors import StoreUnavailable
from holdfast.model.keys import Keys
from holdfast.model.register import NodeRecord
from holdfast.model.timeouts import Timeouts
from holdfast.store.contract import Lease, Store

log = structlog.get_logger(__name__)


class Publisher:
    """Publishes the newest record and renews its lease; the agent never waits for it."""

    def __init__(self, store: Store, keys: Keys, timeouts: Timeouts) -> None:
        self._store = store
        self._keys = keys
        self._timeouts = timeouts
        self._wanted: NodeRecord | None = None
        self._changed = asyncio.Event()
        self._lease: Lease | None = None
        self._address: NodeRecord | None = None

    def publish(self, record: NodeRecord) -> None:
        """Say this from now on; returns at once."""
        if record != self._wanted:
            self._wanted = record
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
        await self._keep_address(self._wanted.address(), again=fresh)
        if self._lease is None:
            self._lease = await self._store.grant_lease(self._timeouts.node_lease_s)
        if fresh or self._changed.is_set():
            record = self._wanted
            self._changed.clear()
            try:
                await self._store.put(self._keys.node(record.member.node), record.to_json(), self._lease)
            except StoreUnavailable:
                self._changed.set()
                raise

    async def _keep_address(self, address: NodeRecord, *, again: bool) -> None:
        """``again``: with the lease the store may have lost everything else."""
        if again or address != self._address:
            await self._store.put(self._keys.address(address.member.node), address.to_json())
            self._address = address
