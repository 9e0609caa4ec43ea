"""The times that agents keep in a simulation: fewer and longer ticks than in production, in the same proportions."""

from __future__ import annotations

from holdfast.model.timeouts import Timeouts

SIMULATED = Timeouts(
    heartbeat_interval_ms=600,
    silence_ms=1800,
    hung_ms=3000,
    tick_interval_ms=600,
    busy_tick_interval_ms=40,
    peer_timeout_ms=400,
    walreceiver_exit_ms=100,
    recruit_grace_ms=150,
    leader_restart_grace_ms=1500,
    recruit_phase_ms=2000,
    promote_phase_ms=3000,
    give_up_grace_ms=1500,
    phase_backoff_max_ms=20_000,
    cool_down_ms=1500,
    member_silent_ms=3000,
    reload_settle_ms=100,
    handover_announce_ms=50,
    handover_drain_ms=400,
    handover_stop_ms=2000,
    rejoin_stream_ms=5000,
    probe_interval_ms=1200,
    probe_timeout_ms=1000,
    slot_interval_ms=10_000,
    retry_min_ms=250,
    retry_max_ms=4000,
    stop_ms=3000,
    fence_ms=1000,
    statement_ms=1000,
    store_request_ms=1000,
    store_silence_ms=2000,
    node_lease_s=6,
    slow_commit_ms=1500,
    slow_session_ms=1500,
    storage_probe_interval_ms=10_000,
    freshness_ms=1200,
    proxy_lease_s=2,
)
