"""What a local cluster has captured of failed nodes: asked of every agent, read where it is."""

from __future__ import annotations

from pydantic import TypeAdapter, ValidationError

from holdfast.local.cluster import LocalCluster
from holdfast.local.orders import read_headers
from holdfast.model.capture import Capture
from holdfast.model.errors import ConfigurationError

_CAPTURES = TypeAdapter(tuple[Capture, ...])


async def read_all(cluster: LocalCluster) -> tuple[list[Capture], list[str]]:
    """Every capture, oldest first, and the nodes whose agents do not answer."""
    from aiohttp import ClientError

    captures: list[Capture] = []
    silent: list[str] = []
    for name in cluster.nodes:
        try:
            async with cluster.http().get(f"{cluster.api_url(name)}/captures", headers=read_headers(cluster)) as answer:
                captures += _CAPTURES.validate_json(await answer.read())
        except (ClientError, TimeoutError, OSError, ValidationError):
            silent.append(name)
    return sorted(captures, key=lambda c: (c.begun_at_ms, c.node)), silent


def the_one(captures: list[Capture], silent: list[str], node: str | None, epoch: int | None) -> Capture:
    """The newest capture that is meant; raises ConfigurationError, with what there is, if there is none."""
    found = [c for c in captures if node in (None, c.node) and epoch in (None, c.epoch)]
    if found:
        return found[-1]
    choices = ", ".join(f"--node {c.node} --epoch {c.epoch}" for c in captures) or "none at all"
    unknown = f" ({', '.join(silent)} did not answer)" if silent else ""
    raise ConfigurationError(f"there is no such capture; there are {choices}{unknown}")
