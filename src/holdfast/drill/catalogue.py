"""Every drill there is. docs/drills.md says the same in sentences; a test compares."""

from __future__ import annotations

from holdfast.drill.faults.machines import (
    Boot,
    BootAll,
    FreezeDatabase,
    FreezeHost,
    FreezeProcess,
    KillCandidate,
    KillHost,
    KillProcess,
    Part,
    PowerOff,
    PowerOn,
    Thaw,
    WaitUntilMembersAre,
    WaitUntilWhole,
    Which,
)
from holdfast.drill.faults.network import (
    Cut,
    CutStandbys,
    Flap,
    Mend,
    MendStandbys,
    Slow,
    WaitUntilCaughtUp,
)
from holdfast.drill.faults.planned import (
    AskInVain,
    LeaveTransactionOpen,
    OpenTransactionEnded,
    SetDurability,
    ShutDown,
    SwitchOver,
    WaitUntilServing,
)
from holdfast.drill.faults.reads import CatchUp, FallBehind, JudgeReads, WriteAndRead
from holdfast.drill.faults.sessions import (
    CancelStorm,
    ConfirmAgain,
    CrashBackend,
    LowerDurability,
    PauseReplay,
    ReadForLong,
    StopConfirming,
    WriteDirectly,
)
from holdfast.drill.faults.storage import FillDisk, FreeDisk, LoseDisk, StallStorage, ThawStorage
from holdfast.drill.faults.stores import BackUpStore, RestoreStore, StartStore, StopStore
from holdfast.drill.hosts import Direction
from holdfast.drill.primary_crash import PRIMARY_CRASH, KillPostgres
from holdfast.drill.scenario import Drill, Expectation, Load, Role, Step
from holdfast.drill.volumes import Kind, Volume
from holdfast.model.policy import Durability

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
        "agent-freeze",
        "The primary's agent stands still for a minute, its PostgreSQL lives",
        "an agent that does not answer is no reason to replace a database that does",
        steps=(Step(FreezeProcess(Which.AGENT)),),
        heal=(Step(Thaw(), HOLD_S),),
        expect=NO_FAILOVER,
        scenarios=("A2",),
    ),
    Drill(
        "agent-freeze-crash",
        "The primary's agent stands still, then its PostgreSQL is killed",
        "the others notice by themselves what the agent cannot tell them",
        prepare=(Step(FreezeProcess(Which.AGENT), 1.0),),
        steps=(Step(KillPostgres(Role.PRIMARY)),),
        heal=(Step(Thaw(), 10.0),),
        expect=FAILOVER,
        scenarios=("A2", "A4"),
    ),
    Drill(
        "proxy-freeze",
        "One of two proxies stands still for ten seconds",
        "its clients wait, and go on when it does; those of the other one notice nothing",
        steps=(Step(FreezeProcess(Which.PROXY)),),
        heal=(Step(Thaw(), 10.0),),
        expect=NO_FAILOVER,
        scenarios=("A5",),
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
        heal=(Step(Mend(), 15.0), Step(WaitUntilCaughtUp())),
        expect=NO_FAILOVER,
        scenarios=("A14", "B4"),
    ),
)

DOUBLE = (
    Drill(
        "standby-then-primary",
        "A standby's host is lost, and later the primary's",
        "the quorum was narrowed to the standby that is left, so that this one may take over",
        prepare=(Step(PowerOff(Role.STANDBY)), Step(WaitUntilMembersAre(1))),
        # Of three store members one is left: nobody can open an epoch before one of the hosts is back.
        steps=(Step(PowerOff(Role.PRIMARY)), Step(Boot(Role.STANDBY), 3.0)),
        heal=(Step(BootAll()),),
        expect=Expectation(failover=True, stall_ms=15_000, worst_stall_ms=30_000),
    ),
    Drill(
        "double-fault",
        "The primary's PostgreSQL is lost, then the candidate's host while it promotes",
        "a second loss in the middle of a failover costs nothing but time",
        steps=(Step(KillPostgres(Role.PRIMARY)), Step(KillCandidate())),
        heal=(Step(BootAll()),),
        expect=Expectation(failover=True, stall_ms=8000, worst_stall_ms=20_000),
    ),
)

