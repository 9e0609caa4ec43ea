"""What a decision asks for: values, in the order in which they must happen. ``node`` performs them."""

from __future__ import annotations

from dataclasses import dataclass
from enum import StrEnum

from holdfast.core.choice import ChoiceReason
from holdfast.model.register import Member, Quorum, RegisterAge


@dataclass(frozen=True, slots=True)
class Initialize:
    """Make a new data directory and a new cluster identity."""


@dataclass(frozen=True, slots=True)
class CreateRegister:
    """Create the register, absent so far: epoch 1, promoting this node."""


@dataclass(frozen=True, slots=True)
class PersistPromise:
    """Write the promise to disk, fsynced, before anything that follows."""

    epoch: int


@dataclass(frozen=True, slots=True)
class RememberRegister:
    """Write down how new the register is, so that an older one is not obeyed after a restart either."""

    age: RegisterAge


@dataclass(frozen=True, slots=True)
class Detach:
    """Stop following, and prove that no walreceiver is left."""


@dataclass(frozen=True, slots=True)
class ReportRecruit:
    """Tell the store that this node joined the epoch, and where its log ends."""

    epoch: int


@dataclass(frozen=True, slots=True)
class Start:
    """Start PostgreSQL: as a standby of nobody, or as a primary closed by the barrier."""

    standby: bool


@dataclass(frozen=True, slots=True)
class Stop:
    """Stop PostgreSQL. ``immediate`` fences: no checkpoint, everything killed past a short deadline."""

    immediate: bool


@dataclass(frozen=True, slots=True)
class Kill:
    """Kill every process of PostgreSQL."""


@dataclass(frozen=True, slots=True)
class Follow:
    """Stream from a member."""

    member: Member


@dataclass(frozen=True, slots=True)
class Promote:
    """Leave recovery on timeline ``epoch``; the barrier keeps PostgreSQL closed."""

    epoch: int


@dataclass(frozen=True, slots=True)
class WriteMarker:
    """Write this leadership's record; where it ends is the marker that the quorum must flush."""

    epoch: int


@dataclass(frozen=True, slots=True)
class CommitConfiguration:
    """Swap the register to serving under this member and quorum."""

    quorum: Quorum


@dataclass(frozen=True, slots=True)
class TellPostgres:
    """Set ``synchronous_standby_names``."""

    quorum: Quorum


@dataclass(frozen=True, slots=True)
class TellRegister:
    """Swap the committed quorum in the register."""

    quorum: Quorum


@dataclass(frozen=True, slots=True)
class ReadEndOfLog:
    """Read where the log of the stopped directory ends."""


@dataclass(frozen=True, slots=True)
class Rewind:
    """Take the log beyond the fork back, with the leader as the source."""

    source: Member


@dataclass(frozen=True, slots=True)
class Clone:
    """Copy the leader's data directory."""

    source: Member


@dataclass(frozen=True, slots=True)
class HandOver:
    """Let running transactions end within a bound, then stop fast while the target still streams."""


@dataclass(frozen=True, slots=True)
class CancelHandOver:
    """Give the switchover up: the leader goes on."""


@dataclass(frozen=True, slots=True)
class AskPeers:
    """Ask every peer now."""


@dataclass(frozen=True, slots=True)
class OpenEpoch:
    """Swap the register to the next epoch, recruiting."""

    reason: str


@dataclass(frozen=True, slots=True)
class ChooseCandidate:
    """Swap the register to promoting."""

    candidate: Member
    reason: ChoiceReason


@dataclass(frozen=True, slots=True)
class RevokeLease:
    """See to it that the lost leader's lease can be renewed no more."""


class Awaited(StrEnum):
    """What a failover may wait for."""

    NODES = "nodes"
    """Some must come back first."""
    APPROVAL = "approval"
    """A person's word."""


@dataclass(frozen=True, slots=True)
class Await:
    """Tell people what the cluster waits for."""

    reason: str
    what: Awaited = Awaited.NODES


@dataclass(frozen=True, slots=True)
class Alarm:
    """Tell people; touch nothing."""

    reason: str


Action = (
    Initialize
    | CreateRegister
    | PersistPromise
    | RememberRegister
    | Detach
    | ReportRecruit
    | Start
    | Stop
    | Kill
    | Follow
    | Promote
    | WriteMarker
    | CommitConfiguration
    | TellPostgres
    | TellRegister
    | ReadEndOfLog
    | Rewind
    | Clone
    | HandOver
    | CancelHandOver
    | AskPeers
    | OpenEpoch
    | ChooseCandidate
    | RevokeLease
    | Await
    | Alarm
)
