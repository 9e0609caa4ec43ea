"""What a seed stands for: how many nodes there are, and which faults hit them when.

Many seeds draw single faults at random. The others follow the shapes that have broken clusters: standbys behind when
the leader is lost, losses in the middle of a failover, members that come and go, switchovers that meet faults, a leader
that wakes up, connections that linger, losses one after the other, machines that are slow for long, two nodes with a
witness, replay that is behind, requests that arrive twice, commits that are local by policy, and a store that is put
back within one epoch.
"""

from __future__ import annotations

import random
from collections.abc import Callable
from dataclasses import dataclass, replace

from holdfast.testing.faults import Fault

FIRST_FAULT_MS = 1300


@dataclass(frozen=True, slots=True)
class Plan:
    """One run, before it is run."""

    seed: int
    nodes: int
    faults: tuple[Fault, ...]
    from_nothing: bool = False
    """Whether it begins with empty disks and an empty store."""
    shape: str = "written"
    witnesses: int = 0

    def without(self, index: int) -> Plan:
        """The same with one fault less."""
        return replace(self, faults=self.faults[:index] + self.faults[index + 1 :])


def plan_of(seed: int) -> Plan:
    """The plan of a seed; it depends on nothing else."""
    apart = random.Random(f"plan apart {seed}")  # so that what is added here leaves the other seeds' plans as they were
    if apart.random() < _APART:
        return _plan_apart(seed, apart)
    rng = random.Random(f"plan {seed}")
    begin_ms = FIRST_FAULT_MS + rng.randrange(600)
    shape = rng.choices(list(_SHAPES), list(_SHAPES.values()))[0]
    nodes = rng.choices((3, 4, 5, 2), (76, 8, 10, 6) if shape is _anything else (50, 15, 30, 5))[0]
    names = [f"n{number}" for number in range(1, nodes + 1)]
    faults = shape(rng, names, begin_ms)
    from_nothing = shape is _anything and rng.random() < 0.05
    return Plan(seed, nodes, tuple(sorted(faults, key=lambda fault: fault.at_ms)), from_nothing, shape.__name__[1:])


def _plan_apart(seed: int, rng: random.Random) -> Plan:
    begin_ms = FIRST_FAULT_MS + rng.randrange(600)
    shape = rng.choices(list(_SHAPES_APART), list(_SHAPES_APART.values()))[0]
    witnesses = int(shape is _with_a_witness)
    nodes = 2 if witnesses else rng.choices((3, 4, 5), (60, 20, 20))[0]
    faults = shape(rng, [f"n{number}" for number in range(1, nodes + 1)], begin_ms)
    by_time = tuple(sorted(faults, key=lambda fault: fault.at_ms))
    return Plan(seed, nodes, by_time, shape=shape.__name__[1:], witnesses=witnesses)


def _for_ms(rng: random.Random) -> int:
    return rng.choice((100, 400, 1000, 2500, 5000)) + rng.randrange(300)


def _gap_ms(rng: random.Random) -> int:
    """Faults that come close upon each other hit what is on its way because of the first."""
    return int(rng.choice((0, 20, 100, 300, 800, 2000)) + rng.randrange(1, 400))


# ---- single faults --------------------------------------------------------------------------------------------


