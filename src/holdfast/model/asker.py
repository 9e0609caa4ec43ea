"""Who gives an order to an agent."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Final

USER_HEADER: Final = "X-Holdfast-User"
"""The HTTP header in which whoever gives an order says who it is."""

ORIGIN_HEADER: Final = "X-Holdfast-From"
"""The one in which he says where he sits, if not at the host that the order comes from."""

CLOCK_HEADER: Final = "X-Holdfast-Clock"
"""The one in which an agent's answer carries what its hybrid logical clock shows."""


@dataclass(frozen=True, slots=True)
class Asker:
    """By his own word (the token says only that he may), and from which address.

    ``origin`` is where he is logged in from (the far end of his SSH connection), if he says so.
    """

    user: str
    address: str
    origin: str | None = None

    @property
    def detail(self) -> dict[str, str]:
        """What an entry of the journal says of him."""
        from_where = {} if self.origin is None else {"origin": self.origin}
        return {"by": self.user, "address": self.address, **from_where}
