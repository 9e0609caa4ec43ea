"""The store at a distance: the in-memory store behind a network that is slow, cut, or loses answers."""

from __future__ import annotations

import asyncio
import contextlib
import random
from collections import deque
from collections.abc import AsyncIterator, Callable, Coroutine, Iterator
from typing import Any, TypeVar

from holdfast.model.errors import StoreUnavailable
from holdfast.model.event import Event
from holdfast.model.keys import Keys
from holdfast.model.lease import LeaseRecord
from holdfast.model.policy import DEFAULT_POLICY, Policy
from holdfast.model.register import Register
from holdfast.model.timeouts import Timeouts
from holdfast.store.clock import Clock
from holdfast.store.contract import Change, Connected, Disconnected, Entry, Lease, Snapshot
from holdfast.store.memory import Backup, MemoryBackend, MemoryStore
from holdfast.testing.checks import Checks
from holdfast.testing.loop import SimulatedLoop, within
from holdfast.testing.network import Channel, Network

T = TypeVar("T")

HOST = "store"
_LEASE_CHECK_MS = 1000.0
_LATE_MS = (200.0, 4000.0)


def at_once(work: Coroutine[Any, Any, T]) -> T:
    """The result of a call to the in-memory store, which waits for nothing while it has no fault."""
    while True:
        try:
            work.send(None)
        except StopIteration as stop:
            result: T = stop.value
            return result


class StoreService:
    """The store's side: one in-memory store, who watches it, and what is wrong with it."""

    def __init__(
        self,
        cluster: str,
        timeouts: Timeouts,
        loop: SimulatedLoop,
        network: Network,
        rng: random.Random,
        checks: Checks,
    ) -> None:
        self.loop = loop
        self.network = network
        self.random = rng
        self.checks = checks
        self.keys = Keys(cluster)
        self.timeouts = timeouts
        self.backend = MemoryBackend(clock=loop.time)
        self.inner = MemoryStore(cluster, self.backend, timeouts)
        self.refuses = False
        """Nobody listens: it restarts."""
        self.is_silent = False
        """It has lost its quorum: requests wait, and a few take effect when it is back."""
        self.answers_lost = 0.0
        """Share of answers that never arrive although the request took effect."""
        self.late = 0.0
        """Share of writes that take effect only after their sender has given up."""
        self.on_register: list[Callable[[Register], None]] = []
        self._watches: list[Watch] = []
        self._backups: list[tuple[float, Backup]] = []
        self._told = 0
        self._parked: list[Callable[[], object]] = []
        network.on_change.append(self._links_changed)
        loop.after(_LEASE_CHECK_MS, self._expire)

    @property
    def available(self) -> bool:
        """Whether it answers whoever reaches it."""
        return not self.refuses and not self.is_silent

    def set_available(self, *, refuses: bool = False, silent: bool = False) -> None:
        """Break or mend it for everybody."""
        self.refuses, self.is_silent = refuses, silent
        if self.available:
            parked, self._parked = self._parked, []
            for operation in parked:
                if self.random.random() < 0.3:
                    self.apply_late(operation)
        for watch in list(self._watches):
            self._link_changed(watch)

    def back_up(self) -> None:
        """Keep a copy, as an operator's job does now and then."""
        self._backups.append((self.loop.time(), self.backend.backup()))

    def restore(self) -> None:
        """Put the newest copy in place."""
        if self._backups:
            self.backend.restore(self._backups[-1][1])
            self.checks.put_back(self.register())
            for watch in self._watches:
                watch.restored()
            self._publish()

    def register(self) -> Register | None:
        """The register as it is."""
        entry = at_once(self.inner.get(self.keys.register))
        return None if entry is None else Register.from_json(entry.value)

    def policy(self) -> Policy:
        """The policy as it is."""
        entry = at_once(self.inner.get(self.keys.policy))
        return DEFAULT_POLICY if entry is None else Policy.from_json(entry.value)

    def lease(self) -> LeaseRecord | None:
        """The lease as it is."""
        entry = at_once(self.inner.get(self.keys.lease))
        return None if entry is None else LeaseRecord.from_json(entry.value)

    def apply(self, operation: Callable[[], T]) -> T:
        """Let a request take effect, and tell who watches."""
        result = operation()
        if self.backend.revision != self._told:
            self._publish()
        return result

    def apply_late(self, operation: Callable[[], object]) -> None:
        """The same when its sender has given up; it comes to nothing if the lease it names has ended meanwhile."""
        with contextlib.suppress(StoreUnavailable):
            self.apply(operation)

    def noticed(self, key: str, value: bytes, sent_s: float) -> None:
        """A key was written, as was asked for at ``sent_s``: let the checks see what matters to them."""
        if key == self.keys.register:
            register = Register.from_json(value)
            self.checks.registered(register, sent_s)
            for listener in self.on_register:
                listener(register)
        elif key.startswith(self.keys.all_recruits):
            epoch, _, node = key.removeprefix(self.keys.all_recruits).partition("/")
            self.checks.recruited(node, int(epoch))

    def park(self, operation: Callable[[], object]) -> None:
        """A write arrived that cannot be decided now."""
        self._parked.append(operation)

    def _expire(self) -> None:
        if self.available:
            self.backend.expire_leases()
            if self.backend.revision != self._told:
                self._publish()
        self.loop.after(_LEASE_CHECK_MS, self._expire)

    def _publish(self) -> None:
        self._told = self.backend.revision
        for watch in self._watches:
            if watch.is_open:
                for change in watch.news():
                    watch.channel.send(watch.deliver, change)

    # ---- watches ----------------------------------------------------------------------------------------------

    def follow(self, watch: Watch) -> None:
        """A client wants to watch."""
        self._watches.append(watch)
        self._link_changed(watch)

    def forget(self, watch: Watch) -> None:
        """A client is gone."""
        if watch in self._watches:
            self._watches.remove(watch)

    def _links_changed(self, source: str, target: str) -> None:
        if HOST in (source, target):
            for watch in list(self._watches):
                if watch.host in (source, target):
                    self._link_changed(watch)

    def _link_changed(self, watch: Watch) -> None:
        reachable = self.available and not self.network.is_apart(watch.host, HOST)
        if not reachable and watch.is_cut_off:
            return  # for one more reason now; it has been silent all the while
        watch.is_cut_off = not reachable
        watch.changes += 1
        if reachable:
            self.network.send(watch.host, HOST, self._reached, watch)
        else:
            self.loop.after(self.timeouts.store_silence_ms, self._silence, watch, watch.changes)

    def _reached(self, watch: Watch) -> None:
        if not self.available or self.network.is_apart(watch.host, HOST) or watch not in self._watches:
            return
        if not watch.is_open:
            watch.is_open = True
            for change in watch.news():
                watch.channel.send(watch.deliver, change)
        elif watch.is_stale:
            watch.channel.send(watch.deliver, Connected(self.backend.revision))
        watch.is_stale = False

    def _silence(self, watch: Watch, changes: int) -> None:
        if watch.changes == changes and not watch.is_stale:
            watch.is_stale = True
            watch.deliver(Disconnected("the store does not answer"))