def _fault(rng: random.Random, kind: str, node: str, names: list[str], at_ms: int) -> list[Fault]:
    other = rng.choice([name for name in names if name != node])
    match kind:
        case "kill-postgres" | "lose-data" | "destroy-host":
            return [Fault(at_ms, kind, (node,))]
        case "cut" | "part":
            return [Fault(at_ms, kind, (node, rng.choice((other, "store"))), _for_ms(rng))]
        case "isolate-together":
            return [Fault(at_ms, kind, (node, "p1"), _for_ms(rng))]
        case "store-silent" | "store-down":
            return [Fault(at_ms, kind, (), _for_ms(rng))]
        case "lose-answers" | "late-writes":
            return [Fault(at_ms, kind, (rng.choice(("0.1", "0.5")),), _for_ms(rng))]
        case "delay":
            return [Fault(at_ms, kind, (rng.choice(("5", "40", "150")),), _for_ms(rng))]
        case "loss":
            return [Fault(at_ms, kind, (rng.choice(("0.05", "0.3")),), _for_ms(rng))]
        case "slow":
            return [Fault(at_ms, kind, (node, rng.choice(("5", "30", "80"))), _for_ms(rng))]
        case "switchover":
            return [Fault(at_ms, kind, (other,) if rng.random() < 0.5 else ())]
        case "restore-store":
            return [Fault(max(1, at_ms - rng.randrange(4000)), "back-up-store"), Fault(at_ms, kind)]
        case _:
            return [Fault(at_ms, kind, (node,), _for_ms(rng))]


_KINDS = {
    "kill-postgres": 14,
    "kill-agent": 8,
    "freeze-postgres": 6,
    "freeze-agent": 5,
    "freeze-host": 7,
    "crash-host": 10,
    "destroy-host": 3,
    "lose-disk": 4,
    "lose-data": 2,
    "cut": 6,
    "part": 5,
    "isolate": 8,
    "isolate-together": 2,
    "store-silent": 3,
    "store-down": 3,
    "lose-answers": 4,
    "late-writes": 3,
    "delay": 4,
    "loss": 4,
    "pause-replay": 4,
    "slow": 4,
    "switchover": 5,
    "restore-store": 1,
}
"""How often each kind of fault is chosen."""

_LOSSES = {
    "kill-postgres": 6,
    "crash-host": 5,
    "isolate": 4,
    "freeze-host": 3,
    "freeze-postgres": 2,
    "lose-disk": 2,
    "destroy-host": 2,
}
"""How a node is lost, for a while or for good."""


def _chosen(rng: random.Random, weights: dict[str, int]) -> str:
    return rng.choices(list(weights), list(weights.values()))[0]


# ---- shapes ---------------------------------------------------------------------------------------------------


def _anything(rng: random.Random, names: list[str], at_ms: int) -> list[Fault]:
    faults: list[Fault] = []
    for _ in range(rng.choices((1, 2, 3, 4, 5), (10, 30, 30, 20, 10))[0]):
        node = "n1" if rng.random() < 0.45 else rng.choice(names)
        faults.extend(_fault(rng, _chosen(rng, _KINDS), node, names, at_ms))
        at_ms += _gap_ms(rng)
    return faults


def _behind(rng: random.Random, names: list[str], at_ms: int) -> list[Fault]:
    """Some standbys do not get the log for a while; then the leader is lost, then one that had it all."""
    standbys = names[1:]
    behind = rng.sample(standbys, rng.randint(1, max(1, len(standbys) - 1)))
    lasting_ms = rng.choice((800, 2000, 4500)) + rng.randrange(800)
    faults = [Fault(at_ms, "part", ("n1", name), lasting_ms + rng.randrange(300)) for name in behind]
    at_ms += rng.randrange(200, 1500)
    faults.extend(_fault(rng, _chosen(rng, _LOSSES), "n1", names, at_ms))
    ahead = [name for name in standbys if name not in behind] or standbys
    for _ in range(rng.choice((0, 1, 1, 2))):
        at_ms += rng.choice((0, 10, 60, 300, 1200)) + rng.randrange(200)
        faults.extend(_fault(rng, _chosen(rng, _LOSSES), rng.choice(ahead), names, at_ms))
    return faults


def _upon_each_other(rng: random.Random, names: list[str], at_ms: int) -> list[Fault]:
    """Losses in the middle of what the loss before has set going."""
    faults = _fault(rng, _chosen(rng, _LOSSES), "n1", names, at_ms)
    for _ in range(rng.randint(1, 4)):
        at_ms += rng.choice((5, 30, 120, 500, 1900)) + rng.randrange(150)
        faults.extend(_fault(rng, _chosen(rng, _LOSSES), rng.choice(names), names, at_ms))
    return faults


