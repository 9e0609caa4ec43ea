"""What people do on purpose: switchovers, restarts, requests that must be refused."""

from __future__ import annotations

import asyncio
import signal
from dataclasses import dataclass

import psycopg

from holdfast.drill.probes import until
from holdfast.drill.scenario import Action, NotInjected, Role, Scene
from holdfast.local.orders import order
from holdfast.model.errors import HoldfastError, StoreUnavailable
from holdfast.model.policy import Durability


@dataclass(frozen=True, slots=True)
class SwitchOver(Action):
    """`holdfast switchover`."""

    @property
    def words(self) -> str:
        """See `Action`."""
        return "a switchover to the most suitable standby"

    async def perform(self, scene: Scene) -> None:
        """See `Action`."""
        scene.keep("answer", await scene.hosted.switch_over(None))

    async def proof(self, scene: Scene) -> str:
        """See `Action`."""
        leader = (await scene.register()).committed.leader.node
        if leader == scene.primary:
            raise NotInjected(f"{leader} still leads")
        return f"the answer: {scene.kept['answer']}"


@dataclass(frozen=True, slots=True)
class AskInVain(Action):
    """A switchover to a node that cannot take over now."""

    role: Role

    @property
    def words(self) -> str:
        """See `Action`."""
        return f"a switchover to {self.role}, which is lost"

    async def perform(self, scene: Scene) -> None:
        """See `Action`."""
        target = await scene.node(self.role)
        try:
            said = await scene.hosted.switch_over(target)
        except HoldfastError as error:
            scene.keep("refusal", str(error))
            return
        scene.problem(f"a switchover to the lost {target} was not refused: {said}")
        scene.keep("refusal", "")

    async def proof(self, scene: Scene) -> str:
        """See `Action`."""
        return f"refused with: {scene.kept['refusal']}"


@dataclass(frozen=True, slots=True)
class LeaveTransactionOpen(Action):
    """A client begins a transaction and goes for a coffee."""

    @property
    def words(self) -> str:
        """See `Action`."""
        return "a client leaves a transaction open"

    async def perform(self, scene: Scene) -> None:
        """See `Action`."""
        connection = await psycopg.AsyncConnection.connect(scene.cluster.write_dsn)
        await connection.execute("SELECT pg_current_xact_id()")
        scene.keep("open transaction", connection)

        async def close() -> None:
            await connection.close()

        scene.undo.append(close)

    async def proof(self, scene: Scene) -> str:
        """See `Action`."""
        return "it has a transaction id"


@dataclass(frozen=True, slots=True)
class OpenTransactionEnded(Action):
    """The client comes back to its transaction, and is told that it is over."""

    @property
    def words(self) -> str:
        """See `Action`."""
        return "the client comes back to its transaction"

    async def perform(self, scene: Scene) -> None:
        """See `Action`."""
        connection = scene.kept["open transaction"]
        assert isinstance(connection, psycopg.AsyncConnection)
        try:
            async with asyncio.timeout(10):
                await connection.execute("SELECT 1")
                await connection.commit()
        except psycopg.Error as error:
            scene.note(f"its client was told: {str(error).strip().splitlines()[0]} (SQLSTATE {error.sqlstate})")
            return
        except TimeoutError:
            scene.problem("the client of the open transaction was told nothing for 10 s")
            return
        scene.problem("a transaction that was open on the old primary could be committed after the switchover")


@dataclass(frozen=True, slots=True)
class ShutDown(Action):
    """A host is shut down as an operating system does it: everything is asked to stop, and is waited for."""

    role: Role

    @property
    def words(self) -> str:
        """See `Action`."""
        return f"the host of {self.role} is shut down"

    async def perform(self, scene: Scene) -> None:
        """See `Action`."""
        node = await scene.node(self.role)
        scene.keep("host", node)
        supervisor = scene.hosted.supervisor(node)
        if supervisor is None or not supervisor.send(signal.SIGTERM):
            raise NotInjected(f"the supervisor of {node} did not run")
        host = scene.hosted.hosts[node]

        async def empty() -> bool:
            return not await asyncio.to_thread(host.processes)

        if not await until(empty, 45.0, every_s=0.1):
            scene.problem(f"{node} did not stop within 45 s: {len(host.processes())} processes are left")
            await asyncio.to_thread(scene.hosted.kill_host, node)
        await asyncio.to_thread(scene.hosted.power_off, node)

    async def proof(self, scene: Scene) -> str:
        """See `Action`."""
        return f"{scene.kept['host']} runs no process"


@dataclass(frozen=True, slots=True)
class WaitUntilServing(Action):
    """Waits until somebody serves in a later epoch than that of the beginning."""

    within_s: float = 60.0

    @property
    def words(self) -> str:
        """See `Action`."""
        return "wait until another primary serves"

    async def perform(self, scene: Scene) -> None:
        """See `Action`."""

        async def serves() -> bool:
            try:
                register = await scene.register()
            except StoreUnavailable:
                return False
            return register.epoch > scene.epoch_before and register.leader is not None

        if not await until(serves, self.within_s, every_s=0.05):
            scene.problem(f"no other primary served within {self.within_s:g} s")


@dataclass(frozen=True, slots=True)
class SetDurability(Action):
    """`holdfast policy set durability=…`, and the wait until the register has it."""

    durability: Durability
    within_s: float = 20.0

    @property
    def words(self) -> str:
        """See `Action`."""
        return f"the policy becomes durability={self.durability}"

    async def perform(self, scene: Scene) -> None:
        """See `Action`."""
        await order(scene.hosted, "/policy", {"durability": self.durability.value})
        is_local = self.durability is Durability.ASYNCHRONOUS

        async def in_force() -> bool:
            try:
                return ((await scene.register()).committed.quorum.k == 0) is is_local
            except StoreUnavailable:
                return False

        if not await until(in_force, self.within_s, every_s=0.1):
            raise NotInjected(f"the register did not follow the policy within {self.within_s:g} s")

    async def proof(self, scene: Scene) -> str:
        """See `Action`."""
        return f"the register says k = {(await scene.register()).committed.quorum.k}"
