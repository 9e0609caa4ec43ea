"""What people tell a local cluster through its agents: another policy, their approval."""

from __future__ import annotations

import json
from typing import Any

from holdfast.local.cluster import LocalCluster
from holdfast.local.machine import who_asks
from holdfast.model.asker import USER_HEADER
from holdfast.model.errors import HoldfastError


def order_headers(cluster: LocalCluster) -> dict[str, str]:
    """What an order carries: the right to give it, and who gives it."""
    token = cluster.layout.read_secret("api-token")
    return {"Authorization": f"Bearer {token}", USER_HEADER: who_asks()}


async def order(cluster: LocalCluster, path: str, body: dict[str, Any]) -> str:
    """Give one order to the first agent that answers; returns what it says, raises HoldfastError if it refuses."""
    from aiohttp import ClientError

    headers = order_headers(cluster)
    for name in cluster.nodes:
        url = f"{cluster.api_url(name)}{path}"
        try:
            async with cluster.http().post(url, json=body, headers=headers) as answer:
                said = await answer.json(content_type=None)
        except (ClientError, TimeoutError, OSError, json.JSONDecodeError):
            continue
        if isinstance(said, dict) and said.get("ok"):
            return str(said.get("message"))
        raise HoldfastError(str(said.get("message")) if isinstance(said, dict) else str(said))
    raise HoldfastError(f"no agent answers in {cluster.layout.root}: is the cluster up? (`holdfast status`)")
