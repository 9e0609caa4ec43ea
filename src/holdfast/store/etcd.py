"""The store on etcd: what each request of the contract is in etcd's words."""

from __future__ import annotations

import asyncio
import contextlib
import itertools
import secrets
from collections.abc import AsyncGenerator, AsyncIterator
from typing import cast

import structlog

from holdfast.core.chain import head_of
from holdfast.model.errors import ConfigurationError, EnvironmentFault, RegisterError, StoreUnavailable
from holdfast.model.event import Event, Head
from holdfast.model.keys import Keys
from holdfast.model.settings import StoreSettings
from holdfast.model.timeouts import Timeouts
from holdfast.store.appending import Appending, follow_clocks, head_from, last_links
from holdfast.store.clock import Clock
from holdfast.store.contract import ABSENT, JOURNAL_ENTRIES_MAX, TRIM_EVERY, Change, Entry, Lease, LeaseEnded, Snapshot
from holdfast.store.etcd_gateway import NOT_FOUND, RESOURCE_EXHAUSTED, Answer, EtcdGateway, EtcdRefusal, JsonObject
from holdfast.store.etcd_watch import EtcdWatch, encode, entries_of, key_range, read_prefix

_TRIM_BATCH = 60
"""Deletions in one transaction; etcd accepts 128 requests, and each may be another source's last."""

_log = structlog.get_logger(__name__)


class EtcdStore:
    """`Store` on etcd's JSON gateway.

    Every method raises StoreUnavailable as the contract says. Until the store has worked for the first time, a wrong
    setting is told as ConfigurationError and an etcd that is too old as EnvironmentFault, also by `watch`.
    """

    def __init__(
        self,
        settings: StoreSettings,
        cluster: str,
        timeouts: Timeouts,
        *,
        journal_entries_max: int = JOURNAL_ENTRIES_MAX,
        owner: str | None = None,
    ) -> None:
        """Connects with the first request. Raises ConfigurationError for files that cannot be used.

        ``owner`` names the process for the key that carries its clock; None: its writes carry none.
        """
        self._journal_entries_max = journal_entries_max
        self._gateway = EtcdGateway(settings, timeouts)
        self._timeouts = timeouts
        self._keys = Keys(cluster)
        self._writer = secrets.token_hex(4)
        self._appended = itertools.count(1)
        self._appending = Appending()
        self._append_one = asyncio.Lock()
        self._heads: dict[str, tuple[Head | None, int]] = {}
        """Of each source that was appended to from here: the head, and its revision."""
        self._owner = owner
        self.clock = Clock()

    async def server_version(self) -> str:
        """The version of the etcd in use, such as ``3.5.1``."""
        answer = await self._call("/v3/kv/range", {"key": encode(self._keys.register), "count_only": True})
        return self._gateway.version_of(answer.endpoint)

    async def get(self, key: str) -> Entry | None:
        """See `Store.get`."""
        answer = await self._call("/v3/kv/range", {"key": encode(key)})
        return next(iter(entries_of(answer.body)), None)

    async def list(self, prefix: str) -> Snapshot:
        """See `Store.list`."""
        try:
            return await read_prefix(self._gateway, prefix)
        except EtcdRefusal as refusal:
            raise _explained(refusal) from refusal

    async def put(self, key: str, value: bytes, lease: Lease | None = None) -> int:
        """See `Store.put`."""
        body = {"key": encode(key), "value": encode(value)}
        if lease is not None:
            body["lease"] = str(lease.id)
        if self._owner is None:
            return (await self._call("/v3/kv/put", body)).revision
        requests = [*self._clock_too(), {"request_put": body}]
        return (await self._call("/v3/kv/txn", {"success": requests})).revision

    async def compare_and_swap(self, key: str, value: bytes, expected_revision: int) -> int | None:
        """See `Store.compare_and_swap`. `ABSENT` needs no case of its own: etcd's mod-revision is 0 then, too."""
        body = _put_if(_is_at(key, expected_revision), *self._clock_too(), _put(key, value))
        answer = await self._call("/v3/kv/txn", body, repeatable=False)
        return answer.revision if answer.body.get("succeeded") else None

    async def delete(self, key: str) -> None:
        """See `Store.delete`."""
        await self._call("/v3/kv/deleterange", {"key": encode(key)})

    async def delete_prefix(self, prefix: str) -> None:
        """See `Store.delete_prefix`."""
        await self._call("/v3/kv/deleterange", key_range(prefix))

    async def grant_lease(self, ttl_s: int) -> Lease:
        """See `Store.grant_lease`."""
        answer = await self._call("/v3/lease/grant", {"TTL": str(ttl_s)})
        return Lease(int(answer.body["ID"]), int(answer.body["TTL"]))

    async def keep_alive(self, lease: Lease) -> bool:
        """See `Store.keep_alive`."""
        answer = await self._call("/v3/lease/keepalive", {"ID": str(lease.id)})
        return int(answer.body.get("TTL", 0)) > 0

    async def revoke_lease(self, lease: Lease) -> None:
        """See `Store.revoke_lease`."""
        try:
            await self._gateway.call("/v3/lease/revoke", {"ID": str(lease.id)})
        except EtcdRefusal as refusal:
            if refusal.code != NOT_FOUND:
                raise _explained(refusal) from refusal

    def watch(self, prefix: str) -> AsyncIterator[Change]:
        """See `Store.watch`."""
        return self._watch(prefix)

    async def _watch(self, prefix: str) -> AsyncIterator[Change]:
        changes = cast("AsyncGenerator[Change, None]", EtcdWatch(self._gateway, prefix, self._timeouts).changes())
        async with contextlib.aclosing(changes):
            async for change in changes:
                follow_clocks(self.clock, self._keys, change)
                yield change

    async def append_event(self, event: Event) -> Event:
        """See `Store.append_event`. Entry and head are written together, if the head is still the one that is known."""
        number = next(self._appended)
        name = f"{event.at_ms:015.0f}-{event.source}-{self._writer}-{number:08d}"
        async with self._append_one:
            kept = await self._append(event, f"{self._keys.journal}{name}")
        if number % TRIM_EVERY == 0:
            await self._trim_journal()
        return kept

    async def _append(self, event: Event, key: str) -> Event:
        place = self._keys.head(event.source)
        head, revision = self._heads.get(event.source, (None, ABSENT))
        while True:
            kept = self._appending.kept_already(event, head)
            if kept is None:
                kept = self._appending.seal(event, head)
                new = head_of(kept)
                body = _put_if(_is_at(place, revision), _put(key, kept.to_json()), _put(place, new.to_json()))
                look = {"failure": [{"request_range": {"key": encode(place)}}]}
                answer = await self._call("/v3/kv/txn", {**body, **look})
                if not answer.body.get("succeeded"):  # another head, or ours already and the answer was lost
                    found = _found(answer.body)
                    head, revision = head_from(found), ABSENT if found is None else found.revision
                    continue
                head, revision = new, answer.revision
            self._heads[event.source] = head, revision
            self._appending.answered(event)
            return kept

    async def read_events(self, limit: int = 1000) -> tuple[Event, ...]:
        """See `Store.read_events`. Ordered by create-revision: clocks differ, revisions do not."""
        if limit <= 0:
            return ()  # to etcd a limit of 0 is none
        body = {**key_range(self._keys.journal), **_sorted("DESCEND", limit)}
        events = []
        for entry in entries_of((await self._call("/v3/kv/range", body)).body):
            try:
                events.append(Event.from_json(entry.value))
            except RegisterError as error:
                _log.warning("journal_entry_unreadable", key=entry.key, reason=str(error))
        return tuple(reversed(events))

    async def close(self) -> None:
        """See `Store.close`."""
        await self._gateway.close()

    async def _trim_journal(self) -> None:
        """Delete the oldest entries beyond the bound. The entry just written is safe whatever happens here."""
        where = key_range(self._keys.journal)
        try:
            counted = await self._call("/v3/kv/range", {**where, "count_only": True})
            excess = int(counted.body.get("count", 0)) - self._journal_entries_max
            if excess <= 0:
                return
            oldest = entries_of((await self._call("/v3/kv/range", {**where, **_sorted("ASCEND", excess)})).body)
            for batch in (oldest[i : i + _TRIM_BATCH] for i in range(0, len(oldest), _TRIM_BATCH)):
                left = last_links((entry.key, entry.value) for entry in batch).items()
                # Only if nobody has dropped them meanwhile: what is kept of the chains' beginnings never goes back.
                compare = [{"key": encode(key), **_IS_THERE} for _, (key, _) in left]
                requests = [
                    *({"request_delete_range": {"key": encode(entry.key)}} for entry in batch),
                    *(_put(self._keys.base(source), base.to_json()) for source, (_, base) in left),
                ]
                await self._call("/v3/kv/txn", {"compare": compare, "success": requests})
        except StoreUnavailable as error:
            _log.info("journal_not_trimmed", reason=str(error))

    async def _call(self, path: str, body: JsonObject, *, repeatable: bool = True) -> Answer:
        try:
            return await self._gateway.call(path, body, repeatable=repeatable)
        except EtcdRefusal as refusal:
            raise _explained(refusal) from refusal

    def _clock_too(self) -> tuple[JsonObject, ...]:
        if self._owner is None:
            return ()
        return (_put(self._keys.clock(self._owner), str(self.clock.stamp()).encode()),)


