"""Every time-out and interval of Holdfast, each with its reason. Units are in the names."""

from __future__ import annotations

from pydantic import BaseModel, ConfigDict, Field


class Timeouts(BaseModel):
    """Times that the protocol and its adapters keep; ``[timeouts]`` in the configuration overrides them."""

    model_config = ConfigDict(extra="forbid", frozen=True)

    heartbeat_interval_ms: int = Field(500, ge=50, le=5000)
    """Between two questions to each peer, and two heartbeat rows of the leader."""

    silence_ms: int = Field(1500, ge=300, le=60_000)
    """A leader that answers on no path for this long is unreachable: three heartbeats, so that a lost packet is none."""

    hung_ms: int = Field(3000, ge=500, le=120_000)
    """A leader whose agent answers but whose PostgreSQL accepts no fresh session for this long is hung."""

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

    phase_backoff_max_ms: int = Field(60_000, ge=1000, le=600_000)
    """The longest a phase may wait after doublings."""

    cool_down_ms: int = Field(3000, ge=0, le=600_000)
    """After a failover on suspicion no other for this long, so that two sick nodes do not play ping-pong."""

    member_silent_ms: int = Field(5000, ge=500, le=600_000)
    """A member that has not streamed for this long leaves S: with it, the next loss could block the cluster."""

    reload_settle_ms: int = Field(100, ge=10, le=10_000)
    """Commits begun this long after a reload use the new setting (8 ms were seen)."""

    handover_drain_ms: int = Field(1000, ge=0, le=60_000)
    """In a switchover, how long running transactions may go on before the leader is stopped."""

    handover_stop_ms: int = Field(5000, ge=100, le=600_000)
    """In a switchover, how long the leader's fast stop may take before it is abandoned and the leader starts again."""

    start_ms: int = Field(60_000, ge=1000, le=3_600_000)
    """For PostgreSQL to accept connections after its start, while its log does not move."""

    rejoin_stream_ms: int = Field(20_000, ge=1000, le=600_000)
    """A rewound node that does not stream by then is cloned afresh."""

    store_request_ms: int = Field(2000, ge=50, le=60_000)
    """For one request to the store before the next endpoint is tried."""

    store_silence_ms: int = Field(3000, ge=200, le=60_000)
    """A watch without an event or a progress notification for this long is taken as broken and resumed elsewhere."""

    node_lease_s: int = Field(5, ge=1, le=300)
    """A node's record leaves the store this long after its agent fell silent; routing of reads depends on it."""

    hold_max_ms: int = Field(30_000, ge=0, le=600_000)
    """A statement held by the proxy longer than this is refused with SQLSTATE 57P03."""

    server_connect_ms: int = Field(1000, ge=50, le=60_000)
    """For the proxy to open and authenticate one server connection before it tries again."""
