"""Compares the rows of a cluster's standbys with the primary's, while everything goes on (docs/parity.md)."""

from __future__ import annotations

import asyncio
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import AbstractAsyncContextManager, AsyncExitStack
from dataclasses import dataclass, field

from holdfast.core.parity import Difference, Looks, compare, look_of, range_of
from holdfast.local.cluster import LocalCluster
from holdfast.local.orders import order
from holdfast.model.errors import ConfigurationError, HoldfastError, PostgresError
from holdfast.model.parity import Damage, Mismatch, Parity
from holdfast.postgres.parity import CannotCompare, Chunk, ComparedTable, Damaged, Side

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
    """How far the comparison of a node is, in blocks of the primary's tables."""

    node: str
    table: str
    done_blocks: int
    total_blocks: int


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
    _done_blocks: int = 0
    _total_blocks: int = 0
    _block_bytes: int = 0
    _undecided: int = 0
    _indexes: int = 0
    _mismatches: list[Mismatch] = field(default_factory=list)
    _skipped: list[str] = field(default_factory=list)
    _damage: list[Damage] = field(default_factory=list)

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
            self._done_blocks * self._block_bytes, round(time.monotonic() - began_s, 3), tuple(self._mismatches),
            self._undecided, tuple(self._skipped), self._indexes, tuple(self._damage),
        )  # fmt: skip

    async def _sides(self, stack: AsyncExitStack, database: str) -> tuple[Side, Side]:
        primary = await stack.enter_async_context(self._side(self.primary_name, database))
        standby = await stack.enter_async_context(self._side(self.node, database))
        return primary, standby

    def _side(self, node: str, database: str) -> AbstractAsyncContextManager[Side]:
        return Side.open(node, self.cluster.superuser_dsn(node, database))

    async def _work(self, wanted: Sequence[str]) -> dict[str, list[ComparedTable]]:
        found: dict[str, list[ComparedTable]] = {}
        async with self._side(self.primary_name, "postgres") as side:
            databases, self._block_bytes = await side.databases(), await side.block_bytes()
        for database in databases:
            async with self._side(self.primary_name, database) as side:
                there = await side.tables(database)
                found[database] = [t for t in there if not wanted or str(t) in wanted]
        named = {str(table) for tables in found.values() for table in tables}
        missing = [name for name in wanted if name not in named]
        if missing:
            raise ConfigurationError(
                f"--table {missing[0]}: there is no such table (it is named DATABASE.SCHEMA.TABLE; foreign, unlogged "
                "and temporary tables have no rows to compare)"
            )
        self._total_blocks = sum(max(t.blocks, 1) for tables in found.values() for t in tables)
        return {database: tables for database, tables in found.items() if tables}

    async def _positions(self) -> tuple[str, str]:
        async with AsyncExitStack() as stack:
            primary, standby = await self._sides(stack, "postgres")
            return str(await primary.written_lsn()), str(await standby.replayed_lsn())

    async def _table(self, primary: Side, standby: Side, table: ComparedTable) -> None:
        found = Difference()
        whole = False
        try:
            for chunks in _grouped(table.chunks()):
                for chunk in await self._unequal(primary, standby, table, chunks):
                    found.add(await self._look_closely(primary, standby, table, chunk))
            if self.check_indexes:
                await self._check_indexes(standby, table)
            whole = True
        except CannotCompare:
            raise
        except Damaged as error:
            self._damage.append(Damage(error.node, f"{table}: {error}"))
        except PostgresError as error:
            if await self._is_same(primary, standby, table):
                self._skipped.append(f"{table}: {error}")
        if (found or not whole) and not await self._is_same(primary, standby, table):
            self._skipped.append(f"{table}: was dropped, truncated or rewritten meanwhile")
            return  # what lay where says nothing any more
        self._tables += whole
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
        self._done_blocks += (chunks[-1].end or max(table.blocks, 1)) - chunks[0].first
        self.progress(Progress(self.node, str(table), self._done_blocks, self._total_blocks))
        await self.pace.rest(time.monotonic() - began_s)
        return unequal

    async def _look_closely(self, primary: Side, standby: Side, table: ComparedTable, chunk: Chunk) -> Difference:
        """Row by row, more than once: what differs stays so."""
        looks = Looks(_LOOKS_MAX)
        while True:
            before, oldest_running = await primary.versions(table, chunk)
            await standby.replayed(await primary.written_lsn(), self._patience_s)
            there, _unused = await standby.versions(table, chunk)
            after, _unused = await primary.versions(table, chunk)
            found = looks.judge(compare(look_of(before), oldest_running, look_of(there), look_of(after)))
            if found is not None:
                return found
            await asyncio.sleep(_BETWEEN_LOOKS_S)

    async def _check_indexes(self, standby: Side, table: ComparedTable) -> None:
        checked = await standby.check_indexes(table)
        if checked is None:
            words = f"{table.database}: indexes are not checked: run CREATE EXTENSION amcheck there"
            if words not in self._skipped:
                self._skipped.append(words)
            return
        self._indexes += checked[0]
        self._damage += [Damage(self.node, words) for words in checked[1]]

    async def _is_same(self, primary: Side, standby: Side, table: ComparedTable) -> bool:
        """Whether the places of its rows can be compared."""
        return await primary.is_same(table) and await standby.is_same(table)

    @property
    def _patience_s(self) -> float:
        return self.cluster.timeouts.local_replay_ms / 1000


def _grouped(chunks: list[Chunk]) -> Iterator[list[Chunk]]:
    for at in range(0, len(chunks), CHUNKS_AT_ONCE):
        yield chunks[at : at + CHUNKS_AT_ONCE]


def _mismatch(table: ComparedTable, found: Difference) -> Mismatch:
    versions = found.all()
    first_key, last_key = range_of(version.key for version in versions)
    return Mismatch(
        table=str(table),
        missing=len(found.missing),
        extra=len(found.extra),
        different=len(found.different),
        first_block=versions[0].block,
        last_block=versions[-1].block,
        first_key=first_key,
        last_key=last_key,
        keys=tuple(map(str, versions[:_KEYS_SHOWN])),
    )
