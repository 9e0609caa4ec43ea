"""What the proxy of a local cluster lets into the database now, and how its ramp does."""

from __future__ import annotations

import json
from typing import Any

from holdfast.local.cluster import LocalCluster
from holdfast.model.errors import HoldfastError


async def read_admission(cluster: LocalCluster) -> dict[str, Any]:
    """The proxy's own word, by port (``write``, ``read``); raises HoldfastError if it does not answer."""
    from aiohttp import ClientError

    try:
        async with cluster.http().get(f"{cluster.proxy_url}/status") as answer:
            said = await answer.json(content_type=None)
    except (ClientError, TimeoutError, OSError, json.JSONDecodeError) as error:
        raise HoldfastError(
            f"the proxy of {cluster.layout.root} does not answer: is the cluster up? ({error})"
        ) from error
    admission: dict[str, Any] = said["admission"]
    return admission
