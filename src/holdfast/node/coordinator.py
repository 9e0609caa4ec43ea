"""The hands of any voter: what it does about the register, and what it asks of its peers."""

from __future__ import annotations

from collections.abc import Awaitable, Callable
from typing import ClassVar

from holdfast.core import actions as a
from holdfast.core.durability import is_revoked
from holdfast.core.observation import Observation
from holdfast.model.keys import Keys
from holdfast.model.lease import LeaseRecord
from holdfast.model.register import Register
from holdfast.node.peers import Peers
from holdfast.node.registry import Registry
from holdfast.store.contract import Entry, Store
from holdfast.store.journal import Journal

Hands = dict[type[a.Action], Callable[..., Awaitable[bool]]]


class Coordinator:
    """Performs what `core.coordination` asks for. Methods raise StoreUnavailable and RegisterError."""

    def __init__(self, store: Store, registry: Registry, peers: Peers, keys: Keys, journal: Journal) -> None:
        self._store = store
        self._registry = registry
        self._peers = peers
        self._keys = keys
        self._journal = journal
        self.alarm: str | None = None
        self.waiting: str | None = None
        """What the cluster waits for, as this turn sees it."""
        self.waiting_since_ms: float | None = None
        """Since when it waits without a turn between, whatever for."""
        self._told_waiting: str | None = None
        self.progress: str | None = None

    async def perform(self, action: a.Action, rule: str, o: Observation) -> bool:
        """Do one thing; False if there was nothing to do yet, or it is being done already."""
        return await self.HANDS[type(action)](self, action, rule, o)

    def begin_turn(self) -> None:
        """What the last turn waited for is forgotten, unless this one waits for it, too."""
        if self.waiting is None:
            self.waiting_since_ms = self._told_waiting = None
        self.waiting = None

    async def _swap(self, o: Observation, new: Register, kind: str, rule: str, **detail: str) -> bool:
        # Of the register that the decision was made on, not of the newest: that one may call for another decision.
        moment = self._journal.moment()  # whoever sees the register has this behind him
        revision = await self._store.compare_and_swap(self._keys.register, new.to_json(), o.register_revision)
        if revision is None:
            await self._read_register()
            return False
        self._registry.swapped(new, revision)
        self._journal.record(kind, new.epoch, rule, stamp=moment, **detail)
        return True

    async def _read_register(self) -> None:
        """Somebody else was first: the next decision is on what they wrote, also if the watch is late."""
        entry = await self._store.get(self._keys.register)
        if entry is not None:
            self._registry.swapped(Register.from_json(entry.value), entry.revision)

    async def _open_epoch(self, action: a.OpenEpoch, rule: str, o: Observation) -> bool:
        if o.register is None:
            return False
        quorum = str(o.register.committed.quorum)
        return await self._swap(o, o.register.opened(), "epoch.opened", rule, reason=action.reason, quorum=quorum)

    async def _choose(self, action: a.ChooseCandidate, rule: str, o: Observation) -> bool:
        if o.register is None:
            return False
        new, detail = o.register.chosen(action.candidate), {"candidate": action.candidate.node}
        return await self._swap(o, new, "candidate.chosen", rule, **detail, reason=action.reason.value)

    async def _cancel_hand_over(self, action: a.CancelHandOver, rule: str, o: Observation) -> bool:
        if o.register is None:
            return False
        return await self._swap(o, o.register.handing_over(None), "handover.cancelled", rule)

    async def _revoke_lease(self, action: a.RevokeLease, rule: str, o: Observation) -> bool:
        if o.register is None or is_revoked(o, o.register):
            return False
        revision = self._registry.lease_revision
        lost = o.lease or LeaseRecord(o.register.committed.leader, 0, None)
        if lost != (self._registry.lease or lost):
            return True  # renewed meanwhile: look again
        new, moment = lost.withdrawn(o.register.epoch, revision), self._journal.moment()
        swapped = await self._store.compare_and_swap(self._keys.lease, new.to_json(), revision)
        entry = await self._store.get(self._keys.lease) if swapped is None else None
        if swapped is not None:
            entry = Entry(self._keys.lease, new.to_json(), swapped)
            self._journal.record("lease.revoked", o.register.epoch, rule, stamp=moment, holder=lost.holder.node)
        if entry is not None:
            self._registry.lease_is_now(entry)
        return True

    async def _ask_peers(self, action: a.AskPeers, rule: str, o: Observation) -> bool:
        self._peers.ask_all()
        return True

    async def _await(self, action: a.Await, rule: str, o: Observation) -> bool:
        self.waiting = action.reason
        if self.waiting_since_ms is None:
            self.waiting_since_ms = o.now_ms
        if self._told_waiting != action.reason:
            self._told_waiting = action.reason
            self._journal.record("waiting", o.promised, rule, reason=action.reason, what=action.what.value)
        return True

    HANDS: ClassVar[Hands] = {
        a.CancelHandOver: _cancel_hand_over,
        a.AskPeers: _ask_peers,
        a.OpenEpoch: _open_epoch,
        a.ChooseCandidate: _choose,
        a.RevokeLease: _revoke_lease,
        a.Await: _await,
    }
