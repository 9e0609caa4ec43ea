"""What became of a transaction, asked of a real cluster that has lost some and given their ids away again."""

from __future__ import annotations

import json
from collections.abc import Mapping

import psycopg
import pytest

from holdfast.local.cluster import LocalCluster
from holdfast.local.orders import read_headers
from holdfast.local.outcome import find_outcome
from holdfast.model.errors import ConfigurationError
from holdfast.model.outcome import Outcome
from holdfast.model.register import Phase, Register
from tests.cli.running import assert_refused, holdfast
from tests.installations import version_id
from tests.live.conftest import connect, the_leader, the_register, until_whole
from tests.live.test_lost import until_there, walsender
from tests.live.test_policy import NEWEST, asynchronous, frozen, ordered, postmaster, process_of, until

__all__ = ["ordered"]
pytestmark = [
    pytest.mark.live,
    pytest.mark.parametrize("installation", NEWEST, indirect=True, ids=version_id, scope="module"),
]


@pytest.fixture(scope="module")
def parameters() -> Mapping[str, str]:
    return {"max_prepared_transactions": "4"}


Connection = psycopg.AsyncConnection[tuple[object, ...]]


async def written(connection: Connection, end: str = "COMMIT") -> int:
    """The id of a transaction that inserts a row."""
    await connection.execute("BEGIN")
    query = "INSERT INTO had SELECT count(*) FROM had RETURNING pg_current_xact_id()::text"
    row = await (await connection.execute(query)).fetchone()
    await connection.execute(end.encode())
    assert row is not None
    return int(str(row[0]))


async def fail_over(cluster: LocalCluster, before: Register, *, ends: tuple[str, ...]) -> list[int]:
    """Lose the primary with the log that no standby has: one transaction for each end."""
    old = before.committed.leader.node
    standbys = [node for node in cluster.nodes if node != old]
    unable = [await walsender(cluster, old, node) for node in standbys]
    async with frozen(*unable, process_of(cluster, old)):
        async with await connect(cluster.superuser_dsn(old, "app")) as connection:
            xids = [await written(connection, end) for end in ends]
        server = postmaster(cluster, old)
        for process in [server, *server.children(recursive=True)]:
            process.kill()
        after = await until(cluster, lambda r: r.phase is Phase.SERVING and r.epoch > before.epoch)
        answer = await find_outcome(cluster, xids[0], before.epoch)
        assert (answer.outcome, answer.rule, answer.is_there) == (Outcome.UNKNOWN, "unknown.not-listed", False)
        assert f"the agent of {old}, which led epoch {before.epoch}, does not answer" in answer.evidence
        # Given away again: the log of the old primary, which would say that it was, is not listed yet.
        async with await connect(cluster.superuser_dsn(await the_leader(cluster), "app")) as connection:
            while await written(connection) <= xids[0]:
                pass
        undecided = await find_outcome(cluster, xids[0], None)
        assert (undecided.rule, undecided.epochs) == ("unknown.may-be-twice", (before.epoch, after.epoch))
    return xids


async def test_the_outcome_of_what_was_kept_lost_aborted_and_given_away_again(ordered: LocalCluster) -> None:
    before = await asynchronous(ordered)
    old = before.committed.leader.node
    async with await connect(ordered.superuser_dsn(old, "app")) as connection:
        await connection.execute("CREATE TABLE had (n int)")
        waiting = await written(connection, "PREPARE TRANSACTION 'waiting'")
        taken_back = await written(connection, "ROLLBACK")
        kept = await written(connection)
    for node in ordered.nodes:
        await until_there(ordered, node, 1)
    lost, aborted = await fail_over(ordered, before, ends=("COMMIT", "ROLLBACK"))
    await until_whole(ordered)
    after = await the_register(ordered)

    async def outcome(xid: int, epoch: int | None) -> tuple[str, str]:
        answer = await find_outcome(ordered, xid, epoch)
        return answer.outcome.value, answer.rule

    assert await outcome(lost, before.epoch) == ("lost", "lost.listed")
    assert await outcome(aborted, before.epoch) == ("aborted", "aborted.not-listed")
    assert await outcome(kept, before.epoch) == ("committed", "committed.confirmed")
    assert await outcome(taken_back, before.epoch) == ("aborted", "aborted.before-fork")
    assert await outcome(waiting, before.epoch) == ("in progress", "progress.prepared")
    async with await connect(ordered.superuser_dsn(await the_leader(ordered), "app")) as connection:
        while await written(connection) <= lost:
            pass
        said = await (await connection.execute("SELECT pg_xact_status(%s::text::xid8)", (str(lost),))).fetchone()
        assert said == ("committed",)  # it means another one
        assert await outcome(lost, after.epoch) == ("committed", "committed.confirmed")
        assert await outcome(lost, before.epoch) == ("lost", "lost.listed")
        assert await outcome(lost, None) == ("unknown", "unknown.twice")
        assert (await find_outcome(ordered, lost, None)).epochs == (before.epoch, after.epoch)
        assert await outcome(kept, None) == ("committed", "committed.confirmed")
        await connection.execute("ROLLBACK PREPARED 'waiting'")
        await connection.execute("DROP TABLE had")
    assert await outcome(lost + 1_000_000, after.epoch) == ("unknown", "unknown.not-given")
    with pytest.raises(ConfigurationError, match=f"epoch {after.epoch + 1} has not begun"):
        await find_outcome(ordered, lost, after.epoch + 1)


async def test_the_command_and_the_endpoint(ordered: LocalCluster) -> None:
    """Also on a cluster that confirms: what is said to be committed is on its quorum."""
    leader = await the_leader(ordered)
    async with await connect(ordered.superuser_dsn(leader, "app")) as connection:
        await connection.execute("CREATE TABLE IF NOT EXISTS had (n int)")
        xid = await written(connection)
        running = await the_register(ordered)
        await connection.execute("DROP TABLE had")
    root = ordered.layout.root
    done = holdfast("outcome", xid, "--dir", root)
    assert done.stdout.startswith(f"transaction {xid} of epoch {running.epoch}: committed\n"), done
    assert "rule committed.confirmed: " in done.stdout
    told = json.loads(holdfast("outcome", xid, "--epoch", running.epoch, "--json", "--dir", root).stdout)
    assert (told["outcome"], told["is_there"], told["epoch"]) == ("committed", True, running.epoch)
    unknown = holdfast("outcome", xid + 10_000, "--dir", root)
    assert (unknown.returncode, unknown.stdout.splitlines()[0]) == (1, f"transaction {xid + 10_000}: unknown")
    assert_refused(holdfast("outcome", "0x10", "--dir", root), "XID '0x10'", "pg_current_xact_id()")
    hint = f"`holdfast incident list --dir {root}`"
    assert_refused(holdfast("outcome", xid, "--epoch", "0", "--dir", root), "epoch '0'", hint)
    assert_refused(holdfast("outcome", xid, "--epoch", "999", "--dir", root), "epoch 999 has not begun")

    async def status(node: str, query: str) -> int:
        async with ordered.http().get(
            f"{ordered.api_url(node)}/outcome{query}", headers=read_headers(ordered)
        ) as answer:
            return answer.status

    standby = next(node for node in ordered.nodes if node != leader)
    assert await status(leader, f"?xid={xid}") == 200
    assert await status(standby, f"?xid={xid}") == 421
    assert [await status(leader, query) for query in ("", "?xid=0", f"?xid={xid}&epoch=x")] == [400] * 3
