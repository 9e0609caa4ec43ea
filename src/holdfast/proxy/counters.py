"""What happened on one port."""

from __future__ import annotations

from dataclasses import dataclass

from holdfast.model.owner import Unanswered
from holdfast.wire.loss import Loss


@dataclass(slots=True)
class Counters:
    """What happened on a port since the start."""

    statements_held: int = 0
    holds_ended: int = 0
    statements_shed: int = 0
    servers_opened: int = 0
    servers_refused: int = 0
    servers_lost: int = 0
    servers_let_go: int = 0
    outcomes_unknown: int = 0
    transactions_lost: int = 0
    cancels: int = 0

    def lost(self, loss: Loss, held_open: bool) -> Unanswered | None:
        """Count it; ``held_open``: between two statements of a transaction. Returns what the client is told."""
        if not (held_open or any(answer.needs_error for answer in loss.answers)):
            return None
        is_unknown = loss.unknown and not held_open
        self.outcomes_unknown += is_unknown
        self.transactions_lost += not is_unknown
        return Unanswered.UNKNOWN if is_unknown else Unanswered.UNDONE
