"""What a capture takes, in which order, within which bounds; what it leaves out, and why. Values in, values out."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass, replace

from holdfast.core.observation import Observation
from holdfast.model.capture import Kind, LeftOut, Reason
from holdfast.model.register import Phase
from holdfast.model.report import VerdictKind
from holdfast.model.server import ServerStatus

ORDER = tuple(Kind)
CONTIGUOUS = frozenset({Kind.DIVERGENT_LOG, Kind.EARLIER_LOG})
"""Of these what comes after a gap is worth little: they are taken up to the first that does not fit."""
ESSENTIAL = frozenset({Kind.MOMENT, Kind.CONTROL, Kind.CONFIGURATION, Kind.HISTORY})
"""Small, and first: enough to say afterwards what the node was."""
TAILED = frozenset({Kind.SERVER_LOG})
"""Of these the end is taken if the whole does not fit."""
TAIL_BYTES_MIN = 64 * 1024
"""A shorter end of a server's log tells nothing."""


SPEED_KNOWN_BYTES = 16 * 1024 * 1024
"""Before so much was read nobody can say how long a file takes."""


@dataclass(frozen=True, slots=True)
class Candidate:
    """A file that could be taken; ``place`` counts within its kind, the most valuable has the lowest."""

    path: str
    kind: Kind
    size_bytes: int
    place: int = 0
    asked: bool = True
    secret: bool = False


@dataclass(frozen=True, slots=True)
class Item:
    """A file to take: ``size_bytes`` of it from ``offset`` on."""

    path: str
    kind: Kind
    size_bytes: int
    offset: int = 0


@dataclass(frozen=True, slots=True)
class Bounds:
    """``room_bytes`` is what the target has to spare. ``shares_blocks``: what is copied takes no room there."""

    bytes_max: int
    room_bytes: int
    server_log_bytes_max: int
    shares_blocks: bool = False


@dataclass(frozen=True, slots=True)
class Plan:
    """The files in the order in which they are taken, and what is left out."""

    items: tuple[Item, ...]
    left_out: tuple[LeftOut, ...]

    @property
    def size_bytes(self) -> int:
        """How much will be read."""
        return sum(item.size_bytes for item in self.items)


def plan(candidates: Iterable[Candidate], bounds: Bounds, *, essentials: bool = False) -> Plan:
    """The most valuable first, as much as fits. Every candidate is either an item or left out."""
    items: list[Item] = []
    left_out: list[LeftOut] = []
    taken = logs = 0
    ended: dict[Kind, Reason] = {}
    for candidate in sorted(candidates, key=lambda c: (ORDER.index(c.kind), c.place, c.path)):
        reason = _unwanted(candidate, essentials=essentials) or ended.get(candidate.kind)
        item = Item(candidate.path, candidate.kind, candidate.size_bytes)
        if reason is None:
            space, reason = _space(bounds, taken)
            if candidate.kind in TAILED and bounds.server_log_bytes_max - logs < space:
                space, reason = bounds.server_log_bytes_max - logs, Reason.NOT_ASKED
            if item.size_bytes <= space:
                reason = None
            elif candidate.kind in TAILED and space >= TAIL_BYTES_MIN:
                item = replace(item, offset=item.size_bytes - space, size_bytes=space)
                left_out.append(_left(candidate, reason, item.offset, "its beginning"))
                reason = None
        if reason is None:
            items.append(item)
            taken += item.size_bytes
            logs += item.size_bytes if item.kind in TAILED else 0
        else:
            left_out.append(_left(candidate, reason, candidate.size_bytes))
            if candidate.kind in CONTIGUOUS and reason in (Reason.BYTES, Reason.ROOM):
                ended[candidate.kind] = reason
    return Plan(tuple(items), gathered(left_out))


def _unwanted(candidate: Candidate, *, essentials: bool) -> Reason | None:
    if candidate.secret:
        return Reason.SECRET
    if not candidate.asked:
        return Reason.NOT_ASKED
    return Reason.TIME if essentials and candidate.kind not in ESSENTIAL else None


