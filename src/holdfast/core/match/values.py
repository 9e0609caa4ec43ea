"""Values, compared by what they mean: 1.0 is 1.00, one instant is the same in every zone, a UUID has no case. Pure.

A value is turned into the one text that stands for it and that PostgreSQL reads as it, too.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Mapping
from decimal import Decimal
from typing import Final

_SURROGATE = re.compile("[\ud800-\udfff]")
_DAY_US = 86_400_000_000
_DIGITS_MAX, _SCALE_MAX = 131_072, 16_383
"""What numeric has before and after its point."""
_YEARS = range(-4711, 294_001)
"""What timestamps have, a little less."""
_NUMBER = re.compile(r"[+-]?(?:[0-9]+\.?[0-9]*|\.[0-9]+)(?:[eE][+-]?[0-9]{1,9})?\Z")
_PLAIN = re.compile(r"(?:0|-?[1-9][0-9]{0,30}(?:\.[0-9]{0,30}[1-9])?)\Z")
"""Written already as it is to be; most numbers are."""
_INFINITE = {"infinity": "Infinity", "inf": "Infinity", "-infinity": "-Infinity", "-inf": "-Infinity", "nan": "NaN"}
_TRUE, _FALSE = {"t", "true", "y", "yes", "on", "1"}, {"f", "false", "n", "no", "off", "0"}
_DATE = r"(?P<year>[0-9]{4,6})-(?P<month>[0-9]{1,2})-(?P<day>[0-9]{1,2})"
_CLOCK = r"(?P<hour>[0-9]{1,2}):(?P<minute>[0-9]{2})(?::(?P<second>[0-9]{2})(?:[.,](?P<part>[0-9]+))?)?"
_ZONE = r"(?P<zone>Z|UTC|GMT|(?P<sign>[+-])(?P<zh>[0-9]{1,2})(?::?(?P<zm>[0-9]{2}))?(?::?(?P<zs>[0-9]{2}))?)"
_INSTANT = re.compile(rf"{_DATE}(?:[ Tt]\s*{_CLOCK}\s*{_ZONE}?)?(?P<era> (?:BC|AD))?\Z", re.IGNORECASE)
_UUID = re.compile(r"[0-9a-f]{32}\Z")
_INTEGER_BITS = {"smallint": 16, "integer": 32, "bigint": 64}


def canonical(text: str, type_name: str) -> str | None:
    """The text that stands for this value of a type (as ``format_type`` calls it); None if it is no such value.

    Values of types that are not known here stand for themselves. A timestamp with time zone that names none is in UTC;
    one without time zone must name none.
    """
    if "\x00" in text or (not text.isascii() and _SURROGATE.search(text) is not None):
        return None  # nothing that PostgreSQL could hold
    read = _READERS.get(type_name.rpartition(".")[2])
    return text if read is None else read(text, type_name)


def is_known(type_name: str) -> bool:
    """Whether values of the type are compared by what they mean."""
    return type_name.rpartition(".")[2] in _READERS


# -- numbers ----------------------------------------------------------------------------------------------------------


def _number(text: str) -> str | None:
    """Without an exponent, without zeros that say nothing."""
    trimmed = text.strip()
    if _PLAIN.match(trimmed) is not None:
        return trimmed
    if _NUMBER.match(trimmed) is None:
        return None
    sign, digits, exponent = Decimal(trimmed).as_tuple()
    assert isinstance(exponent, int)
    written = "".join(map(str, digits)).lstrip("0")
    kept = written.rstrip("0")
    if not kept:
        return "0"
    exponent += len(written) - len(kept)
    if len(kept) + exponent > _DIGITS_MAX or -exponent > _SCALE_MAX:
        return None
    if exponent >= 0:
        whole, part = kept + "0" * exponent, ""
    else:
        padded = kept.rjust(1 - exponent, "0")
        whole, part = padded[:exponent], "." + padded[exponent:]
    return ("-" if sign else "") + whole + part


def _numeric(text: str, _: str) -> str | None:
    return _number(text) or _INFINITE.get(text.strip().lower().removeprefix("+"))


def _integer(text: str, type_name: str) -> str | None:
    number = _number(text)
    if number is None or "." in number or len(number) > 20:
        return None
    limit = 1 << (_INTEGER_BITS[type_name] - 1)
    return number if -limit <= int(number) < limit else None


def _float(text: str, _: str) -> str | None:
    infinite = _INFINITE.get(text.strip().lower().removeprefix("+"))
    if infinite is not None:
        return infinite
    if _NUMBER.match(text.strip()) is None:
        return None
    value = float(text) + 0.0  # there is no negative zero
    return None if value in (float("inf"), float("-inf")) else repr(value)


# -- what has few spellings -------------------------------------------------------------------------------------------


def _boolean(text: str, _: str) -> str | None:
    word = text.strip().lower()
    if word in _TRUE:
        return "true"
    return "false" if word in _FALSE else None


def _uuid(text: str, _: str) -> str | None:
    digits = text.strip().lower()
    if digits.startswith("{") and digits.endswith("}"):
        digits = digits[1:-1]
    digits = digits.replace("-", "")
    if _UUID.match(digits) is None:
        return None
    return "-".join((digits[:8], digits[8:12], digits[12:16], digits[16:20], digits[20:]))


def _padded(text: str, _: str) -> str:
    return text.rstrip(" ")


def _caseless(text: str, _: str) -> str:
    return text.lower()


# -- time -------------------------------------------------------------------------------------------------------------


def _date(text: str, _: str) -> str | None:
    word = text.strip().lower()
    if word in ("infinity", "-infinity"):
        return word
    found = _INSTANT.match(text.strip())
    if found is None or found["hour"] is not None:
        return None
    day = _day_of(found)
    return None if day is None else _date_in_words(day)


def _zoned(text: str, _: str) -> str | None:
    return _instant(text, has_zone=True)


def _unzoned(text: str, _: str) -> str | None:
    return _instant(text, has_zone=False)


def _instant(text: str, *, has_zone: bool) -> str | None:
    word = text.strip().lower()
    if word in ("infinity", "-infinity"):
        return word
    found = _INSTANT.match(text.strip())
    if found is None or (found["zone"] is not None and not has_zone):
        return None
    day, clock_us = _day_of(found), _clock_us(found)
    offset_us = _offset_us(found)
    if day is None or clock_us is None or offset_us is None:
        return None
    day, clock_us = divmod(day * _DAY_US + clock_us - offset_us, _DAY_US)
    seconds, part = divmod(clock_us, 1_000_000)
    date, _, era = _date_in_words(day).partition(" ")
    clock = f"{seconds // 3600:02}:{seconds // 60 % 60:02}:{seconds % 60:02}.{part:06}"
    return f"{date} {clock}{'+00' if has_zone else ''}{' ' + era if era else ''}"


def _clock_us(found: re.Match[str]) -> int | None:
    if found["hour"] is None:
        return 0
    hour, minute, second = int(found["hour"]), int(found["minute"]), int(found["second"] or 0)
    part = found["part"] or "0"
    part_us = int(f"{part:0<6}"[:6]) + (part[6:7] >= "5")  # PostgreSQL keeps microseconds, and rounds
    if minute > 59 or second > 60 or hour > 24 or (hour == 24 and (minute or second or part_us)):
        return None
    return ((hour * 60 + minute) * 60 + second) * 1_000_000 + part_us


def _offset_us(found: re.Match[str]) -> int | None:
    if found["sign"] is None:
        return 0
    hours, minutes, seconds = int(found["zh"]), int(found["zm"] or 0), int(found["zs"] or 0)
    if hours > 15 or minutes > 59 or seconds > 59:
        return None
    offset = ((hours * 60 + minutes) * 60 + seconds) * 1_000_000
    return -offset if found["sign"] == "-" else offset


def _day_of(found: re.Match[str]) -> int | None:
    """Days since 1970-01-01 in the Gregorian calendar; None if there is no such day."""
    year, month, day = int(found["year"]), int(found["month"]), int(found["day"])
    if (found["era"] or "").strip().upper() == "BC":
        year = 1 - year
    elif year == 0:
        return None
    if year not in _YEARS or not (1 <= month <= 12 and 1 <= day <= 31):
        return None
    number = _days(year, month, day)
    return number if _civil(number) == (year, month, day) else None


def _days(year: int, month: int, day: int) -> int:
    """Years begin in March here, so that the day that comes and goes is the last one."""
    year -= month <= 2
    era, of_era = divmod(year, 400)
    of_year = (153 * ((month + 9) % 12) + 2) // 5 + day - 1
    return era * 146_097 + of_era * 365 + of_era // 4 - of_era // 100 + of_year - 719_468


def _civil(number: int) -> tuple[int, int, int]:
    era, of_era = divmod(number + 719_468, 146_097)
    year_of_era = (of_era - of_era // 1460 + of_era // 36_524 - of_era // 146_096) // 365
    of_year = of_era - (365 * year_of_era + year_of_era // 4 - year_of_era // 100)
    shifted = (5 * of_year + 2) // 153
    month = shifted + 3 if shifted < 10 else shifted - 9
    return year_of_era + era * 400 + (month <= 2), month, of_year - (153 * shifted + 2) // 5 + 1


def _date_in_words(number: int) -> str:
    year, month, day = _civil(number)
    return f"{year:04}-{month:02}-{day:02}" if year > 0 else f"{1 - year:04}-{month:02}-{day:02} BC"


_READERS: Final[Mapping[str, Callable[[str, str], str | None]]] = {
    "smallint": _integer, "integer": _integer, "bigint": _integer, "numeric": _numeric, "real": _float,
    "double precision": _float, "boolean": _boolean, "uuid": _uuid, "bpchar": _padded, "citext": _caseless,
    "date": _date, "timestamp with time zone": _zoned, "timestamp without time zone": _unzoned,
    "text": lambda text, _: text, "character varying": lambda text, _: text, "name": lambda text, _: text,
}  # fmt: skip
