"""Reads what pg_waldump prints (PostgreSQL manual, "pg_waldump"): commits, and the tuples that each wrote.

The text differs a little between versions: `desc: MULTI_INSERT 3 tuples` (14, 15), `MULTI_INSERT ntuples: 3` (16 on).
"""

from __future__ import annotations

import re
from collections import defaultdict
from dataclasses import dataclass, field, replace

from holdfast.model.lost import LostTransaction, Tuples
from holdfast.model.lsn import Lsn
from holdfast.model.owner import Owner
from holdfast.model.token import PREFIX, Mark, is_own_token
from holdfast.postgres.rowwrites import PackedWrites, RelationNames, RowWrite, tuples_of

WRITES_MAX = 300_000
"""More tuples than this are counted, but not remembered one by one: 56 bytes each."""

_RECORD = re.compile(
    r"\Armgr: (?P<rmgr>\w+)\s+len .*?, tx:\s+(?P<xid>\d+), lsn: (?P<lsn>[0-9A-F]+/[0-9A-F]+), .*?desc: (?P<desc>.*)\Z"
)
_RELATION = re.compile(r"blkref #0: rel (\d+/\d+/\d+)")
_ENDED = re.compile(
    r"\A(?P<kind>COMMIT_PREPARED|COMMIT|PREPARE)(?: (?:(?P<gid>gid \S.*?|\d+): )?)(?P<at>\d{4}-\d\d-\d\d [\d:.]+ \w+)"
)
_ABORTED = re.compile(r"\AABORT(?:_PREPARED (?:gid )?(\d+)\b)?")
_NEXT_XID = re.compile(r"\ARUNNING_XACTS nextXid (\d+)|\bxid \d+:(\d+); oid")
_SUBXIDS = re.compile(r"subxacts: ([\d ]+)")
_MANY = re.compile(r"(?:ntuples: )?(\d+)(?: tuples)?")
_MESSAGE = re.compile(
    rf"tx:\s+(?P<xid>\d+), lsn: (?P<lsn>[0-9A-F]+/[0-9A-F]+), .*?desc: MESSAGE (?P<non>non-)?transactional, "
    rf'prefix "{PREFIX}"; '
    r"payload \(\d+ bytes\): (?P<bytes>[0-9A-F ]*)"
)
_XIDS = 1 << 32
"""Ids of 32 bits come round again; of two the later one is less than half the circle ahead."""
_KINDS = {"INSERT": "inserted", "UPDATE": "updated", "HOT_UPDATE": "updated", "DELETE": "deleted"}


@dataclass(slots=True)
class _Written:
    inserted: int = 0
    updated: int = 0
    deleted: int = 0


