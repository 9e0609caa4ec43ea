"""Values are compared by what they mean."""

from __future__ import annotations

from datetime import UTC, date, datetime, timedelta, timezone
from decimal import Decimal
from uuid import UUID

import pytest
from hypothesis import given
from hypothesis import strategies as st

from holdfast.core.match.values import canonical

ZONED, UNZONED = "timestamp with time zone", "timestamp without time zone"


@pytest.mark.parametrize(
    ("type_name", "same"),
    [
        ("numeric", ["1", "1.0", "1.00", "01", "+1", "1e0", "100e-2", " 1 ", "0.1e1"]),
        ("numeric", ["0", "-0", "0.000", "-0e7"]),
        ("numeric", ["-0.001", "-1e-3", "-.00100"]),
        ("numeric", ["120000", "1.2e5"]),
        ("numeric", ["NaN", "nan"]),
        ("integer", ["7", "7.0", "+7", "007", "70e-1"]),
        ("double precision", ["0.1", "1e-1", ".10"]),
        ("double precision", ["0", "-0.0"]),
        ("boolean", ["t", "true", "TRUE", "yes", "1", "on"]),
        ("boolean", ["f", "false", "0", "No"]),
        (
            "uuid",
            [
                "a0eebc99-9c0b-4ef8-bb6d-6bb9bd380a11",
                "A0EEBC99-9C0B-4EF8-BB6D-6BB9BD380A11",
                "{a0eebc999c0b4ef8bb6d6bb9bd380a11}",
            ],
        ),
        (
            ZONED,
            [
                "2026-11-21 11:06:53.5+00",
                "2026-11-21T11:06:53.500Z",
                "2026-11-21 12:06:53.5 +01:00",
                "2026-11-21 06:06:53,500000-0500",
                "2026-11-21 11:06:53.5",
                "2026-11-21 11:06:53.5 UTC",
            ],
        ),
        (ZONED, ["2026-12-31 24:00", "2027-01-01"]),
        (UNZONED, ["2026-11-21 11:06", "2026-11-21T11:06:00.000"]),
        ("date", ["2026-01-02", "2026-1-2"]),
        ("bpchar", ["DE", "DE  "]),
        ("public.citext", ["Ann@example.com", "ann@EXAMPLE.com"]),
    ],
)
def test_one_value_has_one_text(type_name: str, same: list[str]) -> None:
    assert len({canonical(text, type_name) for text in same}) == 1
    assert canonical(same[0], type_name) is not None


@pytest.mark.parametrize(
    ("type_name", "text"),
    [
        ("numeric", "1,000.00"), ("numeric", ""), ("numeric", "1_000"), ("numeric", "٣"), ("numeric", "1e999999999"),
        ("integer", "7.5"), ("integer", "2147483648"), ("smallint", "-32769"), ("bigint", "1e30"),
        ("double precision", "1e400"), ("boolean", "maybe"), ("uuid", "a0eebc99"), (ZONED, "yesterday"),
        (ZONED, "2026-02-30"), (ZONED, "2026-01-01 25:00"), (ZONED, "0000-01-01"), (ZONED, "999999-01-01"),
        (UNZONED, "2026-11-21 11:06+01"), ("date", "2026-11-21 11:06"), ("text", "a\x00b"), ("text", "\ud800"),
    ],
)  # fmt: skip
def test_what_is_no_value_of_a_type(type_name: str, text: str) -> None:
    assert canonical(text, type_name) is None


def test_texts_and_what_is_not_known_stand_for_themselves() -> None:
    for type_name in ("text", "character varying", "jsonb", "app.mood"):
        assert canonical(" A ", type_name) == " A "


@given(st.decimals(allow_nan=False, allow_infinity=False, places=6), st.decimals(allow_nan=False, allow_infinity=False))
def test_numbers_are_the_same_if_they_are_equal(one: Decimal, other: Decimal) -> None:
    texts = canonical(str(one), "numeric"), canonical(str(other), "numeric")
    if texts[0] is not None and texts[1] is not None:
        assert (texts[0] == texts[1]) is (one == other)
        assert Decimal(texts[0]) == one


zones = st.integers(-14 * 60, 14 * 60).map(lambda minutes: timezone(timedelta(minutes=minutes)))
moments = st.datetimes(datetime(1, 1, 3), datetime(9999, 12, 29))


@given(moments, zones, zones)
def test_an_instant_is_the_same_in_every_zone(moment: datetime, here: timezone, there: timezone) -> None:
    instant = moment.replace(tzinfo=here)
    text = canonical(instant.isoformat(), ZONED)
    assert text == canonical(instant.astimezone(there).isoformat(" "), ZONED)
    assert text is not None
    assert datetime.fromisoformat(text) == instant.astimezone(UTC)


@given(st.dates())
def test_every_day_is_its_own(day: date) -> None:
    assert canonical(day.isoformat(), "date") == day.isoformat()


@given(st.uuids(), st.booleans())
def test_a_uuid_has_no_case(value: UUID, upper: bool) -> None:
    assert canonical(str(value).upper() if upper else value.hex, "uuid") == str(value)


@given(st.text(), st.sampled_from(["numeric", "integer", "real", "uuid", "boolean", "date", ZONED, UNZONED, "text"]))
def test_the_text_that_stands_for_a_value_stands_for_itself(text: str, type_name: str) -> None:
    once = canonical(text, type_name)
    if once is not None:
        assert canonical(once, type_name) == once
