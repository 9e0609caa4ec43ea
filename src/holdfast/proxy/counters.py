"""What happened on one port, and to sessions of which class."""

from __future__ import annotations

from dataclasses import asdict, dataclass, field

from holdfast.model.owner import Unanswered
from holdfast.wire.loss import Loss


@dataclass(slots=True)
class ClassCounters:
    """What the sessions of one class of traffic met."""

    held: int = 0
    refused: int = 0
    unknown: int = 0
    undone: int = 0


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
    classes: dict[str, ClassCounters] = field(default_factory=dict)
    """By the name of the class; of those that met anything."""
    _longest_s: dict[str, float] = field(default_factory=dict)

    def of(self, traffic_class: str) -> ClassCounters:
        """Those of one class."""
        return self.classes.setdefault(traffic_class, ClassCounters())

    def hold_begun(self, traffic_class: str) -> None:
        """A statement has to wait for a server."""
        self.statements_held += 1
        self.of(traffic_class).held += 1

    def held_for(self, traffic_class: str, waited_s: float) -> None:
        """A statement waits no longer, whatever became of it."""
        self._longest_s[traffic_class] = max(self._longest_s.get(traffic_class, 0.0), waited_s)

    def held_in_vain(self, traffic_class: str) -> None:
        """A statement was refused because no server was there for too long, or too many waited."""
        self.holds_ended += 1
        self.of(traffic_class).refused += 1

    def shed(self, traffic_class: str) -> None:
        """A statement was refused because it could not be let in."""
        self.statements_shed += 1
        self.of(traffic_class).refused += 1

    def lost(self, traffic_class: str, loss: Loss, held_open: bool) -> Unanswered | None:
        """A session lost its server; ``held_open``: between two statements of a transaction.

        Returns what the client is told.
        """
        if not (held_open or any(answer.needs_error for answer in loss.answers)):
            return None
        is_unknown = loss.unknown and not held_open
        self.outcomes_unknown += is_unknown
        self.transactions_lost += not is_unknown
        self.of(traffic_class).unknown += is_unknown
        self.of(traffic_class).undone += not is_unknown
        return Unanswered.UNKNOWN if is_unknown else Unanswered.UNDONE

    def status(self) -> dict[str, object]:
        """For ``/status``."""
        return {name: value for name, value in asdict(self).items() if not name.startswith("_")}

    def take_longest_ms(self) -> dict[str, int]:
        """The longest wait of a statement of each class, of those that have ended since this was last asked."""
        longest_s, self._longest_s = self._longest_s, {}
        return {name: round(waited_s * 1000) for name, waited_s in longest_s.items()}