_IS_THERE: JsonObject = {"target": "VERSION", "result": "GREATER", "version": "0"}


def _is_at(key: str, revision: int) -> JsonObject:
    return {"key": encode(key), "target": "MOD", "result": "EQUAL", "mod_revision": str(revision)}


def _put(key: str, value: bytes) -> JsonObject:
    return {"request_put": {"key": encode(key), "value": encode(value)}}


def _put_if(compare: JsonObject, *requests: JsonObject) -> JsonObject:
    return {"compare": [compare], "success": list(requests)}


def _found(answer: JsonObject) -> Entry | None:
    """What the range of a transaction found."""
    responses = answer.get("responses", ())
    return next((e for r in responses for e in entries_of(r.get("response_range", {}))), None)


def _sorted(order: str, limit: int) -> JsonObject:
    return {"sort_target": "CREATE", "sort_order": order, "limit": str(limit)}


def _explained(refusal: EtcdRefusal) -> StoreUnavailable | EnvironmentFault | ConfigurationError:
    """What a refusal means to the caller. None of these has taken effect."""
    if refusal.code == NOT_FOUND and "lease" in refusal.message:
        return LeaseEnded("the lease has ended: grant a new one")
    if "too large" in refusal.message or "larger than max" in refusal.message:
        return EnvironmentFault(f"etcd refuses a value of this size (its --max-request-bytes): {refusal.message}")
    if refusal.code == RESOURCE_EXHAUSTED:
        return StoreUnavailable(
            f"etcd refuses writes ({refusal.message}): if its space is used up, compact and defragment it, "
            "raise --quota-backend-bytes, then `etcdctl alarm disarm`"
        )
    return StoreUnavailable(f"etcd refuses: {refusal.message}")
