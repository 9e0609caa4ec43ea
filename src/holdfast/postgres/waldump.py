"""Reads what pg_waldump prints (PostgreSQL manual, "pg_waldump"): commits, and the tuples that each wrote.

The text differs a little between versions: `desc: MULTI_INSERT 3 tuples` (14, 15), `MULTI_INSERT ntuples: 3` (16 on).
"""

from __future__ import annotations

import re
from collections import defaultdict
from dataclasses import dataclass, field

from holdfast.model.lost import LostTransaction, Tuples
from holdfast.model.lsn import Lsn

_RECORD = re.compile(
    r"\Armgr: (?P<rmgr>\w+)\s+len .*?, tx:\s+(?P<xid>\d+), lsn: (?P<lsn>[0-9A-F]+/[0-9A-F]+), .*?desc: (?P<desc>.*)\Z"
)
_RELATION = re.compile(r"blkref #0: rel (\d+/\d+/\d+)")
_ENDED = re.compile(
    r"\A(?P<kind>COMMIT_PREPARED|COMMIT|PREPARE)(?: (?:(?P<gid>gid \S.*?|\d+): )?)(?P<at>\d{4}-\d\d-\d\d [\d:.]+ \w+)"
)
_SUBXIDS = re.compile(r"subxacts: ([\d ]+)")
_MANY = re.compile(r"(?:ntuples: )?(\d+)(?: tuples)?")
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
    _written: dict[int, dict[str, _Written]] = field(default_factory=lambda: defaultdict(dict))
    _prepared: dict[int, LostTransaction] = field(default_factory=dict)

    def take(self, line: str) -> None:
        """One line of the output; what is no record is passed over."""
        match = _RECORD.match(line)
        if match is None:
            return
        xid, desc = int(match["xid"]), match["desc"]
        if match["rmgr"] in ("Heap", "Heap2"):
            self._wrote(xid, desc)
        elif match["rmgr"] == "Transaction":
            self._ended(xid, Lsn.parse(match["lsn"]), desc)

    def transactions(self) -> tuple[LostTransaction, ...]:
        """Commits beyond the fork, in their order, then what was prepared there and is still open."""
        return (*self.ended, *self._prepared.values())

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

    def _ended(self, xid: int, lsn: Lsn, desc: str) -> None:
        match = _ENDED.match(desc)
        if match is None:
            if desc.startswith("ABORT_PREPARED"):
                self._prepared.pop(int(re.findall(r"\d+", desc)[0]), None)
            return
        gid = match["gid"]
        if match["kind"] == "COMMIT_PREPARED" and gid is not None:
            xid = int(gid)
        subxids = tuple(int(x) for x in found[1].split()) if (found := _SUBXIDS.search(desc)) else ()
        prepared = self._prepared.pop(xid, None)
        if lsn < self.fork:
            return
        name = gid.removeprefix("gid ") if match["kind"] == "PREPARE" and gid is not None else None
        subxids = subxids or (prepared.subxids if prepared is not None else ())
        lost = LostTransaction(xid, lsn, match["at"], subxids, name, self._relations(xid, subxids))
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
