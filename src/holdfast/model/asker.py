"""Who gives an order to an agent."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Final

USER_HEADER: Final = "X-Holdfast-User"
"""The HTTP header in which whoever gives an order says who it is."""


@dataclass(frozen=True, slots=True)
class Asker:
    """By his own word (the token says only that he may), and from which address."""

    user: str
    address: str
