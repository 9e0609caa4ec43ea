"""The fencing command: run once by the voter that opened an epoch, beside everything else."""

from __future__ import annotations

import asyncio

from holdfast.core.observation import Observation
from holdfast.model.settings import FencingSettings
from holdfast.node.clock import monotonic_ms
from holdfast.node.commands import run_command
from holdfast.store.journal import Journal


class Fencing:
    """Writes need it not (the quorum fences); reads of a cut-off primary, and people who want to be sure, do."""

    def __init__(self, settings: FencingSettings, cluster: str, node: str, journal: Journal, kill_ms: int) -> None:
        self._settings = settings
        self._cluster = cluster
        self._node = node
        self._journal = journal
        self._kill_ms = kill_ms
        self._running: set[asyncio.Task[None]] = set()

    def epoch_opened(self, o: Observation) -> None:
        """This voter has opened the epoch after the one it observed; returns at once.

        Nothing is run for a switchover, for an epoch that replaces one (the lost leader was fenced before), or against
        this node itself.
        """
        if o.register is None or not self._settings.command or o.register.leader is None:
            return
        lost = o.register.leader.node
        if o.register.handover is not None or lost == self._node:
            return
        task = asyncio.create_task(self._run(lost, o.register.epoch + 1))
        self._running.add(task)
        task.add_done_callback(self._running.discard)

    async def close(self) -> None:
        """End what is under way."""
        for task in list(self._running):
            task.cancel()
        await asyncio.gather(*self._running, return_exceptions=True)

    async def _run(self, lost: str, epoch: int) -> None:
        began_ms = monotonic_ms()
        variables = {
            "HOLDFAST_CLUSTER": self._cluster,
            "HOLDFAST_LOST_NODE": lost,
            "HOLDFAST_NODE": self._node,
            "HOLDFAST_EPOCH": str(epoch),
        }
        settings = self._settings
        outcome = await run_command(settings.command, variables, settings.command_timeout_s, self._kill_ms)
        took_ms = monotonic_ms() - began_ms
        self._journal.record(
            "fence.done", epoch, None, node=lost, ok=outcome.ok, outcome=outcome.words, took_ms=took_ms
        )
