"""Every drill there is. docs/drills.md says the same in sentences; a test compares."""

from __future__ import annotations

from holdfast.drill.faults.machines import (
    BootAll,
    FreezeDatabase,
    FreezeHost,
    KillCandidate,
    KillHost,
    KillProcess,
    Part,
    PowerOff,
    PowerOn,
    Thaw,
    Which,
)
from holdfast.drill.faults.network import Cut, Flap, Mend, Slow
from holdfast.drill.hosts import Direction
from holdfast.drill.primary_crash import PRIMARY_CRASH
from holdfast.drill.scenario import Drill, Expectation, Role, Step

FAILOVER = Expectation(failover=True, stall_ms=3000, worst_stall_ms=5000)
"""The loss of a primary that has to be noticed first."""
NO_FAILOVER = Expectation(failover=False, stall_ms=1000, worst_stall_ms=1000)
"""Something is lost that the primary does not need."""
HOLD_S = 60.0
"""How long what comes back by itself stays away: long enough for everybody to have given it up."""

HOSTS = (
    PRIMARY_CRASH,
    Drill(
        "host-loss",
        "Every process of the primary's host is killed",
        "agent, PostgreSQL and store member lost at once cost a short stall, and nothing acknowledged",
        steps=(Step(KillHost(Role.PRIMARY)),),
        heal=(Step(PowerOn()),),
        expect=FAILOVER,
        scenarios=("A1", "A4", "A12"),
    ),
    Drill(
        "power-loss",
        "The primary's host is gone without a farewell",
        "silence is enough to act on: no connection to the host is ever reset",
        steps=(Step(PowerOff(Role.PRIMARY)),),
        heal=(Step(PowerOn()),),
        expect=FAILOVER,
        scenarios=("A1", "A5"),
    ),
    Drill(
        "host-freeze",
        "The primary's host stands still and wakes up a minute later",
        "the old primary acknowledges nothing after it wakes up, and no stale read comes through the proxy",
        steps=(Step(FreezeHost(Role.PRIMARY)),),
        heal=(Step(Thaw(), HOLD_S),),
        expect=FAILOVER,
        scenarios=("A2", "A4"),
    ),
    Drill(
        "database-freeze",
        "The primary's PostgreSQL stands still, its agent lives",
        "a database that accepts connections and does nothing is replaced",
        steps=(Step(FreezeDatabase(Role.PRIMARY, Part.ALL)),),
        heal=(Step(Thaw(), 10.0),),
        expect=FAILOVER,
        scenarios=("A1", "A4"),
    ),
    Drill(
        "postmaster-freeze",
        "The primary's postmaster stands still, its sessions live",
        "held connections look healthy while no new one is possible: fresh sessions are what counts",
        steps=(Step(FreezeDatabase(Role.PRIMARY, Part.POSTMASTER)),),
        heal=(Step(Thaw(), 10.0),),
        expect=FAILOVER,
        scenarios=("A2",),
    ),
    Drill(
        "agent-crash",
        "The primary's agent is killed",
        "the database serves on without its agent, which finds it again",
        steps=(Step(KillProcess(Which.AGENT)),),
        expect=NO_FAILOVER,
        watch_s=6.0,
        scenarios=("A2",),
    ),
    Drill(
        "proxy-crash",
        "One of two proxies is killed",
        "its clients go on through the other one",
        steps=(Step(KillProcess(Which.PROXY)),),
        expect=NO_FAILOVER,
        scenarios=("A5",),
    ),
    Drill(
        "standby-loss",
        "The host of a standby is lost",
        "the other standby confirms; nobody waits and nobody fails over",
        steps=(Step(PowerOff(Role.STANDBY)),),
        heal=(Step(PowerOn()),),
        expect=NO_FAILOVER,
        watch_s=12.0,
        scenarios=("A14",),
    ),
)

NETWORK = (
    Drill(
        "partition-primary",
        "The primary is cut off from everybody, and comes back",
        "a primary that nobody reaches acknowledges nothing, and becomes a standby when it is back",
        steps=(Step(Cut(Role.PRIMARY)),),
        heal=(Step(Mend(), 10.0),),
        expect=FAILOVER,
        scenarios=("A2", "A4"),
    ),
    Drill(
        "partition-one-way",
        "The primary is heard by nobody, but hears",
        "one-sided silence is told from a healthy primary",
        steps=(Step(Cut(Role.PRIMARY, Direction.OUT)),),
        heal=(Step(Mend(), 10.0),),
        expect=FAILOVER,
        scenarios=("A2",),
    ),
    Drill(
        "partition-standby",
        "A standby is cut off from everybody, and comes back",
        "a standby that hears nobody cannot take over, and disturbs nobody",
        steps=(Step(Cut(Role.STANDBY)),),
        heal=(Step(Mend(), 12.0),),
        expect=NO_FAILOVER,
        scenarios=("A2",),
    ),
    Drill(
        "flapping",
        "The primary's cable goes and comes eight times",
        "interruptions shorter than the patience of the observers are no reason to fail over",
        steps=(Step(Flap(Role.PRIMARY)),),
        expect=Expectation(failover=False, stall_ms=1500, worst_stall_ms=2500),
        scenarios=("A2",),
    ),
    Drill(
        "slow-link",
        "The cable of a standby becomes slow",
        "the other standby confirms: a slow one holds nobody up",
        steps=(Step(Slow(Role.STANDBY, kbit_per_s=256, queue_ms=200)),),
        heal=(Step(Mend(), 15.0),),
        expect=NO_FAILOVER,
        scenarios=("A14", "B4"),
    ),
)

DOUBLE = (
    Drill(
        "standby-then-primary",
        "A standby's host is lost, then the primary's",
        "the quorum was narrowed to the standby that is left, so that this one may take over",
        steps=(Step(PowerOff(Role.PRIMARY)),),
        expect=FAILOVER,
    ),
    Drill(
        "double-fault",
        "The primary is lost, then the candidate while it promotes",
        "a second loss in the middle of a failover blocks at worst, and it goes on when one comes back",
        steps=(Step(PowerOff(Role.PRIMARY)), Step(KillCandidate())),
        heal=(Step(BootAll()),),
        expect=FAILOVER,
    ),
)

CATALOGUE: dict[str, Drill] = {drill.name: drill for drill in (*HOSTS, *NETWORK)}
