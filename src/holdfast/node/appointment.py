"""Keeps the appointment for a planned switchover: the agent of whoever leads at that time begins it."""

from __future__ import annotations

import asyncio
import time
from collections.abc import Callable

import structlog

from holdfast.model.errors import StoreUnavailable
from holdfast.model.keys import Keys
from holdfast.model.plan import PlannedSwitchover
from holdfast.model.timeouts import Timeouts
from holdfast.node.control import Control
from holdfast.node.registry import Registry
from holdfast.store.contract import Store
from holdfast.store.journal import Journal

log = structlog.get_logger(__name__)


class Appointment:
    """The plan leaves the store before the switchover begins: it is tried once, whatever happens then."""

    def __init__(
        self,
        store: Store,
        registry: Registry,
        keys: Keys,
        timeouts: Timeouts,
        control: Control,
        journal: Journal,
        leads: Callable[[], bool],
        wall_ms: Callable[[], float] = lambda: time.time() * 1000,
    ) -> None:
        self._store = store
        self._registry = registry
        self._keys = keys
        self._timeouts = timeouts
        self._control = control
        self._journal = journal
        self._leads = leads
        self._wall_ms = wall_ms

    async def run(self) -> None:
        """Look at the clock, for ever."""
        while True:
            await asyncio.sleep(self._timeouts.tick_interval_ms / 1000)
            plan = self._registry.planned
            if plan is not None and self._leads() and self._wall_ms() >= plan.at_ms:
                try:
                    await self._keep(plan)
                except StoreUnavailable as error:
                    log.warning("switchover.delayed", error=str(error))

    async def _keep(self, plan: PlannedSwitchover) -> None:
        late_ms = round(self._wall_ms() - plan.at_ms)
        await self._store.delete(self._keys.planned)
        self._registry.planned = None
        if late_ms > self._timeouts.planned_late_ms:
            self._note("handover.missed", plan, f"it was due {late_ms // 1000} s ago, and nobody led")
            return
        begun, words = await self._control.switchover(plan.to)
        if not begun:
            self._note("handover.refused", plan, words)

    def _note(self, kind: str, plan: PlannedSwitchover, reason: str) -> None:
        register = self._registry.register
        self._journal.record(kind, register.epoch if register else 0, None, target=plan.to or "any", reason=reason)
