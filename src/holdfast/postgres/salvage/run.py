"""Salvage from the beginning to the end: copy, start, read step by step, write rows and script, remove the copy."""

from __future__ import annotations

import asyncio
import json
import os
import shutil
import time
from collections import Counter, defaultdict
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass, field, replace
from hashlib import blake2b
from itertools import groupby
from pathlib import Path
from typing import NamedTuple, TextIO
from urllib.parse import quote

import psycopg
import structlog

from holdfast.model.errors import EnvironmentFault, PostgresError
from holdfast.model.lost import SCRIPT, LostLog, LostTransaction, Salvage
from holdfast.model.lsn import Lsn
from holdfast.model.rows import RowChange, Table
from holdfast.postgres.control import ControlFile
from holdfast.postgres.instance import Instance
from holdfast.postgres.layout import free_bytes
from holdfast.postgres.rowwrites import ANYWHERE, Place
from holdfast.postgres.salvage import script
from holdfast.postgres.salvage.copy import IsolatedCopy
from holdfast.postgres.salvage.steps import Change, Changes, Step, net_changes, steps_of
from holdfast.postgres.salvage.tables import Reader, Tuple
from holdfast.postgres.waldump import WRITES_MAX, DivergentLog

_log = structlog.get_logger(__name__)
_ROWS_DIR = "rows"
_NAME_BYTES_MAX = 200
ROWS_BYTES_MAX = 1024**3
"""More rows than this are not written: on one disk with the node they would keep it from coming back."""
_STATISTICS = ("pg_catalog.pg_statistic", "pg_catalog.pg_statistic_ext_data")
Progress = Callable[[str, float | None], None]


async def salvage(
    instance: Instance, lost: LostLog, log: DivergentLog, control: ControlFile, progress: Progress
) -> LostLog:
    """Read the rows of the transactions of ``lost`` into its directory of evidence, within ``salvage_ms``.

    Returns the account with names for relations and with what came of it; whatever goes wrong is told in it.
    """
    began_at, limit_ms = time.monotonic(), instance.timeouts.salvage_ms
    work = _Salvage(instance, lost, log, control, progress)
    failure = ""
    try:
        async with asyncio.timeout(limit_ms / 1000):
            await work.run()
    except TimeoutError:
        failure = f"it took longer than timeouts.salvage_ms = {limit_ms}: the rest of the rows was not read"
    except (PostgresError, EnvironmentFault, OSError, psycopg.Error) as error:
        failure = str(error).strip()
    finally:
        await asyncio.shield(work.copy.close())
    if failure:
        _log.error("rows.not-salvaged", node=instance.node, error=failure)
        work.notes.append(f"{failure}. The log is kept in {lost.evidence_dir}/pg_wal")
    took_ms = round((time.monotonic() - began_at) * 1000)
    notes = tuple(work.all_notes())
    found = Salvage(not notes, work.rows, dict(sorted(work.files.items())), notes, took_ms)
    return replace(lost, transactions=tuple(_renamed(t, work.reader.names) for t in lost.transactions), salvage=found)


def _renamed(transaction: LostTransaction, names: dict[str, str]) -> LostTransaction:
    return replace(transaction, relations={names.get(key, key): n for key, n in transaction.relations.items()})


