"""Every time-out and interval of Holdfast, each with its reason. Units are in the names."""

from __future__ import annotations

from typing import Self

from pydantic import BaseModel, ConfigDict, Field, model_validator


class Timeouts(BaseModel):
    """Times that the protocol and its adapters keep; ``[timeouts]`` in the configuration overrides them."""

    model_config = ConfigDict(extra="forbid", frozen=True)

    heartbeat_interval_ms: int = Field(500, ge=50, le=5000)
    """Between two questions to each peer, and two heartbeat rows of the leader."""

    silence_ms: int = Field(1500, ge=300, le=60_000)
    """A leader that answers on no path for this long is unreachable: three heartbeats, so one lost packet is none."""

    hung_ms: int = Field(3000, ge=500, le=120_000)
    """A leader whose agent answers but whose PostgreSQL accepts no fresh session for this long is hung."""

    storage_stall_ms: int = Field(3000, ge=500, le=120_000)
    """A leader that commits nothing for this long while its disk holds up writes has a storage stall."""

    storage_certain_ms: int = Field(1500, ge=500, le=120_000)
    """The same if the agent's own write waits as long and the disk completes no write at all; a slow one does."""

    storage_probe_interval_ms: int = Field(500, ge=100, le=60_000)
    """Between two small writes of the agent to the data file system, each brought to the disk."""

    standbys_fault_ms: int = Field(3000, ge=500, le=120_000)
    """When a heartbeat row waits for the standbys for this long while local ones commit, the standbys are at fault."""

    slow_session_ms: int = Field(500, ge=10, le=60_000)
    """A fresh session that takes longer than this is slow; while commits go on that is an overload, no failure."""

    slow_commit_ms: int = Field(500, ge=10, le=60_000)
    """The same for a heartbeat row committed locally: it usually takes what one write to the disk takes."""

    tick_interval_ms: int = Field(250, ge=20, le=5000)
    """Between two looks at the own PostgreSQL while nothing happens; events wake the agent at once."""

    busy_tick_interval_ms: int = Field(10, ge=1, le=1000)
    """The same while an epoch is being opened: every tick is part of the clients' stall."""

    peer_timeout_ms: int = Field(400, ge=20, le=10_000)
    """For one question to a peer; below the heartbeat interval, so that questions never pile up."""

    walreceiver_exit_ms: int = Field(100, ge=10, le=10_000)
    """A walreceiver still there this long after the reload gets SIGTERM (with replay paused it never leaves)."""

    recruit_grace_ms: int = Field(150, ge=0, le=5000)
    """How long to wait for further recruits once there are enough: one of them may have more log."""

    leader_restart_grace_ms: int = Field(2000, ge=0, le=60_000)
    """A dead leader restarts as a recruit only when the standbys alone have not made up the recruits by then."""

    recruit_phase_ms: int = Field(3000, ge=200, le=120_000)
    """A recruiting epoch that does not advance for this long is replaced; doubled for each epoch replaced."""

    promote_phase_ms: int = Field(5000, ge=500, le=300_000)
    """The same for a promoting epoch. Progress of replay or of the barrier starts it again."""

    give_up_grace_ms: int = Field(3000, ge=0, le=600_000)
    """When nobody who fits the committed leader's log confirms its barrier for this long, a log that does not fit is
    given up for it; a restart of those who fit is shorter."""

    phase_backoff_max_ms: int = Field(60_000, ge=1000, le=600_000)
    """The longest a phase may wait after doublings."""

    cool_down_ms: int = Field(3000, ge=0, le=600_000)
    """After a failover on suspicion no other for this long, so that two sick nodes do not play ping-pong."""

    member_silent_ms: int = Field(5000, ge=500, le=600_000)
    """A member that has not streamed for this long leaves S: with it, the next loss could block the cluster."""

    freshness_ms: int = Field(1000, ge=200, le=60_000)
    """Without the store, a proxy trusts the primary this long after the primary's quorum last confirmed a commit."""

    proxy_lease_s: int = Field(2, ge=1, le=60)
    """With the store, a proxy trusts the register this long; a new primary waits for a silent proxy as long."""

    lease_ms: int = Field(3000, ge=500, le=120_000)
    """While commits are local, a candidate waits this long after the leader's last sign of life in the store."""

    lease_margin_ms: int = Field(500, ge=50, le=60_000)
    """A leader that could not renew is killed this much before its lease ends; a kill takes about 50 ms."""

    reload_settle_ms: int = Field(100, ge=10, le=10_000)
    """Commits begun this long after a reload use the new setting (8 ms were seen)."""

    handover_announce_ms: int = Field(500, ge=0, le=60_000)
    """Between the announcement of a switchover and the hold: proxies let go of servers that nobody uses meanwhile."""

    handover_calm_ms: int = Field(20, ge=0, le=5000)
    """In a switchover the leader stops when no statement has ended for this long: a proxy may hear late to hold."""

    handover_drain_ms: int = Field(1000, ge=0, le=60_000)
    """In a switchover, how long running transactions may go on before the leader is stopped."""

    handover_stop_ms: int = Field(5000, ge=100, le=600_000)
    """In a switchover, how long the leader's fast stop may take before it is abandoned and the leader starts again."""

    planned_late_ms: int = Field(600_000, ge=1000, le=86_400_000)
    """A planned switchover that could not begin for this long after its time (nobody led) is given up."""

    start_ms: int = Field(60_000, ge=1000, le=3_600_000)
    """For PostgreSQL to accept connections after its start, while its log does not move."""

    postmaster_ms: int = Field(10_000, ge=500, le=600_000)
    """For a new postmaster to open its sockets; it only reads its settings before, but a slow disk may delay that."""

    reload_confirm_ms: int = Field(2000, ge=50, le=60_000)
    """For new sessions to use reloaded settings (3 ms when idle); later than that the server is not well."""

    tokens_ms: int = Field(8000, ge=500, le=600_000)
    """For finding tokens of guarded commits in up to a quarter of a gigabyte of log; clients wait for it."""

    statement_ms: int = Field(2000, ge=50, le=60_000)
    """For one statement of the agent on its own server; a look has its own deadline."""

    kill_ms: int = Field(20_000, ge=1000, le=600_000)
    """For killed processes to be gone: one in uninterruptible sleep stays, and waiting longer would only hide it."""

    source_checkpoint_ms: int = Field(300_000, ge=1000, le=3_600_000)
    """For the source of a rewind to answer, a fast checkpoint of its whole cache included."""

    log_prune_interval_ms: int = Field(60_000, ge=1000, le=3_600_000)
    """Between two removals of old server logs, which are rotated at 20 MB."""

    salvage_ms: int = Field(60_000, ge=1000, le=86_400_000)
    """For the rows of lost transactions to be read before a rewind, which waits for it: the node is missing meanwhile.
    Copying the data directory takes most of it where the file system cannot share blocks."""

    moment_ms: int = Field(1500, ge=100, le=60_000)
    """For sessions, locks and pressure to be noted when a primary is in trouble: nobody waits for it, but the server
    may be stopped at any time."""

    capture_awaited_ms: int = Field(500, ge=0, le=60_000)
    """For the capture of a node that a promotion or the quorum waits for: clients wait, too. Enough for small files."""

    capture_send_ms: int = Field(60_000, ge=100, le=86_400_000)
    """Between two attempts to send a capture that did not arrive before its node came back."""

    capture_retry_ms: int = Field(1000, ge=10, le=600_000)
    """Between two attempts at a capture whose directory does not take it."""

    rejoin_stream_ms: int = Field(20_000, ge=1000, le=600_000)
    """A rewound node that does not stream so long after it is up, or is not up then and has stopped, is cloned afresh.

    What it must replay before it is up takes as long as it takes."""

    probe_interval_ms: int = Field(1000, ge=100, le=60_000)
    """Between two fresh sessions that each observer opens on the primary; each costs it a process and a handshake."""

    probe_timeout_ms: int = Field(1000, ge=50, le=60_000)
    """For one answer of the session that each observer holds; a fresh one has until `hung_ms`."""

    slot_interval_ms: int = Field(2000, ge=100, le=600_000)
    """Between two looks at the slots that keep log for other members, and two moves of a standby's."""

    walsender_silent_ms: int = Field(1500, ge=1200, le=60_000)
    """A walsender that has heard nothing for this long, and whose standby says that it does not stream, is ended: it
    holds the slot, and nobody else is let in. A walreceiver that lives speaks every second."""

    retry_min_ms: int = Field(250, ge=1, le=60_000)
    """After an action failed, before it is tried again; doubled for each failure in a row."""

    retry_max_ms: int = Field(10_000, ge=10, le=600_000)
    """The longest such pause."""

    stop_ms: int = Field(10_000, ge=100, le=600_000)
    """For a fast stop outside of a switchover; past it everything is killed: crash recovery is safe."""

    fence_ms: int = Field(1000, ge=10, le=60_000)
    """For an immediate stop; past it everything is killed."""

    store_request_ms: int = Field(2000, ge=50, le=60_000)
    """For one request to the store before the next endpoint is tried."""

    store_patience_ms: int = Field(300, ge=20, le=10_000)
    """An endpoint that takes longer to answer gets company: the question goes to the next one as well."""

    store_first_ms: int = Field(10_000, ge=100, le=600_000)
    """For a process that starts to hear from the store for the first time, before it says so and ends."""

    store_silence_ms: int = Field(1500, ge=200, le=60_000)
    """A watch without an event or a progress notification for this long is taken as broken and resumed elsewhere: no
    later than a leader that falls silent with the endpoint beside it is replaced."""

    store_retry_ms: int = Field(100, ge=10, le=10_000)
    """Between two rounds of a watch over endpoints that all refused; a refusal comes at once and must not spin."""

    store_start_ms: int = Field(20_000, ge=500, le=600_000)
    """For a private etcd to answer after its start: it replays its log, and a slow disk takes its time."""

    store_poll_ms: int = Field(20, ge=1, le=5000)
    """Between two questions to a private etcd that starts: it is ready after about 250 ms."""

    store_stop_ms: int = Field(10_000, ge=500, le=600_000)
    """For a private etcd to end after SIGTERM; it is never killed just because it is slow."""

    node_lease_s: int = Field(5, ge=1, le=300)
    """A node's record leaves the store this long after its agent fell silent; routing of reads depends on it."""

    hold_max_ms: int = Field(30_000, ge=0, le=600_000)
    """A statement held by the proxy longer than this is refused with SQLSTATE 57P03."""

    server_connect_ms: int = Field(1000, ge=50, le=60_000)
    """For the proxy to open and authenticate one server connection before it tries again."""

    @model_validator(mode="after")
    def _in_proportion(self) -> Self:
        for longer, shorter, factor, reason in _PROPORTIONS:
            at_least = factor * getattr(self, shorter)
            if getattr(self, longer) < at_least:
                times = "" if factor == 1 else f"{factor} times "
                raise ValueError(
                    f"timeouts.{longer} = {getattr(self, longer)} must be at least {times}timeouts.{shorter} = "
                    f"{getattr(self, shorter)}: {reason}"
                )
        return self


