"""Faults: what can be done to a simulated world, how long it lasts, and how it is written down."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from holdfast.testing.loop import Process
from holdfast.testing.store import HOST as STORE

if TYPE_CHECKING:
    from holdfast.testing.world import World


@dataclass(frozen=True, slots=True)
class Fault:
    """Something that goes wrong at a time; ``for_ms`` is how long it lasts (None: for good, or over at once)."""

    at_ms: int
    kind: str
    args: tuple[str, ...] = ()
    for_ms: int | None = None

    def __str__(self) -> str:
        lasting = f" for {self.for_ms}" if self.for_ms is not None else ""
        return " ".join(("at", str(self.at_ms), self.kind, *self.args)) + lasting

    @classmethod
    def parse(cls, line: str) -> Fault:
        """Read ``at 1200 kill-postgres n1 for 500``; raises ValueError for anything else."""
        words = line.split()
        for_ms = None
        if len(words) > 4 and words[-2] == "for":
            for_ms = int(words[-1])
            words = words[:-2]
        if len(words) < 3 or words[0] != "at" or words[2] not in KINDS:
            raise ValueError(f"not a fault: {line!r} (at MS KIND ARGUMENTS [for MS]; kinds: {', '.join(KINDS)})")
        return cls(int(words[1]), words[2], tuple(words[3:]), for_ms)


Undo = Callable[[], None]
Act = Callable[["World", tuple[str, ...]], Undo | None]


def _kill_postgres(world: World, args: tuple[str, ...]) -> None:
    world.servers[args[0]].end()


def _kill_agent(world: World, args: tuple[str, ...]) -> Undo:
    host = world.machines[args[0]]
    host.kill_agent()
    return host.start_agent


def _freeze_postgres(world: World, args: tuple[str, ...]) -> Undo:
    postgres = world.servers[args[0]]
    postgres.freeze()
    return postgres.thaw


def _freeze_agent(world: World, args: tuple[str, ...]) -> Undo:
    process: Process | None = world.machines[args[0]].process
    if process is None:
        return lambda: None
    world.loop.freeze(process)
    return lambda: world.loop.thaw(process)


def _freeze_host(world: World, args: tuple[str, ...]) -> Undo:
    thaw_agent, thaw_postgres = _freeze_agent(world, args), _freeze_postgres(world, args)

    def undo() -> None:
        thaw_postgres()
        thaw_agent()

    return undo


def _crash_host(world: World, args: tuple[str, ...]) -> Undo:
    host = world.machines[args[0]]
    host.power_off()
    return host.power_on


def _destroy_host(world: World, args: tuple[str, ...]) -> None:
    host = world.machines[args[0]]
    host.power_off()
    host.lost = True


def _lose_disk(world: World, args: tuple[str, ...]) -> Undo:
    host = world.hosts[args[0]]
    host.lose_disk()
    return host.power_on


def _lose_data(world: World, args: tuple[str, ...]) -> None:
    world.hosts[args[0]].lose_data()


def _cut_all(world: World, pairs: list[tuple[str, str]]) -> Undo:
    for source, target in pairs:
        world.network.cut(source, target)

    def undo() -> None:
        for source, target in pairs:
            world.network.heal(source, target)

    return undo


def _cut(world: World, args: tuple[str, ...]) -> Undo:
    return _cut_all(world, [(args[0], args[1])])


def _part(world: World, args: tuple[str, ...]) -> Undo:
    return _cut_all(world, [(args[0], args[1]), (args[1], args[0])])


def _isolate(world: World, args: tuple[str, ...]) -> Undo:
    name = args[0]
    others = [other for other in (*world.machines, STORE, *world.proxies) if other != name]
    return _cut_all(world, [pair for other in others for pair in ((name, other), (other, name))])


def _isolate_with_proxy(world: World, args: tuple[str, ...]) -> Undo:
    """The host and a proxy see each other and nobody else."""
    side = args
    others = [other for other in (*world.machines, STORE, *world.proxies) if other not in side]
    return _cut_all(world, [pair for name in side for other in others for pair in ((name, other), (other, name))])


def _store_silent(world: World, args: tuple[str, ...]) -> Undo:
    world.store.set_available(silent=True)
    return world.store.set_available


def _store_down(world: World, args: tuple[str, ...]) -> Undo:
    world.store.set_available(refuses=True)
    return world.store.set_available


def _lose_answers(world: World, args: tuple[str, ...]) -> Undo:
    world.store.answers_lost = float(args[0])

    def undo() -> None:
        world.store.answers_lost = 0.0

    return undo


def _late_writes(world: World, args: tuple[str, ...]) -> Undo:
    world.store.late = float(args[0])

    def undo() -> None:
        world.store.late = 0.0

    return undo


def _back_up_store(world: World, args: tuple[str, ...]) -> None:
    world.store.back_up()


def _restore_store(world: World, args: tuple[str, ...]) -> None:
    world.store.restore()


def _delay(world: World, args: tuple[str, ...]) -> Undo:
    former, world.network.delay_ms = world.network.delay_ms, float(args[0])

    def undo() -> None:
        world.network.delay_ms = former

    return undo


def _loss(world: World, args: tuple[str, ...]) -> Undo:
    world.network.loss = float(args[0])

    def undo() -> None:
        world.network.loss = 0.0

    return undo


def _duplicate(world: World, args: tuple[str, ...]) -> Undo:
    world.network.duplication = float(args[0])

    def undo() -> None:
        world.network.duplication = 0.0

    return undo


def _break_stream(world: World, args: tuple[str, ...]) -> None:
    receiver = world.servers[args[0]].receiver
    if receiver is not None:
        receiver.break_off()


def _pause_replay(world: World, args: tuple[str, ...]) -> Undo:
    postgres = world.servers[args[0]]
    postgres.pause_replay()
    return postgres.resume_replay


def _slow_replay(world: World, args: tuple[str, ...]) -> Undo:
    postgres = world.servers[args[0]]
    postgres.slow_replay(float(args[1]))
    return lambda: postgres.slow_replay(0.0)


def _slow(world: World, args: tuple[str, ...]) -> Undo:
    postgres = world.servers[args[0]]
    postgres.slowness = float(args[1])

    def undo() -> None:
        postgres.slowness = 1.0

    return undo


def _switchover(world: World, args: tuple[str, ...]) -> None:
    register = world.store.register()
    leader = register.leader if register is not None else None
    host = world.hosts[leader.node] if leader is not None else None
    if host is not None and host.agent is not None and host.process is not None:
        world.loop.spawn(host.process, host.agent.control.switchover(args[0] if args else None))


def _policy(world: World, args: tuple[str, ...]) -> None:
    """``policy durability=asynchronous``: asked of whichever agent runs first."""
    changes: dict[str, Any] = dict(arg.split("=", 1) for arg in args)
    for host in world.hosts.values():
        if host.agent is not None and host.process is not None:
            world.loop.spawn(host.process, host.agent.control.set_policy(changes))
            return


KINDS: dict[str, Act] = {
    "kill-postgres": _kill_postgres,
    "kill-agent": _kill_agent,
    "freeze-postgres": _freeze_postgres,
    "freeze-agent": _freeze_agent,
    "freeze-host": _freeze_host,
    "crash-host": _crash_host,
    "destroy-host": _destroy_host,
    "lose-disk": _lose_disk,
    "lose-data": _lose_data,
    "cut": _cut,
    "part": _part,
    "isolate": _isolate,
    "isolate-together": _isolate_with_proxy,
    "store-silent": _store_silent,
    "store-down": _store_down,
    "lose-answers": _lose_answers,
    "late-writes": _late_writes,
    "back-up-store": _back_up_store,
    "restore-store": _restore_store,
    "delay": _delay,
    "loss": _loss,
    "duplicate": _duplicate,
    "break-stream": _break_stream,
    "pause-replay": _pause_replay,
    "slow": _slow,
    "slow-replay": _slow_replay,
    "switchover": _switchover,
    "policy": _policy,
}
"""Every kind of fault, by the name under which it is written down."""