@dataclass(slots=True)
class DivergentLog:
    """Takes the lines one by one; what lies before ``fork`` counts only as part of what is committed beyond it."""

    fork: Lsn
    ended: list[LostTransaction] = field(default_factory=list)
    next_record: dict[Lsn, Lsn] = field(default_factory=dict)
    """Where the record after each commit in ``ended`` begins; the last one of a log has none."""
    too_many: bool = False
    """Whether there were more than WRITES_MAX tuples at a time, so that ``writes_of`` knows nothing."""
    next_xid: int | None = None
    """One more than the newest id that the log beyond the fork names, whatever became of it; None: it names none."""
    first_seen_xid: int | None = None
    """All of the writing of this transaction, and of later ones, was read; None: it is not known of any."""
    _order: int = 0
    _remembered: int = 0
    _writes: dict[int, PackedWrites] = field(default_factory=dict)
    _names: RelationNames = field(default_factory=RelationNames)
    _written: dict[int, dict[str, _Written]] = field(default_factory=lambda: defaultdict(dict))
    _prepared: dict[int, LostTransaction] = field(default_factory=dict)
    _open: dict[int, str] = field(default_factory=dict)
    _owners: dict[int, Owner] = field(default_factory=dict)
    _tokens: dict[int, list[str]] = field(default_factory=dict)

    def take(self, line: str) -> None:
        """One line of the output; what is no record is passed over."""
        match = _RECORD.match(line)
        if match is None:
            return
        xid, desc, lsn = int(match["xid"]), match["desc"], Lsn.parse(match["lsn"])
        self._order += 1
        if self.ended and self.ended[-1].lsn not in self.next_record and lsn > self.ended[-1].lsn:
            self.next_record[self.ended[-1].lsn] = lsn
        found = _NEXT_XID.search(desc) if match["rmgr"] in ("Standby", "XLOG") else None
        if lsn >= self.fork:
            self._named(int(found[1] or found[2]) - 1 if found else xid)
        if match["rmgr"] in ("Heap", "Heap2"):
            self._wrote(xid, desc)
        elif self.first_seen_xid is None and found:
            self.first_seen_xid = int(found[1] or found[2])
        elif match["rmgr"] == "Transaction":
            self._ended(xid, lsn, desc)
        elif match["rmgr"] == "LogicalMessage":
            self._marked(line)

    def transactions(self) -> tuple[LostTransaction, ...]:
        """Commits beyond the fork, in their order, then what was prepared there and is still open."""
        found = (*self.ended, *self._prepared.values())
        return tuple(replace(t, is_partial=self._may_have_begun_earlier(t)) for t in found)

    def writes_of(self, transaction: LostTransaction) -> list[RowWrite]:
        """What a listed transaction wrote, its subtransactions included, in the order of the log."""
        writers = (transaction.xid, *transaction.subxids)
        found = [write for xid in writers if xid in self._writes for write in self._writes[xid].of(xid)]
        return sorted(found, key=lambda write: write.order)

    def _marked(self, line: str) -> None:
        if (marked := mark_in(line)) is not None:
            self._owners[marked[0]] = marked[2].owner
        elif (given := own_token_in(line)) is not None and given[0] is not None:
            self._tokens.setdefault(given[0], []).append(given[1])

    def _named(self, xid: int) -> None:
        if xid == 0:
            return
        following = (xid + 1) % _XIDS
        if self.next_xid is None or (following - self.next_xid) % _XIDS < _XIDS // 2:
            self.next_xid = following

    def _may_have_begun_earlier(self, transaction: LostTransaction) -> bool:
        """Whether the transaction may have written before what was read of the log."""
        return self.first_seen_xid is None or transaction.xid < self.first_seen_xid

    def _wrote(self, xid: int, desc: str) -> None:
        relation = _RELATION.search(desc)
        operation, _, rest = desc.partition(" ")
        operation = operation.removesuffix("+INIT")
        many = _MANY.match(rest) if operation == "MULTI_INSERT" else None
        kind = "inserted" if many is not None else _KINDS.get(operation)
        if relation is None or kind is None or xid == 0:
            return
        written = self._written[xid].setdefault(relation[1], _Written())
        setattr(written, kind, getattr(written, kind) + (int(many[1]) if many is not None else 1))
        self._remember(xid, operation, desc)

    def _remember(self, xid: int, operation: str, desc: str) -> None:
        if self.too_many:
            return
        for old, new in tuples_of(operation, desc):
            if xid not in self._writes:
                self._writes[xid] = PackedWrites(self._names)
            self._writes[xid].append(RowWrite(self._order, xid, old, new))
            self._remembered += 1
        if self._remembered > WRITES_MAX:
            self.too_many = True
            self._writes.clear()

    def _forget(self, xids: tuple[int, ...]) -> None:
        for xid in xids:
            self._owners.pop(xid, None)
            self._tokens.pop(xid, None)
            self._written.pop(xid, None)
            self._remembered -= len(self._writes.pop(xid, ()))

    def _ended(self, xid: int, lsn: Lsn, desc: str) -> None:
        match = _ENDED.match(desc)
        if match is None:
            if aborted := _ABORTED.match(desc):
                xid = int(aborted[1]) if aborted[1] else xid
                self._prepared.pop(xid, None)
                self._forget((xid, *_subxids(desc)))
            return
        gid = match["gid"]
        if match["kind"] == "COMMIT_PREPARED" and gid is not None:
            xid = int(gid)
        subxids = _subxids(desc)
        prepared = self._prepared.pop(xid, None)
        name = gid.removeprefix("gid ") if match["kind"] == "PREPARE" and gid is not None else None
        if lsn < self.fork:
            if match["kind"] != "PREPARE":
                self._forget((xid, *subxids))
            elif name is not None:
                self._open[xid] = name
            return
        subxids = subxids or (prepared.subxids if prepared is not None else ())
        lost = LostTransaction(
            xid, lsn, match["at"], subxids, name, self._relations(xid, subxids), self._open.get(xid),
            owner=next((self._owners[x] for x in (xid, *subxids) if x in self._owners), None),
            tokens=tuple(token for x in (xid, *subxids) for token in self._tokens.get(x, ())),
        )  # fmt: skip
        if match["kind"] == "PREPARE":
            self._prepared[xid] = lost
        else:
            self.ended.append(lost)

    def _relations(self, xid: int, subxids: tuple[int, ...]) -> dict[str, Tuples]:
        total: dict[str, _Written] = {}
        for writer in (xid, *subxids):
            for relation, written in self._written.get(writer, {}).items():
                sum_ = total.setdefault(relation, _Written())
                sum_.inserted += written.inserted
                sum_.updated += written.updated
                sum_.deleted += written.deleted
        return {name: Tuples(w.inserted, w.updated, w.deleted) for name, w in sorted(total.items())}


def mark_in(line: str) -> tuple[int, Lsn, Mark] | None:
    """The mark that a line of pg_waldump shows, with its xid and where it is; None: it shows none of ours."""
    match = _MESSAGE.search(line)
    if match is None or match["non"]:
        return None
    mark = Mark.from_text(bytes.fromhex(match["bytes"]).decode(errors="replace"))
    return None if mark is None else (int(match["xid"]), Lsn.parse(match["lsn"]), mark)


def own_token_in(line: str) -> tuple[int | None, str] | None:
    """The token of an application that a line of pg_waldump shows, with its xid; None: it shows none.

    The xid is None for a message that belongs to no transaction.
    """
    match = _MESSAGE.search(line)
    if match is None:
        return None
    text = bytes.fromhex(match["bytes"]).decode(errors="replace")
    if not is_own_token(text) or Mark.from_text(text) is not None:
        return None
    return (None if match["non"] else int(match["xid"])), text


def _subxids(desc: str) -> tuple[int, ...]:
    found = _SUBXIDS.search(desc)
    return tuple(int(x) for x in found[1].split()) if found else ()
