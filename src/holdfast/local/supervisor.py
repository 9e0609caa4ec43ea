"""The one background process of a local cluster: it starts the others, starts again what dies, and stops all in order.

It knows nothing of PostgreSQL clusters beyond one thing: the death of an agent must not take its PostgreSQL down, and
none may be left when everything is to stop. What to run is in plan.json (`holdfast.local.plan`). A supervisor that
comes after one that was killed picks up the processes that are still there, by their command lines.

``tied`` supervisors belong to the process at the other end of their standard input: when it closes that, or dies,
everything is stopped (and removed, if told so). The line ``keep`` unties.
"""

from __future__ import annotations

import asyncio
import contextlib
import fcntl
import os
import shutil
import signal
import subprocess
import sys
from collections.abc import Callable, Iterable
from pathlib import Path
from typing import IO, Any

from holdfast.local.plan import STEADY_S, WRONG_INPUT, Plan, ProcessSpec, ProcessState, RunFiles, SupervisorState
from holdfast.local.processes import (
    Process,
    descendants_of,
    kill_postgres,
    postmaster_of,
)
from holdfast.postgres.shared_memory import remove_shared_memory, shared_memory_left_in, shared_memory_of


class AlreadySupervised(Exception):
    """Another supervisor holds the directory."""


def find_by_command(commands: Iterable[tuple[str, ...]]) -> dict[tuple[str, ...], Process]:
    """Running processes whose command lines begin so; each of ours names a file of its own cluster."""
    wanted = tuple(commands)
    found: dict[tuple[str, ...], Process] = {}
    for entry in os.listdir("/proc"):
        if not entry.isdigit():
            continue
        try:
            words = Path(f"/proc/{entry}/cmdline").read_bytes().split(b"\0")[:-1]
        except OSError:
            continue
        running = tuple(os.fsdecode(word) for word in words)
        command = next((c for c in wanted if running[: len(c)] == c), None)
        if command is not None and (process := Process.of(int(entry))) is not None:
            found[command] = process
    return found


async def wait_until_ended(process: Process, timeout_s: float | None = None) -> bool:
    """Wait for the end of any process, child or not; False if it still runs after ``timeout_s``."""
    descriptor = process.open()
    if descriptor is None:
        return True
    ended = asyncio.Event()
    loop = asyncio.get_running_loop()
    loop.add_reader(descriptor, ended.set)
    try:
        await asyncio.wait_for(ended.wait(), timeout_s)
    except TimeoutError:
        return False
    finally:
        loop.remove_reader(descriptor)
        os.close(descriptor)
    return True


