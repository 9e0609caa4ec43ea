"""Events on their way to the store: written in order, in the background, never in anybody's way."""

from __future__ import annotations

import asyncio
from collections import deque

import structlog
from pydantic import JsonValue

from holdfast.model.errors import StoreUnavailable
from holdfast.model.event import Event, Stamp
from holdfast.model.timeouts import Timeouts
from holdfast.store.contract import Store

log = structlog.get_logger(__name__)

MAX_WAITING_EVENTS = 10_000
"""While the store is away; beyond it the oldest are dropped from here (the process's own log still has them)."""

RECENT_EVENTS = 500
"""Of its own, kept in memory: enough for the story of several failovers."""


class Journal:
    """The journal of one process."""

    def __init__(self, store: Store, source: str, timeouts: Timeouts) -> None:
        self._store = store
        self._source = source
        self._timeouts = timeouts
        self._waiting: deque[Event] = deque(maxlen=MAX_WAITING_EVENTS)
        self.recent: deque[Event] = deque(maxlen=RECENT_EVENTS)
        """For who asks while the store is away."""
        self._something = asyncio.Event()

    def moment(self) -> Stamp:
        """Now, for `record`: taken before others are told of what is going to be recorded."""
        return self._store.clock.stamp()

    def record(
        self, kind: str, epoch: int, rule: str | None = None, *, stamp: Stamp | None = None, **detail: JsonValue
    ) -> None:
        """Note that something happened, now or at the `moment` that is given; returns at once."""
        event = Event(self._store.clock.wall_ms, self._source, kind, epoch, rule, detail, stamp or self.moment())
        log.info(kind, epoch=epoch, rule=rule, **detail)
        self._waiting.append(event)
        self.recent.append(event)
        self._something.set()

    async def run(self) -> None:
        """Write what is recorded, for ever; tries again while the store is away."""
        while True:
            await self._something.wait()
            while self._waiting:
                event = self._waiting[0]
                try:
                    await self._append(event)
                except StoreUnavailable:
                    await asyncio.sleep(self._timeouts.retry_min_ms / 1000)
                    continue
                if self._waiting and self._waiting[0] is event:
                    self._waiting.popleft()
            self._something.clear()

    async def flush(self) -> None:
        """Write what is left, as far as the store answers: for a clean stop."""
        while self._waiting:
            try:
                await self._append(self._waiting[0])
            except StoreUnavailable:
                return
            self._waiting.popleft()

    async def _append(self, event: Event) -> None:
        kept = await self._store.append_event(event)
        for i in reversed(range(len(self.recent))):
            if self.recent[i] is event:
                self.recent[i] = kept
                break
