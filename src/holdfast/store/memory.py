"""The store in memory: passes the same suite as etcd, and can be made to fail in every way that etcd can.

Several `MemoryStore` share one `MemoryBackend`, as several processes share one etcd. Time comes from ``clock`` in
seconds; without one the running event loop's clock is used and leases end by themselves. With one, whoever moves the
clock calls `MemoryBackend.expire_leases` afterwards.
"""

from __future__ import annotations

import asyncio
import copy
import itertools
from bisect import bisect_right
from collections.abc import AsyncIterator, Callable
from dataclasses import dataclass, field
from enum import Enum, auto

from holdfast.core.chain import head_of
from holdfast.model.errors import StoreUnavailable
from holdfast.model.event import Event
from holdfast.model.keys import Keys
from holdfast.model.timeouts import Timeouts
from holdfast.store.appending import Appending, follow_clocks, head_from, last_links
from holdfast.store.clock import Clock
from holdfast.store.contract import (
    ABSENT,
    JOURNAL_ENTRIES_MAX,
    TRIM_EVERY,
    Change,
    Connected,
    Deleted,
    Disconnected,
    Entry,
    Lease,
    LeaseEnded,
    Put,
    Resync,
    Snapshot,
)


class Fault(Enum):
    """What a request meets."""

    NONE = auto()
    REFUSED = auto()
    """Fails at once and has no effect."""
    SILENT = auto()
    """Fails after the deadline and has no effect."""
    ANSWER_LOST = auto()
    """Takes effect, but fails after the deadline."""


@dataclass(slots=True)
class _State:
    """What a backup would hold."""

    revision: int = 1
    entries: dict[str, Entry] = field(default_factory=dict)
    created: dict[str, int] = field(default_factory=dict)
    history: list[Put | Deleted] = field(default_factory=list)
    compacted: int = 0
    """Changes up to this revision are no longer in ``history``."""


@dataclass(slots=True)
class _Granted:
    ttl_s: int
    ends_at_s: float
    keys: set[str] = field(default_factory=set)


@dataclass(frozen=True, slots=True)
class Backup:
    """A copy of all keys, as `MemoryBackend.backup` made it."""

    state: _State


class MemoryBackend:
    """What several stores share."""

    def __init__(self, clock: Callable[[], float] | None = None) -> None:
        self.fault = Fault.NONE
        """Met by every store; a `MemoryStore` has one of its own besides."""
        self._clock = clock
        self._state = _State()
        self._leases: dict[int, _Granted] = {}
        self._lease_ids = itertools.count(1)
        self._writers = itertools.count(1)
        self._generation = 0
        self._changed = asyncio.Event()
        self._timer: asyncio.TimerHandle | None = None

    @property
    def revision(self) -> int:
        """The revision of the whole store."""
        return self._state.revision

    def set_fault(self, fault: Fault) -> None:
        """Break or mend the store for everybody."""
        self.fault = fault
        self._wake()

    def compact(self) -> None:
        """Forget all history: watches that were away must resync."""
        self._state.history.clear()
        self._state.compacted = self._state.revision

    def backup(self) -> Backup:
        """A copy of all keys now."""
        return Backup(copy.deepcopy(self._state))

    def restore(self, backup: Backup) -> None:
        """Put an older copy in place, as an operator would after a disaster; leases are gone with it."""
        self._state = copy.deepcopy(backup.state)
        self._leases.clear()
        self._generation += 1
        self._wake()

    def expire_leases(self) -> None:
        """End every lease whose time is up, as of the clock now."""
        now = self._now()
        for lease_id in [i for i, granted in self._leases.items() if granted.ends_at_s <= now]:
            self._end_lease(lease_id)
        self._arm()

    # What stores do; called by MemoryStore only.

    def _now(self) -> float:
        return self._clock() if self._clock is not None else asyncio.get_running_loop().time()

    def _write(self, key: str, value: bytes, lease: Lease | None) -> int:
        self.expire_leases()
        if lease is not None and lease.id not in self._leases:
            raise LeaseEnded("the lease has ended: grant a new one")
        for granted in self._leases.values():
            granted.keys.discard(key)
        if lease is not None:
            self._leases[lease.id].keys.add(key)
        state = self._state
        state.revision += 1
        state.entries[key] = entry = Entry(key, value, state.revision)
        state.created.setdefault(key, state.revision)
        state.history.append(Put(entry))
        self._wake()
        return state.revision

    def _swap(self, key: str, value: bytes, expected_revision: int) -> int | None:
        return self._write(key, value, None) if self._is_at(key, expected_revision) else None

    def _is_at(self, key: str, revision: int) -> bool:
        self.expire_leases()
        entry = self._state.entries.get(key)
        return (entry.revision if entry is not None else ABSENT) == revision

    def _erase(self, keys: list[str]) -> None:
        state = self._state
        if not keys:
            return
        state.revision += 1
        for key in sorted(keys):
            del state.entries[key]
            del state.created[key]
            state.history.append(Deleted(key, state.revision))
            for granted in self._leases.values():
                granted.keys.discard(key)
        self._wake()

    def _below(self, prefix: str) -> Snapshot:
        self.expire_leases()
        found = sorted((e for k, e in self._state.entries.items() if k.startswith(prefix)), key=lambda e: e.key)
        return Snapshot(tuple(found), self._state.revision)

    def _since(self, revision: int) -> list[Put | Deleted]:
        history = self._state.history
        return history[bisect_right(history, revision, key=_revision) :]

    def _oldest(self, prefix: str) -> list[str]:
        """Keys below a prefix, in the order in which they were created."""
        created = self._state.created
        return sorted((key for key in created if key.startswith(prefix)), key=created.__getitem__)

    def _grant(self, ttl_s: int) -> Lease:
        lease = Lease(next(self._lease_ids), ttl_s)
        self._leases[lease.id] = _Granted(ttl_s, self._now() + ttl_s)
        self._arm()
        return lease

    def _renew(self, lease: Lease) -> bool:
        self.expire_leases()
        granted = self._leases.get(lease.id)
        if granted is None:
            return False
        granted.ends_at_s = self._now() + granted.ttl_s
        self._arm()
        return True

    def _end_lease(self, lease_id: int) -> None:
        granted = self._leases.pop(lease_id, None)
        if granted is not None:
            self._erase([key for key in granted.keys if key in self._state.entries])

    def _arm(self) -> None:
        """Without a clock of the caller's, the event loop ends leases."""
        if self._clock is not None:
            return
        if self._timer is not None:
            self._timer.cancel()
            self._timer = None
        if self._leases:
            soonest = min(granted.ends_at_s for granted in self._leases.values())
            self._timer = asyncio.get_running_loop().call_at(soonest, self.expire_leases)

    def _wake(self) -> None:
        changed, self._changed = self._changed, asyncio.Event()
        changed.set()


