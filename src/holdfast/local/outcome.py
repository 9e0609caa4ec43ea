"""What became of a transaction of a local cluster: the agent of its primary is asked."""

from __future__ import annotations

import json

from holdfast.local.cluster import LocalCluster
from holdfast.model.errors import ConfigurationError, HoldfastError
from holdfast.model.outcome import OutcomeAnswer

ANSWER_MS = 20_000
"""It waits for the server, the quorum, every agent and the journal, each within its own time."""


async def find_outcome(cluster: LocalCluster, xid: int, epoch: int | None) -> OutcomeAnswer:
    """Ask the agents until the one of the primary answers.

    Raises ConfigurationError for an epoch to come, HoldfastError with what the agents say if none can tell.
    """
    from aiohttp import ClientError, ClientTimeout

    query = {"xid": str(xid), **({} if epoch is None else {"epoch": str(epoch)})}
    said = f"no agent answers in {cluster.layout.root}: is the cluster up? (`holdfast status`)"
    for name in cluster.nodes:
        url = f"{cluster.api_url(name)}/outcome"
        try:
            async with cluster.http().get(url, params=query, timeout=ClientTimeout(ANSWER_MS / 1000)) as answer:
                body = await answer.read()
        except (ClientError, TimeoutError, OSError):
            continue
        if answer.status == 200:
            return OutcomeAnswer.from_json(body)
        said = _message(body)
        if answer.status == 400:
            raise ConfigurationError(said)
        if answer.status != 421:
            break
    raise HoldfastError(said)


def _message(body: bytes) -> str:
    try:
        return str(json.loads(body)["message"])
    except (ValueError, KeyError, TypeError):
        return body.decode(errors="replace").strip()
