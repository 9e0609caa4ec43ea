"""What people ask of a running cluster through an agent: a switchover, another policy, their approval."""

from __future__ import annotations

import asyncio
import time
from collections.abc import Callable
from contextvars import ContextVar
from typing import Any, Protocol

from pydantic import JsonValue

from holdfast.core.admission.suspicion import judged
from holdfast.core.durability import is_local
from holdfast.core.handover import steps, successor
from holdfast.core.observation import Observation
from holdfast.core.policy import objections
from holdfast.model.asker import Asker
from holdfast.model.errors import ConfigurationError, PostgresError, RegisterError, StoreUnavailable
from holdfast.model.event import Stamp
from holdfast.model.keys import Keys
from holdfast.model.plan import PlannedSwitchover
from holdfast.model.policy import Durability, Policy, Promotion
from holdfast.model.ramp import Order, RampOrder
from holdfast.model.register import Phase
from holdfast.model.suspect import Suspect, Verdict
from holdfast.model.timeouts import Timeouts
from holdfast.node.registry import Registry
from holdfast.store.contract import Entry, Store
from holdfast.store.journal import Journal

STARTED_JUST_NOW = "the agent has only just started: try again"
CHANGED_MEANWHILE = "the cluster changed meanwhile: look at `holdfast status` and try again"


ASKED_BY: ContextVar[Asker | None] = ContextVar("asked_by", default=None)
"""Set while an order from outside is carried out."""


class Checkpointed(Protocol):
    """What can be told to make its next stop short."""

    async def checkpoint(self) -> None:
        """CHECKPOINT; raises PostgresError."""
        ...