_PROPORTIONS = (
    ("silence_ms", "heartbeat_interval_ms", 2, "else one lost answer is taken for a lost leader"),
    ("heartbeat_interval_ms", "peer_timeout_ms", 1, "else questions to a silent peer pile up"),
    ("silence_ms", "probe_timeout_ms", 1, "else a session that hangs hides the next"),
    ("storage_stall_ms", "storage_certain_ms", 1, "else what is certain takes longer than what is not"),
)
"""Longer time, shorter one, how many times, and why."""


class DrillTimeouts(BaseModel):
    """Times that a drill and its clients keep; they judge the cluster and are no part of its settings."""

    model_config = ConfigDict(extra="forbid", frozen=True)

    whole_before_s: float = Field(60.0, gt=0)
    """For the cluster to be whole before the fault: a drill on a limping cluster would measure something else."""

    read_port_s: float = Field(15.0, gt=0)
    """For the drill's fresh table to be seen through the read-only port."""

    warm_up_ms: int = Field(3000, ge=0)
    """Load before the fault: enough for the chart to show what normal is."""

    fault_jitter_ms: int = Field(250, ge=0)
    """The fault comes up to this much later, by seed, so that runs hit different moments of a heartbeat."""

    settle_ms: int = Field(3000, ge=0)
    """Load after the new primary serves, to see that it goes on serving."""

    serving_s: float = Field(60.0, gt=0)
    """For a new primary to serve before the drill gives up: twice the time that the proxy holds a statement."""

    rejoin_s: float = Field(60.0, gt=0)
    """For the old primary to be back as a standby after a new one serves; a fresh clone fits in it."""

    replay_s: float = Field(15.0, gt=0)
    """For a standby to replay all that the primary has, before its rows are compared."""

    statement_s: float = Field(45.0, gt=0)
    """A client gives up a statement after this: longer than the proxy's longest hold, so that its answer counts."""

    connect_s: int = Field(40, ge=2)
    """The same for a new connection, which the proxy may hold as well."""

    reconnect_first_ms: int = Field(20, ge=1)
    """First pause of a client that lost its connection; doubled up to the next."""

    reconnect_last_ms: int = Field(500, ge=1)
    """Longest pause between two attempts to connect: below the stall that is to be measured."""

    stop_s: float = Field(10.0, gt=0)
    """For the clients' last statements when the load ends; a statement cut off then counts as unknown."""

    sample_interval_ms: int = Field(100, ge=20)
    """Between two samples for the display, and two looks at the journal while the drill runs."""


