"""What the proxy of a local cluster says: what it lets into the database now, how its ramp does, whom it avoids."""

from __future__ import annotations

import json
from typing import Any

from holdfast.local.cluster import LocalCluster
from holdfast.model.errors import HoldfastError


async def read_admission(cluster: LocalCluster) -> dict[str, Any]:
    """The proxy's own word, by port (``write``, ``read``); raises HoldfastError if it does not answer."""
    admission: dict[str, Any] = (await read_proxy(cluster))["admission"]
    return admission


async def read_proxy(cluster: LocalCluster) -> dict[str, Any]:
    """All that the proxy says of itself; raises HoldfastError if it does not answer."""
    from aiohttp import ClientError

    try:
        async with cluster.http().get(f"{cluster.proxy_url}/status") as answer:
            said: dict[str, Any] = await answer.json(content_type=None)
    except (ClientError, TimeoutError, OSError, json.JSONDecodeError) as error:
        raise HoldfastError(
            f"the proxy of {cluster.layout.root} does not answer: is the cluster up? ({error})"
        ) from error
    return said
