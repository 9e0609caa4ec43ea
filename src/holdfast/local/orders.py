"""What people tell a local cluster through its agents: another policy, their approval."""

from __future__ import annotations

import json
import socket
import time
from dataclasses import replace
from typing import Any

import structlog
from pydantic import JsonValue

from holdfast.local.cluster import LocalCluster
from holdfast.local.machine import asks_from, who_asks
from holdfast.model.asker import ORIGIN_HEADER, USER_HEADER, Asker
from holdfast.model.errors import HoldfastError, RegisterError, StoreUnavailable
from holdfast.model.event import Event

log = structlog.get_logger(__name__)


def read_headers(cluster: LocalCluster) -> dict[str, str]:
    """What a question carries whose answer tells of clients."""
    return {"Authorization": f"Bearer {cluster.layout.read_secret('api-token')}"}


def order_headers(cluster: LocalCluster) -> dict[str, str]:
    """What an order carries: the right to give it, and who gives it."""
    origin = asks_from()
    where = {} if origin is None else {ORIGIN_HEADER: origin}
    return {**read_headers(cluster), USER_HEADER: who_asks(), **where}


def who_acts() -> Asker:
    """Who does something to the cluster with this command, past the agents."""
    return Asker(who_asks(), socket.gethostname(), asks_from())


async def note_deed(cluster: LocalCluster, kind: str, **detail: JsonValue) -> None:
    """Put into the journal what a person does with a command, past the agents; without the store it is only done."""
    try:
        register = await cluster.register()
        event = Event(time.time() * 1000, "commands", kind, register.epoch if register is not None else 0)
        detail |= who_acts().detail
        await cluster.store().append_event(replace(event, detail=detail, stamp=cluster.store().clock.stamp()))
    except (StoreUnavailable, RegisterError) as error:
        log.info("deed.not_noted", kind=kind, reason=str(error))


async def order(cluster: LocalCluster, path: str, body: dict[str, Any]) -> str:
    """Give one order to the first agent that answers; returns what it says, raises HoldfastError if it refuses."""
    from aiohttp import ClientError

    headers = order_headers(cluster)
    in_vain: list[str] = []
    for name in cluster.nodes:
        url = f"{cluster.api_url(name)}{path}"
        try:
            async with cluster.http().post(url, json=body, headers=headers) as answer:
                said = await answer.json(content_type=None)
        except TimeoutError:
            in_vain.append(name)
            continue
        except (ClientError, OSError, json.JSONDecodeError):
            continue
        if isinstance(said, dict) and said.get("ok"):
            return str(said.get("message"))
        raise HoldfastError(str(said.get("message")) if isinstance(said, dict) else str(said))
    if in_vain:
        raise HoldfastError(
            f"{' and '.join(in_vain)} did not answer in time, maybe because the store does not: whether the order took "
            "effect is not known. Look at `holdfast status` and `holdfast policy show` before you give it again"
        )
    raise HoldfastError(f"no agent answers in {cluster.layout.root}: is the cluster up? (`holdfast status`)")
