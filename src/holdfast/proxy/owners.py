"""Whose the transactions were that servers took with them, for the journal."""

from __future__ import annotations

import time
from collections import Counter
from dataclasses import asdict, dataclass, field

from pydantic import JsonValue

from holdfast.model.owner import Owner, Unanswered
from holdfast.proxy.routing import Target

NAMED_MAX = 200
"""Clients that one entry of the journal names, of each kind; of more it tells only how many (about 30 kB in all)."""


@dataclass(slots=True)
class Owners:
    """What has come since the last entry. Those whose outcome is unknown have places of their own."""

    _named: dict[Unanswered, list[dict[str, JsonValue]]] = field(
        default_factory=lambda: {kind: [] for kind in Unanswered}
    )
    _counts: Counter[Unanswered] = field(default_factory=Counter)

    def lost(self, owner: Owner, target: Target, told: Unanswered) -> None:
        """A transaction's server is gone. What a standby answered cannot have been committed, and is nobody's loss."""
        if not target.is_primary:
            return
        self._counts[told] += 1
        named = self._named[told]
        if len(named) < NAMED_MAX:
            now_ms = round(time.time() * 1000)
            where: dict[str, JsonValue] = {"node": target.node, "epoch": target.epoch, "at_ms": now_ms}
            named.append({**asdict(owner), **where, "outcome": told.value})

    def take(self) -> dict[str, JsonValue] | None:
        """What an entry tells; None if there is nothing. From now on it is forgotten here."""
        if not self._counts:
            return None
        clients: list[JsonValue] = [client for named in self._named.values() for client in named]
        counts = {kind.value: self._counts[kind] for kind in Unanswered}
        unnamed = sum(counts.values()) - len(clients)
        for named in self._named.values():
            named.clear()
        self._counts.clear()
        return {**counts, "unnamed": unnamed, "clients": clients}
