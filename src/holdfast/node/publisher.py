"""The node's record in the store, kept under a lease, and its address, which outlives that."""

from __future__ import annotations

from holdfast.model.keys import Keys
from holdfast.model.register import NodeRecord
from holdfast.model.timeouts import Timeouts
from holdfast.store.contract import Store
from holdfast.store.leased import LeasedRecord


class Publisher:
    """Publishes the newest record and renews its lease; the agent never waits for it."""

    def __init__(self, store: Store, keys: Keys, timeouts: Timeouts) -> None:
        self._store = store
        self._keys = keys
        self._leased = LeasedRecord(store, timeouts, self._keep_address)
        self._wanted: NodeRecord | None = None
        self._address: NodeRecord | None = None

    def publish(self, record: NodeRecord) -> None:
        """Say this from now on; returns at once."""
        self._wanted = record
        self._leased.publish(self._keys.node(record.member.node), record.to_json())

    async def run(self) -> None:
        """Write changes and renew the lease, for ever."""
        await self._leased.run()

    async def withdraw(self) -> None:
        """Take the record back: for a clean stop."""
        await self._leased.withdraw()

    async def _keep_address(self, again: bool) -> None:
        """``again``: with the lease the store may have lost everything else."""
        address = self._wanted.address() if self._wanted is not None else None
        if address is not None and (again or address != self._address):
            await self._store.put(self._keys.address(address.member.node), address.to_json())
            self._address = address
