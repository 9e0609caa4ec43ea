"""What became of a transaction: collects what the primary, the lists of all nodes and the journal know of it."""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Collection, Sequence
from dataclasses import replace
from typing import Protocol

import aiohttp
from pydantic import TypeAdapter, ValidationError

from holdfast.core.outcome import OutcomeEvidence, decide_outcome
from holdfast.core.own_token import (
    TOLD_MAX,
    OwnFound,
    decide_absent,
    decide_seen,
    own_stretches,
    sightings,
)
from holdfast.core.token import Found, Stretch, TokenEvidence, decide_token, stretches
from holdfast.model.errors import HoldfastError
from holdfast.model.keys import Keys
from holdfast.model.lost import LostLog
from holdfast.model.lsn import History, Lsn
from holdfast.model.outcome import EpochStart, Outcome, OutcomeAnswer, OwnQuestion, XactStatus
from holdfast.model.register import NodeRecord, Register
from holdfast.model.timeouts import Timeouts
from holdfast.model.token import TokenAnswer, TokenQuestion
from holdfast.store.contract import JOURNAL_ENTRIES_MAX, TRIM_EVERY, Store

_ACCOUNTS = TypeAdapter(tuple[LostLog, ...])


class NotPrimary(HoldfastError):
    """Another node leads, and can tell; the message names it."""


class PrimaryServer(Protocol):
    """What is asked of the primary's server; `holdfast.postgres.server.Server` says what each call raises."""

    async def transaction_status(self, xid: int) -> XactStatus: ...  # noqa: D102

    async def epoch_starts(self) -> tuple[EpochStart, ...]: ...  # noqa: D102

    async def history_of(self, timeline: int) -> History: ...  # noqa: D102

    async def confirm(self, epoch: int) -> None: ...  # noqa: D102

    async def flushed_lsn(self) -> Lsn: ...  # noqa: D102

    async def running_sessions(self, pids: Collection[int]) -> frozenset[int]: ...  # noqa: D102

    async def find_tokens(self, stretch: Stretch, wanted: Collection[str]) -> Found: ...  # noqa: D102

    async def find_own_token(self, stretch: Stretch, token: str) -> OwnFound: ...  # noqa: D102

    async def next_xid(self) -> int: ...  # noqa: D102