class LocalTimeouts(BaseModel):
    """Times of a cluster on one machine (`holdfast up`, `holdfast demo`) and of its supervisor."""

    model_config = ConfigDict(extra="forbid", frozen=True)

    supervisor_restart_min_ms: int = Field(200, ge=10, le=60_000)
    """A local process that ends is started again at once, then after this long, doubled while it keeps ending."""

    supervisor_restart_max_ms: int = Field(5000, ge=100, le=600_000)
    """The longest pause between two starts of a local process that keeps ending."""

    local_stop_ms: int = Field(30_000, ge=1000, le=600_000)
    """For a local process to end after SIGTERM: an agent's PostgreSQL writes its last checkpoint in that time."""

    local_start_ms: int = Field(120_000, ge=1000, le=3_600_000)
    """For a whole local cluster to serve after its start; a new one makes and copies its data directories."""

    local_join_ms: int = Field(30_000, ge=0, le=3_600_000)
    """How long `holdfast up` waits for the other nodes when one serves: small data are copied by then."""

    local_stagger_ms: int = Field(700, ge=0, le=60_000)
    """In a new local cluster the first agent loads alone for this long: all others wait for its data directory."""

    local_outcome_ms: int = Field(20_000, ge=1000, le=600_000)
    """For `holdfast outcome`: the primary's agent waits for its server, the quorum, every agent and the journal."""

    local_replay_ms: int = Field(2000, ge=0, le=60_000)
    """For standbys to show a role and a database that were just made: readers come as soon as ``up`` ends."""

    local_poll_ms: int = Field(50, ge=5, le=5000)
    """Between two looks at a local cluster that is starting: below what a person notices."""

    local_watch_ms: int = Field(500, ge=50, le=60_000)
    """Between two pictures of `holdfast status --watch`."""


