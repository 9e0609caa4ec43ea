"""A simulated world: hosts, a network, a store, a proxy and its clients, all driven by one loop and one seed."""

from __future__ import annotations

import random
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from pydantic import JsonValue

from holdfast.model.lsn import Lsn
from holdfast.model.register import Configuration, Member, Phase, Quorum, Register
from holdfast.model.report import NodeReport
from holdfast.model.server import ServerStatus, Upstream
from holdfast.model.timeouts import Timeouts
from holdfast.node.promise import Promise
from holdfast.testing.checks import Checks
from holdfast.testing.directory import Directory, Record
from holdfast.testing.host import CLUSTER, Host, WitnessHost
from holdfast.testing.loop import Call, Process, SimulatedLoop
from holdfast.testing.machine import Machine
from holdfast.testing.network import Network
from holdfast.testing.postgres import Postgres, names_of
from holdfast.testing.replication import SILENCE_MS
from holdfast.testing.store import HOST as STORE
from holdfast.testing.store import StoreService, at_once
from holdfast.testing.wiring import Wiring

if TYPE_CHECKING:
    from holdfast.testing.clients import Proxy


@dataclass(frozen=True, slots=True)
class Note:
    """One line of a run's timeline."""

    at_ms: float
    source: str
    what: str
    detail: Mapping[str, JsonValue]

    def __str__(self) -> str:
        detail = " ".join(f"{key}={value}" for key, value in self.detail.items() if value is not None)
        return f"{self.at_ms / 1000:8.3f}  {self.source:6}  {self.what}{'  ' if detail else ''}{detail}"


def _numbered(letter: str, count: int) -> tuple[str, ...]:
    return tuple(f"{letter}{number}" for number in range(1, count + 1))


