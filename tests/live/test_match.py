"""What was lost, held against the ledger of the client that wrote it: re-applied by the script, nothing is left."""

from __future__ import annotations

import asyncio
import json
from pathlib import Path
from typing import Any

import pytest

from holdfast.local.cluster import LocalCluster
from tests.cli.running import assert_refused, holdfast
from tests.installations import version_id
from tests.live.conftest import connect, the_leader, until_whole
from tests.live.test_lost import walsender
from tests.live.test_policy import NEWEST, asynchronous, frozen, killed_for_good, ordered

__all__ = ["ordered"]
pytestmark = [
    pytest.mark.live,
    pytest.mark.parametrize("installation", NEWEST, indirect=True, ids=version_id, scope="module"),
]

TABLES = """
CREATE TABLE payments (
  id uuid PRIMARY KEY, amount numeric(12,2) NOT NULL, made_at timestamptz NOT NULL, note text);
CREATE TABLE accounts (id int PRIMARY KEY, balance numeric NOT NULL);
INSERT INTO accounts VALUES (1, 100), (2, 100);
"""
PAY = "INSERT INTO payments VALUES (%s, %s, '2026-11-21 12:00:00+01', E'it''s\\r\\n-- transaction 1, committed')"


def number(n: int) -> str:
    return f"a0eebc99-9c0b-4ef8-bb6d-{n:012x}"


async def pay(cluster: LocalCluster, *payments: tuple[int, str]) -> None:
    async with await connect(cluster.write_dsn) as connection:
        for n, amount in payments:
            async with connection.transaction():
                await connection.execute(PAY, (number(n), amount))
                await connection.execute("UPDATE accounts SET balance = balance - %s WHERE id = %s", (amount, n))


async def lose(cluster: LocalCluster, *payments: tuple[int, str]) -> None:
    """Commit what no standby gets, and kill the primary."""
    before = await asynchronous(cluster)
    old = before.committed.leader.node
    senders = [await walsender(cluster, old, node) for node in cluster.nodes if node != old]
    async with frozen(*senders):
        await pay(cluster, *payments)
        await killed_for_good(cluster, before)
    await until_whole(cluster)


def match(cluster: LocalCluster, *arguments: object, status: int = 1) -> dict[str, Any]:
    done = holdfast(
        "lost", "match", "--dir", cluster.layout.root, "--table", "app.public.payments", "--json", *arguments
    )
    assert done.returncode == status, done.stderr + done.stdout
    found: dict[str, Any] = json.loads(done.stdout)
    return found


def some(counts: dict[str, int]) -> dict[str, int]:
    return {name: count for name, count in counts.items() if count}


async def test_what_the_ledger_has_is_brought_back_and_nothing_is_left(ordered: LocalCluster, tmp_path: Path) -> None:
    async with await connect(ordered.superuser_dsn(await the_leader(ordered), "app")) as connection:
        await connection.execute(TABLES)
        await connection.execute("ALTER TABLE payments OWNER TO app; ALTER TABLE accounts OWNER TO app")
    await pay(ordered, (10, "1.00"))
    await until_whole(ordered)
    await lose(ordered, (1, "20.00"), (2, "7.50"))
    ledger = tmp_path / "charged.csv"
    ledger.write_text(
        "charged,reference,at\n"
        f"1,{number(10).upper()},2026-11-21T11:00:00Z\n"
        f'"20.000",{number(1).upper()},2026-11-21 06:00:00-05\n'
        f"3,{number(3)},2026-11-21T11:00:00Z\n"
    )
    ours = ("--key", "id=reference", "--compare", "amount=charged", "--compare", "made_at=at")
    script = tmp_path / "again.sql"
    everything = tmp_path / "found.jsonl"

    found = match(ordered, "--ledger", ledger, *ours, "--sql", script, "--list", everything)
    assert some(found["entries"]) == {"re-apply": 1, "refund": 1, "nothing to do": 1}
    assert some(found["rows"]) == {"re-apply": 1, "ignore": 1}
    assert found["rules"]["refund.nowhere"] == {"entries": 1, "rows": 0}
    assert (found["gaps"], found["silent"], found["key_is_unique"]) == ([], [], True)
    assert [t["reapply"] for t in found["transactions"]] == [True, False]
    assert len(everything.read_text().splitlines()) == 4
    assert {path.stat().st_mode & 0o777 for path in (script, everything)} == {0o600}
    said = holdfast("lost", "match", "--dir", ordered.layout.root, "--table", "app.public.payments",
                    "--ledger", ledger, *ours).stdout  # fmt: skip
    assert f"line 3: reference '{number(1).upper()}', charged '20.000', at '2026-11-21 06:00:00-05'" in said
    assert "1 transaction to re-apply, each of them whole" in said

    leader = await the_leader(ordered)
    psql = Path(ordered.file.postgresql.path, "psql")
    dsn = ordered.superuser_dsn(leader, "postgres")
    running = await asyncio.create_subprocess_exec(psql, "-v", "ON_ERROR_STOP=1", "-q", "-f", script, dsn)
    assert await running.wait() == 0
    async with await connect(ordered.write_dsn) as connection:
        balances = await (await connection.execute("SELECT balance::text FROM accounts ORDER BY id")).fetchall()
        notes = await (await connection.execute("SELECT DISTINCT note FROM payments")).fetchall()
    assert balances == [("80.00",), ("100",)]
    assert notes == [("it's\r\n-- transaction 1, committed",)]

    ledger.write_text("".join(ledger.read_text().splitlines(keepends=True)[:3]))  # the third was refunded
    left = match(ordered, "--ledger", ledger, *ours, "--sql", script, status=0)
    assert left["left"] == 0
    assert some(left["entries"]) == {"nothing to do": 2}
    assert some(left["rows"]) == {"ignore": 1, "nothing to do": 1}

    _refuses_passwords_and_reads_a_query(ordered)


def _refuses_passwords_and_reads_a_query(cluster: LocalCluster) -> None:
    """The ledger is the database itself here, with one amount changed."""
    query = "SELECT id, amount + (amount = 1)::int AS amount FROM payments"
    asked = ("--query", query, "--key", "id", "--compare", "amount", "--table", "app.public.payments", "--json")
    where = ("--dir", cluster.layout.root)
    with_password = cluster.write_dsn
    password = with_password.split(":")[2].split("@")[0]
    refused = holdfast("lost", "match", *where, "--ledger", with_password, *asked)
    assert_refused(refused, "--ledger", "PGPASSFILE")
    assert password not in refused.stderr
    dsn = with_password.replace(f":{password}@", "@")
    done = holdfast("lost", "match", *where, "--ledger", dsn, *asked, environment={"PGPASSWORD": password})
    assert done.returncode == 1, done.stderr
    assert some(json.loads(done.stdout)["entries"]) == {"differs": 1, "nothing to do": 1}