class ProxyTimeouts(BaseModel):
    """Times of the proxy's connections, beside ``hold_max_ms`` and ``server_connect_ms``."""

    model_config = ConfigDict(extra="forbid", frozen=True)

    retry_first_ms: int = Field(10, ge=1, le=1000)
    """First pause after a server refused a connection; doubled up to the next. A change of the register ends it."""

    outcomes_ms: int = Field(10_000, ge=1000, le=600_000)
    """For one question of what became of guarded commits: the agent reads up to a quarter of a gigabyte of log."""

    retry_last_ms: int = Field(200, ge=10, le=10_000)
    """Longest such pause: part of the clients' stall when a server comes back without a change of the register."""

    probe_look_ms: int = Field(500, ge=10, le=60_000)
    """Between two looks for standbys that nobody reads from because they failed, to be probed without a client."""

    client_login_ms: int = Field(60_000, ge=1000, le=600_000)
    """For a client to prove who it is (PostgreSQL's authentication_timeout)."""

    replay_ms: int = Field(5000, ge=100, le=600_000)
    """For a fresh server to take over a session's settings and prepared statements."""

    server_silence_ms: int = Field(5000, ge=500, le=600_000)
    """A server's host that acknowledges no bytes for this long is gone, should the register not say so before."""

    unused_ms: int = Field(150, ge=0, le=10_000)
    """A server that its client has not used for this long after a switchover was announced is let go."""

    let_go_ms: int = Field(250, ge=0, le=10_000)
    """Over this time: hundreds of sessions that end in one moment would make the others wait."""

    let_go_step_ms: int = Field(10, ge=1, le=1000)
    """In steps of this length."""

    retry_hint_ms: int = Field(1000, ge=100, le=600_000)
    """What a refused client is told to wait before it tries again."""

    sample_ms: int = Field(250, ge=10, le=10_000)
    """Between two questions to a server how far its log is, while nobody needs to know at once."""

    sample_max_ms: int = Field(1000, ge=50, le=60_000)
    """For one answer to that; a standby that takes longer is not read from."""

    sample_pause_ms: int = Field(2, ge=0, le=1000)
    """At least between two of them, however much is written."""

    chase_ms: int = Field(200, ge=0, le=10_000)
    """For so long after something was written a standby that lacks it is asked more often,"""

    chase_step_ms: int = Field(5, ge=1, le=1000)
    """which is then."""

    readers_at_once: int = Field(4, ge=1, le=100)
    """Connections to one standby that are opened at the same time for reads of the writable port."""
