"""One port's gate and ramp, joined to the clock, to the sessions that wait and to the journal."""

from __future__ import annotations

import asyncio
import random
import time
from collections import deque
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

from pydantic import JsonValue

from holdfast.core.admission.adaptive import AdaptiveLimit
from holdfast.core.admission.gate import Gate, Permit, Refusal
from holdfast.core.admission.ramp import Health, Ramp, begin, median_of, turn, usual_of
from holdfast.model.policy import DEFAULT_POLICY, Policy
from holdfast.model.ramp import Order
from holdfast.model.traffic import NORMAL, Each, class_of
from holdfast.proxy.door import Door
from holdfast.wire import messages as m

LOOK_S = 0.1
"""Between two looks at who has waited too long, at the ramp and at the limit that is found by trial. While there is
nothing of these, nobody looks."""
SECOND_S = 1.0
"""Between two samples of what is usual."""
SAMPLES = 60
"""What is usual is what was so in the last minute."""

QUEUE_FULL = "53300"
"""too_many_connections (PostgreSQL manual, appendix A): so many wait already that this one was not even put in line."""
WAITED_IN_VAIN = "53400"
"""configuration_limit_exceeded: it waited for as long as its class may."""

Tell = Callable[[str, str | None, dict[str, JsonValue]], None]
"""Told the kind of an entry of the journal, the rule that fired, and its details."""

Waiting = asyncio.Future[m.Report | None]
"""Of a statement in line: None once it is in, or why it is refused."""


