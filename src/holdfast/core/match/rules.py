"""What to do about one key: it is in the ledger or not, lost or not, and in the database or not. Pure."""

from __future__ import annotations

from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass
from enum import StrEnum
from typing import Final, NamedTuple

Key = tuple[str, ...]
"""The values of the key's columns, each as the one text that stands for it."""
Values = tuple[str | None, ...]
"""The values of the compared columns, likewise; None is NULL."""


class Verdict(StrEnum):
    """What to do."""

    REAPPLY = "re-apply"
    REFUND = "refund"
    DIFFERS = "differs"
    LOOK = "look"
    IGNORE = "ignore"
    NOTHING = "nothing to do"


IS_LEFT: Final = frozenset((Verdict.REAPPLY, Verdict.REFUND, Verdict.DIFFERS, Verdict.LOOK))
"""What somebody must do something about."""

RULES: Final[Mapping[str, tuple[Verdict, str]]] = {
    "reapply.seen": (
        Verdict.REAPPLY,
        "in the ledger and lost: the world outside has seen it, and the database must have it again",
    ),
    "reapply.change": (
        Verdict.REAPPLY,
        "in the ledger and in the database, but a change of it is lost, and the ledger does not speak against it",
    ),
    "refund.nowhere": (
        Verdict.REFUND,
        "in the ledger, and neither lost nor in the database: never written, or elsewhere; refund it, or look there",
    ),
    "differs.lost": (Verdict.DIFFERS, "in the ledger and lost, with other values in the compared columns"),
    "differs.there": (Verdict.DIFFERS, "in the ledger and in the database, with other values in the compared columns"),
    "look.taken": (
        Verdict.LOOK,
        "in the ledger and lost, and the database has another row under its key: changed since, or of somebody else",
    ),
    "look.deleted": (Verdict.LOOK, "in the ledger, but a lost transaction had deleted it: which of the two is right?"),
    "look.nowhere": (
        Verdict.LOOK,
        "in the ledger and not in the database; it may be lost, for not everything that was lost is known",
    ),
    "look.no-key": (Verdict.LOOK, "a column of its key is NULL: it cannot be matched with anything"),
    "look.unreadable": (Verdict.LOOK, "its key is no value of the column's type: it cannot be matched with anything"),
    "look.unread": (Verdict.LOOK, "a lost row whose key is not known any more: it cannot be matched with anything"),
    "ignore.unseen": (
        Verdict.IGNORE,
        "lost, and the ledger knows nothing of it: nobody outside has seen it; ignore it, or ask its client to repeat",
    ),
    "nothing.there": (Verdict.NOTHING, "in the ledger and in the database"),
    "nothing.again": (Verdict.NOTHING, "lost, and in the database again as it was lost"),
}
"""Each ledger entry and each lost row falls under exactly one."""

_OF_LOST = ("reapply.seen", "reapply.change", "look.taken", "look.deleted", "differs.lost")
"""What a lost row takes over from the entries of its key, the first that there is."""


def verdict_of(rule: str) -> Verdict:
    """What a rule says to do."""
    return RULES[rule][0]


class Image(NamedTuple):
    """A row: a digest of all of it, and its values in the compared columns."""

    digest: bytes
    values: Values


@dataclass(frozen=True, slots=True)
class LostChange:
    """What a lost transaction did to one row; ``transaction`` counts them in the order of their commits."""

    transaction: int
    before: Image | None
    after: Image | None

    @property
    def order(self) -> tuple[int, bool]:
        """Within a transaction a row goes before another one takes its key."""
        return self.transaction, self.after is not None


class _State(StrEnum):
    """The database against what was lost of a key."""

    SAME = "same"
    MISSING = "missing"
    OTHER = "other"


def judge_entry(
    values: Values, lost: Sequence[LostChange], there: Sequence[Image], *, is_unique: bool, is_whole: bool
) -> str:
    """The rule for one ledger entry, given all that was lost of its key and all that the database has of it now.

    ``is_unique``: the database has at most one row for a key. ``is_whole``: all that was lost is known.
    """
    agrees = any(agree(values, image.values) for image in there)
    if not lost:
        if not there:
            return "refund.nowhere" if is_whole else "look.nowhere"
        return "nothing.there" if agrees else "differs.there"
    states = states_of(lost, there, is_unique=is_unique)
    missing = [change for change, state in zip(_ordered(lost), states, strict=True) if state is _State.MISSING]
    if not missing:
        if _State.OTHER in states:
            return "look.taken"
        if not there:
            return "look.deleted"
        return "nothing.again" if agrees else "differs.there"
    last = missing[-1]
    candidates = [image for c in ([last] if is_unique else missing) if (image := c.after or c.before) is not None]
    if not any(agree(values, image.values) for image in candidates):
        return "nothing.there" if agrees else "differs.lost"
    if last.after is None:
        return "look.deleted"
    is_change = bool(there) if is_unique else last.before is not None
    return "reapply.change" if is_change else "reapply.seen"


def judge_lost(
    entries: Collection[Values], lost: Sequence[LostChange], there: Sequence[Image], *, is_unique: bool
) -> list[str]:
    """The rule for each lost change of a key, in the order in which they were given."""
    if not is_unique and len(lost) > 1:
        return [judge_lost(entries, [change], there, is_unique=False)[0] for change in lost]
    told = {judge_entry(e, lost, there, is_unique=is_unique, is_whole=True) for e in entries}
    seen = next((rule for rule in _OF_LOST if rule in told), "ignore.unseen")
    is_same = _State.SAME in states_of(lost, there, is_unique=is_unique)
    return ["nothing.again" if is_same else seen] * len(lost)


def states_of(lost: Sequence[LostChange], there: Sequence[Image], *, is_unique: bool) -> list[_State]:
    """Of each change, in order. Of a key that names one row only its last state counts: the others led to it."""
    ordered, found = _ordered(lost), {image.digest for image in there}
    if not is_unique:
        return [_state_of_one(change, found) for change in ordered]
    last = ordered[-1].after
    earlier = {image.digest for c in ordered for image in (c.before, c.after) if image is not None}
    if found == ({last.digest} if last is not None else set()):
        state = _State.SAME
    elif found:
        state = _State.MISSING if found <= earlier else _State.OTHER
    else:
        state = _State.MISSING if ordered[0].before is None else _State.OTHER
    return [state] * len(ordered)


def _state_of_one(change: LostChange, found: set[bytes]) -> _State:
    if change.after is None:
        gone = change.before is None or change.before.digest not in found
        return _State.SAME if gone else _State.MISSING
    return _State.SAME if change.after.digest in found else _State.MISSING


def _ordered(lost: Sequence[LostChange]) -> list[LostChange]:
    return sorted(lost, key=lambda change: change.order)


def agree(entry: Values, image: Values) -> bool:
    """Whether an entry and a row have the same values in the compared columns."""
    return entry == image
