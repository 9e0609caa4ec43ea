"""Recovering a local cluster's register from its agents."""

from __future__ import annotations

from dataclasses import dataclass

from pydantic import JsonValue

from holdfast.core.recovery import Asked, Recovery, Refusal, recover
from holdfast.local.cluster import LocalCluster
from holdfast.local.orders import who_acts
from holdfast.model.errors import HoldfastError, RegisterError
from holdfast.model.event import Event
from holdfast.model.keys import Keys
from holdfast.model.register import Register
from holdfast.store.contract import ABSENT


@dataclass(frozen=True, slots=True)
class Proposal:
    """What would be done, and the revision of the register that it was decided on."""

    recovery: Recovery
    revision: int
    unreadable: str | None
    """Why the register that is there cannot be read, if it cannot."""


async def propose(cluster: LocalCluster, ignored: frozenset[str]) -> Proposal:
    """Ask everybody; raises StoreUnavailable, and HoldfastError with every reason why nothing may be written."""
    entry = await cluster.store().get(Keys(cluster.name).register)
    found, unreadable = None, None
    if entry is not None:
        try:
            found = Register.from_json(entry.value)
        except RegisterError as error:
            unreadable = str(error)
    witnesses = (cluster.file.witness,) if cluster.file.witness is not None else ()
    reports = await cluster.reports()
    answer = recover(Asked(cluster.name, cluster.nodes, witnesses, reports, ignored, found))
    if isinstance(answer, Refusal):
        raise HoldfastError("; ".join(answer.reasons))
    return Proposal(answer, entry.revision if entry is not None else ABSENT, unreadable)


async def carry_out(cluster: LocalCluster, proposal: Proposal) -> None:
    """Write the register; raises StoreUnavailable, and HoldfastError if somebody wrote another one meanwhile."""
    keys, register = Keys(cluster.name), proposal.recovery.register
    store = cluster.store()
    moment = store.clock.stamp()
    written = await store.compare_and_swap(keys.register, register.to_json(), proposal.revision)
    if written is None:
        raise HoldfastError("the register was written by somebody else meanwhile: look at `holdfast status`, try again")
    await store.delete(keys.planned)  # a backup may bring back one of a time that is over
    reason = "the register was recovered from the agents: " + "; ".join(proposal.recovery.because)
    detail: dict[str, JsonValue] = {"reason": reason, **who_acts().detail}
    await store.append_event(Event(moment.ms, "recover", "epoch.opened", register.epoch, None, detail, moment))
