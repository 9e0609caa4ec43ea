"""Tokens that applications give their transactions: what is said of each is what became of its row."""

from __future__ import annotations

import asyncio
import contextlib
import itertools
import json
from collections.abc import Iterator
from dataclasses import dataclass, replace

import psycopg
import pytest

from holdfast.local.cluster import LocalCluster
from holdfast.local.lost import read_lost
from holdfast.local.orders import order, read_headers
from holdfast.local.outcome import find_own_token
from holdfast.model.lsn import Lsn
from holdfast.model.outcome import Outcome, OutcomeAnswer, OwnQuestion
from holdfast.model.register import Phase, Register
from tests.cli.running import assert_refused, holdfast
from tests.installations import version_id
from tests.live.conftest import connect, the_leader, the_register, until_whole
from tests.live.test_lost import walsender
from tests.live.test_policy import NEWEST, asynchronous, frozen, ordered, postmaster, process_of, until

__all__ = ["ordered"]
pytestmark = [
    pytest.mark.live,
    pytest.mark.parametrize("installation", NEWEST, indirect=True, ids=version_id, scope="module"),
]
MARK = (
    "SELECT pg_logical_emit_message(true, 'holdfast', %s)::text, "
    "('x' || left(pg_walfile_name(pg_current_wal_lsn()), 8))::bit(32)::int"
)
"""As docs/outcomes.md gives it to applications."""
CRASHES, WRITERS, ROWS_BEFORE = 2, 6, 60

Connection = psycopg.AsyncConnection[tuple[object, ...]]


async def marked(connection: Connection, token: str) -> OwnQuestion:
    """Give the open transaction a token."""
    row = await (await connection.execute(MARK.encode(), (token,))).fetchone()
    assert row is not None
    return OwnQuestion(token, int(str(row[1])), Lsn.parse(str(row[0])))


async def written(connection: Connection, token: str, end: str = "COMMIT") -> OwnQuestion:
    await connection.execute("BEGIN")
    question = await marked(connection, token)
    await connection.execute("INSERT INTO given VALUES (%s)", (token,))
    await connection.execute(end.encode())
    return question


@dataclass(slots=True)
class Written:
    """One row that an application wrote, and what it heard of the commit: None is nothing, or a doubt."""

    question: OwnQuestion
    heard: bool | None = None


class Orders:
    """Applications that write one row with a token of their own in each transaction."""

    def __init__(self, dsn: str) -> None:
        self.dsn = dsn
        self.orders: list[Written] = []
        self._numbers = itertools.count()
        self._tasks: list[asyncio.Task[None]] = []

    async def _write(self, connection: Connection) -> None:
        number = next(self._numbers)
        await connection.execute("BEGIN")
        question = await marked(connection, f"order {number}")
        await connection.execute("INSERT INTO given VALUES (%s)", (question.token,))
        sent = Written(question)
        self.orders.append(sent)
        ends_well = number % 5 != 0
        await connection.execute("COMMIT" if ends_well else "ROLLBACK")
        sent.heard = ends_well

    async def _work(self) -> None:
        async with await connect(self.dsn) as connection:
            while True:
                with contextlib.suppress(psycopg.Error):
                    await self._write(connection)
                    continue
                if connection.closed:
                    return
                await connection.execute("ROLLBACK")

    @contextlib.contextmanager
    def at_work(self) -> Iterator[None]:
        self._tasks = [asyncio.create_task(self._work()) for _ in range(WRITERS)]
        try:
            yield
        finally:
            for task in self._tasks:
                task.cancel()

    async def grown(self, by: int) -> None:
        wanted = len(self.orders) + by
        while len(self.orders) < wanted:  # noqa: ASYNC110 - under load
            await asyncio.sleep(0.02)


async def rows(cluster: LocalCluster) -> list[str]:
    async with await connect(cluster.superuser_dsn(await the_leader(cluster), "app")) as connection:
        return [str(row[0]) async for row in await connection.execute("SELECT token FROM given")]


async def said(cluster: LocalCluster, token: str, epoch: int | None = None) -> OutcomeAnswer:
    return await find_own_token(cluster, OwnQuestion(token, epoch))


