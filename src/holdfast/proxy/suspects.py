"""The records of suspects in the store: heard by all proxies, changed by any of them."""

from __future__ import annotations

import asyncio
import time
from collections import deque

import structlog

from holdfast.core.admission.suspicion import is_over
from holdfast.model.errors import RegisterError, StoreUnavailable
from holdfast.model.keys import Keys
from holdfast.model.suspect import Suspect
from holdfast.model.timeouts import Timeouts
from holdfast.proxy.quarantine import Change, Quarantine
from holdfast.store.contract import ABSENT, Deleted, Entry, Put, Resync, Store
from holdfast.store.contract import Change as StoreChange

log = structlog.get_logger(__name__)

SWEEP_S = 30.0
"""Between two looks for records that may be forgotten."""


class SuspectRecords:
    """Brings changes to the store in the background, one after the other, and those of others to the quarantine."""

    def __init__(self, store: Store, keys: Keys, timeouts: Timeouts) -> None:
        self._store = store
        self._prefix = keys.suspects
        self._timeouts = timeouts
        self._changes: deque[tuple[str, Change]] = deque()
        self._something = asyncio.Event()
        self._known: dict[str, Suspect] = {}
        self.lasts_ms = 0.0
        """How long records are kept that refuse nothing, by the policy."""

    def update(self, key: str, change: Change) -> None:
        """Change a record; returns at once."""
        self._changes.append((key, change))
        self._something.set()

    def hear(self, change: StoreChange, quarantine: Quarantine) -> None:
        """Pass on what the store says of suspects."""
        match change:
            case Put(entry) if entry.key.startswith(self._prefix):
                suspect = _read(entry)
                if suspect is not None:
                    self._known[suspect.id] = suspect
                    quarantine.heard(self._with_ours(suspect.id, suspect) or suspect)
            case Deleted(key) if key.startswith(self._prefix):
                self._known.pop(key.removeprefix(self._prefix), None)
                quarantine.forgotten(key.removeprefix(self._prefix))
            case Resync(snapshot):
                read = [_read(entry) for entry in snapshot.entries if entry.key.startswith(self._prefix)]
                self._known = {suspect.id: suspect for suspect in read if suspect is not None}
                keys = {*self._known, *(key for key, _ in self._changes)}
                quarantine.are(s for key in keys if (s := self._with_ours(key, self._known.get(key))) is not None)
            case _:
                pass

    def _with_ours(self, key: str, suspect: Suspect | None) -> Suspect | None:
        """A record with the changes that are not in the store yet."""
        for changed, change in self._changes:
            if changed == key:
                suspect = change(suspect)
        return suspect

    async def run(self) -> None:
        """Write what is changed, and forget what is over, for ever; tries again while the store is away."""
        while True:
            try:
                async with asyncio.timeout(SWEEP_S):
                    await self._something.wait()
            except TimeoutError:
                self._sweep()
            self._something.clear()
            while self._changes:
                try:
                    await self._write(*self._changes[0])
                except StoreUnavailable:
                    await asyncio.sleep(self._timeouts.retry_min_ms / 1000)
                else:
                    self._changes.popleft()

    def _sweep(self) -> None:
        now_ms = time.time() * 1000
        for key, suspect in self._known.items():
            if is_over(suspect, now_ms, self.lasts_ms):
                self.update(key, self._unless_over)

    def _unless_over(self, known: Suspect | None) -> Suspect | None:
        return None if known is None or is_over(known, time.time() * 1000, self.lasts_ms) else known

    async def _write(self, key: str, change: Change) -> None:
        name = f"{self._prefix}{key}"
        while True:
            entry = await self._store.get(name)
            before = _read(entry) if entry is not None else None
            after = change(before)
            if after is None and entry is not None:
                await self._store.delete(name)
            if after is None or after == before:
                return
            revision = entry.revision if entry is not None else ABSENT
            if await self._store.compare_and_swap(name, after.to_json(), revision) is not None:
                return


def _read(entry: Entry) -> Suspect | None:
    try:
        return Suspect.from_json(entry.value)
    except RegisterError as error:
        log.error("store.unreadable", key=entry.key, error=str(error))
        return None
