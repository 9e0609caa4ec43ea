"""The statements that may have killed a primary of a local cluster."""

from __future__ import annotations

from holdfast.local.cluster import LocalCluster
from holdfast.model.keys import Keys
from holdfast.model.suspect import Suspect


async def read_suspects(cluster: LocalCluster) -> tuple[Suspect, ...]:
    """All that are remembered, the newest first; raises StoreUnavailable, and RegisterError for a bad record."""
    snapshot = await cluster.store().list(Keys(cluster.name).suspects)
    suspects = [Suspect.from_json(entry.value) for entry in snapshot.entries]
    return tuple(sorted(suspects, key=lambda suspect: -suspect.at_ms))
