"""A watch on etcd that survives whatever happens to the endpoints, and says so when history was lost."""

from __future__ import annotations

import asyncio
from base64 import b64decode, b64encode
from collections.abc import AsyncIterator
from dataclasses import dataclass
from enum import Enum, auto

import structlog

from holdfast.model.errors import StoreUnavailable
from holdfast.model.timeouts import Timeouts
from holdfast.store.contract import Change, Connected, Deleted, Disconnected, Entry, Put, Resync, Snapshot
from holdfast.store.etcd_gateway import OUT_OF_RANGE, EtcdGateway, EtcdRefusal, GatewayStream, JsonObject, StreamBroken

_log = structlog.get_logger(__name__)


@dataclass(frozen=True, slots=True)
class Anchor:
    """The last thing seen. If etcd does not remember it just so, its history is not the one that we have followed.

    That is how a store restored from a backup is noticed, also when it has been written to since: at ``revision``,
    ``key`` must have been ``entry`` (None: not there). Without ``key`` nothing at all was there.
    """

    revision: int
    key: str | None
    entry: Entry | None


@dataclass(frozen=True, slots=True)
class Goal:
    """How far a watch must have come to be live.

    Below 3.4.25 and 3.5.8 an answer about progress may overtake changes that are still to come (up to 0.1 s after the
    watch was resumed). So if there are such ``pending`` changes, only a message that brings changes counts, and it
    must bring the newest one, of ``newest``.
    """

    revision: int
    pending: bool = False
    newest: int = 0


class _State(Enum):
    UNKNOWN = auto()
    LIVE = auto()
    DOWN = auto()


_NEWEST = {"sort_target": "MOD", "sort_order": "DESCEND", "limit": "1", "keys_only": True}


