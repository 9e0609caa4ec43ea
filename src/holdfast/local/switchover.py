"""Handing a local cluster's primary's part over: now, later, or only in words."""

from __future__ import annotations

import asyncio
import contextlib
import json
import re
import time
from datetime import datetime, timedelta, tzinfo
from typing import Any

from holdfast.local.cluster import LocalCluster
from holdfast.local.orders import order, order_headers
from holdfast.model.errors import ConfigurationError, HoldfastError, StoreUnavailable
from holdfast.model.keys import Keys
from holdfast.model.plan import PlannedSwitchover
from holdfast.model.register import Register

_CLOCK = re.compile(r"\A([01]?\d|2[0-3]):([0-5]\d)\Z")


async def switch_over(cluster: LocalCluster, target: str | None) -> str:
    """Ask the primary to hand over, and wait; returns what came of it. Raises HoldfastError with the reason if not."""
    _check_target(cluster, target)
    register = await _serving(cluster)
    await _ask(cluster, register, {"to": target})
    return await _wait_until_handed_over(cluster, register, target)


async def rehearse(cluster: LocalCluster, target: str | None) -> list[str]:
    """What a switchover would do, line by line; raises HoldfastError with the reason if it would be refused."""
    _check_target(cluster, target)
    return (await _ask(cluster, await _serving(cluster), {"to": target, "dry_run": True})).splitlines()


async def plan(cluster: LocalCluster, target: str | None, at: datetime) -> str:
    """Keep a switchover for later; raises HoldfastError."""
    _check_target(cluster, target)
    return await order(cluster, "/switchover", {"to": target, "at_ms": round(at.timestamp() * 1000)})


async def cancel(cluster: LocalCluster) -> str:
    """Drop the planned switchover; raises HoldfastError if there is none."""
    return await order(cluster, "/switchover", {"cancel": True})


async def planned(cluster: LocalCluster) -> PlannedSwitchover | None:
    """The switchover that is planned; raises StoreUnavailable."""
    entry = await cluster.store().get(Keys(cluster.name).planned)
    return PlannedSwitchover.from_json(entry.value) if entry is not None else None


def parse_time(text: str, now: datetime, zone: tzinfo | None = None) -> datetime:
    """``--at``: HH:MM, the next time that a clock here shows it, or an ISO 8601 time; raises ConfigurationError.

    ``zone`` is meant where the text names none; the system's, with its summer time, if left out.
    """
    clock = _CLOCK.match(text.strip())
    if clock is not None:
        today = now.astimezone(zone).replace(hour=int(clock[1]), minute=int(clock[2]), second=0, microsecond=0)
        at = _shown(today, zone)
        return at if at > now else _shown(today + timedelta(days=1), zone)
    try:
        at = datetime.fromisoformat(text.strip())
    except ValueError:
        raise ConfigurationError(f"--at {text}: write HH:MM, or a time such as 2026-11-21T22:00:00+01:00") from None
    if at.tzinfo is None:
        at = _shown(at, zone)
    if at <= now:
        raise ConfigurationError(f"--at {text}: that is in the past; leave --at out to hand over now")
    return at


def _shown(clock: datetime, zone: tzinfo | None) -> datetime:
    """When a clock of the zone shows this."""
    naive = clock.replace(tzinfo=None)
    return naive.astimezone() if zone is None else naive.replace(tzinfo=zone)


def _check_target(cluster: LocalCluster, target: str | None) -> None:
    if target is not None and target not in cluster.nodes:
        raise ConfigurationError(f"--to {target}: no such node (there are {', '.join(cluster.nodes)})")


async def _serving(cluster: LocalCluster) -> Register:
    register = await cluster.register()
    if register is None or register.leader is None:
        raise HoldfastError("no primary serves at the moment, so there is nobody to hand over: see `status`")
    return register


async def _ask(cluster: LocalCluster, register: Register, body: dict[str, Any]) -> str:
    """Ask the primary's agent, which alone knows how far its standbys are; raises HoldfastError."""
    from aiohttp import ClientError, ClientTimeout

    leader = register.committed.leader.node
    if (await cluster.reports())[leader] is None:
        raise HoldfastError(
            f"the agent of {leader} does not answer, and without it nobody can hand over: "
            f"if {leader} is lost, the others replace it, without being asked or once a person approves: "
            "`holdfast status` says which"
        )
    limit = ClientTimeout(total=cluster.timeouts.local_start_ms / 1000)
    url = f"{cluster.api_url(leader)}/switchover"
    try:
        async with cluster.http().post(url, json=body, headers=order_headers(cluster), timeout=limit) as answer:
            said = await answer.json(content_type=None)
    except (ClientError, TimeoutError, OSError, json.JSONDecodeError) as error:
        why = error if str(error) else f"nothing for {cluster.timeouts.local_start_ms} ms"
        raise HoldfastError(f"the agent of {leader} did not answer: {why}") from error
    if not isinstance(said, dict) or not said.get("ok"):
        raise HoldfastError(f"{leader} refused: {said.get('message') if isinstance(said, dict) else said}")
    return str(said.get("message"))


async def _wait_until_handed_over(cluster: LocalCluster, before: Register, target: str | None) -> str:
    """Wait for the end of a switchover that has begun; raises HoldfastError if it led elsewhere."""
    give_up_at = time.monotonic() + cluster.timeouts.local_start_ms / 1000
    began = False
    while time.monotonic() < give_up_at:
        with contextlib.suppress(StoreUnavailable):
            register = await cluster.register()
            if register is not None:
                began = began or register.handover is not None or register.epoch > before.epoch
                leader = register.leader
                if leader is not None and leader.node != before.committed.leader.node:
                    if target not in (None, leader.node):
                        raise HoldfastError(f"{leader.node} took over instead of {target}: see the journal")
                    return f"{leader.node} is primary of epoch {register.epoch}"
                if began and leader is not None and register.handover is None:
                    raise HoldfastError(f"the switchover was given up, and {leader.node} goes on as primary")
        await asyncio.sleep(cluster.timeouts.local_poll_ms / 1000)
    raise HoldfastError(f"the switchover has not ended yet; {cluster.where_to_look()}")
