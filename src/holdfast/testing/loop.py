"""An asyncio event loop whose time is simulated: it does what is due, then jumps to the next timer."""

from __future__ import annotations

import asyncio
import heapq
from asyncio import events
from collections import deque
from collections.abc import Callable, Coroutine
from contextvars import Context, ContextVar, copy_context
from typing import Any, TypeVar

T = TypeVar("T")


class Process:
    """Tasks that are frozen and killed together, as those of one process of an operating system are."""

    __slots__ = ("alive", "backlog", "frozen", "name")

    def __init__(self, name: str) -> None:
        self.name = name
        self.alive = True
        self.frozen = False
        self.backlog: list[Call] = []


PROCESS: ContextVar[Process | None] = ContextVar("process", default=None)
"""The process that the running code belongs to; None for the world itself, which nobody freezes."""


class Call:
    """Something to be called once. What asyncio expects of a handle, and no more."""

    __slots__ = ("_when", "args", "callback", "context", "is_cancelled")

    def __init__(
        self, callback: Callable[..., object], args: tuple[Any, ...], context: Context | None, when: float
    ) -> None:
        self.callback = callback
        self.args = args
        self.context = context
        self.is_cancelled = False
        self._when = when

    def cancel(self) -> None:
        """Do not call it."""
        self.is_cancelled = True

    def cancelled(self) -> bool:
        """Whether it will not be called."""
        return self.is_cancelled

    def when(self) -> float:
        """The time at which it is due."""
        return self._when


class _Numbered(asyncio.Task[T]):
    """A task that has its place in a set by its number: by its address, who is cancelled first would be chance."""

    def __init__(self, number: int, coro: Coroutine[Any, Any, T], **named: Any) -> None:
        self._number = number
        super().__init__(coro, **named)

    def __hash__(self) -> int:
        return self._number


class Spinning(Exception):
    """Time no longer passes."""


async def within(answer: asyncio.Future[T], limit_s: float) -> T:
    """The answer, or TimeoutError: `asyncio.timeout` for one future, at a fraction of what that costs."""
    timer = answer.get_loop().call_later(limit_s, _expire, answer)
    try:
        return await answer
    finally:
        timer.cancel()


def _expire(answer: asyncio.Future[Any]) -> None:
    if not answer.done():
        answer.set_exception(TimeoutError())


class SimulatedLoop(asyncio.AbstractEventLoop):
    """Runs as many processes as there are; nothing here depends on real time, on addresses or on the order of sets."""

    def __init__(self) -> None:
        self._now = 0.0
        self._ready: deque[Call] = deque()
        self._timers: list[tuple[float, int, Call]] = []
        self._numbers = 0
        self._tasks: list[asyncio.Task[Any]] = []
        self.steps = 0
        self.steps_max = 150_000
        """More than any run needs; beyond it something goes round in circles without time passing."""
        self.stopping = False

    # ---- what the world uses ----------------------------------------------------------------------------------

    def after(self, delay_ms: float, callback: Callable[..., object], *args: object) -> Call:
        """Let the world itself do something later; no process's death prevents it."""
        when = self._now + delay_ms / 1000
        call = Call(callback, args, None, when)
        self._numbers += 1
        heapq.heappush(self._timers, (when, self._numbers, call))
        return call

    def spawn(self, process: Process, coroutine: Coroutine[Any, Any, T]) -> asyncio.Task[T]:
        """Start the first task of a process; the tasks that it starts belong to the process as well."""
        context = copy_context()
        context.run(PROCESS.set, process)
        return self.create_task(coroutine, context=context)

    def kill(self, process: Process) -> None:
        """Nothing of the process runs any more, not even what would clean up."""
        process.alive = False
        process.backlog.clear()

    def freeze(self, process: Process) -> None:
        """Stop the process between two steps."""
        process.frozen = True

    def thaw(self, process: Process) -> None:
        """Let the process go on where it was."""
        if process.frozen:
            process.frozen = False
            self._ready.extend(process.backlog)
            process.backlog = []

    def run_until(self, until_s: float) -> None:
        """Do everything that is due until then, or until ``stopping``; what a callback of the world raises ends it."""
        events._set_running_loop(self)
        ready, timers = self._ready, self._timers
        get = PROCESS
        try:
            while not self.stopping:
                if ready:
                    call = ready.popleft()
                elif timers:
                    when, _, call = timers[0]
                    if when > until_s:
                        break
                    heapq.heappop(timers)
                    if call.is_cancelled:
                        continue
                    if when > self._now:
                        self._now = when
                else:
                    break
                if call.is_cancelled:
                    continue
                self.steps += 1
                if self.steps > self.steps_max:
                    raise Spinning(f"more than {self.steps_max} steps")
                context = call.context
                if context is None:
                    call.callback(*call.args)
                    continue
                process = context.get(get)
                if process is not None and (process.frozen or not process.alive):
                    if process.alive:
                        process.backlog.append(call)
                    continue
                context.run(call.callback, *call.args)
            if not self.stopping:
                self._now = max(self._now, until_s)
        finally:
            events._set_running_loop(None)

    def end(self) -> None:
        """Throw away every task that is left, without a word."""
        self.stopping = True
        pending = [task for task in self._tasks if not task.done()]
        self._tasks = []
        for _ in range(3):  # a coroutine that waits for others while it is closed must be closed again
            for task in pending:
                coroutine = task.get_coro()
                try:
                    coroutine.close()
                except RuntimeError:
                    continue
        self._ready.clear()
        self._timers.clear()

    # ---- what asyncio uses ------------------------------------------------------------------------------------

    def time(self) -> float:
        """Simulated seconds since the world began."""
        return self._now

    def call_soon(self, callback: Callable[..., object], *args: Any, context: Context | None = None) -> Call:  # type: ignore[override]
        """See `asyncio.AbstractEventLoop.call_soon`."""
        call = Call(callback, args, copy_context() if context is None else context, self._now)
        self._ready.append(call)
        return call

    def call_at(  # type: ignore[override]
        self, when: float, callback: Callable[..., object], *args: Any, context: Context | None = None
    ) -> Call:
        """See `asyncio.AbstractEventLoop.call_at`."""
        call = Call(callback, args, copy_context() if context is None else context, when)
        self._numbers += 1
        heapq.heappush(self._timers, (when, self._numbers, call))
        return call

    def call_later(  # type: ignore[override]
        self, delay: float, callback: Callable[..., object], *args: Any, context: Context | None = None
    ) -> Call:
        """See `asyncio.AbstractEventLoop.call_later`."""
        return self.call_at(self._now + delay, callback, *args, context=context)

    def create_future(self) -> asyncio.Future[Any]:
        """See `asyncio.AbstractEventLoop.create_future`."""
        return asyncio.Future(loop=self)

    def create_task(  # type: ignore[override]
        self, coro: Coroutine[Any, Any, T], *, name: str | None = None, context: Context | None = None
    ) -> asyncio.Task[T]:
        """See `asyncio.AbstractEventLoop.create_task`."""
        task = _Numbered(len(self._tasks), coro, loop=self, name=name, context=context)
        self._tasks.append(task)
        return task

    def get_debug(self) -> bool:
        """Never."""
        return False

    def is_running(self) -> bool:
        """Whoever asks runs in it."""
        return True

    def is_closed(self) -> bool:
        """Never."""
        return False

    def call_exception_handler(self, context: dict[str, Any]) -> None:
        """What killed tasks leave behind is not worth a word; a task that fails is told by who started it."""