def _space(bounds: Bounds, taken: int) -> tuple[int, Reason]:
    """How much may still be taken, and what to say of what does not fit."""
    by_bytes = bounds.bytes_max - taken
    by_room = by_bytes if bounds.shares_blocks else bounds.room_bytes - taken
    return (by_bytes, Reason.BYTES) if by_bytes <= by_room else (by_room, Reason.ROOM)


def _left(candidate: Candidate, reason: Reason, size_bytes: int, detail: str = "") -> LeftOut:
    return LeftOut(candidate.path, candidate.kind, reason, 1, size_bytes, detail)


def gathered(left_out: Sequence[LeftOut], listed_max: int = 5) -> tuple[LeftOut, ...]:
    """The same with many of a kind, left out for one reason, told as one: a manifest is read by people."""
    groups: dict[tuple[Kind, Reason], list[LeftOut]] = {}
    for one in left_out:
        groups.setdefault((one.kind, one.reason), []).append(one)
    found: list[LeftOut] = []
    for (kind, reason), group in groups.items():
        files = sum(one.files for one in group)
        if files <= listed_max:
            found += group
            continue
        size_bytes = sum(one.size_bytes for one in group)
        detail = next((one.detail for one in group if one.detail and one.files == 1), "")
        found.append(LeftOut(f"{group[0].what} and others", kind, reason, files, size_bytes, detail))
    return tuple(found)


def fits_in_time(item: Item, elapsed_s: float, read_bytes: int, seconds: float) -> bool:
    """Whether to begin with a file: it would be done in time at the speed so far, which small files do not show."""
    left_s = seconds - elapsed_s
    if left_s <= 0:
        return False
    if read_bytes < SPEED_KNOWN_BYTES:
        return True
    return item.size_bytes * elapsed_s / read_bytes <= left_s


def to_remove(kept: Sequence[tuple[str, int, bool]], keep: int, keep_bytes: int) -> tuple[str, ...]:
    """Which captures go: ``kept`` has name, size and whether it is ended, oldest first. The newest always stays.

    One that is not ended stays too, unless as many newer ones are there: it may be resumed.
    """
    gone: list[str] = []
    total_bytes = 0
    for count, (name, size_bytes, ended) in enumerate(reversed(kept)):
        total_bytes += size_bytes
        is_resumable = not ended and count < keep
        if count > 0 and not is_resumable and (count >= keep or total_bytes > keep_bytes):
            gone.append(name)
    return tuple(reversed(gone))


def trouble_of(o: Observation, before: Observation | None) -> str | None:
    """Why to note at once what changes from one moment to the next: a primary here is in trouble; None if it is not.

    ``before`` is the former look: what was so already is not told again. A primary that hands over is in no trouble.
    """
    register = o.register
    if register is None or register.handover is not None:
        return None
    was_primary = before is not None and before.server.status is ServerStatus.PRIMARY
    is_primary = o.server.status is ServerStatus.PRIMARY
    if was_primary and o.server.status is ServerStatus.STOPPED:
        return "the primary has ended"
    if was_primary and o.server.status is ServerStatus.UNRESPONSIVE:
        return "the primary does not answer"
    if not is_primary:
        return None
    held_for = _own_trouble(o)
    if o.verdict is not None and held_for is not None and (before is None or _own_trouble(before) != held_for):
        return f"the primary is held for {held_for.value}: {o.verdict.evidence}"
    known = before is not None and before.register is not None and before.register.epoch == register.epoch
    if register.phase is Phase.RECRUITING and register.committed.leader == o.member and not known:
        return f"epoch {register.epoch} was opened against this primary"
    return None


def _own_trouble(o: Observation) -> VerdictKind | None:
    is_own = o.verdict is not None and o.verdict.about == o.member and o.verdict.is_trouble
    return o.verdict.kind if o.verdict is not None and is_own else None


def is_awaited(o: Observation) -> bool:
    """Whether clients wait for this node: a candidate may need it, or the leader has too few members that stream."""
    register = o.register
    if register is None or register.phase is not Phase.SERVING or register.leader is None:
        return True
    peer = o.peers.get(register.leader.node)
    report = peer.report if peer is not None else None
    quorum = register.committed.quorum
    if report is None or report.member != register.leader:
        return False
    streaming = {r.member for r in report.replicas if r.state == "streaming"}
    return o.member in quorum.members and len(streaming & quorum.members) < quorum.k