@dataclass(slots=True)
class _Salvage:
    instance: Instance
    lost: LostLog
    log: DivergentLog
    control: ControlFile
    progress: Progress
    copy: IsolatedCopy = field(init=False)
    reader: Reader = field(init=False)
    rows: int = 0
    files: dict[str, str] = field(default_factory=dict)
    notes: list[str] = field(default_factory=list)
    missing: Counter[str] = field(default_factory=Counter)
    _database: str | None = None
    _directory: Path = field(init=False)
    _room_bytes: int = 0

    def __post_init__(self) -> None:
        self.copy = IsolatedCopy(self.instance, self.lost.timeline, self.control.segment_bytes)
        self.reader = Reader(self.copy)
        self._directory = Path(self.lost.evidence_dir)

    async def run(self) -> None:
        """Raises TimeoutError from outside, PostgresError, EnvironmentFault, OSError and psycopg.Error."""
        if self.log.too_many:
            raise PostgresError(f"more than {WRITES_MAX:,} tuples were written: too many to be read one by one")
        clients = self.lost.of_clients
        early = [t.xid for t in clients if t.is_partial]
        if early:
            self.notes.append(f"transactions {early} may have written more, before what was read of the log")
        committed = [t for t in clients if t.prepared_as is None]
        prepared = [t for t in clients if t.prepared_as is not None]
        first = self._first_stop(committed)
        await asyncio.to_thread(self._begin_files)
        self.progress("copying the data directory to read lost rows", None)
        await self.copy.make(self.control.redo, first)
        await self.copy.start()
        done = 0
        for step in steps_of(self._changes_of(committed), self.log.next_record, first, self.lost.end_lsn):
            self.progress("reading lost rows", done / len(committed))
            await self._take(step)
            done += len(step.transactions)
        if prepared:
            await self._take_prepared(list(self._changes_of(prepared)))

    def _changes_of(self, transactions: Iterable[LostTransaction]) -> Iterator[Changes]:
        """One by one: those of all of them need ten times the memory of what they are made from."""
        for each in transactions:
            yield net_changes(each, self.log.writes_of(each))

    def _first_stop(self, committed: Sequence[LostTransaction]) -> Lsn:
        """The earliest position at which the copy is consistent: the fork, unless a checkpoint came later."""
        needed = max(self.control.checkpoint, self.control.minimum_end)
        if self.lost.fork_lsn > needed:
            return self.lost.fork_lsn
        ends = [self.log.next_record.get(each.lsn, self.lost.end_lsn) for each in committed]
        return min((end for end in ends if end > needed), default=self.lost.end_lsn)

    async def _take(self, step: Step) -> None:
        befores = await self._befores(step.transactions) if step.has_before else {}
        await self.copy.show(step.limit, step.last_commit)
        if any(c.writes_catalog for c in step.transactions):
            self.reader.forget()
        await self._write(step.transactions, befores)

    async def _take_prepared(self, prepared: Sequence[Changes]) -> None:
        """They are still open: what they wrote can be seen once the copy, which nobody needs any more, commits them."""
        await self.copy.show(self.lost.end_lsn, Lsn(max(c.transaction.lsn for c in prepared)))
        befores = await self._befores(prepared)
        await self.copy.promote()
        session = await self.copy.connect("postgres")
        databases: dict[str, str] = dict(
            await (await session.execute("SELECT gid, database FROM pg_prepared_xacts")).fetchall()
        )
        for each in prepared:
            gid = str(each.transaction.prepared_as)
            if gid in databases:
                session = await self.copy.connect(databases[gid])
                await session.execute(f"COMMIT PREPARED {script.literal(gid)}".encode())
        await self._write(prepared, befores)

    async def _befores(self, transactions: Sequence[Changes]) -> dict[Place, Tuple]:
        places = [c.before for each in transactions for c in each.changes if c.before is not None]
        return {t.place: t for t in await self.reader.read(places)}

    async def _write(self, transactions: Sequence[Changes], befores: dict[Place, Tuple]) -> None:
        places = [c.after for each in transactions for c in each.changes if c.after is not None]
        found = _Found(befores, await self.reader.read(places))
        for each in transactions:
            catalog: set[str] = set()
            changes: list[RowChange] = []
            for change in each.changes:
                place = change.after or change.before
                assert place is not None
                table = await self.reader.table(place)
                if table is None and (name := self.reader.names.get(place.relation, "")).count("pg_catalog."):
                    catalog.add(name.split(".", 1)[1])
                images = (image.change(table) for image in found.images(each, change))
                changes += [image for image in images if image is not None]
            await asyncio.to_thread(self._write_files, each.transaction, changes, catalog - set(_STATISTICS))

    # -- files -------------------------------------------------------------------------------------------------------

    def _begin_files(self) -> None:
        shutil.rmtree(self._directory / _ROWS_DIR, ignore_errors=True)
        (self._directory / _ROWS_DIR).mkdir(mode=0o700)
        path = self._directory / SCRIPT
        path.unlink(missing_ok=True)
        with _append(path) as file:
            file.write(script.head(self.lost))
        self._room_bytes = min(ROWS_BYTES_MAX, free_bytes(self._directory) // 2)

    def _write_files(self, lost: LostTransaction, changes: Sequence[RowChange], catalog: set[str]) -> None:
        self._require_room()
        for table, of_table in groupby(changes, key=lambda change: change.table):
            name = self.files.setdefault(table.full_name, f"{_ROWS_DIR}/{_file_name(table)}")
            with _append(self._directory / name) as file:
                for change in of_table:
                    self._keep(file, lost, change)
        with _append(self._directory / SCRIPT) as file:
            database = changes[0].table.database if changes else self._database
            if database is not None and database != self._database:
                self._database = database
                file.write(script.in_database(database))
            notes = [f"it also changed {', '.join(sorted(catalog))}"] if catalog else []
            for line in script.transaction(lost, changes, notes, has_ddl=bool(catalog)):
                self._room_bytes -= file.write(f"{line}\n")

    def _keep(self, file: TextIO, lost: LostTransaction, change: RowChange) -> None:
        table = change.table.full_name
        if change.missing is not None:
            self.missing[f"{table}: the row {change.missing} {_article(change.kind)}"] += 1
        self.rows += 1
        line = {
            "xid": lost.xid,
            "committed_at": lost.committed_at,
            "prepared_as": lost.prepared_as,
            "change": change.kind,
            "partition": change.table.partition,
            "before": None if change.before is None else dict(change.before),
            "after": None if change.after is None else dict(change.after),
        }
        self._room_bytes -= file.write(json.dumps(line) + "\n")

    def _require_room(self) -> None:
        if self._room_bytes <= 0:
            raise EnvironmentFault(
                f"there is room for no more of the rows in {self._directory}, of which they may take half, and "
                f"{ROWS_BYTES_MAX:,} bytes at most: the rest was not written"
            )

    def all_notes(self) -> list[str]:
        """Everything that is missing, for people."""
        return [
            *self.notes,
            *(f"{what} is not known any more, {count} times" for what, count in self.missing.items()),
            *(f"database {number} takes no sessions: its rows were not read" for number in self.reader.unreadable),
        ]


class _Found:
    """The tuples of a step, before and after."""

    def __init__(self, befores: dict[Place, Tuple], seen: Sequence[Tuple]) -> None:
        self._befores = befores
        self._seen = {t.place: t for t in seen}
        self._in_block: dict[Place, list[Tuple]] = defaultdict(list)
        for each in seen:
            self._in_block[each.place._replace(offset=ANYWHERE)].append(each)

    def images(self, each: Changes, change: Change) -> list[_Images]:
        """Of one change; several for inserts of which only the block is known."""
        before = self._befores.get(change.before) if change.before is not None else None
        missing = "before" if change.before is not None and before is None and not change.is_vague else None
        if change.after is None:
            return [] if before is None and missing is None else [_Images(before, None, missing)]
        if change.after.offset == ANYWHERE:
            exact = {c.after for c in each.changes}
            written = [t for t in self._in_block[change.after] if t.xmin == change.xid and t.place not in exact]
            return [_Images(None, t, None) for t in written]
        after = self._seen.get(change.after)
        if after is None or after.xmin != change.xid:
            return [_Images(before, None, "after")]
        return [_Images(before, after, missing)]


class _Images(NamedTuple):
    before: Tuple | None
    after: Tuple | None
    missing: str | None

    def change(self, table: Table | None) -> RowChange | None:
        """As a change of a table; None for what lies in no table of the users."""
        known = self.before or self.after
        table = known.table if known is not None else table
        if table is None:
            return None
        before, after = (image.row if image is not None else None for image in (self.before, self.after))
        return RowChange(table, before, after, self.missing)


def _append(path: Path) -> TextIO:
    """For its owner's eyes only, from the first byte on."""
    descriptor = os.open(path, os.O_WRONLY | os.O_CREAT | os.O_APPEND | os.O_NOFOLLOW, 0o600)
    return os.fdopen(descriptor, "a", encoding="utf-8", errors="surrogateescape")


def _article(kind: str) -> str:
    return "of an insert" if kind == "insert" else f"of {'an' if kind == 'update' else 'a'} {kind}"


def _file_name(table: Table) -> str:
    name = ".".join(quote(part, safe="") for part in (table.database, table.schema, table.name))
    if len(name) > _NAME_BYTES_MAX:
        name = f"{name[:_NAME_BYTES_MAX]}-{blake2b(name.encode(), digest_size=8).hexdigest()}"
    return f"{name}.jsonl"
