"""A primary that is killed is captured before it is taken back, and the evidence outlives what destroys it."""

from __future__ import annotations

import asyncio
import json
import subprocess
import sys
from pathlib import Path

import pytest

from holdfast.core.incident import incidents
from holdfast.local.captures import read_all
from holdfast.local.cluster import LocalCluster
from holdfast.local.orders import order
from holdfast.model.capture import Kind, Occasion, State
from holdfast.postgres.capture.keep import FILES, verify
from tests.installations import version_id
from tests.live.conftest import children_named, connect, noted_by_all, the_leader, the_register, until_whole
from tests.live.test_policy import NEWEST, asynchronous, frozen, killed_for_good, ordered, postmaster

__all__ = ["ordered"]
pytestmark = [
    pytest.mark.live,
    pytest.mark.parametrize("installation", NEWEST, indirect=True, ids=version_id, scope="module"),
]
TOLD = b"words that only the lost log has"


async def test_a_killed_primary_is_captured_before_it_is_rewound(ordered: LocalCluster) -> None:
    before = await asynchronous(ordered)
    old = before.committed.leader.node
    async with await connect(ordered.superuser_dsn(old, "app")) as connection:
        senders = children_named(postmaster(ordered, old), "walsender")
        assert senders
        async with frozen(*senders):
            await connection.execute("SELECT pg_logical_emit_message(true, 'test', %s)", (TOLD.decode(),))
            after = await killed_for_good(ordered, before)  # else it leads again: its log is the longest
    assert after.committed.leader.node != old
    await until_whole(ordered)
    captures, silent = await read_all(ordered)
    assert silent == []
    (taken,) = [c for c in captures if c.node == old and c.epoch == after.epoch]
    assert (taken.occasion, taken.state, taken.lacking) == (Occasion.REWIND, State.COMPLETE, ())
    assert verify(Path(taken.directory)) == (taken, [])
    divergent = [f for f in taken.files if f.kind is Kind.DIVERGENT_LOG]
    assert any(TOLD in (Path(taken.directory) / FILES / f.stored).read_bytes() for f in divergent)
    moments = [f for f in taken.files if f.kind is Kind.MOMENT]
    whys = [json.loads((Path(taken.directory) / FILES / f.stored).read_bytes())["why"] for f in moments]
    assert "the primary has ended" in whys
    events = await noted_by_all(ordered, lambda events: any(e.kind == "capture.done" for e in events))
    kinds = [e.kind for e in events if e.source == old]
    assert kinds.index("capture.done") < kinds.index("rewind.begun")
    assert any(taken.directory in words for words in incidents(events)[-1].evidence)
    root = str(ordered.layout.root)
    command = [sys.executable, "-m", "holdfast.cli", "capture", "verify", "--node", old, "--dir", root, "--json"]
    done = await asyncio.to_thread(subprocess.run, command, check=False, capture_output=True, text=True, timeout=120)
    assert done.returncode == 0, done.stderr
    assert json.loads(done.stdout)["is_intact"] is True


async def test_a_killed_primary_without_log_of_its_own_is_captured_before_it_starts(ordered: LocalCluster) -> None:
    """Its agent comes back when another serves already: nobody waits for this start."""
    old = await the_leader(ordered)
    before = await the_register(ordered)
    after = await killed_for_good(ordered, before)
    assert after.committed.leader.node != old
    await until_whole(ordered)
    captures, _ = await read_all(ordered)
    (taken,) = [c for c in captures if c.node == old and c.epoch == after.epoch]
    assert taken.occasion in (Occasion.START, Occasion.REWIND)
    assert taken.state is State.COMPLETE
    assert verify(Path(taken.directory)) == (taken, [])


async def test_the_policy_turns_captures_off(ordered: LocalCluster) -> None:
    await order(ordered, "/policy", {"capture_wait_s": 0})
    old = await the_leader(ordered)
    before = await the_register(ordered)
    after = await killed_for_good(ordered, before)
    await until_whole(ordered)
    captures, _ = await read_all(ordered)
    assert [c for c in captures if c.node == old and c.epoch == after.epoch] == []