class Watch:
    """One watch of one client."""

    def __init__(self, host: str, service: StoreService, prefix: str) -> None:
        self.host = host
        self.channel = Channel(service.network, service.loop, HOST, host)
        self.is_open = False
        self.is_stale = False
        self.is_cut_off = False
        self.changes = 0
        self.arrived: deque[Change] = deque()
        self.waiter: asyncio.Future[None] | None = None
        self._generator = service.inner.watch(prefix)
        self._step: Any = None
        self._service = service
        self._seen = -1

    def news(self) -> Iterator[Change]:
        """What the in-memory store has to say by now: its generator is driven by hand until it waits."""
        if self._step is not None and self._seen == self._service.backend.revision:
            return  # nothing has happened that its generator could have been woken by
        while True:
            step: Any = self._step if self._step is not None else self._generator.__anext__()
            self._step = None
            try:
                step.send(None)
            except StopIteration as stop:
                yield stop.value
                continue
            self._step, self._seen = step, self._service.backend.revision
            return

    def restored(self) -> None:
        """The store was put back, maybe to the very revision that was seen last."""
        self._seen = -1

    def deliver(self, change: Change) -> None:
        """At the client."""
        self.arrived.append(change)
        if self.waiter is not None and not self.waiter.done():
            self.waiter.set_result(None)


