"""How a simulated node is put together. A variant that leaves a rule out puts it together otherwise."""

from __future__ import annotations

from contextlib import AbstractContextManager, nullcontext
from typing import TYPE_CHECKING

from holdfast.model.timeouts import Timeouts
from holdfast.node.promise import Names, PromiseKeeper
from holdfast.testing.postgres import Postgres
from holdfast.testing.server import SimulatedServer

if TYPE_CHECKING:
    from holdfast.testing.host import Host
    from holdfast.testing.world import World


class Wiring:
    """The product as it is."""

    def server(self, postgres: Postgres, timeouts: Timeouts) -> SimulatedServer:
        """The face of a node's PostgreSQL."""
        return SimulatedServer(postgres, timeouts)

    def promise_keeper(self, host: Host) -> PromiseKeeper:
        """Where a node's promise is kept."""
        from holdfast.testing.host import PromiseOnDisk

        return PromiseOnDisk(host)

    def names(self, world: World, node: str) -> Names:
        """How directories are named."""
        from holdfast.testing.host import CountedNames

        return CountedNames(world)

    def in_force(self) -> AbstractContextManager[None]:
        """What else must be different while a world runs."""
        return nullcontext()