class EtcdWatch:
    """One watch below one prefix."""

    def __init__(self, gateway: EtcdGateway, prefix: str, timeouts: Timeouts) -> None:
        self._gateway = gateway
        self._prefix = prefix
        self._silence_s = timeouts.store_silence_ms / 1000
        self._retry_s = timeouts.store_retry_ms / 1000
        self._anchor: Anchor | None = None
        self._goal = Goal(0)
        self._state = _State.UNKNOWN

    async def changes(self) -> AsyncIterator[Change]:
        """All changes, until the gateway is closed. See `Store.watch`.

        Raises ConfigurationError or EnvironmentFault if a setting or the server is wrong from the start.
        """
        while not self._gateway.closed:
            try:
                snapshot = await self._begin()
                if snapshot is not None:
                    yield Resync(snapshot)
                async with self._gateway.stream("/v3/watch", self._request()) as stream:
                    while (changes := await self._receive(stream)) is not None:
                        for change in changes:
                            yield change
            except (StoreUnavailable, StreamBroken, EtcdRefusal) as problem:
                if self._gateway.closed:
                    return
                was, self._state = self._state, _State.DOWN
                if was is not _State.DOWN:
                    _log.warning("store_watch_broken", prefix=self._prefix, reason=str(problem))
                    yield Disconnected(str(problem))
                if was is not _State.LIVE:
                    await asyncio.sleep(self._retry_s)

    async def _begin(self) -> Snapshot | None:
        """A fresh list, or None if what was seen so far can be continued. Linearizable: never from a member behind."""
        if self._anchor is not None:
            goal = await self._goal_if_same_history(self._anchor)
            if goal is not None:
                self._goal = goal
                return None
        snapshot = await read_prefix(self._gateway, self._prefix)
        newest = max(snapshot.entries, key=lambda entry: entry.revision, default=None)
        self._anchor = Anchor(snapshot.revision, newest.key if newest else None, newest)
        self._goal = Goal(snapshot.revision)
        return snapshot

    async def _goal_if_same_history(self, anchor: Anchor) -> Goal | None:
        """What is to be caught up with; None if it is another history or the anchor has been compacted away."""
        below = key_range(self._prefix)
        then = {"revision": str(anchor.revision), "limit": "1"}
        anchored = below if anchor.key is None else {"key": encode(anchor.key)}
        try:
            held = await self._gateway.call("/v3/kv/range", {**anchored, **then})
            before = await self._gateway.call("/v3/kv/range", {**below, **then, "count_only": True})
        except EtcdRefusal as refusal:
            if refusal.code != OUT_OF_RANGE:  # compacted, or a revision that etcd has not reached (any more)
                raise
            _log.warning("store_history_lost", prefix=self._prefix, reason=refusal.message)
            return None
        if next(iter(entries_of(held.body)), None) != anchor.entry:
            _log.warning("store_history_lost", prefix=self._prefix, reason="another history: restored from a backup?")
            return None
        now = await self._gateway.call("/v3/kv/range", {**below, **_NEWEST})
        newest = max((entry.revision for entry in entries_of(now.body)), default=0)
        pending = newest > anchor.revision or before.body.get("count") != now.body.get("count")
        return Goal(now.revision, pending, newest)

    def _request(self) -> JsonObject:
        assert self._anchor is not None
        start = str(self._anchor.revision + 1)
        return {"create_request": {**key_range(self._prefix), "start_revision": start, "progress_notify": True}}

    async def _receive(self, stream: GatewayStream) -> list[Change] | None:
        """The changes of the next message (often none); None when etcd cancelled the watch. Raises StreamBroken."""
        deadline = asyncio.get_running_loop().time() + self._silence_s
        while True:
            pause_s = self._silence_s / 3 if self._state is _State.LIVE else self._retry_s
            message = await stream.receive(pause_s)
            if message is not None:
                break
            if asyncio.get_running_loop().time() >= deadline:
                raise StreamBroken(f"{stream.endpoint}: silent for {self._silence_s * 1000:.0f} ms")
            stream.send({"progress_request": {}})
        if message.get("canceled"):
            if int(message.get("compact_revision", 0)) == 0:
                raise StreamBroken(f"{stream.endpoint}: {message.get('cancel_reason', 'watch cancelled')}")
            self._anchor = None
            return None
        if message.get("created"):
            stream.send({"progress_request": {}})
            return []
        changes = [self._seen(event) for event in message.get("events", ())]
        revision = int(message.get("header", {}).get("revision", 0))
        if self._state is not _State.LIVE and self._reached(revision, bool(changes)):
            self._state = _State.LIVE
            changes.append(Connected(revision))
        return changes

    def _reached(self, revision: int, changed: bool) -> bool:
        assert self._anchor is not None
        goal = self._goal
        if goal.pending and not (changed and self._anchor.revision >= goal.newest):
            return False
        return revision >= goal.revision

    def _seen(self, event: JsonObject) -> Change:
        kv = event["kv"]
        entry = entry_of(kv)
        if event.get("type") == "DELETE":
            self._anchor = Anchor(entry.revision, entry.key, None)
            return Deleted(entry.key, entry.revision)
        self._anchor = Anchor(entry.revision, entry.key, entry)
        return Put(entry)


async def read_prefix(gateway: EtcdGateway, prefix: str) -> Snapshot:
    """All below a prefix at one revision."""
    answer = await gateway.call("/v3/kv/range", key_range(prefix))
    return Snapshot(entries_of(answer.body), answer.revision)


def encode(text: str | bytes) -> str:
    """Bytes as the gateway wants them."""
    return b64encode(text.encode() if isinstance(text, str) else text).decode("ascii")


def key_range(prefix: str) -> JsonObject:
    """The keys below a prefix, as etcd says it; the empty prefix is everything."""
    raw = prefix.encode()
    if not raw:
        return {"key": encode(b"\0"), "range_end": encode(b"\0")}
    # UTF-8 has no byte 0xff, so that the last one can always be raised
    return {"key": encode(raw), "range_end": encode(raw[:-1] + bytes([raw[-1] + 1]))}


def entry_of(kv: JsonObject) -> Entry:
    """One key as the gateway shows it. Empty fields are left out there."""
    value = b64decode(kv.get("value", ""))
    return Entry(b64decode(kv["key"]).decode(errors="surrogateescape"), value, int(kv.get("mod_revision", 0)))


def entries_of(answer: JsonObject) -> tuple[Entry, ...]:
    """The keys in the answer to a range request."""
    return tuple(entry_of(kv) for kv in answer.get("kvs", ()))