class Outcomes:
    """Answers one question at a time, on the node that leads."""

    def __init__(
        self,
        node: str,
        server: PrimaryServer,
        store: Store,
        keys: Keys,
        timeouts: Timeouts,
        accounts: Callable[[], list[LostLog]],
        token: str,
    ) -> None:
        """``accounts`` reads the lists of this node; called in a thread. ``token`` opens those of the others."""
        self._node = node
        self._server = server
        self._store = store
        self._keys = keys
        self._timeouts = timeouts
        self._accounts = accounts
        self._headers = {"Authorization": f"Bearer {token}"}
        self._one_at_a_time = asyncio.Lock()
        self._confirming: asyncio.Task[None] | None = None

    async def answer(self, xid: int, epoch: int | None) -> OutcomeAnswer:
        """What became of a transaction.

        Raises NotPrimary on a node that does not lead, ConfigurationError for an epoch to come, and HoldfastError where
        nobody leads, or the store or the server does not answer.
        """
        async with self._one_at_a_time:
            evidence = await self._evidence(xid)
            answer = decide_outcome(xid, epoch, evidence)
            if epoch is not None and answer.outcome is not Outcome.UNKNOWN:
                return answer
            # Only where it matters: the whole journal is much to read for an agent that has a server to look after.
            events = await self._store.read_events(JOURNAL_ENTRIES_MAX + TRIM_EVERY)
            return decide_outcome(xid, epoch, replace(evidence, events=events))

    async def answer_own(self, question: OwnQuestion) -> OutcomeAnswer:
        """What became of the transaction that an application gave a token; raises as the others do."""
        try:
            async with asyncio.timeout(self._timeouts.tokens_ms / 1000), self._one_at_a_time:
                return await self._answer_own(question)
        except TimeoutError:
            raise HoldfastError("the log could not be read in time: ask again") from None

    async def _answer_own(self, question: OwnQuestion) -> OutcomeAnswer:
        present = await self._led_epoch()
        starts, history = await self._server.epoch_starts(), await self._server.history_of(present)
        end = await self._server.flushed_lsn()
        begins = {start.epoch: start.fork_lsn for start in starts}
        stretches = own_stretches(question, present, history, end, begins)
        found = {s.timeline: await self._server.find_own_token(s, question.token) for s in stretches}
        events = await self._store.read_events(JOURNAL_ENTRIES_MAX + TRIM_EVERY)
        accounts, silent = await self._all_accounts()
        first = {start.epoch: start.next_xid for start in starts}
        seen = sightings(question, found, accounts, first, await self._server.next_xid())
        answers = []
        for one in seen[-TOLD_MAX:]:
            evidence = replace(await self._evidence(one.xid), events=events)
            answers.append(decide_outcome(one.xid, one.epoch, evidence))
        if await self._led_epoch() != present:
            raise HoldfastError("the primary was replaced meanwhile: ask again")
        if answers:
            return decide_seen(question.token, seen, answers)
        known = OutcomeEvidence(present, XactStatus.FUTURE, False, starts, history, accounts, silent, events)
        return decide_absent(question, found, known, end)

    async def answer_tokens(self, questions: Sequence[TokenQuestion]) -> tuple[TokenAnswer, ...]:
        """What became of transactions with tokens.

        Raises NotPrimary on a node that does not lead, and HoldfastError where nobody leads, or the store or the server
        does not answer, or not in time.
        """
        try:
            async with asyncio.timeout(self._timeouts.tokens_ms / 1000), self._one_at_a_time:
                return await self._answer_tokens(questions)
        except TimeoutError:
            raise HoldfastError("the log could not be read in time: ask again") from None

    async def _answer_tokens(self, questions: Sequence[TokenQuestion]) -> tuple[TokenAnswer, ...]:
        """In this order: sessions that have ended by now have no commit that is not confirmed, and read, after that."""
        present = await self._led_epoch()
        pids = {question.pid for question in questions if question.epoch == present}
        running = await self._server.running_sessions(pids) if pids else frozenset()
        is_confirmed = await self._is_confirmed(present)
        history = await self._server.history_of(present)
        starts = {start.epoch: start.fork_lsn for start in await self._server.epoch_starts()}
        end = await self._server.flushed_lsn()
        found = {}
        for epoch, stretch in stretches(questions, present, history, end, starts).items():
            wanted = [question.token for question in questions if question.epoch == epoch]
            found[epoch] = await self._server.find_tokens(stretch, wanted)
        if await self._led_epoch() != present:
            raise HoldfastError("the primary was replaced meanwhile: ask again")
        evidence = TokenEvidence(present, history, is_confirmed, running, found)
        return tuple(decide_token(question, evidence, starts) for question in questions)

    async def close(self) -> None:
        """Wait for nothing any more."""
        if self._confirming is not None:
            self._confirming.cancel()
            await asyncio.wait({self._confirming})

    async def _evidence(self, xid: int) -> OutcomeEvidence:
        present = await self._led_epoch()
        status = await self._server.transaction_status(xid)
        starts, history = await self._server.epoch_starts(), await self._server.history_of(present)
        is_confirmed = status is XactStatus.COMMITTED and await self._is_confirmed(present)
        accounts, silent = await self._all_accounts()
        if await self._led_epoch() != present:  # read last: so it led while it was asked
            raise HoldfastError("the primary was replaced meanwhile: ask again")
        return OutcomeEvidence(present, status, is_confirmed, starts, history, accounts, silent)

    async def _led_epoch(self) -> int:
        entry = await self._store.get(self._keys.register)
        register = None if entry is None else Register.from_json(entry.value)
        if register is None or register.leader is None:
            raise HoldfastError("no primary serves now: ask again when one does (`holdfast status`)")
        if register.leader.node != self._node:
            raise NotPrimary(f"{self._node} does not lead: ask the agent of {register.leader.node}")
        return register.epoch

    async def _is_confirmed(self, epoch: int) -> bool:
        """Whether what the server has is confirmed like a commit.

        A session that waits for confirmations cannot be ended, so one that waits too long is waited for next time.
        """
        deadline_s = self._timeouts.statement_ms / 1000
        if self._confirming is not None:
            await asyncio.wait({self._confirming}, timeout=deadline_s)
            if not self._confirming.done():
                return False
        self._confirming = asyncio.create_task(self._server.confirm(epoch))
        await asyncio.wait({self._confirming}, timeout=deadline_s)
        if not self._confirming.done():
            return False
        done, self._confirming = self._confirming, None
        return not done.cancelled() and done.exception() is None

    async def _all_accounts(self) -> tuple[tuple[LostLog, ...], tuple[str, ...]]:
        """Every list that can be had, and the nodes that gave none."""
        accounts = list(await asyncio.to_thread(self._accounts))
        snapshot = await self._store.list(self._keys.addresses)
        others = [NodeRecord.from_json(entry.value) for entry in snapshot.entries]
        timeout = aiohttp.ClientTimeout(total=self._timeouts.store_request_ms / 1000)
        silent = []
        async with aiohttp.ClientSession(timeout=timeout, headers=self._headers) as session:
            for other in (o for o in others if o.member.node != self._node):
                try:
                    async with session.get(f"{other.api_url}/lost") as answer:
                        answer.raise_for_status()
                        accounts += _ACCOUNTS.validate_json(await answer.read())
                except (aiohttp.ClientError, TimeoutError, OSError, ValidationError):
                    silent.append(other.member.node)
        return tuple(accounts), tuple(silent)
