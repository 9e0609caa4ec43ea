"""What fresh sessions say of a primary that is slow, and of one that is hung."""

from __future__ import annotations

import asyncio
import time
from collections.abc import Callable

from holdfast.model.register import Member, NodeRecord, NodeState
from holdfast.model.timeouts import Timeouts
from holdfast.node.peers import SESSIONS_MAX, PrimaryProbe

TIMES = Timeouts(probe_interval_ms=100, probe_timeout_ms=50, hung_ms=500)
RECORD = NodeRecord(Member("n1", "0a0a0a0a"), NodeState.PRIMARY, 1, "127.0.0.1", 5432, "http://127.0.0.1:1")


class Distant:
    """A server at a distance: a login takes ``login_s``, or for ever."""

    def __init__(self, login_s: float | None) -> None:
        self.login_s = login_s
        self.trying = 0
        self.most_trying = 0
        self.took_ms: list[float] = []

    async def answers(self, record: NodeRecord) -> bool:
        self.trying += 1
        self.most_trying = max(self.trying, self.most_trying)
        began_at = time.monotonic()
        try:
            await (asyncio.Event().wait() if self.login_s is None else asyncio.sleep(self.login_s))
        finally:
            self.trying -= 1
        self.took_ms.append((time.monotonic() - began_at) * 1000)
        return True

    async def still_answers(self, record: NodeRecord) -> bool:
        return False

    async def close(self) -> None:
        return None


async def probed(distant: Distant, until: Callable[[PrimaryProbe], bool]) -> PrimaryProbe:
    probe = PrimaryProbe(distant, TIMES)
    news = asyncio.Event()
    running = asyncio.create_task(probe.run(lambda: RECORD, news.set))
    try:
        async with asyncio.timeout(60):
            while not until(probe):
                news.clear()
                await news.wait()
    finally:
        running.cancel()
        await asyncio.gather(running, return_exceptions=True)
        await probe.close()
    return probe


async def test_a_login_that_takes_longer_than_one_answer_is_an_answer() -> None:
    distant = Distant(0.2)
    began_at = time.monotonic()
    probe = await probed(distant, lambda p: p.result.answered_ms is not None)
    latest_ms = (time.monotonic() - began_at) * 1000
    assert probe.result.latency_ms is not None
    assert 199 <= distant.took_ms[0] <= probe.result.latency_ms + 2
    assert probe.result.latency_ms <= latest_ms + 2


async def test_a_session_that_hangs_does_not_hide_the_next_and_they_do_not_pile_up() -> None:
    distant = Distant(None)
    began: set[int | None] = set()

    def three_attempts(probe: PrimaryProbe) -> bool:
        began.add(probe.result.tried_ms)
        return len(began) > 3

    probe = await probed(distant, three_attempts)
    assert probe.result.answered_ms is None
    assert 1 < distant.most_trying <= SESSIONS_MAX
    await asyncio.sleep(0)
    assert distant.trying == 0
