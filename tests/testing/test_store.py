"""The simulated store."""

from __future__ import annotations

from holdfast.testing.store import at_once
from holdfast.testing.timeouts import SIMULATED
from holdfast.testing.wiring import Wiring
from holdfast.testing.world import World


def test_a_write_that_is_decided_after_its_lease_has_ended_comes_to_nothing() -> None:
    world = World(1, 2, SIMULATED, Wiring())
    service = world.store
    try:
        lease = at_once(service.inner.grant_lease(1))
        at_once(service.inner.revoke_lease(lease))
        service.set_available(silent=True)
        for number in range(50):  # some of what waits is lost
            key = service.keys.node(f"n{number}")
            service.park(lambda key=key: at_once(service.inner.put(key, b"", lease)))  # type: ignore[misc]
        service.set_available()
        assert at_once(service.inner.list(service.keys.nodes)).entries == ()
    finally:
        world.loop.end()