PLANNED = (
    Drill(
        "switchover",
        "A switchover under load",
        "planned work is a wait that users do not notice",
        steps=(Step(SwitchOver()),),
        expect=Expectation(failover=True, stall_ms=300, worst_stall_ms=1000, errors=False),
        # With transactions of 700 ms in it, the stall would be theirs: they are waited for.
        load=Load(long_writers=0),
        scenarios=("A13",),
    ),
    Drill(
        "switchover-under-long-transaction",
        "A switchover while a transaction is left open",
        "one forgotten transaction delays a switchover by the time to drain and no more, and its client is told",
        prepare=(Step(LeaveTransactionOpen()),),
        steps=(Step(SwitchOver()), Step(OpenTransactionEnded())),
        expect=Expectation(failover=True, stall_ms=1500, worst_stall_ms=2500),
        load=Load(long_writers=0),
        scenarios=("A13",),
    ),
    Drill(
        "switchover-refused",
        "A switchover to a node that is lost",
        "what cannot succeed is refused with its reason, before anybody waits",
        prepare=(Step(PowerOff(Role.STANDBY)),),
        steps=(Step(AskInVain(Role.STANDBY)),),
        heal=(Step(PowerOn()),),
        expect=NO_FAILOVER,
        scenarios=("A13",),
    ),
    Drill(
        "rolling-restart",
        "Every host is shut down and booted, the primary's last",
        "a maintenance of all machines costs one switchover",
        steps=(
            Step(ShutDown(Role.STANDBY)),
            Step(PowerOn(), 1.0),
            Step(WaitUntilWhole()),
            Step(ShutDown(Role.OTHER_STANDBY)),
            Step(PowerOn(), 1.0),
            Step(WaitUntilWhole()),
            Step(SwitchOver()),
            Step(ShutDown(Role.PRIMARY)),
            Step(PowerOn(), 1.0),
        ),
        expect=Expectation(failover=True, stall_ms=1000, worst_stall_ms=2000, errors=False),
        scenarios=("A13", "D2"),
    ),
)

STORE = (
    Drill(
        "store-loss",
        "The whole store is away for a minute",
        "a healthy primary needs no store to serve, and nobody takes its place meanwhile",
        steps=(Step(StopStore()),),
        heal=(Step(StartStore(), HOLD_S),),
        expect=NO_FAILOVER,
        scenarios=("A18",),
    ),
    Drill(
        "store-leader-loss",
        "The store's leader is killed and stays away",
        "an election of the store is nobody's business but its own",
        steps=(Step(StopStore(leader_only=True)),),
        heal=(Step(StartStore(), 15.0),),
        expect=NO_FAILOVER,
        scenarios=("A18",),
    ),
    Drill(
        "store-restored",
        "The store is restored from a backup that is older than the last failover",
        "a store that has forgotten an epoch brings nobody back who led before it; the agents say so",
        prepare=(Step(BackUpStore()), Step(WaitUntilWhole(), 5.0)),
        steps=(
            Step(KillPostgres(Role.PRIMARY)),
            Step(WaitUntilServing()),
            Step(WaitUntilWhole()),
            Step(RestoreStore()),
        ),
        expect=Expectation(failover=None, stall_ms=60_000, worst_stall_ms=120_000, whole=False, resumes=False),
        watch_s=15.0,
        scenarios=("A18",),
    ),
)

STORAGE = (
    Drill(
        "storage-stall",
        "The primary's file system takes no write any more",
        "a disk that hangs is told from a slow one, and the primary on it is replaced",
        steps=(Step(StallStorage(Role.PRIMARY)),),
        heal=(Step(ThawStorage(), 5.0),),
        expect=FAILOVER,
        volumes=(("n1", Volume(Kind.FREEZABLE, 1024)),),
        scenarios=("A1",),
    ),
    Drill(
        "storage-stall-agent",
        "The primary's only disk takes no write any more: its agent hangs with it",
        "the others notice a hanging disk also when the agent beside it cannot tell them",
        steps=(Step(StallStorage(Role.PRIMARY)),),
        heal=(Step(ThawStorage(), 5.0),),
        expect=Expectation(failover=True, stall_ms=5000, worst_stall_ms=8000),
        volumes=(("n1", Volume(Kind.FREEZABLE, 1024, with_agent=True)),),
        scenarios=("A1",),
    ),
    Drill(
        "disk-full",
        "The primary's disk is full, those of the standbys are not",
        "a primary that cannot write its log is replaced by one that can",
        steps=(Step(FillDisk((Role.PRIMARY,))),),
        heal=(Step(FreeDisk(), 5.0),),
        expect=Expectation(failover=True, stall_ms=3000, worst_stall_ms=10_000),
        volumes=(("n1", Volume(Kind.SMALL, 600)),),
        scenarios=("B5",),
    ),
    Drill(
        "disk-full-everywhere",
        "The disks of primary and standbys are full",
        "nothing is lost when there is nobody to fail over to, and writing goes on once there is room",
        steps=(Step(FillDisk((Role.PRIMARY, Role.STANDBY, Role.OTHER_STANDBY))),),
        heal=(Step(FreeDisk(), 15.0),),
        expect=Expectation(failover=None, stall_ms=30_000, worst_stall_ms=90_000),
        volumes=tuple((node, Volume(Kind.SMALL, 600)) for node in ("n1", "n2", "n3")),
        scenarios=("B5",),
    ),
    Drill(
        "lost-disk",
        "The primary's host is lost and comes back with an empty disk",
        "a node under its old name is a new member: it is cloned, and counts for nothing before that",
        steps=(Step(KillHost(Role.PRIMARY)),),
        heal=(Step(LoseDisk(), 3.0), Step(PowerOn())),
        expect=FAILOVER,
        scenarios=("A12",),
    ),
)

