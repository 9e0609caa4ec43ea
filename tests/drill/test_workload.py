"""The workload against one real PostgreSQL that is killed and started again in the middle."""

from __future__ import annotations

import asyncio
from collections.abc import Callable
from pathlib import Path

import psycopg
import pytest

from holdfast.drill.checker import check
from holdfast.drill.client import outcome_of
from holdfast.drill.history import Outcome
from holdfast.drill.workload import Workload
from holdfast.model.errors import HoldfastError
from holdfast.model.timeouts import DrillTimeouts
from tests.drill.servers import Server
from tests.ports import free_port

QUICK = DrillTimeouts(stop_s=5.0, connect_s=5)


def workload_on(dsn: str, *, idle: int = 5, read_dsn: str | None = None) -> Workload:
    return Workload(dsn, read_dsn or dsn, run_id="t1", writers=4, readers=1, idle=idle, rate_per_s=0, timeouts=QUICK)


async def until(condition: Callable[[], bool]) -> None:
    async with asyncio.timeout(60):
        while True:
            if condition():
                return
            await asyncio.sleep(0.01)


async def until_acknowledged(workload: Workload, count: int) -> None:
    await until(lambda: workload.history.acknowledged >= count)


@pytest.mark.live
async def test_a_crash_in_the_middle_loses_nothing_and_is_seen(server_home: Path, bin_dir: Path) -> None:
    server = Server(server_home, "n1", bin_dir)
    server.init()
    workload = workload_on(server.dsn)
    try:
        await server.start()
        await workload.setup()
        await workload.start()
        await until_acknowledged(workload, 300)
        fault_at_ms = workload.now_ms()
        server.kill()
        await server.start()
        await until_acknowledged(workload, workload.history.acknowledged + 300)
        await workload.stop()
        rows = await workload.rows(server.dsn)
        stopped_at_ms = workload.stopped_at_ms
        assert stopped_at_ms is not None
        verdict = check(
            workload.history,
            rows,
            fault_at_ms=fault_at_ms,
            stopped_at_ms=stopped_at_ms,
            payload_of=workload.payload_of,
        )
        assert verdict.clean, verdict
        assert verdict.recovered
        assert verdict.acknowledged >= 600
        assert verdict.rto_ms > 0
        assert verdict.unknown == len(verdict.unknown_committed) + len(verdict.unknown_absent)
        # No proxy here: every session died with the server, and that is noticed.
        assert workload.tally.dropped_idle == 5
        assert workload.tally.dropped_writers >= 4
        assert workload.tally.failed_connects > 0
        assert workload.counters().reads > 0
        await workload.drop()
    finally:
        await workload.close()
        server.kill()


@pytest.mark.live
async def test_what_errors_prove_and_clear_messages(server_home: Path, bin_dir: Path) -> None:
    server = Server(server_home, "n1", bin_dir)
    server.init()
    workload = workload_on(server.dsn, idle=3)
    try:
        await server.start()
        await workload.setup()
        await workload.start()
        await until_acknowledged(workload, 20)
        await server.sql("ALTER TABLE drill_t1.writes ADD CONSTRAINT never CHECK (sequence < 0) NOT VALID")
        await until(lambda: workload.history.errors > 0)
        await server.sql(
            "SELECT pg_terminate_backend(pid) FROM pg_stat_activity WHERE application_name = 'holdfast_drill_idle0'"
        )
        await workload.stop()
        assert workload.history.sqlstates().keys() == {"23514"}
        assert (workload.tally.dropped_idle, workload.tally.dropped_writers) == (1, 0)
        rows = await workload.rows(server.dsn)
        assert check(workload.history, rows, fault_at_ms=0, stopped_at_ms=1).clean

        again = workload_on(server.dsn)
        with pytest.raises(HoldfastError, match=r"could not make its table drill_t1\.writes"):
            await again.setup()
        nowhere = Workload(
            server.dsn, f"host=127.0.0.1 port={free_port()}", run_id="t2", timeouts=DrillTimeouts(read_port_s=0.5)
        )
        with pytest.raises(HoldfastError, match="did not appear on the read-only port"):
            await nowhere.setup()
        crowd = workload_on(server.dsn, idle=300)
        with pytest.raises(HoldfastError, match="max_connections"):
            await crowd.start()
        await crowd.close()
    finally:
        await workload.close()
        server.kill()


@pytest.mark.parametrize(
    ("error", "outcome"),
    [
        (psycopg.errors.UniqueViolation, Outcome.ERROR),
        (psycopg.errors.ReadOnlySqlTransaction, Outcome.ERROR),
        (psycopg.errors.CannotConnectNow, Outcome.ERROR),
        (psycopg.errors.QueryCanceled, Outcome.ERROR),
        (psycopg.errors.SerializationFailure, Outcome.ERROR),
        (psycopg.errors.StatementCompletionUnknown, Outcome.UNKNOWN),
        (psycopg.errors.TransactionResolutionUnknown, Outcome.UNKNOWN),
        (psycopg.errors.AdminShutdown, Outcome.UNKNOWN),
        (psycopg.errors.CrashShutdown, Outcome.UNKNOWN),
        (psycopg.errors.ConnectionFailure, Outcome.UNKNOWN),
        (psycopg.errors.IoError, Outcome.UNKNOWN),
        (psycopg.errors.InternalError_, Outcome.UNKNOWN),
        (psycopg.OperationalError, Outcome.UNKNOWN),
    ],
)
def test_only_a_proof_makes_an_error(error: type[psycopg.Error], outcome: Outcome) -> None:
    assert outcome_of(error("said by the server")) is outcome