def _coming_and_going(rng: random.Random, names: list[str], at_ms: int) -> list[Fault]:
    """Standbys leave and come back, so that S and k change; the leader is lost about then."""
    faults: list[Fault] = []
    standbys = names[1:]
    for _ in range(rng.randint(1, 3)):
        node, away_ms = rng.choice(standbys), rng.choice((1500, 3300, 4500)) + rng.randrange(900)
        kind = rng.choice(("crash-host", "isolate", "freeze-postgres", "part", "lose-disk"))
        args = ("n1", node) if kind == "part" else (node,)
        faults.append(Fault(at_ms, kind, args, away_ms))
        if rng.random() < 0.4:
            trouble = rng.choice(("lose-answers", "late-writes"))
            faults.append(Fault(at_ms + rng.randrange(away_ms), trouble, ("0.5",), 3000))
        at_ms += rng.choice((50, 600, away_ms - 200, away_ms + 100, away_ms + 700)) + rng.randrange(300)
    lost = rng.choice(("n1", "n1", rng.choice(names)))
    faults.extend(_fault(rng, _chosen(rng, _LOSSES), lost, names, at_ms))
    return faults


def _handing_over(rng: random.Random, names: list[str], at_ms: int) -> list[Fault]:
    """A switchover, and something that comes in its way."""
    target = rng.choice(names[1:])
    faults = [Fault(at_ms, "switchover", (target,))]
    for _ in range(rng.randint(1, 2)):
        kind = _chosen(rng, _KINDS)
        faults.extend(_fault(rng, kind, rng.choice(("n1", target, rng.choice(names))), names, at_ms + _gap_ms(rng)))
    return faults


def _one_after_the_other(rng: random.Random, names: list[str], at_ms: int) -> list[Fault]:
    """Losses for good, each after the cluster had time to get over the one before."""
    faults: list[Fault] = []
    for name in rng.sample(names, rng.randint(1, max(1, len(names) - 2))):
        faults.append(Fault(at_ms, "destroy-host", (name,)))
        at_ms += rng.choice((200, 5000, 9000)) + rng.randrange(500)
    return faults


def _slow_for_long(rng: random.Random, names: list[str], at_ms: int) -> list[Fault]:
    """Every machine is slow, longer than the phases of an epoch last at first; then the leader is lost."""
    factor = rng.choice(("20", "40", "70"))
    faults = [Fault(at_ms, "slow", (name, factor)) for name in names[1:]]
    at_ms += rng.randrange(100, 800)
    faults.append(Fault(at_ms, "destroy-host", ("n1",)))
    return faults


def _last_member_behind(rng: random.Random, names: list[str], at_ms: int) -> list[Fault]:
    """The one standby that has everything goes away, while the others are behind but do not look it."""
    ahead, *behind = rng.sample(names[1:], len(names) - 1)
    faults = [Fault(at_ms, "part", ("n1", name), 4200 + rng.randrange(700)) for name in behind]
    at_ms += rng.randrange(100, 700)
    kind = rng.choice(("kill-agent", "kill-agent", "isolate", "lose-disk", "lose-data"))
    faults.append(Fault(at_ms, kind, (ahead,), None if kind == "lose-data" else rng.choice((200, 5000))))
    if kind == "kill-agent":
        faults.append(Fault(at_ms + 5, "kill-postgres", (ahead,)))
    if rng.random() < 0.5:
        faults.extend(_fault(rng, _chosen(rng, _LOSSES), "n1", names, at_ms + rng.choice((500, 3500, 4500))))
    return faults


