"""What lies behind a local cluster and what lies before it: the last story, and the forecast."""

from __future__ import annotations

import asyncio

from holdfast.core.causality import in_order
from holdfast.core.forecast import Estimate, Forecast, Standing, forecast
from holdfast.core.story import Story, tell
from holdfast.local.cluster import LocalCluster
from holdfast.local.orders import read_headers
from holdfast.model.errors import HoldfastError, RegisterError, StoreUnavailable
from holdfast.model.event import Event
from holdfast.model.timeouts import Timeouts


async def read_story(cluster: LocalCluster) -> tuple[Story | None, bool]:
    """The last change of leadership, and whether the store told it (else the agents that answer did).

    Raises StoreUnavailable if neither tells anything.
    """
    events, from_store = await read_events(cluster)
    return tell(events), from_store


async def read_events(cluster: LocalCluster) -> tuple[tuple[Event, ...], bool]:
    """The journal, oldest first, and whether the store told it (else the agents that answer did).

    Raises StoreUnavailable if neither tells anything.
    """
    try:
        return tuple(in_order(await cluster.events())), True
    except StoreUnavailable as error:
        events = await events_of_agents(cluster)
        if not events:
            raise StoreUnavailable(f"neither the store nor any agent answers: {error}") from error
        return events, False


async def events_of_agents(cluster: LocalCluster) -> tuple[Event, ...]:
    """What each agent that answers noted lately, oldest first."""
    told = await asyncio.gather(*(_events_of(cluster, name) for name in cluster.nodes))
    return tuple(in_order(event for events in told for event in events))


async def _events_of(cluster: LocalCluster, name: str) -> list[Event]:
    from aiohttp import ClientError

    try:
        async with cluster.http().get(f"{cluster.api_url(name)}/events", headers=read_headers(cluster)) as answer:
            return [Event.from_json(line) for line in (await answer.read()).splitlines()]
    except (ClientError, TimeoutError, RegisterError, OSError):
        return []


async def read_forecast(cluster: LocalCluster, by_drills: Estimate | None = None) -> Forecast:
    """The forecast as of now; raises StoreUnavailable, HoldfastError if there is no cluster yet.

    How long a takeover takes: as drills under the same settings say, else as the last failover does.
    """
    register = await cluster.register()
    if register is None:
        raise HoldfastError("the store knows no cluster: see `holdfast status`")
    story, _ = await read_story(cluster)
    reports = await cluster.voter_reports()
    return forecast(Standing(register, reports, await cluster.policy(), by_drills or estimate(story)))


def estimate(story: Story | None) -> Estimate | None:
    """How long a takeover takes, by the last one that was none on purpose; it may have waited for approval before."""
    if story is None or story.switchover or story.serving_ms is None or story.opened_ms is None:
        return None
    silence_ms, last = Timeouts().silence_ms, f"by the last failover ({story.old} to {story.new})"
    noticed = f"once it is noticed: at once if its process ends, after {silence_ms} ms if its host falls silent"
    return Estimate(story.serving_ms - story.opened_ms, f"{last}, {noticed}")