@dataclass(slots=True)
class _Usual:
    """What was so before an incident, from the last minute."""

    peaks: deque[int]
    medians_ms: deque[float]

    @property
    def at_once(self) -> int:
        return usual_of(self.peaks)

    @property
    def latency_ms(self) -> float | None:
        ordered = sorted(self.medians_ms)
        return ordered[len(ordered) // 2] if ordered else None


class Admission(Door):
    """Lets sessions in by the policy. Statements come by `enter`, which costs nearly nothing while nobody must wait."""

    def __init__(self, tell: Tell = lambda kind, rule, detail: None) -> None:
        self._classes = DEFAULT_POLICY.traffic_classes()
        super().__init__(Gate(self._classes))
        self._tell = tell
        self._policy = DEFAULT_POLICY
        self.ramp: Ramp | None = None
        self.adaptive: AdaptiveLimit | None = None
        """The limit that is found by trial, while the policy asks for one."""
        self.epoch = 0
        """The epoch that served last; 0 before the first."""
        self._usual = _Usual(deque(maxlen=SAMPLES), deque(maxlen=SAMPLES))
        self._usual_latency_ms: float | None = None
        self._waited_before = 0
        self.is_disturbed: Callable[[], bool] = lambda: False
        """Whether statements wait for a server."""
        self._busy = asyncio.Event()
        self._alarm: asyncio.TimerHandle | None = None

    # sessions

    def permit(self, user: str, database: str, application_name: str) -> Permit:
        """A session's permit, of the class that the policy gives it."""
        name = class_of(self._classes, user, database, application_name)
        each = self._classes[name].each
        tenant = user if each is Each.USER else database if each is Each.DATABASE else ""
        return Permit(name, tenant=tenant)

    def wait_max_ms(self, permit: Permit) -> int:
        """How long a statement of its class may wait."""
        return self._classes.get(permit.traffic_class, self._classes[NORMAL]).wait_max_ms

    def enter(self, permit: Permit, *, must: bool = False) -> bool:
        """Whether a statement may go to the server now, one that ``must`` in any case; if not, `queue` it at once."""
        return self.gate.enter(permit, _now_ms(), must=must)

    def give_back(self, permit: Permit) -> None:
        """The place was not used."""
        if permit.is_in:
            self.gate.give_back(permit)
            self._let_in()

    def lost(self, permit: Permit) -> None:
        """Its server is lost. Nobody gets the place before the next look: the others' servers may be going, too."""
        if permit.is_in:
            self.gate.give_back(permit)

    def queue(self, permit: Permit) -> Waiting | m.Report:
        """In line, in the very turn in which `enter` said no; or why it is refused.

        What is returned to be awaited ends with None once the statement is in, or with why it waited in vain. Whoever
        does not wait for that any more says so with `withdraw`.
        """
        refusal = self.gate.wait(permit, _now_ms(), random.random())
        if refusal is not None:
            return report_of(refusal)
        waiting: Waiting = asyncio.get_running_loop().create_future()
        self._waiters[permit] = waiting
        self._busy.set()
        self._set_alarm()
        return waiting

    def withdraw(self, permit: Permit) -> None:
        """Whoever waited does not want in any more; a place that was just given is free again."""
        self._waiters.pop(permit, None)
        self.gate.withdraw(permit)
        self.give_back(permit)

    def _let_in(self) -> None:
        if not self._waiters:
            return
        for permit in self.gate.let_in(_now_ms()):
            _answer(self._waiters.pop(permit), None)
        self._set_alarm()

    def _set_alarm(self) -> None:
        """Let in who waits for the rate of a quota when its time has come."""
        if self._alarm is not None:
            self._alarm.cancel()
            self._alarm = None
        in_ms = self.gate.token_in_ms(_now_ms()) if self._waiters else None
        if in_ms is not None:
            self._alarm = asyncio.get_running_loop().call_later(in_ms / 1000, self._let_in)

    # policy, epochs and orders

    def policy_is(self, policy: Policy) -> None:
        """A policy is in force."""
        if policy == self._policy:
            return
        self._policy, self._classes = policy, policy.traffic_classes()
        self.version += 1
        with_quotas = self._classes if policy.admission else {n: c.without_quota for n, c in self._classes.items()}
        self.gate.classes_are(with_quotas)
        if self.ramp is not None and not policy.admission:
            self._end("ramp.end")
        self._adapt(policy)
        self._set_limit()

    def _adapt(self, policy: Policy) -> None:
        if not (policy.admission and policy.statements_adaptive):
            self.adaptive = None
        elif self.adaptive is None:
            self.adaptive = AdaptiveLimit(self._usual.at_once, policy.statements_max, random.random)
        else:
            self.adaptive.bound(policy.statements_max)

    @property
    def _most(self) -> int | None:
        """The limit when there is no ramp; None: any number."""
        return self.adaptive.limit if self.adaptive is not None else self._policy.statements_max

    def serves(self, epoch: int) -> None:
        """A primary serves in this epoch; if it is not the first one, it is a fresh one, and there is a ramp."""
        if epoch <= self.epoch:
            return
        is_first, self.epoch = self.epoch == 0, epoch
        if is_first or not self._policy.admission:
            return
        at_once = self.ramp.usual if self.ramp is not None else self._usual.at_once
        if self.ramp is None:
            self._usual_latency_ms = self._usual.latency_ms
        start_percent, window_ms = self._policy.ramp_start_percent, self._policy.ramp_window_s * 1000
        before = self.ramp
        if self.adaptive is not None:
            self.adaptive.restart()
        most = self._most
        self.ramp = begin(at_once, start_percent=start_percent, window_ms=window_ms, now_ms=_now_ms(), most=most)
        if before is not None and self.ramp is None:
            self._told_end(before, "ramp.end", None)
        self._begin_step()
        if self.ramp is not None:
            self._tell("ramp.begun", None, {**self._said(self.ramp), "window_s": self._policy.ramp_window_s})
            self._busy.set()

    def ordered(self, order: Order) -> None:
        """A person says how the ramp is to go on; without one nothing happens."""
        if self.ramp is not None:
            self.ramp = self.ramp.ordered(order)
            self._look()

    # time

    async def run(self) -> None:
        """Look at the clock, for ever."""
        sampled_s = 0.0
        while True:
            now_s = time.monotonic()
            if now_s - sampled_s >= SECOND_S:
                sampled_s = now_s
                self._sample()
            if self._waiters or self.ramp is not None or self._is_measuring:
                self._look()
                await asyncio.sleep(LOOK_S)
                continue
            self._busy.clear()
            try:
                await asyncio.wait_for(self._busy.wait(), SECOND_S)
            except TimeoutError:
                continue

    @property
    def _is_measuring(self) -> bool:
        return self.adaptive is not None and self.adaptive.is_measuring

    def _sample(self) -> None:
        peak = self.gate.take_peak()
        if self.ramp is not None:
            return  # neither its bounds nor the latency of a cold server are usual
        done, median_ms = len(self.gate.durations_ms), median_of(self.gate.durations_ms)
        self.gate.durations_ms.clear()
        if self.is_disturbed() or (self.gate.inside and not done):
            return  # nor is what is so while no primary serves, or one that does not answer
        self._usual.peaks.append(peak)
        if median_ms is not None:
            self._usual.medians_ms.append(median_ms)

    def _look(self) -> None:
        now_ms = _now_ms()
        if self.ramp is not None:
            self._turn(self.ramp, now_ms)
        elif self.adaptive is not None:
            self._try_limit(self.adaptive, now_ms)
        self._let_in()
        for permit, refusal in self.gate.overdue(now_ms, random.random()):
            _answer(self._waiters.pop(permit), report_of(refusal))

    def _turn(self, ramp: Ramp, now_ms: float) -> None:
        waited = self.gate.waited - self._waited_before + self.gate.pressing(now_ms)
        health = Health(median_of(self.gate.durations_ms), self._usual_latency_ms, waited)
        turned = turn(ramp, now_ms, health, self._most)
        if turned.ramp is None:
            self._end(turned.rule, health)
            return
        self.ramp = turned.ramp
        if turned.moves:
            self._begin_step()
            self._tell("ramp.step", turned.rule, {**self._said(turned.ramp), **_reading(health)})

    def _try_limit(self, adaptive: AdaptiveLimit, now_ms: float) -> None:
        """While a ramp lasts its limit holds; while statements wait for a server there is nothing to be measured."""
        if self.is_disturbed():
            adaptive.restart()
        else:
            adaptive.look(now_ms, self.gate.short, self.gate.is_full, self.gate.done)
        if self.gate.limit != adaptive.limit:
            self._set_limit()

    def _end(self, rule: str, health: Health | None = None) -> None:
        ramp, self.ramp = self.ramp, None
        self._begin_step()
        if ramp is not None:
            self._told_end(ramp, rule, health)

    def _told_end(self, ramp: Ramp, rule: str, health: Health | None) -> None:
        took_ms = round(_now_ms() - ramp.began_ms)
        self._tell("ramp.ended", rule, {"took_ms": took_ms, **(_reading(health) if health is not None else {})})

    def _begin_step(self) -> None:
        self._waited_before = self.gate.waited
        self.gate.durations_ms.clear()
        self._set_limit()

    def _set_limit(self) -> None:
        known = [
            limit for limit in (self._most, self.ramp.limit if self.ramp is not None else None) if limit is not None
        ]
        self.gate.limit = min(known) if known and self._policy.admission else None
        self._let_in()

    def _said(self, ramp: Ramp) -> dict[str, JsonValue]:
        return {"percent": ramp.percent, "limit": ramp.limit, "usual": ramp.usual}

    # for people

    def status(self) -> dict[str, Any]:
        """What ``/status`` says of this port."""
        gate, ramp, now_ms = self.gate, self.ramp, _now_ms()
        return {
            "limit": gate.limit,
            "inside": gate.inside,
            "waiting": gate.waiting,
            "usual": ramp.usual if ramp is not None else self._usual.at_once,
            "usual_ms": self._usual_latency_ms if ramp is not None else self._usual.latency_ms,
            "ramp": None if ramp is None else self._ramp_status(ramp),
            "adaptive": None if self.adaptive is None else _adaptive_status(self.adaptive),
            "classes": {
                name: {
                    "inside": line.inside,
                    "waiting": len(line.waiting),
                    "over_quota": len(line.waiting) - line.pressing(now_ms),
                    "refused": line.refused,
                }
                for name, line in gate.lines.items()
            },
        }

    def _ramp_status(self, ramp: Ramp) -> dict[str, Any]:
        now_ms = _now_ms()
        return {
            **self._said(ramp),
            "epoch": self.epoch,
            "step_ms": round(now_ms - ramp.since_ms),
            "since_ms": round(now_ms - ramp.began_ms),
            "window_s": ramp.window_ms // 1000,
            "held": ramp.is_held,
        }


def report_of(refusal: Refusal) -> m.Report:
    """The error that a refused client gets. ``DETAIL`` is for programs, ``HINT`` for people."""
    name = refusal.traffic_class
    why = "the database is busy" if refusal.quota is None else f"{refusal.quota}, its quota in class {name}"
    if refusal.waited_ms is None:
        sqlstate = QUEUE_FULL
        whose = f"of class {name}" if refusal.quota is None else "of it"
        text = f"{why}, and {refusal.waiting} statements {whose} wait already"
    else:
        sqlstate = WAITED_IN_VAIN
        text = f"{why}: the statement waited {refusal.waited_ms} ms, as long as class {name} may"
    detail = f"class={name} retry_after_ms={refusal.retry_ms}"
    return m.error(sqlstate, text, detail=detail, hint=f"Nothing was executed. Try again in {refusal.retry_ms} ms.")


def _adaptive_status(adaptive: AdaptiveLimit) -> dict[str, Any]:
    latency_ms = adaptive.latency_ms
    return {
        "limit": adaptive.settled,
        "floor": adaptive.floor,
        "latency_ms": None if latency_ms is None else round(latency_ms, 3),
        "trial": None if adaptive.trial is None else adaptive.trial.value,
    }


def _answer(waiting: Waiting, refusal: m.Report | None) -> None:
    if not waiting.done():
        waiting.set_result(refusal)


def _reading(health: Health) -> dict[str, JsonValue]:
    known = {"latency_ms": health.latency_ms, "usual_ms": health.usual_ms}
    return {"waited": health.waited, **{name: round(value, 1) for name, value in known.items() if value is not None}}


def _now_ms() -> float:
    return time.monotonic() * 1000
