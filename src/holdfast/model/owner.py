"""Whose a transaction is: the client of a session, as the proxy saw it."""

from __future__ import annotations

from dataclasses import dataclass
from enum import StrEnum


@dataclass(frozen=True, slots=True)
class Owner:
    """A client by what it logged in with and where it came from (``address`` is ``host:port``)."""

    user: str
    database: str
    application: str = ""
    address: str = ""

    @property
    def in_words(self) -> str:
        """``alice@app (billing) from 10.0.0.7:51234``."""
        named = f" ({self.application})" if self.application else ""
        return f"{self.user}@{self.database}{named} from {self.address or 'an unknown address'}"


class Unanswered(StrEnum):
    """What a client was told of a transaction that its server took with it."""

    UNKNOWN = "unknown"
    """It may or may not have been committed."""
    UNDONE = "undone"
    """Nothing of it was committed."""
