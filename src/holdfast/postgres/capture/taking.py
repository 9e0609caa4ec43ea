"""Captures of one server: when the agent orders one, what it needs is found out, and a thread takes it."""

from __future__ import annotations

import asyncio
import contextlib
import io
import os
import platform
import threading
import time
from collections.abc import Mapping
from functools import partial

import structlog
from pydantic import JsonValue

from holdfast import __version__
from holdfast.model.capture import Capture, CaptureOrder, Occasion
from holdfast.model.errors import ConfigurationError, EnvironmentFault, PostgresError
from holdfast.model.lsn import Lsn, is_on_history
from holdfast.model.settings import CaptureSettings
from holdfast.postgres.accounting import fork_of
from holdfast.postgres.capture.collect import LogRange
from holdfast.postgres.capture.copying import GivenUp, TargetFailed
from holdfast.postgres.capture.keep import base_of, moments_place
from holdfast.postgres.capture.moment import as_file, take_moment
from holdfast.postgres.capture.sealing import SUFFIX, Sealer
from holdfast.postgres.capture.work import Progress, Task, Work, identity_of
from holdfast.postgres.control import ControlFile, read_control
from holdfast.postgres.files import write_durably
from holdfast.postgres.instance import Instance
from holdfast.postgres.timelines import read_history

_log = structlog.get_logger(__name__)
_LATE_S = 5.0
"""For a thread that is told to stop to come to the end of a chunk; a file system that hangs is waited for no longer."""
_CRASHED = frozenset({"in production", "in crash recovery"})
"""What the control file says of a primary that was not shut down."""
_USUAL_SEGMENT_BYTES = 16 * 1024 * 1024


class Captures:
    """What one server's agent may take of it. ``base`` is where captures go."""

    def __init__(self, instance: Instance, settings: CaptureSettings) -> None:
        """Raises ConfigurationError for keys and directories that cannot be."""
        self._instance = instance
        self._settings = settings
        self._sealer = Sealer(settings.recipients) if settings.recipients else None
        self.base = base_of(settings, instance.state_dir)
        data_dir = instance.layout.data_dir
        if self.base.resolve().is_relative_to(data_dir):
            raise ConfigurationError(
                f"capture.directory = {str(self.base)!r} is inside postgres.data_dir: name another directory"
            )

    async def note_moment(self, why: str) -> Mapping[str, JsonValue]:
        """Write down what changes from one moment to the next, for the next capture; returns it.

        Raises EnvironmentFault.
        """
        instance, moment = self._instance, await self._moment(why)
        try:
            write = partial(self._write_moment, as_file(moment))
            await instance.disk.call("moment", write, instance.timeouts.statement_ms)
        except (OSError, PostgresError) as error:
            raise EnvironmentFault(f"capture.directory {self.base} takes nothing: {error}") from error
        return moment

    async def has_failed(self) -> bool:
        """Whether the stopped directory is a primary's that was not shut down, and no copy that has never run."""
        layout = self._instance.layout
        if self._instance.running or not layout.complete():
            return False
        control = await self._control()
        is_copy = await asyncio.to_thread((layout.data_dir / "backup_label").exists)
        return control is not None and control.state in _CRASHED and not is_copy

    async def take(self, order: CaptureOrder, progress: Progress) -> Capture | None:
        """Take the stopped directory; None if there is nothing to take. What is there already is returned as it is.

        Returns a capture that may lack something, and says what. Raises EnvironmentFault if the directory of captures
        does not take it, or nobody can say how far it came: the same order again resumes it.
        """
        instance = self._instance
        layout = instance.layout
        if instance.running or layout.half_done_mark.exists() or not layout.data_dir.exists():
            return None
        control = await self._control()
        if order.occasion is Occasion.START and not await self.has_failed():
            return None
        incarnation = layout.incarnation() or "00000000"
        why = f"the node is captured before a {order.occasion}"
        moment = b"" if order.essentials else as_file(await self._moment(why))
        task = Task(
            node=instance.node,
            incarnation=incarnation,
            identity=await asyncio.to_thread(identity_of, layout.data_dir, incarnation),
            order=order,
            layout=layout,
            base=self.base,
            settings=self._settings,
            sealer=self._sealer,
            log=await self._log_of(order, control),
            moment=moment,
            tools=self._tools(),
            snapshot=order.snapshot,
        )
        return await self._work(task, progress)

    async def _work(self, task: Task, progress: Progress) -> Capture:
        given_up = threading.Event()
        work = Work(task, given_up, progress)
        running = asyncio.ensure_future(self._instance.disk.call("capture", work.run, None))
        try:
            done, _ = await asyncio.wait({running}, timeout=task.order.seconds + _LATE_S)
            if not done:
                given_up.set()
                await asyncio.wait({running}, timeout=_LATE_S)
            if not running.done():
                running.cancel()
                raise EnvironmentFault(
                    f"the capture of {task.layout.data_dir} to {self.base} did not end within "
                    f"{task.order.seconds + 2 * _LATE_S:.0f} s: one of their file systems does not answer, or the "
                    "agent gets no time on the processor"
                )
            return running.result()
        except (GivenUp, PostgresError) as error:
            raise EnvironmentFault(f"the capture was not ended: {error}") from error
        except TargetFailed as error:
            raise EnvironmentFault(
                f"capture.directory {self.base} does not take the capture: {error.cause.strerror or error.cause}"
            ) from error
        finally:
            given_up.set()  # cancelled, nobody waits for the thread: what it takes from now on does not count

    async def _moment(self, why: str) -> Mapping[str, JsonValue]:
        settings = self._settings
        return await take_moment(self._instance, why, kernel_log=settings.kernel_log, secrets=settings.secrets)

    async def _control(self) -> ControlFile | None:
        instance = self._instance
        try:
            return await read_control(instance.installation, instance.layout.data_dir, instance.user)
        except PostgresError as error:
            _log.warning("the control file cannot be read", node=instance.node, error=str(error))
            return None

    async def _log_of(self, order: CaptureOrder, control: ControlFile | None) -> LogRange | None:
        """Where the divergent log begins, as far as known; without that, all is log before a fork."""
        if order.end is None:
            return None
        fork: Lsn | None = None
        if order.leading is not None and not is_on_history(order.end, *order.leading):
            own_history = await asyncio.to_thread(read_history, self._instance.layout.wal_dir, order.end.timeline)
            with contextlib.suppress(PostgresError):
                fork = fork_of(order.end, own_history or (), *order.leading).lsn
        segment_bytes = control.segment_bytes if control is not None else _USUAL_SEGMENT_BYTES
        return LogRange(order.end.timeline, order.end.lsn, fork, segment_bytes)

    def _write_moment(self, content: bytes) -> None:
        stamp = time.strftime("%Y%m%dT%H%M%S", time.gmtime()) + f"{time.time() % 1:.3f}Z"[1:]
        name = f"{self._instance.node}-{stamp}.json"
        if self._sealer is not None:
            sealed = io.BytesIO()
            self._sealer.seal(io.BytesIO(content), sealed)
            content, name = sealed.getvalue(), name + SUFFIX
        write_durably(moments_place(self.base, self._instance.node) / name, content, None)

    def _tools(self) -> dict[str, str]:
        return {
            "holdfast": __version__,
            "postgresql": ".".join(map(str, self._instance.installation.version)),
            "python": platform.python_version(),
            "kernel": os.uname().release,
        }
