"""What this proxy sees of the primary, told to the cluster: evidence for its observers, never a vote."""

from __future__ import annotations

from collections.abc import Callable

from holdfast.model.keys import Keys
from holdfast.model.report import ProxyOutcome, ProxySight
from holdfast.proxy.routing import Target
from holdfast.store.leased import LeasedRecord


class Testimony:
    """Keeps one small record in the store under a lease; written only when what is seen changes."""

    def __init__(self, name: str, keys: Keys, record: LeasedRecord, clients_waiting: Callable[[], int]) -> None:
        self._name = name
        self._key = keys.proxy(name)
        self._record = record
        self._clients_waiting = clients_waiting
        self._last: tuple[str, int, ProxyOutcome] | None = None

    def saw(self, target: Target, outcome: ProxyOutcome) -> None:
        """A session met the primary; returns at once."""
        if not target.is_primary or (target.node, target.epoch, outcome) == self._last:
            return
        self._last = target.node, target.epoch, outcome
        sight = ProxySight(self._name, target.node, target.epoch, outcome, self._clients_waiting())
        self._record.publish(self._key, sight.to_json())
