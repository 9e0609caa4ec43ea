"""Compares the rows of a cluster's standbys with the primary's, while everything goes on (docs/parity.md)."""

from __future__ import annotations

import asyncio
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import AsyncExitStack
from dataclasses import dataclass, field

from holdfast.core.parity import Difference, compare, look_of
from holdfast.local.cluster import LocalCluster
from holdfast.local.orders import order
from holdfast.model.errors import ConfigurationError, HoldfastError, PostgresError
from holdfast.model.parity import Mismatch, Parity
from holdfast.postgres.parity import Chunk, ComparedTable, Side, SideLost

CHUNKS_AT_ONCE = 16
"""So many chunks of the primary are summed up before the standby is waited for once."""
_LOOKS_MAX = 4
_BETWEEN_LOOKS_S = 0.3
_KEYS_SHOWN = 5


@dataclass(frozen=True, slots=True)
class Pace:
    """How much of a server's time may be taken: 0.25 means a pause of three seconds after one second of work."""

    share: float

    async def rest(self, worked_s: float) -> None:
        """Pause after work."""
        await asyncio.sleep(worked_s * (1 - self.share) / self.share)


@dataclass(frozen=True, slots=True)
class Progress:
    """How far the comparison of a node is: in bytes of the primary's tables."""

    node: str
    table: str
    done_bytes: int
    total_bytes: int


async def compare_standbys(
    cluster: LocalCluster,
    nodes: Sequence[str],
    tables: Sequence[str],
    pace: Pace,
    *,
    check_indexes: bool,
    progress: Callable[[Progress], None],
) -> list[Parity]:
    """Compare some standbys, or all of them, one after the other.

    ``tables`` (``database.schema.table``) limits what is compared. Raises ConfigurationError for a node or a table that
    is not there, HoldfastError if no primary serves or a node cannot be compared.
    """
    register = await cluster.register()
    if register is None or register.leader is None:
        raise HoldfastError("no primary serves, and there is nothing to compare with: `holdfast status` says why")
    primary = register.leader.node
    standbys = [name for name in cluster.nodes if name != primary]
    for name in nodes:
        if name not in standbys:
            what = "the primary" if name == primary else "no node of this cluster"
            raise ConfigurationError(f"{name} is {what}; the standbys are {', '.join(standbys)}")
    return [
        await _Comparison(cluster, primary, node, register.committed.epoch, pace, check_indexes, progress).run(tables)
        for node in nodes or standbys
    ]


async def take_out_of_reads(cluster: LocalCluster, node: str) -> str:
    """Let no client read from a node any more, until a person says otherwise; raises HoldfastError."""
    return await order(cluster, "/policy", {"nodes": {node: {"readable": False}}})