async def create(cluster: LocalCluster) -> None:
    async with await connect(cluster.write_dsn) as connection:
        await connection.execute("DROP TABLE IF EXISTS given")
        await connection.execute("CREATE TABLE given (token text)")


async def test_what_is_said_of_each_token_is_what_became_of_its_row(ordered: LocalCluster) -> None:
    """Also of those whose COMMIT lost its primary, of which nobody has told the application anything."""
    await create(ordered)
    await order(ordered, "/policy", {"capture_wait_s": 0})  # who was lost is to be back soon
    applications = Orders(ordered.write_dsn)
    for _ in range(CRASHES):
        before = await the_register(ordered)
        with applications.at_work():
            async with asyncio.timeout(60):
                await applications.grown(ROWS_BEFORE)
            await ordered.kill_postgres(await the_leader(ordered))
            await until(ordered, lambda r, e=before.epoch: r.phase is Phase.SERVING and r.epoch > e)  # type: ignore[misc]
            async with asyncio.timeout(60):
                await applications.grown(WRITERS)
        await until_whole(ordered)
    present = await the_register(ordered)
    async with await connect(ordered.write_dsn) as connection, connection.transaction():
        await connection.execute("LOCK TABLE given")  # whoever wrote before has ended by now
    there = set(await rows(ordered))
    of_the_past = [o for o in applications.orders if o.question.epoch != present.epoch]
    doubtful = [o for o in of_the_past if o.heard is None]
    certain = [o for o in of_the_past if o.heard is not None]
    print(f"{len(of_the_past)} orders of lost primaries, {len(doubtful)} of them without an answer, {len(there)} rows")
    assert doubtful
    # A commit may have reached the log of its primary alone, which told nobody of it.
    lists, silent = await read_lost(ordered)
    assert not silent
    only_there = {token for each in lists for t in each.transactions for token in t.tokens} - there
    assert not only_there & {o.question.token for o in certain}
    for one in (*doubtful, *certain[-20:]):
        answer = await find_own_token(ordered, one.question)
        absent = Outcome.LOST if one.question.token in only_there else Outcome.ABORTED
        wanted = Outcome.COMMITTED if one.question.token in there else absent
        assert (answer.outcome, answer.token) == (wanted, one.question.token), (one, answer)
    for one in certain:
        assert one.heard is (one.question.token in there)


async def fail_over(cluster: LocalCluster, before: Register) -> None:
    """Lose the primary with what no standby has: a commit with a token, and one that is rolled back."""
    old = before.committed.leader.node
    unable = [await walsender(cluster, old, node) for node in cluster.nodes if node != old]
    async with frozen(*unable, process_of(cluster, old)):
        async with await connect(cluster.superuser_dsn(old, "app")) as connection:
            await written(connection, "lost", "COMMIT")
            await written(connection, "undone", "ROLLBACK")
        server = postmaster(cluster, old)
        for process in [server, *server.children(recursive=True)]:
            process.kill()
        await until(cluster, lambda r: r.phase is Phase.SERVING and r.epoch > before.epoch)
        answer = await said(cluster, "lost", before.epoch)  # the log of the old primary is not listed yet
        assert (answer.rule, answer.is_there) == ("unknown.token-may-be-lost", False)


