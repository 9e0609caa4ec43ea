"""What peers say of themselves, and what fresh sessions on the primary meet: the evidence of one observer."""

from __future__ import annotations

import asyncio
import contextlib
from collections.abc import Callable, Collection
from dataclasses import replace
from functools import partial

import structlog

from holdfast.core.evidence import Probe
from holdfast.core.observation import Peer
from holdfast.model.errors import RegisterError
from holdfast.model.register import Member, NodeRecord
from holdfast.model.server import ServerStatus
from holdfast.model.timeouts import Timeouts
from holdfast.node.clock import monotonic_ms
from holdfast.node.reach import PeerReach, SessionReach

log = structlog.get_logger(__name__)


class Peers:
    """Asks every other node's agent, every heartbeat and on demand."""

    def __init__(
        self,
        node: str,
        timeouts: Timeouts,
        reach: PeerReach,
        records: Callable[[], dict[str, NodeRecord]],
        on_news: Callable[[], None],
    ) -> None:
        self._node = node
        self._timeouts = timeouts
        self._reach = reach
        self._records = records
        self._on_news = on_news
        self._asking: dict[str, asyncio.Task[None]] = {}
        self.known: dict[str, Peer] = {}
        self.hurried = False
        """Whether to ask every tick: the one that leads is in trouble, and whoever is late adds to the stall."""

    def ask_all(self) -> None:
        """Ask every peer that is not being asked already; answers arrive in ``known``."""
        for name, record in self._records().items():
            if name != self._node and name not in self._asking:
                task = asyncio.create_task(self._ask(name, record.api_url), name=f"ask-{name}")
                self._asking[name] = task
                task.add_done_callback(partial(self._asked, name))

    def _asked(self, name: str, task: asyncio.Task[None]) -> None:
        self._asking.pop(name, None)

    async def run(self) -> None:
        """Ask every heartbeat, for ever."""
        while True:
            self.ask_all()
            pause_ms = self._timeouts.tick_interval_ms if self.hurried else self._timeouts.heartbeat_interval_ms
            await asyncio.sleep(pause_ms / 1000)

    async def pledges(self, voters: Collection[str], leader: Member, epoch: int) -> bool:
        """Whether every other voter promises this leader to join no epoch for the length of a lease."""
        records = [self._records().get(name) for name in voters if name != self._node]
        known = [r for r in records if r is not None]
        given = await asyncio.gather(*(self._reach.pledge(r.api_url, leader, epoch) for r in known))
        return len(known) == len(records) and all(given)

    async def close(self) -> None:
        """Release connections."""
        for task in list(self._asking.values()):
            task.cancel()
        await self._reach.close()

    async def _ask(self, name: str, api_url: str) -> None:
        before = self.known.get(name, Peer())
        try:
            peer = await self._answer(before, api_url)
        except ConnectionRefusedError:
            peer = replace(before, refused_ms=monotonic_ms())
        except (OSError, TimeoutError, RegisterError):
            peer = before
        self.known[name] = replace(peer, asked_ms=monotonic_ms())
        self._on_news()

    async def _answer(self, before: Peer, api_url: str) -> Peer:
        report = await self._reach.ask(api_url)
        now_ms = monotonic_ms()
        primary_ms = now_ms if report.status is ServerStatus.PRIMARY else before.primary_ms
        return replace(before, report=report, answered_ms=now_ms, primary_ms=primary_ms)


SESSIONS_MAX = 4
"""Fresh sessions that may be on their way at the same time: one that hangs does not hide the next."""


class PrimaryProbe:
    """Asks the one that leads through a fresh session and through one that is held.

    With only its postmaster frozen, the held one reads and writes while nobody else gets in.
    """

    def __init__(self, reach: SessionReach, timeouts: Timeouts) -> None:
        self._reach = reach
        self._timeouts = timeouts
        self._hurry = asyncio.Event()
        self._trying: list[asyncio.Task[None]] = []
        self.about: Member | None = None
        self.result = Probe()

    def hurry(self) -> None:
        """Somebody has met trouble there: do not wait for the next time."""
        self._hurry.set()

    async def run(self, leading: Callable[[], NodeRecord | None], on_news: Callable[[], None]) -> None:
        """Probe whoever leads, for ever."""
        while True:
            self._hurry.clear()
            record = leading()
            if record is None:
                self._give_up()
                self.about, self.result = None, Probe()
                await self._reach.close()
            else:
                if record.member != self.about:
                    self._give_up()
                    self.about, self.result = record.member, Probe()
                self._reap()
                if len(self._trying) < SESSIONS_MAX:
                    self._trying.append(asyncio.create_task(self._fresh(record, on_news)))
                await self._held(record)
            with contextlib.suppress(TimeoutError):
                async with asyncio.timeout(self._timeouts.probe_interval_ms / 1000):
                    await self._hurry.wait()

    def _reap(self) -> None:
        """Forget the attempts that are over; one that failed as none should fails here."""
        over, self._trying = [t for t in self._trying if t.done()], [t for t in self._trying if not t.done()]
        for task in over:
            task.result()

    def _give_up(self) -> None:
        trying, self._trying = self._trying, []
        for task in trying:
            task.cancel()

    async def _fresh(self, record: NodeRecord, on_news: Callable[[], None]) -> None:
        """One attempt. A login takes several round trips: what comes late is slow, only what never comes is hung."""
        began_ms = monotonic_ms()
        self.result = replace(self.result, tried_ms=began_ms)
        try:
            async with asyncio.timeout(self._timeouts.hung_ms / 1000):
                if await self._reach.answers(record):
                    now_ms = monotonic_ms()
                    self.result = replace(self.result, answered_ms=now_ms, latency_ms=now_ms - began_ms)
        except ConnectionRefusedError:
            self.result = replace(self.result, refused_ms=monotonic_ms())
        except (TimeoutError, OSError):
            pass
        on_news()

    async def _held(self, record: NodeRecord) -> None:
        began_ms = monotonic_ms()
        try:
            async with asyncio.timeout(self._timeouts.probe_timeout_ms / 1000):
                if await self._reach.still_answers(record):
                    now_ms = monotonic_ms()
                    self.result = replace(self.result, held_ms=now_ms, held_latency_ms=now_ms - began_ms)
        except (TimeoutError, OSError):
            return

    async def close(self) -> None:
        """Release connections."""
        self._give_up()
        await self._reach.close()
