"""What all stores do alike about the journal and the clocks: links of chains, what trimming leaves, stamps."""

from __future__ import annotations

from collections.abc import Iterable

import structlog

from holdfast.core.chain import head_of, seal
from holdfast.model.errors import RegisterError
from holdfast.model.event import Event, Head, Stamp
from holdfast.model.keys import Keys
from holdfast.store.clock import Clock
from holdfast.store.contract import Change, Entry, Put, Resync

log = structlog.get_logger(__name__)


class Appending:
    """The entries whose writing was begun, until their writer knows that they are kept; by source."""

    def __init__(self) -> None:
        self._begun: dict[str, tuple[Event, Event]] = {}

    def seal(self, event: Event, head: Head | None) -> Event:
        """The entry to write."""
        sealed = seal(event, head)
        self._begun[event.source] = event, sealed
        return sealed

    def kept_already(self, event: Event, head: Head | None) -> Event | None:
        """The entry, if it was written before and only the answer was lost."""
        before, sealed = self._begun.get(event.source, (None, None))
        if before == event and sealed is not None and head == head_of(sealed):
            return sealed
        return None

    def answered(self, event: Event) -> None:
        """The writer knows that it is kept."""
        self._begun.pop(event.source, None)


def head_from(entry: Entry | None) -> Head | None:
    """The head in the store; one that cannot be read is as good as none: the chain begins anew, and checks tell."""
    try:
        return None if entry is None else Head.from_json(entry.value)
    except RegisterError as error:
        log.error("store.unreadable", key=entry.key if entry is not None else None, error=str(error))
        return None


def last_links(entries: Iterable[tuple[str, bytes]]) -> dict[str, tuple[str, Head]]:
    """Of entries that leave (oldest first): each source's last link, with its key."""
    found: dict[str, tuple[str, Head]] = {}
    for key, raw in entries:
        try:
            event = Event.from_json(raw)
        except RegisterError:
            continue
        if event.link is not None:
            found[event.source] = key, head_of(event)
    return found


def follow_clocks(clock: Clock, keys: Keys, change: Change) -> None:
    """Let the clock follow what a watch brings of others' clocks."""
    entries: tuple[Entry, ...] = ()
    if isinstance(change, Put):
        entries = (change.entry,)
    elif isinstance(change, Resync):
        entries = change.snapshot.entries
    for entry in entries:
        if entry.key.startswith(keys.clocks):
            try:
                clock.saw(Stamp.parse(entry.value.decode(errors="replace")))
            except RegisterError as error:
                log.error("store.unreadable", key=entry.key, error=str(error))
