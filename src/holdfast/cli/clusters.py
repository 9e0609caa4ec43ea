"""What commands do with the cluster of a directory: open it, ask it, let go of it."""

from __future__ import annotations

from collections.abc import Awaitable, Callable
from pathlib import Path
from typing import TYPE_CHECKING, TypeVar

from holdfast.cli.failures import run
from holdfast.model.errors import HoldfastError, StoreUnavailable

if TYPE_CHECKING:
    from holdfast.local.cluster import LocalCluster

T = TypeVar("T")


def with_cluster(directory: Path, work: Callable[[LocalCluster], Awaitable[T]]) -> T:
    """Run ``work`` on the cluster of a directory.

    Raises ConfigurationError if there is none, HoldfastError if nothing of it runs, and what ``work`` raises.
    """
    from holdfast.cli.logs import configure_quiet_logs
    from holdfast.local.cluster import LocalCluster

    configure_quiet_logs()
    cluster = LocalCluster.open(directory)

    async def whole() -> T:
        try:
            return await work(cluster)
        except StoreUnavailable as error:
            if cluster.state().is_alive or cluster.has_leftovers():
                raise
            raise HoldfastError(f"nothing runs of the cluster in {directory}: `holdfast up` starts it again") from error
        finally:
            await cluster.close()

    return run(whole())