def _back_while_the_store_is_away(rng: random.Random, names: list[str], at_ms: int) -> list[Fault]:
    """A standby that was dropped comes back while the leader hears nothing, or only half, from the store."""
    away_ms = 3300 + rng.randrange(900)
    back = rng.choice(names[1:])
    faults = [Fault(at_ms, rng.choice(("crash-host", "isolate")), (back,), away_ms)]
    at_ms += away_ms + rng.randrange(50, 700)
    trouble = rng.choice(("part", "lose-answers", "late-writes"))
    faults.append(Fault(at_ms, trouble, ("n1", "store") if trouble == "part" else ("0.7",), 2500))
    if rng.random() < 0.6:
        faults.extend(_fault(rng, _chosen(rng, _LOSSES), rng.choice(names), names, at_ms + rng.randrange(100, 1500)))
    return faults


def _alone(rng: random.Random, names: list[str], at_ms: int) -> list[Fault]:
    """Everybody but the leader is away, and then its server dies."""
    away_ms = 6000 + rng.randrange(2000)
    faults = [Fault(at_ms, rng.choice(("crash-host", "isolate")), (name,), away_ms) for name in names[1:]]
    return [*faults, Fault(at_ms + rng.randrange(4300, 5800), "kill-postgres", ("n1",))]


def _wakes_up(rng: random.Random, names: list[str], at_ms: int) -> list[Fault]:
    """A frozen leader goes on just as it is being replaced."""
    faults = [Fault(at_ms, rng.choice(("freeze-host", "isolate")), ("n1",), rng.randrange(1700, 3200))]
    if rng.random() < 0.5:
        faults.extend(_fault(rng, _chosen(rng, _LOSSES), rng.choice(names[1:]), names, at_ms + rng.randrange(3500)))
    return faults


def _connects_again(rng: random.Random, names: list[str], at_ms: int) -> list[Fault]:
    """A standby loses its connection and makes another while its walsender lingers, and the others are behind."""
    again, *behind = rng.sample(names[1:], len(names) - 1)
    faults = [Fault(at_ms, "part", ("n1", name), rng.randrange(1500, 4500)) for name in behind]
    for _ in range(rng.randint(1, 3)):
        at_ms += rng.randrange(50, 900)
        faults.append(Fault(at_ms, "break-stream", (again,)))
    if rng.random() < 0.5:
        faults.extend(_fault(rng, _chosen(rng, _LOSSES), rng.choice(("n1", again)), names, at_ms + _gap_ms(rng)))
    return faults


def _with_a_witness(rng: random.Random, names: list[str], at_ms: int) -> list[Fault]:
    """Two nodes and a witness; mostly they may go on alone, and the witness is hit as well."""
    faults = [Fault(700, "policy", ("durability=degrading",))] if rng.random() < 0.8 else []
    for _ in range(rng.choice((1, 2, 2, 3, 4))):
        if rng.random() < 0.3:
            kind = rng.choice(("kill-agent", "freeze-agent", "crash-host", "isolate", "part", "cut", "destroy-host"))
            args = ("w1", rng.choice((*names, "store"))) if kind in ("part", "cut") else ("w1",)
            faults.append(Fault(at_ms, kind, args, None if kind == "destroy-host" else _for_ms(rng)))
        else:
            kind = _chosen(rng, rng.choice((_KINDS, _LOSSES)))
            faults.extend(_fault(rng, kind, rng.choice(("n1", *names)), [*names, "w1"], at_ms))
        at_ms += rng.choice((0, 100, 800, 2500, 6000)) + rng.randrange(1, 600)
    return faults


def _replay_behind(rng: random.Random, names: list[str], at_ms: int) -> list[Fault]:
    """Standbys replay slowly what they have; they, or the leader, are lost, and come back with a log to replay."""
    faults: list[Fault] = []
    for name in rng.sample(names[1:], rng.randint(1, len(names) - 1)):
        lasting_ms = rng.choice((2000, 6000, 15_000)) + rng.randrange(1000)
        faults.append(Fault(at_ms, "slow-replay", (name, rng.choice(("60", "250", "900"))), lasting_ms))
    at_ms += rng.choice((300, 1500, 4000)) + rng.randrange(500)
    for _ in range(rng.randint(1, 3)):
        node = "n1" if rng.random() < 0.5 else rng.choice(names)
        kinds = rng.choice((_LOSSES, _LOSSES, _KINDS))
        faults.extend(_fault(rng, _chosen(rng, kinds), node, names, at_ms))
        at_ms += _gap_ms(rng)
    return faults


