"""What a server tells of a transaction, of where an epoch began, and of the ids that a lost log gave away."""

from __future__ import annotations

from typing import Any

import psycopg
import pytest

from holdfast.model.lost import LostLog
from holdfast.model.outcome import EpochStart, XactStatus
from holdfast.model.register import NO_QUORUM
from holdfast.model.server import ServerStatus
from tests.postgres.lab import PARAMETERS, Lab, nothing

pytestmark = pytest.mark.live

EPOCH = "SELECT ('x' || left(pg_walfile_name(pg_current_wal_lsn()), 8))::bit(32)::int"
"""As docs/outcomes.md gives it to clients."""
TWO_PHASES = {**PARAMETERS, "max_prepared_transactions": "5"}


async def begun(session: psycopg.AsyncConnection[tuple[Any, ...]]) -> int:
    """The id of a transaction that is left open."""
    await session.execute("BEGIN")
    row = await (await session.execute("SELECT pg_current_xact_id()::text::bigint")).fetchone()
    assert row is not None
    return int(row[0])


async def test_what_became_of_an_id(lab: Lab) -> None:
    server = await lab.primary()
    session, other = await lab.connect("a"), await lab.connect("a")
    committed = await begun(session)
    await session.execute("COMMIT")
    aborted = await begun(session)
    await session.execute("ROLLBACK")
    await session.execute("CREATE ROLE anybody")
    await session.execute("SET ROLE anybody")
    assert await (await session.execute(EPOCH.encode())).fetchall() == [(1,)]
    running = await begun(other)
    statuses = [await server.transaction_status(xid) for xid in (committed, aborted, running, running + 1, 3)]
    assert statuses == [
        XactStatus.COMMITTED,
        XactStatus.ABORTED,
        XactStatus.IN_PROGRESS,
        XactStatus.FUTURE,
        XactStatus.FORGOTTEN,  # frozen when the cluster was made
    ]
    assert await server.transaction_status(2**63 + 5) is XactStatus.FUTURE


async def test_an_epoch_begins_with_the_first_id_that_its_primary_gives_away(lab: Lab) -> None:
    """Whatever was prepared before, and whatever sessions of the standby have done since it was promoted."""
    lab.settings_of("b", parameters=TWO_PHASES)
    old = await lab.primary("a", parameters=TWO_PHASES)
    new, _ = await lab.standby("b")
    session = await lab.connect("a")
    await session.execute("CREATE TABLE t (i int)")
    for statement in ("BEGIN", "INSERT INTO t VALUES (1)", "PREPARE TRANSACTION 'waits'", "INSERT INTO t VALUES (2)"):
        await session.execute(statement.encode())
    await lab.until_equal(old, new)
    first, second = await lab.connect("b"), await lab.connect("b")
    await new.detach()
    lost = await begun(session)
    await session.execute("INSERT INTO t VALUES (3)")
    await session.execute("COMMIT")
    unheard = await begun(session)
    await session.execute("INSERT INTO t VALUES (4)")
    await session.execute("ROLLBACK")
    await session.execute("CHECKPOINT")  # nobody waits for the record of an abort
    await old.stop("immediate", 5000)
    await new.promote(2)
    await lab.until(new, lambda v: v.status is ServerStatus.PRIMARY)
    again = await begun(first)
    await begun(second)
    await second.execute("ROLLBACK")
    assert await lab.execute("b", EPOCH) == [(2,)]
    await new.set_quorum(NO_QUORUM)
    await new.write_epoch_record(2)
    await new.write_epoch_record(2)
    fork = (await new.history_of(2))[0].switch_lsn
    assert again == lost
    assert (await new.epoch_starts())[1:] == (EpochStart(2, fork, lost),)
    account = await old.rewind(lab.upstream("b"), await old.end_of_log(), nothing)
    assert isinstance(account, LostLog)
    assert ([t.xid for t in account.of_clients], account.next_xid) == ([lost], unheard + 1)
