"""When a planned switchover is to be."""

from __future__ import annotations

import time
from datetime import UTC, datetime, timedelta, timezone

import pytest

from holdfast.local.switchover import parse_time
from holdfast.model.errors import ConfigurationError

NOW = datetime(2026, 11, 21, 21, 30, tzinfo=timezone(timedelta(hours=1)))


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("22:00", NOW.replace(hour=22, minute=0)),
        ("21:30", NOW + timedelta(days=1)),
        ("7:05", (NOW + timedelta(days=1)).replace(hour=7, minute=5)),
        ("2026-11-21T21:00:00Z", datetime(2026, 11, 21, 21, 0, tzinfo=UTC)),
        ("2026-11-22 03:00", datetime(2026, 11, 22, 3, 0, tzinfo=NOW.tzinfo)),
    ],
)
def test_times_that_people_write(text: str, expected: datetime) -> None:
    assert parse_time(text, NOW, NOW.tzinfo) == expected


def test_the_clock_of_the_system_changes_to_winter_time(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("TZ", "CET-1CEST,M3.5.0,M10.5.0/3")
    time.tzset()
    try:
        evening = datetime(2026, 10, 24, 20, 0, tzinfo=UTC)  # 22:00 in summer time, whose last night it is
        assert parse_time("22:30", evening) == datetime(2026, 10, 24, 20, 30, tzinfo=UTC)
        assert parse_time("6:00", evening) == datetime(2026, 10, 25, 5, 0, tzinfo=UTC)
        assert parse_time("2026-10-25 06:00", evening) == datetime(2026, 10, 25, 5, 0, tzinfo=UTC)
    finally:
        monkeypatch.undo()
        time.tzset()


@pytest.mark.parametrize("text", ["25:00", "tonight", "", "2026-11-21T21:00:00+01:00", "2026-11-21"])
def test_times_that_are_none_or_past_are_refused_with_the_fix(text: str) -> None:
    with pytest.raises(ConfigurationError, match="--at"):
        parse_time(text, NOW)
