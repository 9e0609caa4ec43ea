"""What commands do with the cluster of a directory: open it, ask it, let go of it."""

from __future__ import annotations

from collections.abc import Awaitable, Callable
from pathlib import Path
from typing import TYPE_CHECKING, TypeVar

from holdfast.cli.failures import run

if TYPE_CHECKING:
    from holdfast.local.cluster import LocalCluster

T = TypeVar("T")


def with_cluster(directory: Path, work: Callable[[LocalCluster], Awaitable[T]]) -> T:
    """Run ``work`` on the cluster of a directory; raises ConfigurationError if there is none, and what it raises."""
    from holdfast.cli.logs import configure_quiet_logs
    from holdfast.local.cluster import LocalCluster

    configure_quiet_logs()
    cluster = LocalCluster.open(directory)

    async def whole() -> T:
        try:
            return await work(cluster)
        finally:
            await cluster.close()

    return run(whole())
