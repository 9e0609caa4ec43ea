"""The journal as people ask for it: which entries, in which order, in which words."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass
from fnmatch import fnmatchcase

from holdfast.core.causality import in_order
from holdfast.model.event import Event


@dataclass(frozen=True, slots=True)
class Selection:
    """What is asked for; times are Unix milliseconds, ``kinds`` and ``sources`` patterns such as ``epoch.*``.

    ``by_people``: only what a person ordered or did.
    """

    since_ms: float | None = None
    until_ms: float | None = None
    kinds: tuple[str, ...] = ()
    sources: tuple[str, ...] = ()
    by_people: bool = False

    def has(self, event: Event) -> bool:
        """Whether this entry is asked for."""
        return (
            (self.since_ms is None or event.time_ms >= self.since_ms)
            and (self.until_ms is None or event.time_ms <= self.until_ms)
            and (not self.kinds or any(fnmatchcase(event.kind, kind) for kind in self.kinds))
            and (not self.sources or any(fnmatchcase(event.source, source) for source in self.sources))
            and (not self.by_people or "by" in event.detail)
        )


def selected(events: Iterable[Event], selection: Selection, newest: int | None = None) -> list[Event]:
    """The entries that are asked for, causes before what they led to; of them the ``newest`` so many."""
    found = in_order(event for event in events if selection.has(event))
    return found if newest is None else found[max(0, len(found) - newest) :]
