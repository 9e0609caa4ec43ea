"""The command that cuts a lost node off from outside, and lets it in again: run by the leader's agent."""

from __future__ import annotations

import asyncio

import structlog

from holdfast.core.isolation import Order, lost_between, next_order
from holdfast.core.observation import Observation
from holdfast.model.errors import RegisterError, StoreUnavailable
from holdfast.model.isolation import CutOff
from holdfast.model.keys import Keys
from holdfast.model.register import Register
from holdfast.model.settings import NodeSettings
from holdfast.node.clock import monotonic_ms
from holdfast.node.commands import run_command
from holdfast.store.contract import Store
from holdfast.store.journal import Journal

log = structlog.get_logger(__name__)


class CuttingOff:
    """Who is cut off is kept in the store: whoever leads by then lets the node in again."""

    def __init__(self, settings: NodeSettings, store: Store, journal: Journal) -> None:
        self._settings = settings.isolation
        self._cluster = settings.cluster.name
        self._node = settings.node.name
        self._timeouts = settings.timeouts
        self._store = store
        self._keys = Keys(settings.cluster.name)
        self._journal = journal
        self._before: Register | None = None
        self._cut_off: dict[str, CutOff] = {}
        self._unwritten: set[str] = set()
        """Whom the command was not run for yet, and nobody else knows of."""
        self._read_epoch: int | None = None
        """The epoch, led from here, in which the store was asked who is cut off."""
        self._task: asyncio.Task[None] | None = None
        self._pause_ms = self._again_ms = 0
        self._said: str | None = None

    def look(self, o: Observation) -> None:
        """See to what there is to be done; returns at once."""
        register = o.register
        if not self._settings.command or register is None or o.trouble is not None:
            return
        before, self._before = self._before, register
        if register.leader is None or register.leader != o.member:
            self._cut_off.clear()
            self._unwritten.clear()
            self._read_epoch = None
            return
        lost = lost_between(before, register) if before is not None else None
        if lost is not None:
            self._cut_off[lost] = CutOff(lost, register.epoch)
            self._unwritten.add(lost)
        if o.policy.paused or (self._task is not None and not self._task.done()) or o.now_ms < self._again_ms:
            return
        order = next_order(self._cut_off, o)
        if order is not None or self._read_epoch != register.epoch:
            self._task = asyncio.create_task(self._see_to(order, register.epoch))

    async def close(self) -> None:
        """End what is under way; the next leader, or this agent's next life, goes on with it."""
        if self._task is not None:
            self._task.cancel()
            await asyncio.gather(self._task, return_exceptions=True)

    async def _see_to(self, order: Order | None, epoch: int) -> None:
        try:
            if self._read_epoch != epoch:
                await self._read()
                self._read_epoch = epoch
            done = order is None or await self._carry_out(order, epoch)
        except StoreUnavailable as error:
            log.warning("cut-off.later", error=str(error))
            done = False
        if done:
            self._pause_ms = self._again_ms = 0
            return
        self._pause_ms = min(max(2 * self._pause_ms, self._timeouts.retry_min_ms), self._timeouts.retry_max_ms)
        self._again_ms = monotonic_ms() + self._pause_ms

    async def _read(self) -> None:
        """Whom former leaders, or a former life of this agent, have cut off."""
        for entry in (await self._store.list(self._keys.cut_off)).entries:
            try:
                found = CutOff.from_json(entry.value)
            except RegisterError as error:
                log.error("store.unreadable", key=entry.key, error=str(error))
                continue
            self._cut_off.setdefault(found.node, found)

    async def _carry_out(self, order: Order, epoch: int) -> bool:
        """Whether there is nothing left to do. To cut off is tried once, to let in until it works."""
        node, key = order.node, self._keys.cut_off_node(order.node)
        if order.lift:
            if node not in self._unwritten:
                if not await self._run(order, epoch):
                    return False
                await self._store.delete(key)
            self._unwritten.discard(node)
            self._cut_off.pop(node, None)
            return True
        record = self._cut_off[node]
        self._unwritten.discard(node)  # also if the answer is lost
        await self._store.put(key, record.to_json())
        await self._run(order, epoch)
        record = CutOff(node, record.epoch, ran=True)
        self._cut_off[node] = record
        await self._store.put(key, record.to_json())
        return True

    async def _run(self, order: Order, epoch: int) -> bool:
        began_ms, what = monotonic_ms(), "lift" if order.lift else "begin"
        variables = {
            "HOLDFAST_CLUSTER": self._cluster,
            "HOLDFAST_NODE": self._node,
            "HOLDFAST_LOST_NODE": order.node,
            "HOLDFAST_EPOCH": str(epoch),
            "HOLDFAST_ISOLATION": what,
        }
        settings = self._settings
        outcome = await run_command(settings.command, variables, settings.command_timeout_s, self._timeouts.kill_ms)
        said = f"{order}: {outcome.words}"
        if said != self._said or outcome.ok:
            self._said = said
            took_ms = monotonic_ms() - began_ms
            self._journal.record(
                "isolation.command", epoch, None, node=order.node, order=what, ok=outcome.ok, outcome=outcome.words,
                took_ms=took_ms,
            )  # fmt: skip
        return outcome.ok
