"""What Holdfast asks of a store, and nothing more. Both implementations pass the same suite (tests/store)."""

from __future__ import annotations

from collections.abc import AsyncIterator
from dataclasses import dataclass
from typing import Protocol

from holdfast.model.errors import StoreUnavailable
from holdfast.model.event import Event
from holdfast.store.clock import Clock

ABSENT = 0
"""The revision of a key that is not there."""

JOURNAL_ENTRIES_MAX = 10_000
"""The journal's length, give or take what is appended between two looks at it."""

TRIM_EVERY = 128
"""Appends by one process between two looks at the journal's length."""


@dataclass(frozen=True, slots=True)
class Entry:
    """A key's value and the revision at which it was last written (etcd: mod-revision)."""

    key: str
    value: bytes
    revision: int


@dataclass(frozen=True, slots=True)
class Snapshot:
    """All entries below a prefix at one revision of the whole store."""

    entries: tuple[Entry, ...]
    revision: int


@dataclass(frozen=True, slots=True)
class Put:
    """A key was written."""

    entry: Entry


@dataclass(frozen=True, slots=True)
class Deleted:
    """A key was deleted, or its lease ended."""

    key: str
    revision: int


@dataclass(frozen=True, slots=True)
class Resync:
    """The history in between is gone (compaction, a store restored): forget what was seen, this is how it is now."""

    snapshot: Snapshot


@dataclass(frozen=True, slots=True)
class Disconnected:
    """The store fell silent; what was seen so far may be stale until the next change or `Connected`."""

    reason: str


@dataclass(frozen=True, slots=True)
class Connected:
    """The watch is live and nothing was missed."""

    revision: int


Change = Put | Deleted | Resync | Disconnected | Connected


@dataclass(frozen=True, slots=True)
class Lease:
    """A lease; keys bound to it are deleted when it ends."""

    id: int
    ttl_s: int


class LeaseEnded(StoreUnavailable):
    """A key was to be bound to a lease that has ended: nothing was written, grant a new lease.

    A StoreUnavailable, because who treats every failed write alike does the right thing.
    """


class Store(Protocol):
    """The store of one cluster. Every method raises StoreUnavailable when no endpoint answers in time."""

    @property
    def clock(self) -> Clock:
        """The clock of this process. If the store was made for an ``owner``, its writes carry what the clock shows.

        Whoever watches the keys that were written sees it, before what was written, and its clock follows.
        """
        ...

    async def get(self, key: str) -> Entry | None:
        """Read one key, linearizably."""
        ...

    async def list(self, prefix: str) -> Snapshot:
        """Read all keys below a prefix, linearizably and at one revision."""
        ...

    async def put(self, key: str, value: bytes, lease: Lease | None = None) -> int:
        """Write a key; returns its new revision. Raises LeaseEnded if ``lease`` has ended."""
        ...

    async def compare_and_swap(self, key: str, value: bytes, expected_revision: int) -> int | None:
        """Write ``value`` if the key is still at ``expected_revision`` (`ABSENT`: not there).

        Returns the new revision, or None if somebody else was first. If the answer is lost it raises
        StoreUnavailable, and the caller must read the key again to learn what happened.
        """
        ...

    async def delete(self, key: str) -> None:
        """Delete a key; no error if it is not there."""
        ...

    async def delete_prefix(self, prefix: str) -> None:
        """Delete all keys below a prefix."""
        ...

    async def grant_lease(self, ttl_s: int) -> Lease:
        """A new lease of at least ``ttl_s`` seconds."""
        ...

    async def keep_alive(self, lease: Lease) -> bool:
        """Renew a lease once; False if it has already ended."""
        ...

    async def revoke_lease(self, lease: Lease) -> None:
        """End a lease now."""
        ...

    def watch(self, prefix: str) -> AsyncIterator[Change]:
        """Everything that happens below a prefix, for ever, in order.

        Begins with a `Resync` of how it is now. Survives endpoints that die, restart or fall silent by resuming from
        the last revision seen; what cannot be resumed (compaction) is a `Resync` again. Never raises StoreUnavailable.
        A store that is away from the start is told as `Disconnected` before the first `Resync`. Ends with `close`.
        """
        ...

    async def append_event(self, event: Event) -> Event:
        """Append to the journal as the next link of its source's chain; returns it as it is kept.

        Entries are never changed. Beyond `JOURNAL_ENTRIES_MAX` the oldest leave; where the chain of each source goes
        on after them is kept. An event that is given again after StoreUnavailable is there once.
        """
        ...

    async def read_events(self, limit: int = 1000) -> tuple[Event, ...]:
        """The newest ``limit`` journal entries, oldest first."""
        ...

    async def close(self) -> None:
        """Release connections. Idempotent."""
        ...
