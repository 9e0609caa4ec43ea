"""Comparing the standbys' rows with the primary's: nothing differs under load, and a forged loss is found."""

from __future__ import annotations

import asyncio
import contextlib
import json
import random
import struct
import subprocess
import sys
from collections.abc import AsyncIterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import psycopg
import pytest

from holdfast.local.cluster import LocalCluster
from holdfast.local.machine import server_user
from holdfast.local.orders import order
from holdfast.local.parity import Pace, Progress, compare_standbys
from holdfast.local.status import read_status
from holdfast.model.errors import ConfigurationError
from holdfast.postgres.installation import Installation
from tests.live.conftest import WHOLE_S, another, connect, the_leader, until_whole

pytestmark = pytest.mark.live
BLOCK_BYTES = 8192
_XMIN_COMMITTED, _XMIN_INVALID = 0x0100, 0x0200
FAST = Pace(1.0)


async def holdfast(cluster: LocalCluster, *words: str) -> tuple[int, dict[str, Any]]:
    """A command that prints JSON, as a person would run it."""
    command = [sys.executable, "-m", "holdfast.cli", *words, "--dir", str(cluster.layout.root), "--json"]
    process = await asyncio.create_subprocess_exec(*command, stdout=asyncio.subprocess.PIPE)
    printed, _ = await process.communicate()
    assert process.returncode is not None
    return process.returncode, json.loads(printed)


@contextlib.asynccontextmanager
async def load(cluster: LocalCluster) -> AsyncIterator[None]:
    """Rows come, change and go, until the end."""

    async def write(number: int) -> None:
        chance = random.Random(number)
        async with await connect(cluster.write_dsn) as connection:
            while True:
                key = chance.randrange(2000)
                await connection.execute(
                    "INSERT INTO busy VALUES (%s, repeat('x', %s)) ON CONFLICT (id) DO UPDATE SET v = excluded.v",
                    (key, chance.randrange(3000)),
                )
                await connection.execute("DELETE FROM busy WHERE id = %s", (chance.randrange(2000),))

    async with await connect(cluster.write_dsn) as connection:
        await connection.execute("CREATE TABLE busy (id int PRIMARY KEY, v text)")
        await connection.execute("INSERT INTO busy SELECT i, repeat('y', 200) FROM generate_series(0, 1999, 2) AS i")
    writers = [asyncio.create_task(write(number)) for number in range(4)]
    try:
        yield
    finally:
        for writer in writers:
            writer.cancel()
        ended = await asyncio.gather(*writers, return_exceptions=True)
    assert all(isinstance(e, asyncio.CancelledError) for e in ended), ended


async def test_nothing_differs_while_everything_changes(cluster: LocalCluster) -> None:
    seen: list[Progress] = []
    async with load(cluster):
        for _ in range(3):
            found = await compare_standbys(cluster, (), (), FAST, check_indexes=False, progress=seen.append)
            assert [parity.node for parity in found] == [n for n in cluster.nodes if n != await the_leader(cluster)]
            for parity in found:
                assert parity.holds, parity.mismatches
                assert parity.skipped == ()
                assert parity.rows > 500
    assert seen


async def test_a_table_that_is_rewritten_meanwhile_is_not_compared(cluster: LocalCluster) -> None:
    async with await connect(cluster.write_dsn) as connection:
        await connection.execute("CREATE TABLE moved AS SELECT i FROM generate_series(1, 200) AS i")

    moving: set[asyncio.Task[None]] = set()

    async def move() -> None:
        async with await connect(cluster.write_dsn) as connection:
            while True:
                await connection.execute("VACUUM FULL moved")

    moving.add(asyncio.create_task(move()))
    try:
        for _ in range(5):
            found = await compare_standbys(cluster, (), (), FAST, check_indexes=False, progress=lambda _: None)
            assert all(parity.holds for parity in found), found
    finally:
        for task in moving:
            task.cancel()
        await asyncio.gather(*moving, return_exceptions=True)


async def test_what_cannot_be_compared_is_said(cluster: LocalCluster) -> None:
    leader = await the_leader(cluster)
    for nodes, tables, words in (
        ((leader,), (), "is the primary"),
        (("n9",), (), "no node of this cluster"),
        ((), ("app.public.nothing",), "--table app.public.nothing: there is no such table"),
    ):
        with pytest.raises(ConfigurationError, match=words):
            await compare_standbys(cluster, nodes, tables, FAST, check_indexes=False, progress=lambda _: None)


async def test_a_forged_loss_is_found_and_nobody_reads_there(cluster: LocalCluster, installation: Installation) -> None:
    victim = another(cluster, await the_leader(cluster))
    block = await forged(cluster, installation, "paid", victim, seal=True)
    status, said = await holdfast(cluster, "parity", "--share", "1.0")
    assert (status, said["holds"], said["taken_out"]) == (1, False, [victim])
    found = {node["node"]: node for node in said["nodes"]}
    (mismatch,) = found.pop(victim)["mismatches"]
    assert mismatch["table"] == f"{database_of(cluster)}.public.paid"
    assert (mismatch["missing"], mismatch["extra"], mismatch["different"]) == (1, 0, 0)
    assert (mismatch["keys"], mismatch["first_block"]) == (["(777)"], block)
    assert (mismatch["first_key"], mismatch["last_key"]) == ("(777)", "(777)")
    assert [node["mismatches"] for node in found.values()] == [[]]

    assert (await read_status(cluster)).unread == (victim,)
    port = cluster.file.ports.nodes[victim].postgres
    async with asyncio.timeout(WHOLE_S):  # until the proxy has heard of it
        while port in [await read_port(cluster) for _ in range(4)]:
            continue
    assert port not in [await read_port(cluster) for _ in range(10)]
    status, _ = await holdfast(cluster, "parity", "--table", f"{database_of(cluster)}.public.busy", "--share", "1.0")
    assert status == 0, "the other tables are whole"


