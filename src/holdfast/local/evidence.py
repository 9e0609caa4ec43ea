"""The journal of a local cluster as evidence: its writers' chains, and its entries as they come."""

from __future__ import annotations

import asyncio
import contextlib
import json
from collections.abc import AsyncGenerator, AsyncIterator, Iterable
from dataclasses import dataclass
from pathlib import Path
from typing import cast

from holdfast.core.causality import in_order
from holdfast.core.chain import Chain, Ends, Entry, check
from holdfast.local.cluster import LocalCluster
from holdfast.local.outlook import events_of_agents
from holdfast.model.errors import ConfigurationError, RegisterError
from holdfast.model.event import Event, Head
from holdfast.model.keys import Keys
from holdfast.store import contract
from holdfast.store.contract import Change, Put, Resync


@dataclass(frozen=True, slots=True)
class Verified:
    """Every writer's chain, and what could not be read at all (names of keys, or lines of a file)."""

    chains: tuple[Chain, ...]
    unreadable: tuple[str, ...] = ()

    @property
    def intact(self) -> bool:
        """Whether nothing speaks against any of it."""
        return not self.unreadable and all(chain.intact for chain in self.chains)


async def verify_cluster(cluster: LocalCluster) -> Verified:
    """Check what the store has, against its own ends and what the agents remember; raises StoreUnavailable."""
    remembered = await events_of_agents(cluster)  # first: what they remember must be in the store then
    keys = Keys(cluster.name)
    found = (await cluster.store().list(keys.all_of_journal)).entries
    heads, bad_heads = _heads(found, keys.journal_heads)
    bases, bad_bases = _heads(found, keys.journal_bases)
    raw = ((entry.key, entry.value) for entry in found if entry.key.startswith(keys.journal))
    entries, unreadable = _entries(raw)
    chains = check(entries, Ends(heads, bases), remembered)
    return Verified(chains, (*bad_heads, *bad_bases, *unreadable))


def verify_file(path: Path) -> Verified:
    """Check an exported file, lines of JSON or one list; raises ConfigurationError if it cannot be read."""
    try:
        text = path.read_text()
    except (OSError, UnicodeDecodeError) as error:
        raise ConfigurationError(f"--file {path}: cannot be read ({error})") from error
    lines: Iterable[tuple[str, str]]
    if text.lstrip().startswith("["):
        try:
            lines = ((f"item {n}", json.dumps(item)) for n, item in enumerate(json.loads(text), 1))
        except ValueError as error:
            raise ConfigurationError(f"--file {path}: begins like a JSON list, and is none ({error})") from error
    else:
        lines = ((f"line {n}", line) for n, line in enumerate(text.splitlines(), 1) if line.strip())
    entries, unreadable = _entries(lines)
    if not entries and not unreadable:
        raise ConfigurationError(f"--file {path}: has no entries: `holdfast incident export` writes such files")
    return Verified(check(entries), unreadable)


async def follow(cluster: LocalCluster) -> AsyncIterator[list[Event]]:
    """First all of the journal, then what is new, for ever; what nobody can read is passed over."""
    keys, seen = Keys(cluster.name), set[str]()
    changes = cast("AsyncGenerator[Change, None]", cluster.store().watch(keys.journal))
    async with contextlib.aclosing(changes):
        async for change in changes:
            found: tuple[contract.Entry, ...] = ()
            if isinstance(change, Put):
                found = (change.entry,)
            elif isinstance(change, Resync):
                found = change.snapshot.entries
            entries, _ = _entries((entry.key, entry.value) for entry in found if entry.key not in seen)
            if isinstance(change, Resync):
                seen.clear()
            seen.update(entry.key for entry in found)
            yield in_order(entry.event for entry in entries)


async def wait_for_entries(cluster: LocalCluster, *, at_least_every_s: float) -> AsyncIterator[None]:
    """Once now, then whenever the journal has grown or so much time is over."""
    grown = asyncio.Event()

    async def watch() -> None:
        async for _ in follow(cluster):
            grown.set()

    watching = asyncio.create_task(watch())
    try:
        while True:
            grown.clear()
            yield
            with contextlib.suppress(TimeoutError):
                await asyncio.wait_for(grown.wait(), at_least_every_s)
    finally:
        watching.cancel()
        await asyncio.gather(watching, return_exceptions=True)


def _heads(found: Iterable[contract.Entry], prefix: str) -> tuple[dict[str, Head], tuple[str, ...]]:
    heads, unreadable = {}, []
    for entry in found:
        if entry.key.startswith(prefix):
            try:
                heads[entry.key.removeprefix(prefix)] = Head.from_json(entry.value)
            except RegisterError:
                unreadable.append(entry.key)
    return heads, tuple(unreadable)


def _entries(named: Iterable[tuple[str, bytes | str]]) -> tuple[list[Entry], tuple[str, ...]]:
    entries, unreadable = [], []
    for name, raw in named:
        try:
            entries.append(Entry.read(raw))
        except RegisterError:
            unreadable.append(name)
    return entries, tuple(unreadable)
