"""What runs on simulated machines: the real agent beside a PostgreSQL, or the real witness."""

from __future__ import annotations

import asyncio
from collections.abc import Coroutine, Mapping
from functools import cache
from pathlib import Path
from typing import TYPE_CHECKING, Any

from pydantic import JsonValue

from holdfast.model.event import Stamp
from holdfast.model.register import Member, NodeRecord
from holdfast.model.report import NodeReport
from holdfast.model.server import ServerStatus
from holdfast.model.settings import (
    ApiSettings,
    ClusterSettings,
    NodeIdentity,
    NodeSettings,
    PostgresSettings,
    StoreSettings,
    WitnessIdentity,
    WitnessSettings,
)
from holdfast.model.timeouts import Timeouts
from holdfast.node.agent import Agent
from holdfast.node.parts import Parts
from holdfast.node.promise import Names, Promise, PromiseKeeper
from holdfast.node.witness import Witness
from holdfast.store.journal import Journal
from holdfast.testing.loop import within
from holdfast.testing.machine import Machine, Voter
from holdfast.testing.postgres import Postgres
from holdfast.testing.store import DistantStore

if TYPE_CHECKING:
    from holdfast.testing.world import World

CLUSTER = "main"
_NOWHERE = Path("/nonexistent")


@cache
def settings_of(node: str, nodes: tuple[str, ...], timeouts: Timeouts) -> NodeSettings:
    """The configuration of a node; nothing of it is ever read from a disk."""
    return NodeSettings(
        cluster=ClusterSettings(name=CLUSTER, nodes=nodes),
        node=NodeIdentity(name=node, state_dir=_NOWHERE),
        postgres=PostgresSettings(
            data_dir=_NOWHERE,
            host=node,
            port=5432,
            socket_dir=_NOWHERE,
            superuser_password_file=_NOWHERE,
            replication_password_file=_NOWHERE,
        ),
        api=ApiSettings(host=node, port=8008, token_file=_NOWHERE),
        store=StoreSettings(endpoints=("http://store:2379",)),
        timeouts=timeouts,
    )


@cache
def witness_settings_of(name: str, timeouts: Timeouts) -> WitnessSettings:
    """The configuration of a witness."""
    return WitnessSettings(
        cluster=ClusterSettings(name=CLUSTER),
        witness=WitnessIdentity(name=name, replication_password_file=_NOWHERE),
        api=ApiSettings(host=name, port=8008, token_file=_NOWHERE),
        store=StoreSettings(endpoints=("http://store:2379",)),
        timeouts=timeouts,
    )


class Host(Machine):
    """The machine of one node, with a PostgreSQL. What it promised is on its disk."""

    def __init__(self, name: str, nodes: tuple[str, ...], world: World, timeouts: Timeouts) -> None:
        super().__init__(name, world)
        self.settings = settings_of(name, nodes, timeouts)
        self.postgres = Postgres(name, world.loop, world.network, world.random, world.checks)
        self.promise: Promise | None = None
        self.agent: Agent | None = None

    @property
    def voter(self) -> Voter | None:
        """See `Machine.voter`."""
        return self.agent

    def _begin(self, store: DistantStore, *, bootstrap: bool) -> Coroutine[Any, Any, None]:
        world, timeouts = self.world, self.settings.timeouts
        parts = Parts(
            server=world.wiring.server(self.postgres, timeouts),
            store=store,
            peers=PeersAtDistance(self, timeouts),
            sessions=SessionsAtDistance(self),
            promise=world.wiring.promise_keeper(self),
            journal=Recorder(self, store, timeouts),
            names=world.wiring.names(world, self.name),
        )
        self.agent = agent = Agent(self.settings, parts, bootstrap=bootstrap)
        return self._live(agent)

    async def _live(self, agent: Agent) -> None:
        await agent.prepare()
        await agent.run()

    def _forget(self) -> None:
        self.agent = None

    def member(self) -> Member | None:
        """The complete directory that is there."""
        directory = self.postgres.directory
        if directory is None or not directory.complete or directory.incarnation is None:
            return None
        return Member(self.name, directory.incarnation)

    def power_off(self) -> None:
        """Everything stops; what was not flushed is gone."""
        self.kill_agent()
        self.postgres.end(power=True)
        self.up = False

    def lose_disk(self) -> None:
        """An empty disk takes the place of the former one."""
        self.power_off()
        self.promise = None
        self.world.checks.lost_directory(self.name, self.postgres.directory)
        self.postgres.directory = None
        self.world.checks.lost_disk(self.name)

    def lose_data(self) -> None:
        """The data directory is removed; the promise is elsewhere."""
        self.postgres.end()
        self.world.checks.lost_directory(self.name, self.postgres.directory)
        self.postgres.directory = None


class WitnessHost(Machine):
    """The machine of a witness: a voter with nothing on its disk."""

    def __init__(self, name: str, world: World, timeouts: Timeouts) -> None:
        super().__init__(name, world)
        self.settings = witness_settings_of(name, timeouts)
        self.witness: Witness | None = None

    @property
    def voter(self) -> Voter | None:
        """See `Machine.voter`."""
        return self.witness

    def _begin(self, store: DistantStore, *, bootstrap: bool) -> Coroutine[Any, Any, None]:
        timeouts = self.settings.timeouts
        peers, sessions = PeersAtDistance(self, timeouts), SessionsAtDistance(self)
        self.witness = Witness(self.settings, store, peers, sessions, Recorder(self, store, timeouts))
        return self.witness.run()

    def _forget(self) -> None:
        self.witness = None