class Supervisor:
    """Keeps the processes of one directory's plan alive until it is told to stop."""

    def __init__(self, run: Path, *, tied: bool = False, remove: Path | None = None) -> None:
        self._files = RunFiles(run)
        self._remove = remove
        self._tied = tied
        self._plan = Plan.load(self._files.plan)
        self._state = SupervisorState(Process.of(os.getpid()))
        self._children: dict[str, subprocess.Popen[bytes]] = {}
        self._stop = asyncio.Event()
        self._lock: IO[str] | None = None
        self._all_started = asyncio.Event()
        self._log = _LateLog()

    async def run(self) -> None:
        """Start everything and stay until SIGTERM, SIGINT or the end of a tied standard input.

        Raises AlreadySupervised.
        """
        self._take_lock()
        loop = asyncio.get_running_loop()
        for number in (signal.SIGTERM, signal.SIGINT, signal.SIGHUP):
            loop.add_signal_handler(number, self._stop.set)
        if self._tied:
            os.set_blocking(sys.stdin.fileno(), False)
            loop.add_reader(sys.stdin.fileno(), self._on_stdin)
        leftovers = find_by_command(spec.command for spec in self._plan.processes)
        keepers = [asyncio.create_task(self._keep(s.name, leftovers.get(s.command))) for s in self._plan.processes]
        for keeper in keepers:
            keeper.add_done_callback(self._on_keeper_end)
        announcer = asyncio.create_task(self._announce())
        try:
            await self._stop.wait()
        finally:
            self._state.stopping = True
            for task in (*keepers, announcer):
                task.cancel()
            await asyncio.gather(*keepers, announcer, return_exceptions=True)
            with contextlib.suppress(OSError):
                self._publish()
            await self._end()

    def _on_keeper_end(self, keeper: asyncio.Task[None]) -> None:
        """A process that nobody keeps any more (its directory was removed, say) ends everything."""
        if not keeper.cancelled() and (error := keeper.exception()) is not None:
            self._log("supervisor.failed", error=str(error))
            self._stop.set()

    async def _announce(self) -> None:
        await self._all_started.wait()
        self._log("supervisor.started", tied=self._tied, picked_up=[s.name for s in self._adopted()])

    def _take_lock(self) -> None:
        self._lock = self._files.lock.open("a")
        try:
            fcntl.flock(self._lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            raise AlreadySupervised(str(self._files.lock.parent)) from None

    def _on_stdin(self) -> None:
        try:
            data = os.read(sys.stdin.fileno(), 4096)
        except BlockingIOError:
            return
        if b"keep" in data:
            self._remove = None
            self._log("supervisor.untied")
        elif not data:
            self._log("supervisor.owner_gone")
            self._stop.set()
        else:
            return
        asyncio.get_running_loop().remove_reader(sys.stdin.fileno())

    def _adopted(self) -> list[ProcessSpec]:
        return [s for s in self._plan.processes if (state := self._state.processes.get(s.name)) and state.adopted]

    def _publish(self) -> None:
        temporary = self._files.state.with_suffix(".new")
        temporary.write_text(self._state.to_json())
        temporary.replace(self._files.state)

    async def _keep(self, name: str, leftover: Process | None) -> None:
        """Keep one process alive for ever."""
        state = ProcessState()
        delay_ms = 0
        first = self._plan.spec(name)
        if leftover is None and first is not None and first.delay_ms:
            await asyncio.sleep(first.delay_ms / 1000)
        loop = asyncio.get_running_loop()
        self._state.processes[name] = state
        while True:
            if leftover is not None:
                state.process, state.adopted, leftover = leftover, True, None
            else:
                with contextlib.suppress(OSError, ValueError):  # half a plan is no plan: go on with the last one
                    self._plan = Plan.load(self._files.plan)
                spec = self._plan.spec(name)
                if spec is None:
                    return
                state.process = self._start(spec)
                state.adopted = False
            self._publish()
            if len(self._state.processes) == len(self._plan.processes):
                self._all_started.set()
            started_at = loop.time()
            if state.process is not None:
                await wait_until_ended(state.process)
            state.last_status = self._reap(name)
            state.process, state.restarts = None, state.restarts + 1
            if loop.time() - started_at >= STEADY_S:
                delay_ms = 0
                state.quick_ends *= state.last_status == WRONG_INPUT
            state.quick_ends += 1
            self._log("process.ended", name=name, status=state.last_status, restart_in_ms=delay_ms)
            self._publish()
            await asyncio.sleep(delay_ms / 1000)
            delay_ms = min(max(2 * delay_ms, self._plan.restart_min_ms), self._plan.restart_max_ms)

    def _start(self, spec: ProcessSpec) -> Process | None:
        """Start a process in a session of its own, its output appended to its log."""
        try:
            with Path(spec.log_file).open("ab") as log:
                child = subprocess.Popen(
                    (*spec.command, *spec.extra),
                    stdin=subprocess.DEVNULL,
                    stdout=log,
                    stderr=subprocess.STDOUT,
                    cwd="/",
                    env=_environment(spec),
                    start_new_session=True,
                    user=spec.user,
                    group=_group_of(spec.user),
                    extra_groups=[] if spec.user else None,
                    umask=0o077,
                )
        except (OSError, KeyError) as error:
            with contextlib.suppress(OSError), Path(spec.log_file).open("a") as log:
                log.write(f"cannot be started: {error}\n")
            return None
        self._children[spec.name] = child
        return Process.of(child.pid)

    def _reap(self, name: str) -> int | None:
        child = self._children.pop(name, None)
        return child.wait() if child is not None else None

    async def _end(self) -> None:
        """Stop everything; afterwards nothing of the plan runs any more."""
        self._log("supervisor.stopping", remove=str(self._remove) if self._remove else None)
        # What is about to be removed need not be stopped gently.
        await (stop_at_once if self._remove else stop_in_order)(self._plan, self._state, self._log)
        for name in list(self._children):
            self._reap(name)
        self._files.state.unlink(missing_ok=True)
        self._log("supervisor.ended")
        if self._remove is not None:
            _remove_cluster(self._remove)


async def stop_in_order(plan: Plan, state: SupervisorState, log: Callable[..., Any]) -> None:
    """Stop the processes stage by stage, within a stage the agents of standbys before that of the primary.

    A primary that stopped first would set off a failover among the others.
    """
    running = _running(plan, state)
    for stage in sorted({spec.stage for spec in plan.processes}):
        specs = [s for s in plan.processes if s.stage == stage]
        standbys = [s for s in specs if s.data_dir and (Path(s.data_dir) / "standby.signal").exists()]
        for wave in (standbys, [s for s in specs if s not in standbys]):
            await asyncio.gather(*(_stop_one(s, running[s.name], log) for s in wave if s.name in running))
            dirs = [Path(s.data_dir) for s in wave if s.data_dir]
            await asyncio.gather(*(_stop_postgres(d, plan.postgres_stop_ms, log) for d in dirs))


async def stop_at_once(plan: Plan, state: SupervisorState, log: Callable[..., Any]) -> None:
    """Kill everything: for a directory that is about to be removed."""
    running = set(_running(plan, state).values())
    # Also initdb, pg_basebackup and the like, which an agent that is killed leaves behind.
    helpers = map(Process.of, descendants_of(*(process.pid for process in running)))
    victims = running | {helper for helper in helpers if helper is not None}
    servers = {p.pid for spec in plan.processes if spec.data_dir and (p := postmaster_of(Path(spec.data_dir)))}
    shared = shared_memory_of(*servers, *descendants_of(*servers))
    for spec in plan.processes:
        if spec.data_dir:
            shared |= shared_memory_left_in(Path(spec.data_dir))  # of a server that was killed before
    for process in victims:
        process.send(signal.SIGKILL)
    await asyncio.gather(*(wait_until_ended(process) for process in victims))
    for spec in plan.processes:
        if spec.data_dir:
            await _kill_postgres(Path(spec.data_dir), log)
    remove_shared_memory(shared)


def _running(plan: Plan, state: SupervisorState) -> dict[str, Process]:
    """Every process of the plan that runs, whoever started it."""
    by_command = find_by_command(spec.command for spec in plan.processes)
    running = {spec.name: by_command[spec.command] for spec in plan.processes if spec.command in by_command}
    for name, known in state.processes.items():
        if known.process is not None and known.process.is_alive():
            running[name] = known.process
    return running


async def _stop_one(spec: ProcessSpec, process: Process, log: Callable[..., Any]) -> None:
    process.send(signal.SIGTERM)
    process.send(signal.SIGCONT)  # a frozen process takes no other signal
    if await wait_until_ended(process, spec.stop_ms / 1000):
        return
    if not spec.may_kill:
        log("process.slow_to_stop", name=spec.name, pid=process.pid)
        await wait_until_ended(process)
        return
    log("process.killed", name=spec.name, pid=process.pid, reason=f"did not stop within {spec.stop_ms} ms")
    process.send(signal.SIGKILL)
    await wait_until_ended(process)


async def _stop_postgres(data_dir: Path, stop_ms: int, log: Callable[..., Any]) -> None:
    """Stop a PostgreSQL whose agent is gone: fast, and past the deadline by force."""
    postmaster = postmaster_of(data_dir)
    if postmaster is None:
        return
    log("postgres.left_over", data_dir=str(data_dir), pid=postmaster.pid)
    postmaster.send(signal.SIGCONT)
    postmaster.send(signal.SIGINT)
    if not await wait_until_ended(postmaster, stop_ms / 1000):
        await _kill_postgres(data_dir, log)


async def _kill_postgres(data_dir: Path, log: Callable[..., Any]) -> None:
    postmaster = postmaster_of(data_dir)
    if postmaster is not None:
        log("postgres.killed", data_dir=str(data_dir), processes=kill_postgres(data_dir))
        await wait_until_ended(postmaster)


def _environment(spec: ProcessSpec) -> dict[str, str]:
    hidden = spec.hidden_environment
    return {name: value for name, value in os.environ.items() if not (hidden and name.startswith(hidden))}


def _group_of(user: str | None) -> int | None:
    if user is None:
        return None
    import pwd

    return pwd.getpwnam(user).pw_gid


def _remove_cluster(root: Path) -> None:
    from holdfast.local.layout import Layout, remove

    remove(Layout(root))
    shutil.rmtree(root, ignore_errors=True)


class _LateLog:
    """JSON lines on standard error. structlog is loaded for the first one: it takes longer than to start a process."""

    def __init__(self) -> None:
        self._write: Callable[..., Any] | None = None

    def __call__(self, event: str, **detail: Any) -> None:
        if self._write is None:
            import structlog

            structlog.configure(
                processors=[structlog.processors.TimeStamper(fmt="iso", utc=True), structlog.processors.JSONRenderer()],
                logger_factory=structlog.PrintLoggerFactory(sys.stderr),
            )
            self._write = structlog.get_logger().info
        self._write(event, **detail)
