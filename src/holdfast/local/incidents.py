"""The incidents of a local cluster: its journal, and what its agents have of lost transactions."""

from __future__ import annotations

import time
from collections.abc import Sequence
from dataclasses import dataclass, field

from holdfast.core.chain import without_gaps
from holdfast.core.cost import Objectives
from holdfast.core.incident import Incident, incidents
from holdfast.core.story import chapters
from holdfast.local.cluster import LocalCluster
from holdfast.local.lost import read_lost
from holdfast.local.outlook import read_events
from holdfast.model.errors import ConfigurationError, StoreUnavailable
from holdfast.model.event import Event
from holdfast.model.lost import LostLog
from holdfast.model.policy import Policy


@dataclass(frozen=True, slots=True)
class Record:
    """Everything that is known of what happened; ``from_store``: else the agents that answer remember it."""

    cluster: str
    incidents: tuple[Incident, ...]
    events: tuple[Event, ...]
    accounts: tuple[LostLog, ...]
    from_store: bool
    promised: Objectives = field(default_factory=Objectives)
    """By the policy; nothing while the store does not answer."""

    def one(self, number: int | None) -> Incident:
        """An incident by its number, or the last one; raises ConfigurationError with what there is."""
        if not self.incidents:
            raise ConfigurationError("nobody has taken over from anybody yet: there is no incident to tell of")
        if number is None:
            return self.incidents[-1]
        for incident in self.incidents:
            if incident.number == number:
                return incident
        known = ", ".join(str(i.number) for i in self.incidents)
        raise ConfigurationError(f"there is no incident {number}; there are {known} (`holdfast incident list`)")

    def accounts_of(self, incident: Incident) -> list[LostLog]:
        """The lists of what an incident left behind."""
        opened = {e.epoch for e in self.events_of(incident) if e.kind == "epoch.opened"}
        return [a for a in self.accounts if not opened.isdisjoint(a.replaced_by)]

    def events_of(self, incident: Incident) -> Sequence[Event]:
        """Its part of the journal, everything that was noted in that time."""
        return next(own for story, own in chapters(self.events) if story == incident.story)

    def whole_events_of(self, incident: Incident) -> Sequence[Event]:
        """The same without gaps in any writer's chain, so that it can be checked by itself."""
        return without_gaps(self.events_of(incident), self.events)


async def read_record(cluster: LocalCluster) -> Record:
    """Ask the store and every agent; raises StoreUnavailable if neither tells anything."""
    events, from_store = await read_events(cluster)
    try:
        accounts, silent = await read_lost(cluster)
    except StoreUnavailable:
        accounts, silent = [], list(cluster.nodes)
    found = incidents(events, accounts, silent, time.time() * 1000)
    promised = objectives_of(await cluster.policy()) if from_store else Objectives()
    return Record(cluster.name, found, events, tuple(accounts), from_store, promised)


def objectives_of(policy: Policy) -> Objectives:
    """What the policy promises."""
    return Objectives(policy.objective_rto_ms, policy.objective_availability_percent, policy.objective_rpo_ms)