async def test_tokens_that_were_lost_kept_given_twice_or_never_written(ordered: LocalCluster) -> None:
    await create(ordered)
    before = await asynchronous(ordered)
    old = before.committed.leader.node
    async with await connect(ordered.superuser_dsn(old, "app")) as connection:
        kept = await written(connection, "kept")
        await written(connection, "again", "ROLLBACK")
        await written(connection, "again")
        await connection.execute("SELECT pg_logical_emit_message(false, 'holdfast', 'loose')")
        await connection.execute("SELECT pg_switch_wal()")
        at = (await (await connection.execute("SELECT pg_current_wal_lsn()::text")).fetchone() or ("",))[0]
        for node in ordered.nodes:
            if node != old:
                caught_up = f"SELECT pg_last_wal_replay_lsn() >= '{at}'"
                async with await connect(ordered.superuser_dsn(node, "app")) as standby, asyncio.timeout(60):
                    while (await (await standby.execute(caught_up.encode())).fetchone()) != (True,):  # noqa: ASYNC110
                        await asyncio.sleep(0.05)  # a standby is asked, it does not call
    await fail_over(ordered, before)
    await until_whole(ordered)
    after = await the_register(ordered)

    answers = {
        "kept": await find_own_token(ordered, kept),
        "again": await said(ordered, "again", before.epoch),
        "lost": await said(ordered, "lost", before.epoch),
        "undone": await said(ordered, "undone", before.epoch),
        "loose": await said(ordered, "loose", before.epoch),
        "never": await said(ordered, "never"),
        "here": await said(ordered, "here", after.epoch),
    }
    print({token: (answer.rule, answer.evidence) for token, answer in answers.items()})
    assert {token: answer.rule for token, answer in answers.items()} == {
        "kept": "committed.confirmed",
        "again": "committed.confirmed",
        "lost": "lost.listed",
        "undone": "aborted.token-absent",
        "loose": "unknown.token-loose",
        "never": "unknown.token-not-found",
        "here": "unknown.token-not-yet",
    }
    assert "has the token: aborted" in answers["again"].evidence[0]
    async with await connect(ordered.write_dsn) as connection:
        await written(connection, "lost")  # the application tries it once more, and gives the same token again
    twice = await said(ordered, "lost")
    assert (twice.rule, len(twice.evidence)) == ("unknown.token-twice", 2)
    assert (await said(ordered, "lost", after.epoch)).outcome is Outcome.COMMITTED
    assert (await find_own_token(ordered, replace(kept, epoch=None))).outcome is Outcome.COMMITTED
    listed = json.loads(holdfast("lost", "show", "--json", "--dir", ordered.layout.root).stdout)
    assert '"tokens": ["lost"]' in json.dumps(listed)


async def test_the_command_and_the_endpoint(ordered: LocalCluster) -> None:
    await create(ordered)
    async with await connect(ordered.write_dsn) as connection:
        question = await written(connection, "4711")
    root, leader = ordered.layout.root, await the_leader(ordered)
    done = holdfast("outcome", "--token", "4711", "--lsn", question.lsn, "--dir", root)
    assert done.stdout.startswith("token 4711, transaction "), done
    assert f" of epoch {question.epoch}: committed\n" in done.stdout
    told = json.loads(holdfast("outcome", "4711", "--token", "--json", "--dir", root).stdout)
    assert (told["token"], told["outcome"], told["is_there"]) == ("4711", "committed", True)
    unknown = holdfast("outcome", "no order", "--dir", root)
    assert (unknown.returncode, unknown.stdout.splitlines()[0]) == (1, "token no order: unknown")
    assert_refused(holdfast("outcome", "ö", "--dir", root), "printable ASCII")
    assert_refused(holdfast("outcome", "x" * 201, "--dir", root), "201 characters")
    assert_refused(holdfast("outcome", "a", "--lsn", "1", "--dir", root), "LSN '1'", "pg_logical_emit_message")
    assert_refused(holdfast("outcome", "a", "--epoch", "999", "--dir", root), "epoch 999 has not begun")
    assert holdfast("outcome", "4711", "--lsn", "0/1", "--dir", root).returncode == 2
    url, right = ordered.api_url(leader), read_headers(ordered)
    for query in ("?xid=5&token=a", "?token=", "?token=a&lsn=x", "?xid=5&lsn=0/1"):
        async with ordered.http().get(f"{url}/outcome{query}", headers=right) as answer:
            assert (answer.status, "message" in await answer.json()) == (400, True), query


async def test_what_tells_of_clients_needs_a_token_and_that_of_readers_gives_no_orders(
    ordered: LocalCluster,
) -> None:
    url = ordered.api_url(await the_leader(ordered))
    application = {"Authorization": f"Bearer {ordered.layout.read_secret('read-token')}"}
    for path in ("/outcome?token=nobodys", "/lost", "/captures", "/events"):
        for headers, status in ((None, 401), ({"Authorization": "Bearer "}, 401), (application, 200)):
            async with ordered.http().get(url + path, headers=headers) as answer:
                assert answer.status == status, (path, headers)
                assert status == 200 or "Authorization: Bearer TOKEN" in (await answer.json())["message"]
    async with ordered.http().post(f"{url}/policy", json={"paused": True}, headers=application) as answer:
        assert answer.status == 401
