"""Whose the transactions were that a lost server took with it: read from the proxies' entries of the journal. Pure."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass

from pydantic import JsonValue

from holdfast.model.event import Event
from holdfast.model.owner import Owner, Unanswered

KIND = "outcomes.unknown"
"""Of the entries."""


@dataclass(frozen=True, slots=True)
class Client:
    """One transaction without an answer: whose it was, on which primary it ran, and what its client was told.

    ``at_ms`` is the proxy's wall clock (Unix time) when the server was lost.
    """

    owner: Owner
    told: Unanswered
    node: str
    epoch: int
    at_ms: int
    proxy: str


@dataclass(frozen=True, slots=True)
class Whose:
    """All of them, oldest first; ``unnamed`` is how many more there were than the proxies named."""

    clients: tuple[Client, ...] = ()
    unnamed: int = 0

    def in_epoch(self, epoch: int) -> tuple[Client, ...]:
        """Those that ran on the primary of one epoch."""
        return tuple(client for client in self.clients if client.epoch == epoch)


def whose(events: Iterable[Event]) -> Whose:
    """What the entries tell; what cannot be read of them is left out."""
    told = [event for event in events if event.kind == KIND]
    clients = [client for event in told for client in _clients(event)]
    unnamed = [event.detail.get("unnamed") for event in told]
    return Whose(tuple(sorted(clients, key=lambda client: client.at_ms)), sum(n for n in unnamed if isinstance(n, int)))


def _clients(event: Event) -> list[Client]:
    listed = event.detail.get("clients")
    found = [_client(entry, event.source) for entry in listed] if isinstance(listed, list) else []
    return [client for client in found if client is not None]


def _client(entry: JsonValue, source: str) -> Client | None:
    if not isinstance(entry, dict):
        return None
    try:
        owner = Owner(*(str(entry[name]) for name in ("user", "database", "application", "address")))
        told = Unanswered(str(entry["outcome"]))
        epoch, at_ms = int(str(entry["epoch"])), int(str(entry["at_ms"]))
    except (KeyError, ValueError):
        return None
    return Client(owner, told, str(entry.get("node", "?")), epoch, at_ms, source)


def of_unknown(clients: Sequence[Client]) -> tuple[Client, ...]:
    """Those that do not know whether their transaction was committed."""
    return tuple(client for client in clients if client.told is Unanswered.UNKNOWN)
