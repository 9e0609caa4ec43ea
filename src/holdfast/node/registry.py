"""The store as one agent sees it: the register, the recruits and the nodes, kept true by one watch."""

from __future__ import annotations

import asyncio
from collections.abc import Callable
from dataclasses import replace

import structlog

from holdfast.model.errors import RegisterError
from holdfast.model.keys import Keys
from holdfast.model.lease import LeaseRecord
from holdfast.model.plan import PlannedSwitchover
from holdfast.model.policy import DEFAULT_POLICY, Policy
from holdfast.model.register import NodeRecord, Recruit, Register
from holdfast.model.report import ProxyOutcome, ProxySight
from holdfast.node.clock import monotonic_ms
from holdfast.store.contract import ABSENT, Connected, Deleted, Disconnected, Entry, Put, Resync, Store

log = structlog.get_logger(__name__)


class Registry:
    """Follows everything below the cluster's prefix; calls ``on_change`` after each change that matters.

    ``on_trouble`` is called when a proxy says that it has met trouble with the primary.
    """

    def __init__(
        self, store: Store, keys: Keys, on_change: Callable[[], None], on_trouble: Callable[[], None] = lambda: None
    ) -> None:
        self._store = store
        self._keys = keys
        self._on_change = on_change
        self._on_trouble = on_trouble
        self.synced = asyncio.Event()
        self.connected = False
        self.register: Register | None = None
        self.register_revision = ABSENT
        self.unreadable: str | None = None
        self.nodes: dict[str, NodeRecord] = {}
        """Addresses outlive the lease of a record: a node that fell silent is still asked, also by who comes later."""
        self.proxies: dict[str, ProxySight] = {}
        self.obeying: dict[str, int] = {}
        """The newest epoch that each living proxy has obeyed."""
        self._recruits: dict[str, Recruit] = {}
        self.policy = DEFAULT_POLICY
        self.policy_revision = ABSENT
        self.approved_epoch: int | None = None
        self.planned: PlannedSwitchover | None = None
        self.lease: LeaseRecord | None = None
        self.lease_revision = ABSENT
        self.lease_renewed_ms: int | None = None
        """When the last renewal was seen; one that may have been missed counts from when it was looked for again."""

    def recruits(self) -> tuple[Recruit, ...]:
        """Who has joined the register's epoch."""
        if self.register is None or not self._recruits:
            return ()
        prefix = self._keys.recruits(self.register.epoch)
        return tuple(r for key, r in sorted(self._recruits.items()) if key.startswith(prefix))

    async def run(self) -> None:
        """Watch for ever."""
        async for change in self._store.watch(self._keys.prefix):
            match change:
                case Resync(snapshot):
                    self._reset(snapshot.entries)
                    self.connected = True
                    self.synced.set()
                case Put(entry):
                    self._put(entry)
                case Deleted(key):
                    self._deleted(key)
                case Connected():
                    self.connected = True
                case Disconnected(reason):
                    self.connected = False
                    log.warning("store.silent", reason=reason)
            if not (isinstance(change, Put) and self._is_routine(change.entry.key)):
                self._on_change()

    def _is_routine(self, key: str) -> bool:
        renewed = key == self._keys.lease and self.lease is not None and not self.lease.revoked
        return renewed or key.startswith((self._keys.all_of_journal, self._keys.clocks))

    def swapped(self, register: Register, revision: int) -> None:
        """The own swap succeeded; the watch will say so later."""
        if revision > self.register_revision:
            self.register, self.register_revision, self.unreadable = register, revision, None
            self._on_change()

    def lease_is_now(self, entry: Entry) -> None:
        """The lease as it was just read or written."""
        if entry.revision <= self.lease_revision:
            return
        try:
            lease = LeaseRecord.from_json(entry.value)
        except RegisterError as error:
            log.error("store.unreadable", key=entry.key, error=str(error))
            return
        if not lease.revoked or lease.renewed_revision != self.lease_revision:
            self.lease_renewed_ms = monotonic_ms()
        self.lease, self.lease_revision = lease, entry.revision

    def lease_is_gone(self) -> None:
        """There is no lease."""
        self.lease, self.lease_revision = None, ABSENT

    def policy_is_now(self, entry: Entry) -> None:
        """The policy as it was just read or written; one that cannot be read changes nothing."""
        if entry.revision <= self.policy_revision:
            return
        self.policy_revision = entry.revision
        self.policy = Policy.from_json(entry.value)

    def _reset(self, entries: tuple[Entry, ...]) -> None:
        self.register, self.register_revision, self.unreadable = None, ABSENT, None
        self.policy, self.policy_revision, self.approved_epoch = DEFAULT_POLICY, ABSENT, None
        # The history is gone, and with it what a renewal's revision could be compared to.
        self.lease_is_gone()
        self._recruits.clear()
        self.proxies.clear()
        self.planned = None
        self.obeying.clear()
        for entry in entries:
            self._put(entry)

    def _put(self, entry: Entry) -> None:
        try:
            if entry.key == self._keys.register:
                if entry.revision > self.register_revision:
                    self.register_revision = entry.revision
                    self.register = Register.from_json(entry.value)
                    self.unreadable = None
            elif entry.key.startswith(self._keys.nodes):
                record = NodeRecord.from_json(entry.value)
                self.nodes[record.member.node] = record
            elif entry.key.startswith(self._keys.addresses):
                address = NodeRecord.from_json(entry.value)
                known = self.nodes.get(address.member.node)
                self.nodes[address.member.node] = known.moved_to(address) if known is not None else address
            elif entry.key.startswith(self._keys.proxies):
                sight = replace(ProxySight.from_json(entry.value), heard_ms=monotonic_ms())
                self.proxies[entry.key] = sight
                if sight.outcome is not ProxyOutcome.ANSWERS:
                    self._on_trouble()
            elif entry.key.startswith(self._keys.all_recruits):
                self._recruits[entry.key] = Recruit.from_json(entry.value)
            elif entry.key.startswith(self._keys.obeying):
                self.obeying[entry.key] = int(entry.value)
            elif entry.key == self._keys.policy:
                self.policy_is_now(entry)
            elif entry.key == self._keys.lease:
                self.lease_is_now(entry)
            elif entry.key == self._keys.planned:
                self.planned = PlannedSwitchover.from_json(entry.value)
            elif entry.key == self._keys.approval:
                self.approved_epoch = int(entry.value)
        except (RegisterError, ValueError) as error:
            log.error("store.unreadable", key=entry.key, error=str(error))
            if entry.key == self._keys.register:
                self.register, self.unreadable = None, str(error)

    def _deleted(self, key: str) -> None:
        if key == self._keys.register:
            self.register, self.register_revision = None, ABSENT
        elif key == self._keys.policy:
            self.policy, self.policy_revision = DEFAULT_POLICY, ABSENT
        elif key == self._keys.approval:
            self.approved_epoch = None
        elif key == self._keys.planned:
            self.planned = None
        elif key == self._keys.lease:
            self.lease_is_gone()
        else:
            self._recruits.pop(key, None)
            self.proxies.pop(key, None)
            self.obeying.pop(key, None)
