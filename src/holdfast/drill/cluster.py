"""What a drill needs of the cluster that it is let loose on."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Protocol

from holdfast.model.event import Event
from holdfast.model.register import NodeRecord, Register


class ClusterUnderTest(Protocol):
    """A cluster whose processes a drill may harm. DSNs carry their secrets in memory or by passfile only.

    ``settings_hash`` is ``sha256:…`` over all settings in effect; two runs are comparable only if it is the same.
    """

    @property
    def name(self) -> str:
        """The cluster's name."""
        ...

    @property
    def nodes(self) -> tuple[str, ...]:
        """The names of its nodes."""
        ...

    @property
    def settings_hash(self) -> str:
        """``sha256:…`` over all settings in effect."""
        ...

    @property
    def postgresql_version(self) -> str:
        """Such as 17.10."""
        ...

    @property
    def etcd_version(self) -> str:
        """Such as 3.5.1."""
        ...

    @property
    def write_dsn(self) -> str:
        """Through the proxy, to the primary."""
        ...

    @property
    def read_dsn(self) -> str:
        """Through the proxy, to a standby."""
        ...

    async def register(self) -> Register | None:
        """The register as the store has it; raises StoreUnavailable."""
        ...

    async def node_records(self) -> Mapping[str, NodeRecord]:
        """What each node says of itself; raises StoreUnavailable."""
        ...

    async def events(self) -> tuple[Event, ...]:
        """The whole journal, oldest first; raises StoreUnavailable."""
        ...

    async def wait_until_whole(self, deadline_s: float) -> bool:
        """Whether within ``deadline_s`` a primary serves, and every other node streams from it and is a member."""
        ...

    async def kill_postgres(self, node: str) -> float:
        """SIGKILL the whole PostgreSQL process tree of ``node``; returns when (Unix milliseconds)."""
        ...

    async def direct_dsn(self, node: str) -> str:
        """Past the proxy, straight to that node's PostgreSQL, as a role that may CHECKPOINT."""
        ...
