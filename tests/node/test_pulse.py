"""For how long something stood still, as far as it was watched."""

from __future__ import annotations

from holdfast.node.pulse import Stillness


def test_what_is_counted_stands_still_until_it_moves() -> None:
    disk = Stillness(250)
    assert disk.still_ms is None
    seen: list[int | None] = []
    for now_ms, count in ((0, 7), (250, 7), (500, 7), (750, 8), (1000, 8)):
        disk.saw(count, now_ms)
        seen.append(disk.still_ms)
    assert seen == [0, 250, 500, 0, 250]


def test_a_watcher_that_slept_has_not_seen_it_stand_still() -> None:
    disk = Stillness(250)
    disk.saw(7, 0)
    disk.saw(7, 60_000)
    assert disk.still_ms == 500


def test_what_cannot_be_counted_any_more_begins_anew() -> None:
    disk = Stillness(250)
    disk.saw(7, 0)
    disk.saw(7, 250)
    disk.saw(None, 500)
    assert disk.still_ms is None
    disk.saw(7, 750)
    assert disk.still_ms == 0