class MemoryStore:
    """`Store` in memory.

    A silent request fails after ``timeouts.store_request_ms``, a silent watch says so after ``store_silence_ms``.
    """

    def __init__(
        self,
        cluster: str,
        backend: MemoryBackend | None = None,
        timeouts: Timeouts | None = None,
        *,
        journal_entries_max: int = JOURNAL_ENTRIES_MAX,
        owner: str | None = None,
    ) -> None:
        """``owner`` names the process for the key that carries its clock; None: its writes carry none."""
        timeouts = timeouts if timeouts is not None else Timeouts()
        self.backend = backend if backend is not None else MemoryBackend()
        self._journal_entries_max = journal_entries_max
        self._keys = Keys(cluster)
        self._deadline_s = timeouts.store_request_ms / 1000
        self._silence_s = timeouts.store_silence_ms / 1000
        self._fault = Fault.NONE
        self._closed = False
        self._writer = next(self.backend._writers)
        self._appended = itertools.count(1)
        self._appending = Appending()
        self._owner = owner
        self.clock = Clock()

    def set_fault(self, fault: Fault) -> None:
        """Cut this client off, or mend it."""
        self._fault = fault
        self.backend._wake()

    async def get(self, key: str) -> Entry | None:
        """See `Store.get`."""
        await self._reach()
        self.backend.expire_leases()
        entry = self.backend._state.entries.get(key)
        await self._answer()
        return entry

    async def list(self, prefix: str) -> Snapshot:
        """See `Store.list`."""
        await self._reach()
        snapshot = self.backend._below(prefix)
        await self._answer()
        return snapshot

    async def put(self, key: str, value: bytes, lease: Lease | None = None) -> int:
        """See `Store.put`."""
        await self._reach()
        self._tell_clock()
        revision = self.backend._write(key, value, lease)
        await self._answer()
        return revision

    async def compare_and_swap(self, key: str, value: bytes, expected_revision: int) -> int | None:
        """See `Store.compare_and_swap`."""
        await self._reach()
        if self.backend._is_at(key, expected_revision):
            self._tell_clock()
        revision = self.backend._swap(key, value, expected_revision)
        await self._answer()
        return revision

    async def delete(self, key: str) -> None:
        """See `Store.delete`."""
        await self._reach()
        self.backend._erase([key] if key in self.backend._state.entries else [])
        await self._answer()

    async def delete_prefix(self, prefix: str) -> None:
        """See `Store.delete_prefix`."""
        await self._reach()
        self.backend._erase([entry.key for entry in self.backend._below(prefix).entries])
        await self._answer()

    async def grant_lease(self, ttl_s: int) -> Lease:
        """See `Store.grant_lease`."""
        await self._reach()
        lease = self.backend._grant(ttl_s)
        await self._answer()
        return lease

    async def keep_alive(self, lease: Lease) -> bool:
        """See `Store.keep_alive`."""
        await self._reach()
        renewed = self.backend._renew(lease)
        await self._answer()
        return renewed

    async def revoke_lease(self, lease: Lease) -> None:
        """See `Store.revoke_lease`."""
        await self._reach()
        self.backend._end_lease(lease.id)
        self.backend._arm()
        await self._answer()

    async def watch(self, prefix: str) -> AsyncIterator[Change]:
        """See `Store.watch`."""
        backend = self.backend
        seen = generation = -1
        live: bool | None = None
        while not self._closed:
            changed = backend._changed  # taken first, so that nothing that happens from here on is slept through
            if self._effective_fault() is not Fault.NONE:
                if live is not False:
                    if live and self._effective_fault() is Fault.SILENT and await _set_within(changed, self._silence_s):
                        continue
                    live = False
                    yield Disconnected("the store does not answer")
                    continue
            else:
                if seen < backend._state.compacted or generation != backend._generation:
                    snapshot = backend._below(prefix)
                    seen, generation = snapshot.revision, backend._generation
                    follow_clocks(self.clock, self._keys, Resync(snapshot))
                    yield Resync(snapshot)
                    continue
                batch = backend._since(seen)
                seen = backend._state.revision
                for change in batch:
                    if _key(change).startswith(prefix):
                        follow_clocks(self.clock, self._keys, change)
                        yield change
                if batch:
                    continue
                if not live:
                    live = True
                    yield Connected(seen)
                    continue
            await changed.wait()

    async def append_event(self, event: Event) -> Event:
        """See `Store.append_event`."""
        await self._reach()
        head = head_from(self.backend._state.entries.get(self._keys.head(event.source)))
        kept = self._appending.kept_already(event, head)
        if kept is None:
            kept = self._appending.seal(event, head)
            number = next(self._appended)
            key = f"{self._keys.journal}{event.at_ms:015.0f}-{event.source}-{self._writer}-{number:08d}"
            self.backend._write(key, kept.to_json(), None)
            self.backend._write(self._keys.head(event.source), head_of(kept).to_json(), None)
            if number % TRIM_EVERY == 0:
                self._trim_journal()
        await self._answer()
        self._appending.answered(event)
        return kept

    def _trim_journal(self) -> None:
        keys = self.backend._oldest(self._keys.journal)[: -self._journal_entries_max]
        left = last_links((key, self.backend._state.entries[key].value) for key in keys)
        for source, (_, base) in left.items():
            self.backend._write(self._keys.base(source), base.to_json(), None)
        self.backend._erase(keys)

    async def read_events(self, limit: int = 1000) -> tuple[Event, ...]:
        """See `Store.read_events`."""
        await self._reach()
        keys = self.backend._oldest(self._keys.journal)[-limit:] if limit > 0 else []
        events = tuple(Event.from_json(self.backend._state.entries[key].value) for key in keys)
        await self._answer()
        return events

    async def close(self) -> None:
        """See `Store.close`."""
        self._closed = True
        self.backend._wake()

    def _tell_clock(self) -> None:
        if self._owner is not None:
            self.backend._write(self._keys.clock(self._owner), str(self.clock.stamp()).encode(), None)

    def _effective_fault(self) -> Fault:
        return self._fault if self._fault is not Fault.NONE else self.backend.fault

    async def _reach(self) -> None:
        """The way there: one turn of the event loop, or the fault."""
        if self._closed:
            raise StoreUnavailable("this store was closed by its owner")
        await asyncio.sleep(0)
        fault = self._effective_fault()
        if fault is Fault.SILENT:
            await asyncio.sleep(self._deadline_s)
        if fault in (Fault.REFUSED, Fault.SILENT):
            raise StoreUnavailable("the store does not answer")

    async def _answer(self) -> None:
        """The way back."""
        if self._effective_fault() is Fault.ANSWER_LOST:
            await asyncio.sleep(self._deadline_s)
            raise StoreUnavailable("the store does not answer")
        await asyncio.sleep(0)


async def _set_within(event: asyncio.Event, seconds: float) -> bool:
    try:
        async with asyncio.timeout(seconds):
            await event.wait()
    except TimeoutError:
        return False
    return True


def _revision(change: Put | Deleted) -> int:
    return change.entry.revision if isinstance(change, Put) else change.revision


def _key(change: Put | Deleted) -> str:
    return change.entry.key if isinstance(change, Put) else change.key
