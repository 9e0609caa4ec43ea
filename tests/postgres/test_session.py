"""The agent's held session: what it is asked for comes back in time, also from a server that does not answer."""

from __future__ import annotations

import asyncio
import contextlib
from collections.abc import AsyncIterator

import pytest

from holdfast.postgres.session import NoAnswer, Session
from tests.postgres.lab import DEADLINE_S, PASSWORD, Lab

pytestmark = pytest.mark.live

TAKEN, NEVER_GIVEN = 7, "SELECT pg_advisory_lock(7)"


@contextlib.asynccontextmanager
async def held_session(lab: Lab) -> AsyncIterator[Session]:
    """A session that has a connection already, as the agent's have."""
    settings = lab.settings_of("a")
    session = Session(settings.socket_dir, settings.port, PASSWORD, deadline_ms=DEADLINE_S * 1000)
    try:
        await session.fetch("SELECT 1")
        yield session
    finally:
        await session.close()


async def ends(work: asyncio.Task[object]) -> None:
    """It has to end by itself: one that swallows its cancellation would not be ended by a time-out."""
    done, _ = await asyncio.wait((work,), timeout=DEADLINE_S)
    assert done, "it never comes back"


async def test_a_statement_that_waits_for_a_lock_is_given_up_in_time_and_not_tried_again(lab: Lab) -> None:
    await lab.primary("a")
    blocker = await lab.connect("a")
    await blocker.execute("SELECT pg_advisory_lock(%s)", (TAKEN,))
    async with held_session(lab) as session:
        asked = asyncio.ensure_future(session.fetch(NEVER_GIVEN, deadline_ms=100))
        await ends(asked)
        assert isinstance(asked.exception(), NoAnswer)
        await blocker.execute("SELECT pg_advisory_unlock(%s)", (TAKEN,))
        assert await session.fetch("SELECT 1") == [(1,)]


async def test_a_frozen_server_is_given_up_in_time(lab: Lab) -> None:
    await lab.primary("a")
    async with held_session(lab) as session:
        with lab.frozen("a"):
            for _ in range(2):  # of the session that was held, and of one that cannot be opened
                asked = asyncio.ensure_future(session.fetch("SELECT 1", deadline_ms=100))
                await ends(asked)
                assert isinstance(asked.exception(), NoAnswer)
        assert await session.fetch("SELECT 1") == [(1,)]


async def test_a_statement_that_is_cancelled_ends_at_once(lab: Lab) -> None:
    await lab.primary("a")
    blocker = await lab.connect("a")
    await blocker.execute("SELECT pg_advisory_lock(%s)", (TAKEN,))
    async with held_session(lab) as session:
        asked = asyncio.ensure_future(session.fetch(NEVER_GIVEN, deadline_ms=None))
        await waits_for_the_lock(lab)
        asked.cancel()
        await ends(asked)
        assert asked.cancelled()


async def waits_for_the_lock(lab: Lab) -> None:
    looker = await lab.connect("a")
    query = "SELECT count(*) FROM pg_locks WHERE locktype = 'advisory' AND NOT granted"
    async with asyncio.timeout(DEADLINE_S):
        while (await (await looker.execute(query)).fetchone()) != (1,):  # noqa: ASYNC110 - locks cannot be awaited
            await asyncio.sleep(0.01)
