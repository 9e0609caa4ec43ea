"""What a wrong value should have been, in words for people who write settings: pydantic's are for programmers."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, Final

CLUSTER_NAME: Final = r"\A[a-z][a-z0-9-]{0,31}\z"
CLASS_NAME: Final = r"\A[a-z][a-z0-9-]{0,30}\z"
ZONE: Final = r"\A[a-z0-9-]{0,31}\z"
ROLE: Final = r"\A[A-Za-z_][A-Za-z0-9_$-]{0,62}\z"
SENT_TO: Final = r"\A(ssh|s3)://[^\s/]+(/\S*)?\z"
HTTP_URL: Final = r"\Ahttps?://\S+\z"

_PATTERNS: Final = {
    CLUSTER_NAME: "should be 1 to 32 of a-z, 0-9 and -, a letter first",
    CLASS_NAME: "should be 1 to 31 of a-z, 0-9 and -, a letter first",
    ZONE: "should be at most 31 of a-z, 0-9 and -",
    ROLE: "should be a role's name: letters, digits, _, $ and -, no digit first, at most 63",
    SENT_TO: "should be ssh://HOST/DIRECTORY or s3://BUCKET/PREFIX",
    HTTP_URL: "should begin with http:// or https://",
}
_KINDS: Final = {
    "int": "should be a whole number",
    "float": "should be a number",
    "bool": "should be true or false",
    "dict": "should be names with values",
    "list": "should be a list",
    "tuple": "should be a list",
    "string": "should be text",
}
_BOUNDS: Final = {
    "greater_than_equal": ("ge", "should be at least {:g}"),
    "greater_than": ("gt", "should be more than {:g}"),
    "less_than_equal": ("le", "should be at most {:g}"),
    "less_than": ("lt", "should be less than {:g}"),
}


def wish_in_words(kind: str, message: str, context: Mapping[str, Any] | None) -> str:
    """What a setting should have been, by pydantic's ``kind`` of error, its own words and its context."""
    context = context or {}
    if kind == "string_pattern_mismatch" and context.get("pattern") in _PATTERNS:
        return _PATTERNS[context["pattern"]]
    if kind in _BOUNDS:
        name, words = _BOUNDS[kind]
        return words.format(context[name])
    for suffix in ("_type", "_parsing", "_from_float"):
        if kind.endswith(suffix) and kind.removesuffix(suffix) in _KINDS:
            return _KINDS[kind.removesuffix(suffix)]
    words = message.removeprefix("Value error, ").removeprefix("Input ")
    return f"{words[:1].lower()}{words[1:]}"
