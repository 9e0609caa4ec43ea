"""Every session comes to rest: whatever happened, in the end nobody waits, and nothing is kept of it."""

from __future__ import annotations

import asyncio

import pytest
from hypothesis import HealthCheck, example, given, settings
from hypothesis import strategies as st

from holdfast.core.admission.gate import Permit
from holdfast.model.suspect import Standing
from holdfast.proxy.quarantine import Custody
from holdfast.wire import messages as m
from tests.proxy.sinks import World
from tests.proxy.test_fast import Event, sessions, steps

ASKED = m.query("select 1")


class Crowded(World):
    """There are others: one that runs the suspects on trial, and one that fills the gate."""

    def __init__(self, pooling: str) -> None:
        super().__init__(pooling, fast=True)
        self._custody = Custody()
        self._permit = Permit()

    def rival(self, comes: bool) -> None:
        """Another session runs what is on trial now, or does not any more."""
        quarantine = self.lane.quarantine
        quarantine.left(self._custody)
        if comes and self._custody.cell is None:
            quarantine.ask(self._custody, b"select 1", self._permit, may_wait=False, is_run=True)

    def gate(self, closes: bool) -> None:
        """Another session has the only place, or gives it back."""
        admission = self.lane.admission
        admission.gate.limit = 1 if closes else None
        if closes and not self._permit.is_in:
            admission.enter(self._permit)
        elif not closes:
            admission.give_back(self._permit)
            admission._let_in()

    def overdue(self) -> None:
        """Whoever waits to be let in has waited for as long as he may."""
        admission, quarantine = self.lane.admission, self.lane.quarantine
        for line in admission.gate.lines.values():
            before, line.settings = line.settings, line.settings.model_copy(update={"wait_max_ms": 0})
            admission._look()
            line.settings = before
        for cell in list(quarantine._cells.values()):
            for custody in list(cell.line):
                quarantine._overdue(cell, custody)

    @property
    def _waits_for_server(self) -> bool:
        task = self.relay._attaching
        return self.relay._waiter is not None or (task is not None and "_attach" in repr(task.get_coro()))

    def attach(self) -> None:
        """A server for a session that waits for one, by the pool's line if it is there."""
        pool = self.relay.pool
        if pool is not None and pool.waiting:
            backend = self._new_server()
            pool.open += pool.open < pool.limits.size
            pool.made(backend.connection)
            pool.give(backend.connection)
        elif self.relay._attaching is None or self._waits_for_server:
            super().attach()

    async def turn(self) -> None:
        """The event loop has a turn, and whoever waits to be let in may go on."""
        for _ in range(3):
            await asyncio.sleep(0)

    async def settle(self) -> None:
        """All that could be waited for comes."""
        self.rival(False)
        self.gate(False)
        self.lane.quarantine.are([])
        self.doubt(True)
        self.busy(False)
        self.full(False)
        self.cancelled()
        for _ in range(20):
            await self.turn()
            if self._waits_for_server:
                self.attach()
            self.heard()
            self.answer(100)

    def kept(self) -> dict[str, object]:
        """What is counted or remembered of sessions that are under way."""
        relay, lane, pool = self.relay, self.lane, self.relay.pool
        cell = relay._custody.cell
        return {
            "waits": relay._attaching is not None or relay._waiter is not None,
            "inside": lane.admission.gate.inside,
            "at the gate": lane.admission.gate.waiting,
            "on trial": 0 if cell is None else cell.trial.inside,
            "orphans": len(lane.orphans),
            "in line": 0 if pool is None else pool.waiting,
            "client is held back": self.sink.told.count("pause") - self.sink.told.count("resume") > 0,
        }

    def has_places_of_what_runs(self) -> bool:
        """Whether all that runs on servers, and nobody waits for any more, is counted."""
        return all(orphan.permit.is_in for orphan in self.lane.orphans._all)


others = st.sampled_from(
    [
        *[("rival", (True,)), ("rival", (True,)), ("rival", (False,)), ("gate", (True,)), ("gate", (False,))],
        *[("overdue", ()), ("suspect", (b"select 1", Standing.ALONE)), ("leave", ()), ("lose", ())],
    ]
).map(lambda event: [event])
crowded = st.one_of(
    sessions,
    st.lists(st.one_of(steps, others), min_size=1, max_size=12).map(
        lambda parts: [("suspect", (b"select 1", Standing.ALONE)), *(event for part in parts for event in part)]
    ),
)


async def _play(pooling: str, events: list[Event]) -> None:
    world = Crowded(pooling)
    try:
        for name, arguments in events:
            getattr(world, name)(*arguments)
            await world.turn()
            world.heard()
            assert world.has_places_of_what_runs(), (name, arguments)
        await world.settle()
        if not world.relay._is_over and not world.sink.is_closing():
            kept = world.kept()
            assert not kept["waits"]
            assert not kept["client is held back"]
        world.leave()
        world.leave()  # after a goodbye the connection ends, too
        await world.settle()
        assert not any(value for name, value in world.kept().items() if name != "client is held back"), world.kept()
    finally:
        world.close()
        await world.turn()


@pytest.mark.parametrize("pooling", ["session", "transaction"])
def test_every_session_comes_to_rest(pooling: str) -> None:
    @settings(deadline=None, max_examples=40, suppress_health_check=list(HealthCheck))
    @given(crowded)
    @example(
        [
            ("suspect", (b"select 1", Standing.ALONE)),
            *[("rival", (True,)), ("send", (ASKED, 0)), ("lose", ()), ("rival", (False,))],
        ]
    )
    @example(
        [
            ("suspect", (b"select 1", Standing.ALONE)),
            *[("gate", (True,)), ("send", (ASKED, 0)), ("overdue", ()), ("gate", (False,))],
        ]
    )
    @example([("say", (m.parameter_status("x", "z"),)), ("answer", (1,)), ("send", (ASKED, 0)), ("answer", (100,))])
    @example([("send", (ASKED + b"?\0\0\0\4", 0)), ("answer", (100,))])
    @example([("send", (m.query("copy t from stdin"), 0)), ("attach", ()), ("answer", (100,))])
    @example([("send", (ASKED + m.TERMINATE_MESSAGE, 0)), ("leave", ())])
    def play(events: list[Event]) -> None:
        asyncio.run(_play(pooling, events))

    play()