SESSIONS = (
    Drill(
        "crash-restart",
        "A backend of the primary is killed",
        "what no standby has confirmed is not shown after the crash, and nobody waits for long",
        steps=(Step(CrashBackend(Role.PRIMARY)),),
        expect=Expectation(failover=None, stall_ms=1000, worst_stall_ms=5000),
    ),
    Drill(
        "replay-paused",
        "The primary's PostgreSQL is killed while replay is paused on every standby",
        "a forgotten pg_wal_replay_pause() neither keeps a standby listening to the old primary nor delays a promotion",
        prepare=(Step(PauseReplay(), 1.0),),
        steps=(Step(KillPostgres(Role.PRIMARY)),),
        expect=Expectation(failover=True, stall_ms=1500, worst_stall_ms=5000),
        # The read-only port shows what was replayed: nothing new.
        scenarios=("A3",),
    ),
    Drill(
        "replica-lag",
        "A standby falls behind while clients read what they have just written",
        "nobody is shown less than what he has written, and the other standby goes on answering",
        prepare=(Step(WriteAndRead()),),
        steps=(Step(FallBehind(Role.STANDBY), 5.0),),
        heal=(Step(CatchUp(Role.STANDBY), 12.0), Step(JudgeReads(), 5.0)),
        expect=NO_FAILOVER,
        scenarios=("B4",),
    ),
    Drill(
        "reader-on-candidate",
        "The primary's PostgreSQL is killed while readers hold up replay on every standby",
        "a report that runs on the candidate does not delay its promotion",
        prepare=(Step(ReadForLong(), 1.0),),
        steps=(Step(KillPostgres(Role.PRIMARY)),),
        expect=Expectation(failover=True, stall_ms=1500, worst_stall_ms=5000),
        scenarios=("A3", "B7"),
    ),
    Drill(
        "readonly-session-writes",
        "The primary's PostgreSQL is killed while sessions past the proxy wait on the standbys",
        "a session that was opened on a standby is acknowledged nothing before the new epoch stands",
        prepare=(Step(WriteDirectly(), 1.0),),
        steps=(Step(KillPostgres(Role.PRIMARY)),),
        expect=Expectation(failover=True, stall_ms=1500, worst_stall_ms=5000),
        scenarios=("A4",),
    ),
    Drill(
        "cancel-storm",
        "Commits wait for standbys, every client cancels, and the primary dies",
        "a cancelled wait is no acknowledgement: no client is told of success before a standby has the row",
        prepare=(Step(StopConfirming(), 1.0), Step(CancelStorm())),
        steps=(Step(KillPostgres(Role.PRIMARY)), Step(ConfirmAgain())),
        expect=Expectation(failover=True, stall_ms=1500, worst_stall_ms=5000),
        is_quiet_before=True,
        scenarios=("A17",),
    ),
    Drill(
        "lowered-sync-commit",
        "Sessions that gave up waiting for standbys lose their primary",
        "what a session lost by its own setting is counted apart, and costs nobody else a row",
        prepare=(Step(LowerDurability()), Step(StopConfirming(), 2.0)),
        steps=(Step(KillPostgres(Role.PRIMARY)), Step(ConfirmAgain())),
        expect=Expectation(failover=True, stall_ms=1500, worst_stall_ms=5000),
        load=Load(lowered=True),
        is_quiet_before=True,
        scenarios=("A14",),
    ),
)

POLICY = (
    Drill(
        "asynchronous-crash",
        "The primary of an asynchronous cluster loses its power while its standbys are behind",
        "what was acknowledged and not yet shipped is lost and no more, is listed whole, and can be brought back",
        prepare=(Step(SetDurability(Durability.ASYNCHRONOUS)),),
        steps=(Step(CutStandbys()), Step(PowerOff(Role.PRIMARY), 0.15), Step(MendStandbys())),
        heal=(Step(PowerOn()),),
        load=Load(ledgers=8),
        parameters=(("max_prepared_transactions", "20"),),
        # A lease is the fence, and has to end first.
        expect=Expectation(failover=True, stall_ms=15_000, worst_stall_ms=30_000, may_lose=True),
        scenarios=("A9", "A14", "A17"),
    ),
)

CATALOGUE: dict[str, Drill] = {
    drill.name: drill for drill in (*HOSTS, *NETWORK, *DOUBLE, *PLANNED, *STORE, *STORAGE, *SESSIONS, *POLICY)
}