class DistantStore:
    """`Store` as one process on one host has it."""

    def __init__(self, host: str, service: StoreService) -> None:
        self._host = host
        self._service = service
        self._inner = service.inner
        self._deadline_s = service.timeouts.store_request_ms / 1000
        self._watches: list[Watch] = []
        self.clock = Clock(lambda: int(service.loop.time() * 1_000_000))

    async def _call(self, operation: Callable[[], T], *, writes: bool = False) -> T:
        service = self._service
        answer: asyncio.Future[T] = service.loop.create_future()
        service.network.request(self._host, HOST, self._arrived, operation, answer, writes)
        try:
            return await within(answer, self._deadline_s)
        except TimeoutError:
            raise StoreUnavailable("the store does not answer") from None

    def _arrived(self, operation: Callable[[], T], answer: asyncio.Future[T], writes: bool) -> None:
        service = self._service
        if service.refuses:
            service.network.send(HOST, self._host, _refuse, answer)
            return
        if service.is_silent:
            if writes:
                service.park(operation)
            return
        if writes and service.late and service.random.random() < service.late:
            service.loop.after(service.random.uniform(*_LATE_MS), service.apply_late, operation)
            return
        try:
            result = service.apply(operation)
        except StoreUnavailable as ended:
            service.network.send(HOST, self._host, _refuse, answer, str(ended))
            return
        if not (service.answers_lost and service.random.random() < service.answers_lost):
            service.network.send(HOST, self._host, _settle, answer, result)

    # ---- the contract -----------------------------------------------------------------------------------------

    async def get(self, key: str) -> Entry | None:
        """See `Store.get`."""
        return await self._call(lambda: at_once(self._inner.get(key)))

    async def list(self, prefix: str) -> Snapshot:
        """See `Store.list`."""
        return await self._call(lambda: at_once(self._inner.list(prefix)))

    async def put(self, key: str, value: bytes, lease: Lease | None = None) -> int:
        """See `Store.put`."""
        sent_s = self._service.loop.time()

        def operation() -> int:
            revision = at_once(self._inner.put(key, value, lease))
            self._service.noticed(key, value, sent_s)
            return revision

        return await self._call(operation, writes=True)

    async def compare_and_swap(self, key: str, value: bytes, expected_revision: int) -> int | None:
        """See `Store.compare_and_swap`."""
        sent_s = self._service.loop.time()

        def operation() -> int | None:
            revision = at_once(self._inner.compare_and_swap(key, value, expected_revision))
            if revision is not None:
                self._service.noticed(key, value, sent_s)
            return revision

        return await self._call(operation, writes=True)

    async def delete(self, key: str) -> None:
        """See `Store.delete`."""
        await self._call(lambda: at_once(self._inner.delete(key)), writes=True)

    async def delete_prefix(self, prefix: str) -> None:
        """See `Store.delete_prefix`."""
        await self._call(lambda: at_once(self._inner.delete_prefix(prefix)), writes=True)

    async def grant_lease(self, ttl_s: int) -> Lease:
        """See `Store.grant_lease`."""
        return await self._call(lambda: at_once(self._inner.grant_lease(ttl_s)))

    async def keep_alive(self, lease: Lease) -> bool:
        """See `Store.keep_alive`."""
        return await self._call(lambda: at_once(self._inner.keep_alive(lease)))

    async def revoke_lease(self, lease: Lease) -> None:
        """See `Store.revoke_lease`."""
        await self._call(lambda: at_once(self._inner.revoke_lease(lease)))

    async def watch(self, prefix: str) -> AsyncIterator[Change]:
        """See `Store.watch`."""
        watch = Watch(self._host, self._service, prefix)
        self._watches.append(watch)
        self._service.follow(watch)
        while True:
            while watch.arrived:
                yield watch.arrived.popleft()
            watch.waiter = self._service.loop.create_future()
            await watch.waiter

    async def append_event(self, event: Event) -> Event:
        """See `Store.append_event`."""
        return await self._call(lambda: at_once(self._inner.append_event(event)), writes=True)

    async def read_events(self, limit: int = 1000) -> tuple[Event, ...]:
        """See `Store.read_events`."""
        return await self._call(lambda: at_once(self._inner.read_events(limit)))

    async def close(self) -> None:
        """See `Store.close`."""
        self.drop()

    def drop(self) -> None:
        """The process is gone."""
        for watch in self._watches:
            self._service.forget(watch)


def _settle(answer: asyncio.Future[T], result: T) -> None:
    if not answer.done():
        answer.set_result(result)


def _refuse(answer: asyncio.Future[Any], words: str = "the store refuses connections") -> None:
    if not answer.done():
        answer.set_exception(StoreUnavailable(words))