def _heard_twice(rng: random.Random, names: list[str], at_ms: int) -> list[Fault]:
    """Requests arrive a second time, up to two seconds later, while other things fail."""
    often = Fault(at_ms - rng.randrange(500), "duplicate", (rng.choice(("0.1", "0.5", "1.0")),), 6000)
    return [often, *rng.choice((_anything, _upon_each_other, _coming_and_going, _handing_over))(rng, names, at_ms)]


def _alone_by_policy(rng: random.Random, names: list[str], at_ms: int) -> list[Fault]:
    """Commits are local by policy, or cease to be and become so again; the leader is cut off or lost about then."""
    faults = [Fault(700, "policy", ("durability=asynchronous",))]
    for _ in range(rng.choice((0, 1, 1, 2))):
        at_ms += rng.choice((300, 1500, 4000)) + rng.randrange(500)
        faults.append(Fault(at_ms, "policy", ("durability=strict",)))
        at_ms += rng.choice((300, 1500, 4000)) + rng.randrange(500)
        faults.append(Fault(at_ms, "policy", (rng.choice(("durability=asynchronous", "durability=degrading")),)))
    for _ in range(rng.choice((1, 1, 2, 3))):
        at_ms += rng.choice((0, 30, 100, 300, 2000)) + rng.randrange(100)
        kind = rng.choice(("isolate", "isolate", "freeze-host", _chosen(rng, _LOSSES), _chosen(rng, _KINDS)))
        faults.extend(_fault(rng, kind, rng.choice(("n1", "n1", *names)), names, at_ms))
    return faults


def _put_back_within_its_epoch(rng: random.Random, names: list[str], at_ms: int) -> list[Fault]:
    """The store is put back to when fewer were members, in the same epoch, just as only a newer member has all."""
    away, *others = rng.sample(names[1:], len(names) - 1)
    gone_ms = 8000 + rng.randrange(3000)
    faults = [Fault(at_ms, rng.choice(("isolate", "crash-host")), (away,), gone_ms)]
    faults.append(Fault(at_ms + gone_ms - rng.randrange(200, 3000), "back-up-store"))
    at_ms += gone_ms + rng.randrange(2000, 6000)
    faults.extend(Fault(at_ms, "part", ("n1", name), 3000) for name in others)
    at_ms += rng.randrange(300, 1500)
    if rng.random() < 0.7:
        faults.append(Fault(at_ms, "cut", (away, "store"), 3000))
    lost_ms = at_ms + rng.choice((0, 50, 100, 800))
    faults.extend(
        (Fault(lost_ms, "restore-store"), Fault(lost_ms, rng.choice(("kill-postgres", "destroy-host")), ("n1",)))
    )
    return faults


_SHAPES: dict[Callable[[random.Random, list[str], int], list[Fault]], int] = {
    _anything: 38,
    _behind: 14,
    _upon_each_other: 12,
    _coming_and_going: 12,
    _handing_over: 7,
    _one_after_the_other: 3,
    _slow_for_long: 1,
    _last_member_behind: 4,
    _back_while_the_store_is_away: 3,
    _alone: 1,
    _wakes_up: 2,
    _connects_again: 2,
}
"""How often each shape is chosen."""

_APART = 0.15
"""The share of the seeds that have one of these shapes."""

_SHAPES_APART: dict[Callable[[random.Random, list[str], int], list[Fault]], int] = {
    _with_a_witness: 40,
    _replay_behind: 30,
    _alone_by_policy: 25,
    _heard_twice: 20,
    _put_back_within_its_epoch: 10,
}
"""The same for the shapes that came later."""