@dataclass(slots=True)
class _Comparison:
    cluster: LocalCluster
    primary_name: str
    node: str
    timeline: int
    pace: Pace
    check_indexes: bool
    progress: Callable[[Progress], None]
    _tables: int = 0
    _rows: int = 0
    _done_bytes: int = 0
    _total_bytes: int = 0
    _undecided: int = 0
    _indexes: int = 0
    _mismatches: list[Mismatch] = field(default_factory=list)
    _skipped: list[str] = field(default_factory=list)
    _broken: list[str] = field(default_factory=list)

    async def run(self, wanted: Sequence[str]) -> Parity:
        began_s = time.monotonic()
        try:
            work = await self._work(wanted)
            primary_lsn, replayed_lsn = await self._positions()
            for database, tables in work.items():
                async with AsyncExitStack() as stack:
                    primary, standby = await self._sides(stack, database)
                    for table in tables:
                        await self._table(primary, standby, table)
        except PostgresError as error:
            raise HoldfastError(f"{self.node} could not be compared with {self.primary_name}: {error}") from error
        return Parity(
            self.node, self.primary_name, self.timeline, primary_lsn, replayed_lsn, self._tables, self._rows,
            self._done_bytes, round(time.monotonic() - began_s, 3), tuple(self._mismatches), self._undecided,
            tuple(self._skipped), self._indexes, tuple(self._broken),
        )  # fmt: skip

    async def _sides(self, stack: AsyncExitStack, database: str) -> tuple[Side, Side]:
        primary = await stack.enter_async_context(Side.open(self.cluster.superuser_dsn(self.primary_name, database)))
        standby = await stack.enter_async_context(Side.open(self.cluster.superuser_dsn(self.node, database)))
        return primary, standby

    async def _work(self, wanted: Sequence[str]) -> dict[str, list[ComparedTable]]:
        found: dict[str, list[ComparedTable]] = {}
        async with Side.open(self.cluster.superuser_dsn(self.primary_name, "postgres")) as side:
            databases = await side.databases()
        for database in databases:
            async with Side.open(self.cluster.superuser_dsn(self.primary_name, database)) as side:
                there = await side.tables(database)
                found[database] = [t for t in there if not wanted or str(t) in wanted]
                block_bytes = await side.block_bytes()
        named = {str(table) for tables in found.values() for table in tables}
        missing = [name for name in wanted if name not in named]
        if missing:
            raise ConfigurationError(
                f"--table {missing[0]}: there is no such table (it is named DATABASE.SCHEMA.TABLE; foreign, unlogged "
                "and temporary tables have no rows to compare)"
            )
        self._total_bytes = sum(max(t.blocks, 1) * block_bytes for tables in found.values() for t in tables)
        return {database: tables for database, tables in found.items() if tables}

    async def _positions(self) -> tuple[str, str]:
        async with AsyncExitStack() as stack:
            primary, standby = await self._sides(stack, "postgres")
            return str(await primary.written_lsn()), str(await standby.replayed_lsn())

    async def _table(self, primary: Side, standby: Side, table: ComparedTable) -> None:
        found = Difference()
        try:
            for chunks in _grouped(table.chunks()):
                for chunk in await self._unequal(primary, standby, table, chunks):
                    found.add(await self._look_closely(primary, standby, table, chunk))
            if self.check_indexes:
                await self._check_indexes(standby, table)
        except SideLost:
            raise
        except PostgresError as error:
            self._skipped.append(f"{table}: {await self._why_not(primary, standby, table) or error}")
            return
        changed = await self._why_not(primary, standby, table) if found else None
        if changed is not None:
            self._skipped.append(f"{table}: {changed}")
            return
        self._tables += 1
        self._undecided += found.undecided
        if found:
            self._mismatches.append(_mismatch(table, found))

    async def _unequal(self, primary: Side, standby: Side, table: ComparedTable, chunks: list[Chunk]) -> list[Chunk]:
        """The chunks whose sums differ from the primary's before and after."""
        began_s = time.monotonic()
        before = [await primary.sum_up(table, chunk) for chunk in chunks]
        await standby.replayed(await primary.written_lsn(), self._patience_s)
        unequal = []
        for chunk, here in zip(chunks, before, strict=True):
            there = await standby.sum_up(table, chunk)
            if there != here and there != await primary.sum_up(table, chunk):
                unequal.append(chunk)
            self._rows += here.rows
            self._done_bytes += here.size_bytes
        self.progress(Progress(self.node, str(table), min(self._done_bytes, self._total_bytes), self._total_bytes))
        await self.pace.rest(time.monotonic() - began_s)
        return unequal

    async def _look_closely(self, primary: Side, standby: Side, table: ComparedTable, chunk: Chunk) -> Difference:
        """Row by row, more than once: what differs stays so."""
        found: Difference | None = None
        for _ in range(_LOOKS_MAX):
            before, oldest_running = await primary.versions(table, chunk)
            await standby.replayed(await primary.written_lsn(), self._patience_s)
            there, _unused = await standby.versions(table, chunk)
            after, _unused = await primary.versions(table, chunk)
            now = compare(look_of(before), oldest_running, look_of(there), look_of(after))
            if not now and not now.undecided:
                return now
            both = now if found is None else found.also_in(now)
            if found is not None and both:
                return both
            found = both
            await asyncio.sleep(_BETWEEN_LOOKS_S)
        assert found is not None
        return Difference(undecided=found.undecided)

    async def _check_indexes(self, standby: Side, table: ComparedTable) -> None:
        checked = await standby.check_indexes(table)
        if checked is None:
            words = f"{table.database}: indexes are not checked: run CREATE EXTENSION amcheck there"
            if words not in self._skipped:
                self._skipped.append(words)
            return
        self._indexes += checked[0]
        self._broken += checked[1]

    async def _why_not(self, primary: Side, standby: Side, table: ComparedTable) -> str | None:
        """Why a table cannot be compared by its places; None if nothing speaks against it."""
        if await primary.is_same(table) and await standby.is_same(table):
            return None
        return "was dropped, truncated or rewritten meanwhile"

    @property
    def _patience_s(self) -> float:
        return self.cluster.timeouts.local_replay_ms / 1000


def _grouped(chunks: list[Chunk]) -> Iterator[list[Chunk]]:
    for at in range(0, len(chunks), CHUNKS_AT_ONCE):
        yield chunks[at : at + CHUNKS_AT_ONCE]


def _mismatch(table: ComparedTable, found: Difference) -> Mismatch:
    versions = found.all()
    return Mismatch(
        table=str(table),
        missing=len(found.missing),
        extra=len(found.extra),
        different=len(found.different),
        first_block=versions[0].block,
        last_block=versions[-1].block,
        keys=tuple(map(str, versions[:_KEYS_SHOWN])),
    )
