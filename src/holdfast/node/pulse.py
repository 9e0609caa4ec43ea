"""What an agent measures of its own node, beside its turns: heartbeat rows, sessions, disks, load.

Nothing here waits for the turns, and no turn waits for anything here: what hangs shows as a time that grows.
"""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable

import structlog

from holdfast.model.errors import PostgresError
from holdfast.model.server import ServerStatus, ServerView
from holdfast.model.timeouts import Timeouts
from holdfast.model.vitals import Commits, Room, Survey, Vitals
from holdfast.node.clock import monotonic_ms
from holdfast.node.parts import LocalServer

log = structlog.get_logger(__name__)


class Repeated:
    """Something done again and again, one at a time, and how long it takes."""

    def __init__(self) -> None:
        self._began_ms: int | None = None
        self._done_ms: int | None = None
        self._latency_ms: int | None = None
        self._error: str | None = None
        self._task: asyncio.Task[None] | None = None

    def begin(self, work: Callable[[], Awaitable[object]]) -> None:
        """Do it, unless it is being done already; returns at once."""
        if self._task is None or self._task.done():
            self._began_ms = monotonic_ms()
            self._task = asyncio.create_task(self._once(work, self._began_ms))

    async def _once(self, work: Callable[[], Awaitable[object]], began_ms: int) -> None:
        try:
            await work()
        except (PostgresError, OSError) as error:
            self._error = str(error)
            log.debug("pulse.missed", error=str(error))
        else:
            self._done_ms, self._error = monotonic_ms(), None
            self._latency_ms = self._done_ms - began_ms
        finally:
            self._began_ms = None

    def forget(self) -> None:
        """What was measured is of another life of the server."""
        if self._task is not None:
            self._task.cancel()
        self._began_ms = self._done_ms = self._latency_ms = self._error = self._task = None

    def commits(self) -> Commits:
        """How it goes, now."""
        now_ms = monotonic_ms()
        return Commits(
            age_ms=None if self._done_ms is None else now_ms - self._done_ms,
            latency_ms=self._latency_ms,
            pending_ms=None if self._began_ms is None else now_ms - self._began_ms,
            error=self._error,
        )

    def so_far_ms(self) -> int | None:
        """What it took last, or has taken until now if that is more."""
        pending_ms = 0 if self._began_ms is None else monotonic_ms() - self._began_ms
        return max(pending_ms, self._latency_ms or 0) if self._began_ms or self._latency_ms is not None else None


class Stillness:
    """For how long something that is counted has not moved, as far as it was watched.

    One look stands for two intervals at most: who slept has not watched.
    """

    def __init__(self, interval_ms: int) -> None:
        self._most_ms = 2 * interval_ms
        self._last: tuple[int, int] | None = None
        self.still_ms: int | None = None

    def saw(self, count: int | None, now_ms: int) -> None:
        """The count now; None if it cannot be told."""
        if count is None:
            self._last = self.still_ms = None
            return
        before, self._last = self._last, (count, now_ms)
        if before is None or before[0] != count:
            self.still_ms = 0
        else:
            self.still_ms = (self.still_ms or 0) + min(now_ms - before[1], self._most_ms)


class Pulse:
    """The vitals of one node. ``serves`` tells whether its server acknowledges commits as a primary."""

    def __init__(
        self, server: LocalServer, timeouts: Timeouts, serves: Callable[[], bool], epoch: Callable[[], int]
    ) -> None:
        self._server = server
        self._timeouts = timeouts
        self._serves = serves
        self._epoch = epoch
        self._local, self._quorum, self._storage = Repeated(), Repeated(), Repeated()
        self._survey: Survey | None = None
        self._room = Room()
        self._disk = Stillness(timeouts.tick_interval_ms)
        self._view: ServerView | None = None
        self._log_moved_ms: int | None = None
        self._seen: list[tuple[str | None, int]] = [(None, 0), (None, 0)]
        """Of each heartbeat row: the time in it, and when it was first seen here (monotonic)."""
        self._surveyed_ms = 0

    async def run(self) -> None:
        """Measure, for ever."""
        async with asyncio.TaskGroup() as group:
            group.create_task(self._beat())
            group.create_task(self._ask())
            group.create_task(self._touch())
            group.create_task(self._watch_disk())

    def saw(self, view: ServerView) -> None:
        """The agent looked at its server."""
        before = self._view
        if before is None or before.position != view.position:
            self._log_moved_ms = monotonic_ms()
        self._view = view

    def vitals(self) -> Vitals:
        """Everything, as of now."""
        now_ms, survey, room = monotonic_ms(), self._survey, self._room
        standby = self._view is not None and self._view.status is ServerStatus.STANDBY
        ages = [now_ms - at_ms if text is not None and standby else None for text, at_ms in self._seen]
        upstream_age_ms = survey.upstream_age_ms if survey is not None and standby else None
        return Vitals(
            local=self._local.commits(),
            quorum=self._quorum.commits(),
            log_age_ms=None if self._log_moved_ms is None else now_ms - self._log_moved_ms,
            log_waits=survey.log_waits if survey is not None else None,
            sessions=survey.sessions if survey is not None else None,
            active_sessions=survey.active_sessions if survey is not None else None,
            sessions_max=survey.sessions_max if survey is not None else None,
            data_space=room.data,
            log_space=room.log,
            storage_ms=self._storage.so_far_ms(),
            storage_pending_ms=self._storage.commits().pending_ms,
            disk_still_ms=self._disk.still_ms,
            pressure=room.pressure,
            upstream_age_ms=None if upstream_age_ms is None else upstream_age_ms + now_ms - self._surveyed_ms,
            local_seen_age_ms=ages[0],
            quorum_seen_age_ms=ages[1],
        )

    async def _beat(self) -> None:
        """The leader's heartbeat rows: they also keep log flowing while clients are idle."""
        serving = False
        while True:
            if self._serves():
                serving = True
                self._local.begin(lambda: self._server.heartbeat(self._epoch()))
                self._quorum.begin(lambda: self._server.confirm(self._epoch()))
            elif serving and not self._is_silent():
                serving = False
                self._local.forget()
                self._quorum.forget()
            await asyncio.sleep(self._timeouts.heartbeat_interval_ms / 1000)

    def _is_silent(self) -> bool:
        """Whether the server may still be the primary that it was: how long its commits have been waiting is told."""
        return self._view is not None and self._view.status is ServerStatus.UNRESPONSIVE

    async def _ask(self) -> None:
        while True:
            await asyncio.sleep(self._timeouts.heartbeat_interval_ms / 1000)
            running = self._view is not None and self._view.status in (ServerStatus.PRIMARY, ServerStatus.STANDBY)
            try:
                survey = await self._server.survey() if running else None
            except PostgresError as error:
                log.debug("survey.failed", error=str(error))
                continue
            self._survey, self._surveyed_ms = survey, monotonic_ms()
            if survey is not None:
                self._notice(survey)

    def _notice(self, survey: Survey) -> None:
        for row, text in enumerate(survey.heartbeats):
            if text != self._seen[row][0]:
                self._seen[row] = text, self._surveyed_ms

    async def _watch_disk(self) -> None:
        while True:
            self._disk.saw(self._server.disk_writes(), monotonic_ms())
            await asyncio.sleep(self._timeouts.tick_interval_ms / 1000)

    async def _touch(self) -> None:
        while True:
            self._storage.begin(self._server.touch_storage)
            try:
                self._room = await self._server.room()
            except PostgresError as error:
                log.debug("room.unknown", error=str(error))
            await asyncio.sleep(self._timeouts.storage_probe_interval_ms / 1000)
