"""The guard of commits, as one port has it: makes tokens, and finds out what became of one whose answer was lost.

The agent of the primary is asked: it alone reads the log, and answers only while its server leads, with what the
quorum has confirmed. Nobody is asked as long as no primary serves.
"""

from __future__ import annotations

import asyncio
import contextlib
import itertools
import secrets
from typing import Final

import aiohttp
import structlog

from holdfast.model.errors import RegisterError
from holdfast.model.lsn import Lsn
from holdfast.model.outcome import Outcome
from holdfast.model.timeouts import ProxyTimeouts
from holdfast.model.token import QUESTIONS_MAX, TokenAnswer, TokenQuestion, read_answers, write_questions
from holdfast.proxy.footing import Switched
from holdfast.proxy.routing import Routing, Target
from holdfast.proxy.server import ServerConnection
from holdfast.wire.guard import Token

log = structlog.get_logger(__name__)

_KNOWN_MAX: Final = 16
"""Primaries whose position in the log is remembered; those of old epochs are needed no more."""

_Asked = dict[str, tuple[TokenQuestion, asyncio.Future[Outcome]]]


class CommitGuard(Switched):
    """Off until the policy says so."""

    def __init__(self, routing: Routing) -> None:
        super().__init__()
        self.routing = routing
        self.commits = 0
        """Transactions whose server said that their token is in the log; one that was lost before that is only
        found."""
        self.found_committed = 0
        self.found_undone = 0
        self._name = secrets.token_hex(8)
        self._numbers = itertools.count()
        self._reached: dict[int, Lsn] = {}
        self._asked: _Asked = {}
        self._asking: asyncio.Task[None] | None = None
        self._session: aiohttp.ClientSession | None = None

    def token(self, server: ServerConnection) -> Token:
        """One that nobody has had."""
        epoch = server.target.epoch
        after = max(self._reached.get(epoch, Lsn(0)), server.position)
        return Token(f"{self._name}-{next(self._numbers)}", epoch, after, server.process_id)

    def wrote(self, epoch: int, lsn: Lsn) -> None:
        """A transaction has its token in the log, up to this position; what is sent from now on comes after it."""
        self.commits += 1
        if lsn > self._reached.get(epoch, Lsn(0)):
            self._reached[epoch] = lsn
            while len(self._reached) > _KNOWN_MAX:
                del self._reached[min(self._reached)]

    async def find_out(self, token: Token, limit_ms: int) -> Outcome:
        """COMMITTED or ABORTED; UNKNOWN if the log does not tell any more, or nobody told in time."""
        found: asyncio.Future[Outcome] = asyncio.get_running_loop().create_future()
        self._asked[token.text] = TokenQuestion(token.text, token.epoch, token.after, token.pid), found
        if self._asking is None or self._asking.done():
            self._asking = asyncio.get_running_loop().create_task(self._ask())
        outcome = Outcome.UNKNOWN
        try:
            with contextlib.suppress(TimeoutError):
                async with asyncio.timeout(limit_ms / 1000):
                    outcome = await found
        finally:
            self._asked.pop(token.text, None)
        self.found_committed += outcome is Outcome.COMMITTED
        self.found_undone += outcome is Outcome.ABORTED
        return outcome

    async def close(self) -> None:
        """Ask nobody any more."""
        if self._asking is not None:
            self._asking.cancel()
            await asyncio.gather(self._asking, return_exceptions=True)
        if self._session is not None:
            await self._session.close()
            self._session = None

    def status(self) -> dict[str, object]:
        """For ``/status``."""
        return {
            "on": self.is_on,
            "commits": self.commits,
            "found_committed": self.found_committed,
            "found_undone": self.found_undone,
            "asking": len(self._asked),
        }

    async def _ask(self) -> None:
        """All questions at once, again and again until none is left."""
        times = ProxyTimeouts()
        delay_ms = times.retry_first_ms
        while self._asked:
            version, target = self.routing.version, self.routing.primary()
            answers = await self._ask_while_named(target) if target is not None else ()
            for answer in answers:
                _, found = self._asked.get(answer.token, (None, None))
                if answer.outcome is not Outcome.IN_PROGRESS and found is not None and not found.done():
                    log.info("outcome.found", token=answer.token, outcome=answer.outcome, rule=answer.rule)
                    self._asked.pop(answer.token)
                    found.set_result(answer.outcome)
            if self.routing.version != version or not self._asked:
                delay_ms = times.retry_first_ms
                continue
            with contextlib.suppress(TimeoutError):
                await asyncio.wait_for(self.routing.wait_changed(), delay_ms / 1000)
            delay_ms = min(2 * delay_ms, times.retry_last_ms)

    async def _ask_while_named(self, target: Target) -> tuple[TokenAnswer, ...]:
        """Ask an agent, and give up when the register does not name it any more."""
        asking = asyncio.create_task(self._post(target))
        try:
            while not asking.done() and self.routing.primary() == target:
                change = asyncio.create_task(self.routing.wait_changed())
                try:
                    await asyncio.wait((asking, change), return_when=asyncio.FIRST_COMPLETED)
                finally:
                    change.cancel()
            return asking.result() if asking.done() else ()
        finally:
            asking.cancel()

    async def _post(self, target: Target) -> tuple[TokenAnswer, ...]:
        questions = tuple(question for question, _ in itertools.islice(self._asked.values(), QUESTIONS_MAX))
        if self._session is None:
            limit = aiohttp.ClientTimeout(total=ProxyTimeouts().outcomes_ms / 1000)
            self._session = aiohttp.ClientSession(timeout=limit)
        try:
            async with self._session.post(f"{target.api_url}/outcomes", data=write_questions(questions)) as answer:
                raw = await answer.read()
            if answer.status == 200:
                return read_answers(raw)
            log.debug("outcome.not_told", node=target.node, status=answer.status, said=raw[:200])
        except (aiohttp.ClientError, TimeoutError, OSError, RegisterError) as error:
            log.debug("outcome.not_told", node=target.node, reason=str(error))
        return ()
