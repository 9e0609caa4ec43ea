"""Which server serves what: the register's and the nodes' word, and nothing else."""

from __future__ import annotations

import asyncio
from dataclasses import dataclass, replace

import structlog

from holdfast.model.errors import RegisterError
from holdfast.model.keys import Keys
from holdfast.model.policy import DEFAULT_POLICY, Policy
from holdfast.model.register import Member, NodeRecord, NodeState, Phase, Register
from holdfast.proxy.footing import Versioned
from holdfast.store.contract import Change, Connected, Deleted, Disconnected, Entry, Put, Resync

log = structlog.get_logger(__name__)


@dataclass(frozen=True, slots=True)
class Target:
    """A server to connect to, what it must prove to be, and in which epoch that was said."""

    node: str
    host: str
    port: int
    epoch: int
    is_primary: bool
    api_url: str = ""

    def is_same(self, other: Target) -> bool:
        """Whether a connection to the other one is as good, wherever its agent is asked."""
        return replace(self, api_url="") == replace(other, api_url="")


class Routing(Versioned):
    """The last word heard. Changes come in through `apply`; whoever waits for one uses `wait_changed`.

    While the store is away the last word stays in force: a healthy primary goes on serving. An epoch never goes back:
    a register that does is ignored and logged, for it comes from a store restored from a backup.
    """

    def __init__(self, cluster: str) -> None:
        super().__init__()
        self._keys = Keys(cluster)
        self._records: dict[str, NodeRecord] = {}
        self._live: set[str] = set()
        self._revision = 0
        self._event = asyncio.Event()
        self.register: Register | None = None
        self.policy = DEFAULT_POLICY
        self.connected = False

    def apply(self, change: Change) -> bool:
        """Take one change of the store; returns whether it matters for routing."""
        match change:
            case Put(entry):
                if not self._is_relevant(entry.key):
                    return False
                self._put(entry)
            case Deleted(key):
                if not self._is_relevant(key):
                    return False
                self._deleted(key)
            case Resync(snapshot):
                self._live.clear()
                self._revision = 0
                self.policy = DEFAULT_POLICY
                for entry in snapshot.entries:
                    self._put(entry)
                self.connected = True
            case Connected():
                self.connected = True
            case Disconnected(reason):
                self.connected = False
                log.warning("store.away", reason=reason)
        self.wake()
        return True

    def wake(self) -> None:
        """Whoever waits shall look again."""
        self.version += 1
        self._event.set()
        self._event = asyncio.Event()

    def _is_relevant(self, key: str) -> bool:
        named = key in (self._keys.register, self._keys.policy)
        return named or key.startswith((self._keys.nodes, self._keys.addresses))

    async def wait_changed(self) -> None:
        """Until the next change. Waiters go on in the order in which they came."""
        await self._event.wait()

    def _put(self, entry: Entry) -> None:
        try:
            if entry.key == self._keys.register:
                if entry.revision >= self._revision:  # it is read beside the watch, and the watch may be behind
                    self._revision = entry.revision
                    self._registered(Register.from_json(entry.value))
            elif entry.key == self._keys.policy:
                self.policy = Policy.from_json(entry.value)
            elif entry.key.startswith(self._keys.nodes):
                record = NodeRecord.from_json(entry.value)
                self._records[record.member.node] = record
                self._live.add(record.member.node)
            elif entry.key.startswith(self._keys.addresses):
                address = NodeRecord.from_json(entry.value)
                known = self._records.get(address.member.node)
                self._records[address.member.node] = known.moved_to(address) if known is not None else address
        except RegisterError as error:
            log.error("store.unreadable", key=entry.key, error=str(error))

    def _registered(self, register: Register) -> None:
        old = self.register
        if old is not None and old.cluster_id != register.cluster_id:
            log.error("register.foreign", fix="restart the proxy if the cluster was made anew on purpose")
            return
        if old is not None and register.epoch < old.epoch:
            log.error("register.older", epoch=register.epoch, seen=old.epoch)
            return
        self.register = register
        if old is None or (old.epoch, old.phase, old.handover) != (register.epoch, register.phase, register.handover):
            log.info("register.changed", epoch=register.epoch, phase=register.phase, handover=register.handover)

    def _deleted(self, key: str) -> None:
        if key == self._keys.register:
            log.error("register.deleted", fix="the last word stays in force; run `holdfast recover`")
        elif key == self._keys.policy:
            self.policy = DEFAULT_POLICY
        elif key.startswith(self._keys.nodes):
            self._live.discard(key.removeprefix(self._keys.nodes))

    @property
    def epoch(self) -> int:
        """The newest epoch heard of; 0 before the first."""
        return self.register.epoch if self.register is not None else 0

    def primary(self) -> Target | None:
        """The primary, while one serves."""
        register = self.register
        return self._leading(register.leader) if register is not None else None

    def candidate(self) -> Target | None:
        """Who becomes the primary, while it is promoted in place of another."""
        register = self.register
        is_replacing = register is not None and register.phase is Phase.PROMOTING and register.committed.epoch > 0
        return self._leading(register.candidate) if register is not None and is_replacing else None

    def _leading(self, member: Member | None) -> Target | None:
        record = self._records.get(member.node) if member is not None else None
        if record is None:
            return None
        host, port = record.postgres_host, record.postgres_port
        return Target(record.member.node, host, port, self.epoch, True, record.api_url)

    def is_handing_over(self) -> bool:
        """Whether a switchover is on its way: new work waits, though the primary still serves."""
        return self.register is not None and self.register.handover is not None

    def is_rising(self, node: str) -> bool:
        """Whether a node is the primary or about to become it."""
        register = self.register
        if register is None:
            return False
        rising = register.candidate if register.phase is Phase.PROMOTING else register.leader
        return rising is not None and rising.node == node

    def standbys(self) -> list[Target]:
        """The standbys that follow the committed leader, and that clients may read from, by name."""
        register = self.register
        if register is None:
            return []
        epoch = register.committed.epoch
        return [
            Target(node, record.postgres_host, record.postgres_port, epoch, False)
            for node, record in sorted(self._records.items())
            if node in self._live
            and record.state is NodeState.STANDBY
            and record.epoch == epoch
            and not self.is_rising(node)
            and self.policy.readable(node)
        ]