class PromiseOnDisk(PromiseKeeper):
    """The promise on a simulated disk: durable at once."""

    def __init__(self, host: Host) -> None:
        self._host = host

    def load(self, cluster: str) -> None:
        """See `PromiseKeeper.load`."""
        self.current = self._host.promise

    async def save(self, promise: Promise) -> None:
        """See `PromiseKeeper.save`."""
        self._host.world.checks.promised(self._host.name, promise.epoch)
        self._host.promise = self.current = promise


class CountedNames(Names):
    """Names that a seed reproduces."""

    def __init__(self, world: World) -> None:
        self._world = world

    def incarnation(self) -> str:
        """See `Names.incarnation`."""
        self._world.names_made += 1
        return f"{self._world.names_made:08x}"

    def cluster_id(self) -> str:
        """See `Names.cluster_id`."""
        return "the-cluster"


class Recorder(Journal):
    """A journal that goes to the timeline of the run."""

    def __init__(self, host: Machine, store: DistantStore, timeouts: Timeouts) -> None:
        super().__init__(store, host.name, timeouts)
        self._host = host

    def record(
        self, kind: str, epoch: int, rule: str | None = None, *, stamp: Stamp | None = None, **detail: JsonValue
    ) -> None:
        """See `Journal.record`."""
        self._host.world.recorded(self._host.name, kind, epoch, rule, detail)

    async def run(self) -> None:
        """There is nothing to write."""
        await asyncio.get_running_loop().create_future()

    async def flush(self) -> None:
        """There is nothing to write."""


class PeersAtDistance:
    """`PeerReach` over the simulated network."""

    def __init__(self, host: Machine, timeouts: Timeouts) -> None:
        self._host = host
        self._deadline_s = timeouts.peer_timeout_ms / 1000

    async def ask(self, api_url: str) -> NodeReport:
        """See `PeerReach.ask`."""
        world = self._host.world
        target = world.machines[api_url.removeprefix("http://").partition(":")[0]]
        answer: asyncio.Future[NodeReport] = world.loop.create_future()
        world.network.request(self._host.name, target.name, self._arrived, target, answer)
        return await within(answer, self._deadline_s)

    def _arrived(self, target: Machine, answer: asyncio.Future[NodeReport]) -> None:
        if not target.up:
            return
        process, voter = target.process, target.voter
        if process is None or voter is None:
            refusal = ConnectionRefusedError("nobody listens")
            self._host.world.network.send(target.name, self._host.name, _fail, answer, refusal)
        elif process.frozen:
            self._host.world.when_thawed(process, self._arrived, target, answer)
        elif voter.has_looked():
            self._host.world.network.send(target.name, self._host.name, _settle, answer, voter.report())
        else:
            early = OSError("the agent has not looked at its server yet")
            self._host.world.network.send(target.name, self._host.name, _fail, answer, early)

    async def pledge(self, api_url: str, leader: Member, epoch: int) -> bool:
        """See `PeerReach.pledge`."""
        world = self._host.world
        target = world.machines[api_url.removeprefix("http://").partition(":")[0]]
        answer: asyncio.Future[bool] = world.loop.create_future()
        world.network.request(self._host.name, target.name, self._pledge_asked, target, leader, epoch, answer)
        try:
            return await within(answer, self._deadline_s)
        except TimeoutError:
            return False

    def _pledge_asked(self, target: Machine, leader: Member, epoch: int, answer: asyncio.Future[bool]) -> None:
        process, voter = target.process, target.voter
        if not target.up or process is None or voter is None:
            return
        if process.frozen:
            self._host.world.when_thawed(process, self._pledge_asked, target, leader, epoch, answer)
        else:
            # The agent reads its clock as it answers: in its own time.
            self._host.world.loop.call_soon(self._pledge, target, voter, leader, epoch, answer)

    def _pledge(self, target: Machine, voter: Voter, leader: Member, epoch: int, answer: asyncio.Future[bool]) -> None:
        given = voter.pledge(leader, epoch)
        self._host.world.network.send(target.name, self._host.name, _settle, answer, given)

    async def close(self) -> None:
        """See `PeerReach.close`."""


class SessionsAtDistance:
    """`SessionReach` over the simulated network."""

    def __init__(self, host: Machine) -> None:
        self._host = host
        self._held: tuple[str, int] | None = None
        """Where an earlier session was opened, and in which life of the server there."""

    async def answers(self, record: NodeRecord) -> bool:
        """See `SessionReach.answers`."""
        world = self._host.world
        target = world.hosts[record.postgres_host]
        answer: asyncio.Future[bool] = world.loop.create_future()
        world.network.send(self._host.name, target.name, self._arrived, target, answer)
        return await answer

    async def still_answers(self, record: NodeRecord) -> bool:
        """See `SessionReach.still_answers`."""
        held, self._held = self._held, (record.member.node, self._host.world.servers[record.postgres_host].life)
        return held == self._held and await self.answers(record)

    async def close(self) -> None:
        """See `SessionReach.close`."""
        self._held = None

    def _arrived(self, target: Host, answer: asyncio.Future[bool]) -> None:
        postgres, network = target.postgres, self._host.world.network
        if not target.up:
            return
        if not postgres.running:
            refusal = ConnectionRefusedError("nobody listens")
            network.send(target.name, self._host.name, _fail, answer, refusal)
        else:
            postgres.soon(0, self._served, target, answer)

    def _served(self, target: Host, answer: asyncio.Future[bool]) -> None:
        ready = target.postgres.status in (ServerStatus.PRIMARY, ServerStatus.STANDBY)
        self._host.world.network.send(target.name, self._host.name, _settle, answer, ready)


def _settle(answer: asyncio.Future[object], result: object) -> None:
    if not answer.done():
        answer.set_result(result)


def _fail(answer: asyncio.Future[object], error: Exception) -> None:
    if not answer.done():
        answer.set_exception(error)


Hosts = Mapping[str, Host]