class Control:
    """Each call answers whether it was done, and what to tell the person who asked."""

    def __init__(
        self,
        server: Checkpointed,
        store: Store,
        registry: Registry,
        keys: Keys,
        journal: Journal,
        timeouts: Timeouts,
        last: Callable[[], Observation | None],
    ) -> None:
        self._server = server
        self._store = store
        self._registry = registry
        self._keys = keys
        self._journal = journal
        self._timeouts = timeouts
        self._last = last

    def _note(self, kind: str, epoch: int, moment: Stamp, **detail: JsonValue) -> None:
        """Into the journal, with who gave the order, if a person did; ``moment`` is before anybody could see it."""
        by = ASKED_BY.get()
        self._journal.record(kind, epoch, None, stamp=moment, **detail, **(by.detail if by is not None else {}))

    async def switchover(self, to: str | None) -> tuple[bool, str]:
        """Begin a switchover from this node."""
        o = self._last()
        target, words = successor(o, to) if o is not None else (None, STARTED_JUST_NOW)
        if o is None or target is None or o.register is None:
            return False, words
        try:
            await self._prepare_stop(o.register.epoch)
            register, revision = self._registry.register, self._registry.register_revision
            if register is None or register != o.register:
                return False, CHANGED_MEANWHILE
            still, words = successor(self._last() or o, target)
            if still is None:
                return False, words
            new = register.handing_over(target)
            moment = self._journal.moment()
            swapped = await self._store.compare_and_swap(self._keys.register, new.to_json(), revision)
        except (PostgresError, StoreUnavailable) as error:
            return False, str(error) if self._registry.register == o.register else CHANGED_MEANWHILE
        if swapped is None:
            return False, CHANGED_MEANWHILE
        self._note("handover.begun", register.epoch, moment, target=target)
        self._registry.swapped(new, swapped)
        return True, f"handing over to {target}: {words}"

    async def _prepare_stop(self, epoch: int) -> None:
        """Have as little as possible left to do when clients wait: little to write, few sessions to end."""
        await self._server.checkpoint()
        await self._store.put(self._keys.announced, str(epoch).encode())
        await asyncio.sleep(self._timeouts.handover_announce_ms / 1000)
        await self._server.checkpoint()

    def rehearse_switchover(self, to: str | None) -> tuple[bool, str]:
        """What a switchover would do, step by step; nothing is changed."""
        o = self._last()
        target, words = successor(o, to) if o is not None else (None, STARTED_JUST_NOW)
        if o is None or target is None:
            return False, words
        return True, "\n".join((words, *steps(o, target)))

    async def plan_switchover(self, plan: PlannedSwitchover) -> tuple[bool, str]:
        """Keep a switchover for later; the one that leads then begins it. It replaces an earlier plan."""
        register = self._registry.register
        if register is None:
            return False, "there is no cluster yet"
        if plan.to is not None and plan.to not in register.data_nodes:
            return False, f"there is no node {plan.to}; the nodes are {', '.join(register.data_nodes)}"
        moment = self._journal.moment()
        try:
            await self._store.put(self._keys.planned, plan.to_json())
        except StoreUnavailable as error:
            return False, str(error)
        self._note("handover.planned", register.epoch, moment, target=plan.to or "any", planned_ms=plan.at_ms)
        return True, "the switchover is planned; whether the target is fit is seen when its time has come"

    async def cancel_planned(self) -> tuple[bool, str]:
        """Drop the planned switchover."""
        if self._registry.planned is None:
            return False, "no switchover is planned"
        moment = self._journal.moment()
        try:
            await self._store.delete(self._keys.planned)
        except StoreUnavailable as error:
            return False, str(error)
        register = self._registry.register
        self._note("handover.unplanned", register.epoch if register else 0, moment)
        return True, "the planned switchover is dropped"

    def policy(self) -> Policy:
        """The policy in force, as far as this agent knows."""
        return self._registry.policy

    async def set_policy(self, changes: dict[str, Any]) -> tuple[bool, str]:
        """Change the policy, if it suits the cluster."""
        register = self._registry.register
        if register is None:
            return False, "there is no cluster yet: its policy can be set once a primary serves"
        before, revision = self._registry.policy, self._registry.policy_revision
        try:
            after = before.changed(changes)
        except ConfigurationError as error:
            return False, str(error)
        wrong = objections(after, register.data_nodes)
        if wrong:
            return False, "; ".join(wrong)
        if after == before:
            return True, _said("already", changes) or "the policy is like that already"
        moment = self._journal.moment()
        try:
            swapped = await self._store.compare_and_swap(self._keys.policy, after.to_json(), revision)
        except StoreUnavailable as error:
            return False, str(error)
        if swapped is None:
            return False, CHANGED_MEANWHILE
        self._registry.policy_is_now(Entry(self._keys.policy, after.to_json(), swapped))
        self._note("policy.changed", register.epoch, moment, changes=changes)
        words = _said("now", changes) or "the policy is changed"
        if after.durability is Durability.STRICT is not before.durability and is_local(register.committed.quorum):
            words += "; commits are on the primary only until a standby is back, and never again after that"
        return True, words

    async def approve(self) -> tuple[bool, str]:
        """Approve the failover that waits for a person."""
        o = self._last()
        register = self._registry.register
        if o is None or register is None:
            return False, "the agent has only just started: try again"
        if self._registry.policy.promotion is not Promotion.APPROVED:
            return False, "failovers need no approval: the policy says promotion = automatic"
        lost = register.committed.leader.node
        if register.phase is not Phase.SERVING or o.suspected_since_ms is None:
            return False, f"no failover waits for approval: {lost} leads, and the voters hold nothing against it"
        moment = self._journal.moment()
        try:
            await self._store.put(self._keys.approval, str(register.epoch).encode())
        except StoreUnavailable as error:
            return False, str(error)
        self._note("failover.approved", register.epoch, moment)
        return True, f"the end of epoch {register.epoch} is approved: {lost} is being replaced"

    async def order_ramp(self, wanted: dict[str, Any]) -> tuple[bool, str]:
        """Tell the ramps of all proxies how to go on; raises ConfigurationError for an order that is none."""
        register = self._registry.register
        if register is None or register.phase is not Phase.SERVING:
            return False, "no primary serves now: a ramp begins when one does"
        try:
            order = RampOrder(register.epoch, Order(str(wanted.get("order"))))
        except ValueError:
            orders = ", ".join(order.value for order in Order)
            raise ConfigurationError(f"a ramp takes one of the orders {orders}, not {wanted.get('order')!r}") from None
        moment = self._journal.moment()
        try:
            await self._store.put(self._keys.ramp_order, order.to_json())
        except StoreUnavailable as error:
            return False, str(error)
        self._note("ramp.ordered", register.epoch, moment, order=order.order.value)
        return True, f"every proxy that ramps in epoch {order.epoch} is told: {order.order.value}"

    async def judge_suspect(self, wanted: dict[str, Any]) -> tuple[bool, str]:
        """A person's word on a statement that may have killed a primary; raises ConfigurationError for none."""
        key = str(wanted.get("suspect"))
        try:
            verdict = Verdict(str(wanted.get("verdict")))
        except ValueError:
            raise ConfigurationError(f"a suspect is released or kept, not {wanted.get('verdict')!r}") from None
        name, moment = self._keys.suspect(key), self._journal.moment()
        try:
            entry = await self._store.get(name)
            if entry is None:
                return False, f"there is no suspect {key}: see `holdfast quarantine list`"
            after = judged(Suspect.from_json(entry.value), verdict, time.time() * 1000)
            swapped = await self._store.compare_and_swap(name, after.to_json(), entry.revision)
        except (StoreUnavailable, RegisterError) as error:
            return False, str(error)
        if swapped is None:
            return False, "the record of the suspect has just changed: look at `holdfast quarantine list` and try again"
        self._note("suspect.judged", after.epochs[-1], moment, suspect=key, statement=after.text, verdict=verdict.value)
        if verdict is Verdict.RELEASE:
            return True, f"{key} is released: everybody may run it"
        return True, f"{key} is kept: nobody may run it until `holdfast quarantine release {key}`"


def _said(since: str, changes: dict[str, Any]) -> str | None:
    """How people call a change of ``paused`` alone."""
    if set(changes) != {"paused"}:
        return None
    if changes["paused"]:
        return f"the cluster is {since} paused: agents look on and touch nothing until `holdfast resume`"
    return f"the agents {'act already' if since == 'already' else 'act again'}: the cluster is not paused"
