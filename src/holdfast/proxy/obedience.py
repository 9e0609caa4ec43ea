"""Whether this proxy may still show what the primary says (docs/protocol.md, "Reads").

A frozen primary that wakes up after another was promoted answers reads with what is no longer true. So a proxy trusts
the register only while its own record lives in the store: a new primary waits until every record says that its proxy
has obeyed the new epoch, or is gone. Without the store it trusts the primary only as long as a quorum has confirmed
that primary's commits a moment ago; after that a new primary may serve.
"""

from __future__ import annotations

import asyncio
import math
from collections.abc import Callable

import aiohttp
import structlog

from holdfast.model.errors import StoreUnavailable
from holdfast.model.keys import Keys
from holdfast.model.timeouts import Timeouts
from holdfast.proxy.footing import Trust
from holdfast.proxy.routing import Routing
from holdfast.store.contract import Lease, Put, Store

log = structlog.get_logger(__name__)

DRIFT = 0.98
"""A time that another's clock measures is counted shorter here."""


class Obedience:
    """Keeps the record, reads the register before each renewal, and knows until when the proxy may trust."""

    def __init__(
        self,
        name: str,
        cluster: str,
        store: Store,
        routing: Routing,
        timeouts: Timeouts,
        obey: Callable[[Put], None],
        on_fresh: Callable[[], None],
        clock: Callable[[], float] | None = None,
    ) -> None:
        """``name`` is this process's own. ``obey`` makes a change of the register felt before it returns."""
        self.trust = Trust(-math.inf, clock)
        """Until when the primary that the routing names is surely the only one."""
        self._keys = Keys(cluster)
        self._key = self._keys.obeys(name)
        self._store = store
        self._routing = routing
        self._timeouts = timeouts
        self._obey = obey
        self._on_fresh = on_fresh
        self._lease: Lease | None = None
        self._told = -1
        self._session: aiohttp.ClientSession | None = None

    async def run(self) -> None:
        """Keep the record and, while the store is away, ask the primary; for ever."""
        async with asyncio.TaskGroup() as group:
            group.create_task(self._keep_record())
            group.create_task(self._ask_without_store())

    async def _keep_record(self) -> None:
        """Renew; at once when an epoch has begun."""
        interval_s = self._timeouts.proxy_lease_s / 4
        while True:
            began = self.trust.now_s()
            try:
                async with asyncio.timeout(2 * interval_s):
                    await self._renew()
            except (StoreUnavailable, TimeoutError) as error:
                log.debug("obedience.store_away", error=str(error))
                await asyncio.sleep(self._timeouts.store_retry_ms / 1000)
                continue
            self._trust_until(began + DRIFT * self._timeouts.proxy_lease_s)
            try:
                async with asyncio.timeout(interval_s):
                    while self._routing.epoch <= self._told:
                        await self._routing.wait_changed()
            except TimeoutError:
                pass

    async def _ask_without_store(self) -> None:
        interval_s = self._timeouts.freshness_ms / 4000
        while True:
            await asyncio.sleep(interval_s)
            left_s = self.trust.until_s - self.trust.now_s()
            if left_s < self._timeouts.proxy_lease_s / 2:
                await self._ask_primary()

    def _trust_until(self, time_s: float) -> None:
        was_fresh = self.trust.is_fresh()
        self.trust.until_s = max(self.trust.until_s, time_s)
        if not was_fresh and self.trust.is_fresh():
            self._on_fresh()

    async def close(self) -> None:
        """Take the record back: nobody waits for a proxy that has ended."""
        if self._session is not None:
            await self._session.close()
        if self._lease is not None:
            try:
                async with asyncio.timeout(self._timeouts.store_request_ms / 1000):
                    await self._store.revoke_lease(self._lease)
            except (StoreUnavailable, TimeoutError) as error:
                log.debug("obedience.left", error=str(error))

    async def _renew(self) -> None:
        """The record is there before the register is read: who opens an epoch later finds it, and waits for it."""
        if self._lease is not None and not await self._store.keep_alive(self._lease):
            self._lease = None
        if self._lease is None:
            self._told = -1
            self._lease = await self._store.grant_lease(self._timeouts.proxy_lease_s)
            await self._store.put(self._key, b"0", self._lease)
        entry = await self._store.get(self._keys.register)
        if entry is not None:
            self._obey(Put(entry))
        if self._routing.epoch > self._told:
            epoch = self._routing.epoch
            await self._store.put(self._key, str(epoch).encode(), self._lease)
            self._told = epoch

    async def _ask_primary(self) -> None:
        """The primary's agent says for how long its quorum, or its lease, vouches for it."""
        primary = self._routing.primary()
        if primary is None:
            return
        if self._session is None:
            limit = aiohttp.ClientTimeout(total=self._timeouts.peer_timeout_ms / 1000)
            self._session = aiohttp.ClientSession(timeout=limit)
        began = self.trust.now_s()
        try:
            async with self._session.get(f"{primary.api_url}/fresh") as answer:
                said = await answer.json()
            if said["epoch"] == primary.epoch and self._routing.epoch == primary.epoch:
                self._trust_until(began + DRIFT * int(said["fresh_for_ms"]) / 1000)
        except (aiohttp.ClientError, TimeoutError, OSError, KeyError, TypeError, ValueError) as error:
            log.debug("obedience.unconfirmed", error=str(error))