class World:
    """Everything there is in one run."""

    def __init__(self, seed: int, nodes: int, timeouts: Timeouts, wiring: Wiring, witnesses: int = 0) -> None:
        self.loop = SimulatedLoop()  # type: ignore[abstract]  # sockets, signals and processes are not simulated
        self.random = random.Random(seed)
        self.network = Network(self.loop, self.random)
        self.checks = Checks(self.loop)
        self.timeouts = timeouts
        self.wiring = wiring
        self.timeline: list[Note] = []
        self.names_made = 0
        self.store = StoreService(CLUSTER, timeouts, self.loop, self.network, self.random, self.checks)
        self.store.on_register.append(self._registered)
        names = _numbered("n", nodes)
        self.hosts: dict[str, Host] = {name: Host(name, names, self, timeouts) for name in names}
        self.witnesses = {name: WitnessHost(name, self, timeouts) for name in _numbered("w", witnesses)}
        self.machines: Mapping[str, Machine] = {**self.hosts, **self.witnesses}
        servers = {name: host.postgres for name, host in self.hosts.items()}
        self.servers: Mapping[str, Postgres] = servers
        self.checks.servers = servers
        for server in servers.values():
            server.servers = servers
        self.proxies: dict[str, Proxy] = {}
        self.network.on_change.append(self._link_changed)
        self.failovers = 0
        self.writes = 0
        self.quiet_since_s: float | None = None
        """Since when no fault is in force any more."""

    # ---- how it begins ----------------------------------------------------------------------------------------

    def populate(self) -> None:
        """A cluster that serves: n1 leads epoch 1, and everybody else streams from it."""
        log = [Record(Lsn(0), Lsn(0x1000000), 1, 0, 0.0), Record(Lsn(0x1000000), Lsn(0x1000080), 1, 0, 0.0)]
        self.checks.promoted(self.servers["n1"], 1, log[0])
        members = {name: Member(name, self.wiring.names(self, name).incarnation()) for name in self.hosts}
        leader, *standbys = members.values()
        quorum = Quorum(frozenset(standbys), (len(standbys) + 1) // 2)
        voters, witnesses = tuple(self.machines), tuple(self.witnesses)
        committed = Configuration(leader, 1, quorum)
        register = Register(
            CLUSTER, "the-cluster", "system-n1", 1, Phase.SERVING, None, voters, committed, witnesses=witnesses
        )
        for name, host in self.hosts.items():
            host.promise = Promise(CLUSTER, "the-cluster", 1, members[name].incarnation)
            postgres = host.postgres
            postgres.directory = Directory("system-n1", log, members[name].incarnation)
            postgres.directory.slots = set(self.hosts) - {name}
            postgres.life = 1
            postgres.status = ServerStatus.PRIMARY if name == leader.node else ServerStatus.STANDBY
            if name == leader.node:
                postgres.names = names_of(quorum)
        self.store.apply(lambda: at_once(self.store.inner.put(self.store.keys.register, register.to_json())))
        self.checks.registered(register, self.loop.time())
        for member in standbys:
            upstream = Upstream(leader.node, leader.node, 5432)
            self.servers[member.node].follow(upstream, member.application_name)
        for machine in self.machines.values():
            self.loop.after(self.random.uniform(0, 300), machine.start_agent)

    def begin_from_nothing(self) -> None:
        """Empty disks, an empty store, and one node that is asked to create the cluster."""
        for name, host in self.hosts.items():
            host.start_agent(bootstrap=name == "n1")

    def able_now(self) -> frozenset[Member]:
        """The directories whose agents run and reach the store: they could join an epoch."""
        return frozenset(
            member
            for host in self.hosts.values()
            if host.process is not None
            and not host.process.frozen
            and not self.network.is_apart(host.name, STORE)
            and (member := host.member()) is not None
        )

    def reports(self) -> dict[str, NodeReport | None]:
        """What ``holdfast status`` hears from the agents; None from those that do not answer."""
        return {
            name: machine.voter.report()
            if machine.voter is not None
            and machine.process is not None
            and not machine.process.frozen
            and machine.voter.has_looked()
            else None
            for name, machine in self.machines.items()
        }

    def kept_now(self) -> frozenset[Member]:
        """The complete directories of the hosts that are not lost for good."""
        there = (host.member() for host in self.hosts.values() if not host.lost)
        return frozenset(member for member in there if member is not None)

    # ---- what happens -----------------------------------------------------------------------------------------

    def note(self, source: str, what: str, detail: Mapping[str, JsonValue] | None = None) -> None:
        """Add a line to the timeline."""
        self.timeline.append(Note(self.loop.time() * 1000, source, what, detail or {}))

    def recorded(self, node: str, kind: str, epoch: int, rule: str | None, detail: dict[str, JsonValue]) -> None:
        """An agent writes its journal."""
        detail.pop("readings", None)  # a page each
        self.note(node, f"{kind} [{epoch}]" + (f" ({rule})" if rule else ""), detail)

    def _registered(self, register: Register) -> None:
        phase, committed = register.phase, register.committed
        about = register.candidate if phase is Phase.PROMOTING else register.leader
        if phase is Phase.SERVING and register.epoch > 1 and register.epoch in self.checks.serving_since_s:
            self.failovers += self.checks.serving_since_s[register.epoch] == self.loop.time()
        detail: dict[str, JsonValue] = {"quorum": str(committed.quorum)}
        if register.handover is not None:
            detail["handover"] = register.handover
        self.note("store", f"register: epoch {register.epoch} {phase.value} {about or ''}".rstrip(), detail)

    def when_thawed(self, process: Process, callback: Callable[..., object], *args: Any) -> None:
        """Call back once the process goes on; never, if it dies before."""
        process.backlog.append(Call(callback, args, None, self.loop.time()))

    def _link_changed(self, source: str, target: str) -> None:
        number = self.network.cut_number(source, target)
        if number is not None:
            self.loop.after(SILENCE_MS, self._break_connections, source, target, number)

    def _break_connections(self, source: str, target: str, number: int) -> None:
        if self.network.cut_number(source, target) != number:
            return
        for server in self.servers.values():
            receiver = server.receiver
            if receiver is not None and {server.host, receiver.upstream.host} == {source, target}:
                receiver.cut_off()
