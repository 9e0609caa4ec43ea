"""Commits as the contracts make them: rows in sessions of their own, acknowledged or waiting."""

from __future__ import annotations

import asyncio

from holdfast.model.register import Member, Quorum
from tests.postgres.lab import DEADLINE_S
from tests.postgres.places import Place, Write

STRANGER = Quorum(frozenset({Member("z", "0000000f")}), 1)


async def write(place: Place, node: str) -> tuple[int, Write]:
    """Begin to commit a row in a new session."""
    number = place.next_number()
    return number, (await place.session(node))(number)


async def write_that_waits(place: Place, node: str) -> tuple[int, Write]:
    """Begin to commit a row that waits for standbys.

    A reload gets to the checkpointer when it does: a commit that is begun before may still be released by no names.
    """
    while True:
        number, commit = await write(place, node)
        if await place.waits(node, commit):
            return number, commit


async def acknowledged(place: Place, node: str) -> int:
    """Commit a row."""
    number, commit = await write(place, node)
    assert await is_released(place, node, commit)
    return number


async def is_released(place: Place, node: str, commit: Write) -> bool:
    """Whether standbys release a commit.

    It is their next word that does, once their walsender has read the names: a heartbeat makes them speak.
    """
    async with asyncio.timeout(DEADLINE_S):
        while not commit.is_done():
            await place.faces[node].heartbeat(place.epoch)
    return await commit.acknowledged()


async def counted(place: Place, node: str, *standbys: str) -> None:
    """Until the walsenders have read the names, so that these standbys are counted, and no others."""
    wanted = {place.members[standby] for standby in standbys}
    await place.until(node, lambda view: {r.member for r in view.replicas if r.counted} == wanted)
