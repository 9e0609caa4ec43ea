"""When a failed node is captured: before its directory is touched, never in the way of a promotion, within a bound."""

from __future__ import annotations

import asyncio
from collections.abc import Callable

import structlog
from pydantic import JsonValue

from holdfast.core.capture import is_awaited, trouble_of
from holdfast.core.observation import Observation
from holdfast.core.symptoms import symptoms_of
from holdfast.model.capture import Capture, CaptureOrder, Occasion, Snapshot
from holdfast.model.errors import ConfigurationError, EnvironmentFault, PostgresError
from holdfast.model.settings import NodeSettings
from holdfast.node.clock import monotonic_ms
from holdfast.node.commands import run_command
from holdfast.node.parts import LocalServer
from holdfast.node.sending import Sender, sender_for
from holdfast.store.journal import Journal

Progress = Callable[[str, float | None], None]
log = structlog.get_logger(__name__)
QUIET_MS = 10_000
"""Two moments of one trouble are at least this far apart."""


class Capturing:
    """Knows whether the stopped directory was captured since somebody last touched it."""

    def __init__(self, settings: NodeSettings, server: LocalServer, journal: Journal) -> None:
        """Raises ConfigurationError for a destination that cannot be."""
        self._settings = settings
        self._timeouts = settings.timeouts
        self._node = settings.node.name
        self._server = server
        self._journal = journal
        self._sender = sender_for(settings.capture, settings.node.state_dir, settings.node.name)
        self._sending: asyncio.Task[None] | None = None
        self._next_send_ms = 0
        self._settled = False
        """Captured, or given up: the directory may be touched."""
        self._due_since_ms: int | None = None
        self._snapshot: Snapshot | None = None
        self._before: Observation | None = None
        self._noted_ms: int | None = None
        self._noting: asyncio.Task[None] | None = None
        self.underway = False
        self._short = False

    def touched(self) -> None:
        """The directory is another one now, or runs: it can fail anew."""
        self._settled = False
        self._due_since_ms = self._snapshot = None

    def is_due(self, occasion: Occasion, o: Observation) -> bool:
        """Whether the directory has to be captured before it is touched.

        While clients wait for this node there is no capture but one of the small files, before log is destroyed.
        """
        if self._settled or o.register is None or o.policy.capture_wait_s == 0 or o.condemned:
            return False
        return occasion is not Occasion.START or not is_awaited(o)

    def is_too_long(self, o: Observation) -> bool:
        """Whether what is under way takes more than the small files, and somebody waits for this node now."""
        return self.underway and not self._short and is_awaited(o)

    async def capture(self, occasion: Occasion, o: Observation, rule: str, say: Progress) -> None:
        """Capture, trying again until the time is over; afterwards it is not due any more. A failure is only told."""
        self.underway, self._short = True, is_awaited(o)
        try:
            await self._until_settled(occasion, o, rule, say)
        finally:
            self.underway = False

    async def _until_settled(self, occasion: Occasion, o: Observation, rule: str, say: Progress) -> None:
        epoch = o.register.epoch if o.register is not None else o.promised
        short = self._short
        wait_ms = self._timeouts.capture_awaited_ms if short else o.policy.capture_wait_s * 1000
        began_ms = monotonic_ms()
        if self._due_since_ms is None:
            self._due_since_ms = began_ms
        give_up_ms = (began_ms if short else self._due_since_ms) + wait_ms
        if not short and occasion is not Occasion.START:
            await self._make_snapshot(epoch, rule, give_up_ms)
        while True:
            seconds = max(0.0, (give_up_ms - monotonic_ms()) / 1000)
            order = CaptureOrder(
                epoch, occasion, o.own_end, o.leading_log(), seconds, essentials=short, snapshot=self._snapshot
            )
            try:
                taken = await self._server.capture(order, say)
            except (EnvironmentFault, ConfigurationError, PostgresError, OSError) as error:
                if monotonic_ms() + self._timeouts.capture_retry_ms >= give_up_ms:
                    self._journal.record("capture.failed", epoch, rule, reason=str(error))
                    break
                log.warning("capture.again", node=self._node, error=str(error))
                say("waiting for the directory of captures", None)
                await asyncio.sleep(self._timeouts.capture_retry_ms / 1000)
                continue
            if taken is not None:
                self._tell(taken, epoch, rule, monotonic_ms() - began_ms)
                if self._sender is not None and not short:
                    await self._send_in_time(self._sender, taken, epoch, rule, give_up_ms, say)
            break
        self._settled = True

    # ---- sending ----------------------------------------------------------------------------------------------

    async def _send_in_time(
        self, sender: Sender, taken: Capture, epoch: int, rule: str, give_up_ms: float, say: Progress
    ) -> None:
        """Before the node comes back, if the destination takes it until then; else later."""
        while True:
            try:
                async with asyncio.timeout(max(0, give_up_ms - monotonic_ms()) / 1000):
                    await self._send(sender, taken, epoch, rule, say)
                return
            except (EnvironmentFault, TimeoutError) as error:
                reason = str(error) or "the time was over (policy capture_wait_s)"
                if monotonic_ms() + self._timeouts.capture_retry_ms >= give_up_ms:
                    self._journal.record("capture.unsent", epoch, rule, to=sender.words, reason=reason)
                    self._next_send_ms = monotonic_ms() + self._timeouts.capture_send_ms
                    return
            log.warning("capture.unsent", node=self._node, to=sender.words, error=reason)
            say("waiting for the place that captures are sent to", None)
            await asyncio.sleep(self._timeouts.capture_retry_ms / 1000)

    async def _send(self, sender: Sender, taken: Capture, epoch: int, rule: str | None, say: Progress) -> None:
        began_ms = monotonic_ms()
        if files := await sender.send(taken, say):
            took_ms = monotonic_ms() - began_ms
            self._journal.record("capture.sent", epoch, rule, to=sender.words, files=files, took_ms=took_ms)

    async def _send_rest(self, sender: Sender) -> None:
        """What did not arrive in time, or was taken while clients waited, or by an agent before this one."""
        try:
            for capture in await sender.unsent():
                await self._send(sender, capture, capture.epoch, None, lambda step, share: None)
        except EnvironmentFault as error:
            log.warning("capture.unsent", node=self._node, to=sender.words, error=str(error))

    def _send_later(self) -> None:
        """Begin with what has not arrived, if its time has come and the node is not just captured."""
        if self._sender is None or self.underway or (self._sending is not None and not self._sending.done()):
            return
        now_ms = monotonic_ms()
        if now_ms >= self._next_send_ms:
            self._next_send_ms = now_ms + self._timeouts.capture_send_ms
            self._sending = asyncio.create_task(self._send_rest(self._sender))

    # ---- snapshots --------------------------------------------------------------------------------------------

    async def _make_snapshot(self, epoch: int, rule: str, give_up_ms: int) -> None:
        """Of the volume, by a command of the user's, once; its outcome is part of the capture, whatever it is."""
        settings = self._settings.capture
        if not settings.snapshot_command or self._snapshot is not None:
            return
        variables = {
            "HOLDFAST_CLUSTER": self._settings.cluster.name,
            "HOLDFAST_NODE": self._node,
            "HOLDFAST_EPOCH": str(epoch),
            "HOLDFAST_DATA_DIR": str(self._settings.postgres.data_dir),
        }
        began_ms = monotonic_ms()
        limit_s = min(settings.snapshot_timeout_s, max(0.1, (give_up_ms - began_ms) / 1000))
        outcome = await run_command(settings.snapshot_command, variables, limit_s, self._timeouts.kill_ms)
        self._snapshot = Snapshot(outcome.ok, outcome.words, monotonic_ms() - began_ms)
        self._journal.record(
            "snapshot.done", epoch, rule, ok=outcome.ok, outcome=outcome.words, took_ms=self._snapshot.took_ms
        )

    def _tell(self, taken: Capture, epoch: int, rule: str, took_ms: int) -> None:
        kind = "capture.done" if not taken.lacking else "capture.partial"
        missing = "; ".join(f"{item.what}: {item.reason.explained}" for item in taken.lacking[:5])
        self._journal.record(
            kind,
            epoch,
            rule,
            files=len(taken.files),
            bytes=taken.size_bytes,
            took_ms=took_ms,
            directory=taken.directory,
            attempts=taken.attempts,
            encrypted=bool(taken.encrypted_to),
            missing=missing,
        )

    # ---- moments ----------------------------------------------------------------------------------------------

    def look(self, o: Observation) -> None:
        """Have the volatile evidence written down when a primary here gets into trouble; returns at once."""
        self._send_later()
        why, self._before = trouble_of(o, self._before), o
        if why is None or o.policy.capture_wait_s == 0 or (self._noting is not None and not self._noting.done()):
            return
        if self._noted_ms is not None and o.now_ms - self._noted_ms < QUIET_MS:
            return
        self._noted_ms = o.now_ms
        self._noting = asyncio.create_task(self._note(why, o.promised))

    async def close(self) -> None:
        """End what is under way."""
        under_way = [task for task in (self._noting, self._sending) if task is not None]
        for task in under_way:
            task.cancel()
        await asyncio.gather(*under_way, return_exceptions=True)

    async def _note(self, why: str, epoch: int) -> None:
        try:
            moment = await self._server.note_moment(why)
        except (EnvironmentFault, PostgresError, OSError) as error:
            log.warning("moment.lost", node=self._node, error=str(error))
            return
        log.info("moment.noted", node=self._node, why=why, epoch=epoch)
        if symptoms := symptoms_of(moment):
            seen: list[JsonValue] = [symptom.to_detail() for symptom in symptoms]
            self._journal.record("primary.troubled", epoch, None, why=why, symptoms=seen)
