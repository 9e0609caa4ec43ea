"""What became of a transaction of a local cluster: the agent of its primary is asked."""

from __future__ import annotations

import json

from holdfast.local.cluster import LocalCluster
from holdfast.local.orders import read_headers
from holdfast.model.errors import ConfigurationError, HoldfastError
from holdfast.model.outcome import OutcomeAnswer, OwnQuestion


async def find_outcome(cluster: LocalCluster, xid: int, epoch: int | None) -> OutcomeAnswer:
    """Ask the agent of the primary about a transaction, by its id.

    Raises ConfigurationError for an epoch to come, StoreUnavailable, and HoldfastError where nobody can tell now.
    """
    return await _ask(cluster, {"xid": str(xid), **({} if epoch is None else {"epoch": str(epoch)})})


async def find_own_token(cluster: LocalCluster, question: OwnQuestion) -> OutcomeAnswer:
    """The same, by the token that its application has given it."""
    query = {"token": question.token}
    if question.epoch is not None:
        query["epoch"] = str(question.epoch)
    if question.lsn is not None:
        query["lsn"] = str(question.lsn)
    return await _ask(cluster, query)


async def _ask(cluster: LocalCluster, query: dict[str, str]) -> OutcomeAnswer:
    from aiohttp import ClientError, ClientTimeout

    register = await cluster.register()
    if register is None or register.leader is None:
        raise HoldfastError("no primary serves now: ask again when one does (`holdfast status`)")
    leader = register.leader.node
    timeout = ClientTimeout(cluster.timeouts.local_outcome_ms / 1000)
    try:
        url, headers = f"{cluster.api_url(leader)}/outcome", read_headers(cluster)
        async with cluster.http().get(url, params=query, headers=headers, timeout=timeout) as answer:
            status, body = answer.status, await answer.read()
    except (ClientError, TimeoutError, OSError) as error:
        raise HoldfastError(
            f"the agent of {leader}, the primary, does not answer: see `holdfast status`, and ask again"
        ) from error
    if status == 200:
        return OutcomeAnswer.from_json(body)
    raise (ConfigurationError if status == 400 else HoldfastError)(_message(body))


def _message(body: bytes) -> str:
    try:
        return str(json.loads(body)["message"])
    except (ValueError, KeyError, TypeError):
        return body.decode(errors="replace").strip()