async def test_what_a_standby_cannot_read_is_damaged(cluster: LocalCluster, installation: Installation) -> None:
    victim = cluster.nodes[-1] if await the_leader(cluster) != cluster.nodes[-1] else cluster.nodes[0]
    block = await forged(cluster, installation, "owed", victim, seal=False)
    status, said = await holdfast(cluster, "parity", victim, "--share", "1.0")
    assert (status, said["holds"], said["taken_out"]) == (1, False, [victim])
    (damage,) = said["nodes"][0]["damage"]
    assert damage["node"] == victim
    assert f"{database_of(cluster)}.public.owed: invalid page in block {block}" in damage["what"]
    assert said["nodes"][0]["rows"] > 500, "the other tables are compared all the same"


def database_of(cluster: LocalCluster) -> str:
    return str(psycopg.conninfo.conninfo_to_dict(cluster.write_dsn)["dbname"])


async def forged(cluster: LocalCluster, installation: Installation, table: str, victim: str, *, seal: bool) -> int:
    """Make a table, and take row 777 of it away behind a standby's back; returns the block in which it was."""
    async with await connect(cluster.write_dsn) as connection:
        await connection.execute(f"CREATE TABLE {table} (id int PRIMARY KEY, v int) WITH (autovacuum_enabled = off)")
        await connection.execute(f"INSERT INTO {table} SELECT i, i * 100 FROM generate_series(1, 1000) AS i")
        cursor = await connection.execute(
            "SELECT pg_relation_filepath(tableoid), (ctid::text::point)[0]::int, (ctid::text::point)[1]::int "
            f"FROM {table} WHERE id = 777"
        )
        ((file, block, offset),) = await cursor.fetchall()
        # The first who reads a row notes that its transaction is committed. After a checkpoint that brings the whole
        # page to the standbys again, and mends what is about to be forged.
        await connection.execute(f"SELECT count(*) FROM {table} WHERE v > 0")
    await written_out(cluster, await the_leader(cluster), victim)
    await order(cluster, "/policy", {"paused": True})
    row = RowPlace(str(file), int(str(block)), int(str(offset)))
    await asyncio.to_thread(take_away, installation, cluster.layout.data_dir(victim), row, seal=seal)
    await order(cluster, "/policy", {"paused": False})
    await until_whole(cluster)
    return row.block


async def written_out(cluster: LocalCluster, leader: str, standby: str) -> None:
    """What was forged must be on the disk, and stay: beyond the point from which the standby replays when it starts."""
    async with await connect(cluster.superuser_dsn(leader, "postgres")) as connection:
        await connection.execute("CHECKPOINT")
        cursor = await connection.execute("SELECT pg_current_wal_insert_lsn()")
        (there,) = await cursor.fetchall()
    async with await connect(cluster.superuser_dsn(standby, "postgres")) as connection, asyncio.timeout(WHOLE_S):
        asked = "SELECT 1 WHERE pg_last_wal_replay_lsn() >= %s"
        while not await (await connection.execute(asked, there)).fetchall():  # noqa: ASYNC110 - replay tells nobody
            await asyncio.sleep(0.02)
        await connection.execute("CHECKPOINT")


async def read_port(cluster: LocalCluster) -> object:
    """Where the read-only port leads a new session."""
    async with await connect(cluster.read_dsn) as connection:
        cursor = await connection.execute("SELECT inet_server_port()")
        ((port,),) = await cursor.fetchall()
    return port


@dataclass(frozen=True, slots=True)
class RowPlace:
    """Where a row version lies."""

    file: str
    block: int
    offset: int


def take_away(installation: Installation, data_dir: Path, row: RowPlace, *, seal: bool) -> None:
    """Make one row version of a standby invisible, as a flipped bit or a bug would; ``seal``: with a right checksum."""

    def run(program: str, *words: str) -> None:
        subprocess.run(
            [installation.bin_dir / program, *words, "-D", data_dir], user=server_user(), check=True, cwd="/"
        )

    run("pg_ctl", "stop", "-m", "fast", "-w")
    with (data_dir / row.file).open("r+b") as relation:
        page_at = row.block * BLOCK_BYTES
        relation.seek(page_at + 24 + 4 * (row.offset - 1))
        (line_pointer,) = struct.unpack("=I", relation.read(4))
        infomask_at = page_at + (line_pointer & 0x7FFF) + 20
        relation.seek(infomask_at)
        (infomask,) = struct.unpack("=H", relation.read(2))
        relation.seek(infomask_at)
        relation.write(struct.pack("=H", infomask & ~_XMIN_COMMITTED | _XMIN_INVALID))
    if seal:
        run("pg_checksums", "--disable", "--no-sync")
        run("pg_checksums", "--enable", "--no-sync")
