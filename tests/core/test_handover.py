"""Who may be handed over to, and what is said if not."""

from __future__ import annotations

from holdfast.core.handover import steps, successor
from holdfast.core.observation import Observation
from tests.core.builders import BOTH, N1, N2, N3, NOW_MS, observation, peer, primary, streaming


def leading(**changes: object) -> Observation:
    server = primary(1, 100, str(BOTH), (streaming(N2, 100), streaming(N3, 90)))
    return observation(N1, **{"server": server, "lead_address": None, **changes})


def test_the_standby_with_the_most_log_unless_another_is_wanted() -> None:
    assert successor(leading(), None)[0] == "n2"
    assert successor(leading(), "n3")[0] == "n3"


def test_one_that_raises_an_alarm_or_is_cut_off_from_the_store_is_refused() -> None:
    alarmed = leading(peers={"n2": peer(N2, alarm="the register is older than this node's promise")})
    assert successor(alarmed, "n2") == (None, "n2 raises an alarm: the register is older than this node's promise")
    cut_off = leading(peers={"n2": peer(N2, store_connected=False), "n3": peer(N3)})
    assert successor(cut_off, "n2") == (None, "n2 cannot reach the store, so it could not take over")


def test_what_would_be_done_names_both_sides_and_the_bounds() -> None:
    told = steps(leading(), "n2")
    assert "n1 stops in good order while n2 still streams, within 5000 ms" in told[3]
    assert "n1 starts again and goes on leading" in told[-1]


def test_one_that_fell_silent_is_refused_although_it_seems_to_stream() -> None:
    limit_ms = leading().timeouts.silence_ms
    silent = leading(peers={"n2": peer(N2, answered_ms=NOW_MS - limit_ms), "n3": peer(N3)})
    assert successor(silent, "n2") == (None, f"n2 has not answered for {limit_ms} ms")
    assert (
        successor(leading(peers={"n2": peer(N2, answered_ms=NOW_MS - limit_ms + 1), "n3": peer(N3)}), "n2")[0] == "n2"
    )
    assert successor(silent, None) == (
        None,
        "only one standby streams: after the switchover nobody could confirm a commit",
    )
