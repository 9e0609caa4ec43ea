"""The register: the one value in the store that says who leads, and how it is changed (docs/protocol.md, "State")."""

from __future__ import annotations

import re
from dataclasses import dataclass, replace
from enum import StrEnum
from typing import Annotated, Any

from pydantic import AfterValidator, ConfigDict, TypeAdapter, ValidationError

from holdfast.model.errors import RegisterError
from holdfast.model.lsn import History, Lsn, Position

REGISTER_FORMAT = 1
BARRIER_NAME = "holdfast_barrier"
"""A synchronous standby that nobody may be named: while PostgreSQL waits for it, nothing is acknowledged."""

NODE_NAME = re.compile(r"\A[a-z][a-z0-9]{0,15}\Z")
_ANY = re.compile(r"\AANY (\d+) \(([^()]+)\)\Z")
INCARNATION = re.compile(r"\A[0-9a-f]{8}\Z")


def _checked_node(name: str) -> str:
    if not NODE_NAME.match(name):
        raise ValueError("a node's name is 1 to 16 lower-case letters and digits and starts with a letter")
    return name


NodeName = Annotated[str, AfterValidator(_checked_node)]


@dataclass(frozen=True, slots=True, order=True)
class Member:
    """A data directory, not a name: a node and the incarnation of the directory it has now."""

    node: NodeName
    incarnation: str

    @property
    def application_name(self) -> str:
        """What PostgreSQL counts in ``synchronous_standby_names``: never a stranger under the node's name."""
        return f"{self.node}_{self.incarnation}"

    @classmethod
    def parse(cls, application_name: str) -> Member | None:
        """The member that streams under this name, or None for a client that is no member."""
        node, _, incarnation = application_name.partition("_")
        if NODE_NAME.match(node) and INCARNATION.match(incarnation):
            return cls(node, incarnation)
        return None

    def __str__(self) -> str:
        return self.application_name


@dataclass(frozen=True, slots=True)
class Quorum:
    """``ANY k (members)``: an acknowledged commit is on the leader and on at least ``k`` of ``members``.

    ``k = 0`` is degraded: commits are local. ``members`` is kept, so that it is known whom to take back.
    """

    members: frozenset[Member]
    k: int

    def __post_init__(self) -> None:
        if not 0 <= self.k <= len(self.members):
            raise ValueError(f"k = {self.k} of {len(self.members)} members can never be satisfied")

    @property
    def recruits_needed(self) -> int:
        """How many members intersect every set that could have acknowledged a commit."""
        return len(self.members) - self.k + 1

    def __str__(self) -> str:
        return f"ANY {self.k} ({', '.join(sorted(m.application_name for m in self.members))})"

    @classmethod
    def parse(cls, text: str) -> Quorum | None:
        """The quorum that ``synchronous_standby_names`` spells, or None if it is none of ours (the barrier, say)."""
        match = _ANY.match(text)
        if match is None:
            return None
        members = [Member.parse(name.strip().strip('"')) for name in match[2].split(",")]
        known = frozenset(m for m in members if m is not None)
        return cls(known, int(match[1])) if len(known) == len(members) and int(match[1]) <= len(known) else None


NO_QUORUM = Quorum(frozenset(), 0)


@dataclass(frozen=True, slots=True)
class Configuration:
    """A committed configuration: who led last, in which epoch, and which quorum acknowledged."""

    leader: Member
    epoch: int
    quorum: Quorum


class Phase(StrEnum):
    """Where the current epoch stands."""

    SERVING = "serving"
    RECRUITING = "recruiting"
    PROMOTING = "promoting"


RegisterAge = tuple[int, int]
"""Epoch and generation."""


@dataclass(frozen=True, slots=True)
class Register:
    """The whole state of the leadership protocol; immutable, swapped by compare-and-swap.

    ``handover`` is set while a switchover is on its way: proxies hold new work, ``committed`` still leads.
    """

    cluster: str
    cluster_id: str
    system_identifier: str
    epoch: int
    phase: Phase
    candidate: Member | None
    voters: tuple[NodeName, ...]
    committed: Configuration
    handover: NodeName | None = None
    witnesses: tuple[NodeName, ...] = ()
    """Voters that have no PostgreSQL."""
    generation: int = 0
    """How many swaps came before; within an epoch it tells a register put back from a backup from the newest one."""
    format: int = REGISTER_FORMAT

    __pydantic_config__ = ConfigDict(extra="forbid")

    def __post_init__(self) -> None:
        if (self.phase is Phase.PROMOTING) != (self.candidate is not None):
            raise ValueError(f"phase {self.phase.value} and candidate {self.candidate} contradict each other")
        if self.phase is Phase.SERVING and self.committed.epoch != self.epoch:
            raise ValueError(f"epoch {self.epoch} serves with the configuration of epoch {self.committed.epoch}")

    @property
    def age(self) -> RegisterAge:
        """Where it stands among all registers of the cluster: a later one is greater."""
        return self.epoch, self.generation

    @property
    def leader(self) -> Member | None:
        """The member that serves, or None while no primary does."""
        return self.committed.leader if self.phase is Phase.SERVING else None

    @property
    def data_nodes(self) -> tuple[NodeName, ...]:
        """The voters that have a PostgreSQL."""
        return tuple(name for name in self.voters if name not in self.witnesses)

    def opened(self) -> Register:
        """The next epoch, recruiting; the committed configuration stays in force, also the wish for a successor."""
        return self._next(epoch=self.epoch + 1, phase=Phase.RECRUITING, candidate=None)

    def chosen(self, candidate: Member) -> Register:
        """The same epoch, promoting ``candidate``."""
        return self._next(phase=Phase.PROMOTING, candidate=candidate)

    def served_by(self, leader: Member, quorum: Quorum) -> Register:
        """The same epoch, serving under a new committed configuration."""
        return self._next(
            phase=Phase.SERVING,
            candidate=None,
            committed=Configuration(leader, self.epoch, quorum),
            handover=None,
        )

    def handing_over(self, target: str | None) -> Register:
        """The same leadership, about to be handed to ``target`` (None: no longer)."""
        return self._next(handover=target)

    def requorumed(self, quorum: Quorum) -> Register:
        """The same leadership under another quorum."""
        return self._next(committed=replace(self.committed, quorum=quorum))

    def _next(self, **changes: Any) -> Register:
        return replace(self, generation=self.generation + 1, **changes)

    def to_json(self) -> bytes:
        """The stored form."""
        return _REGISTER.dump_json(self)

    @classmethod
    def from_json(cls, raw: bytes) -> Register:
        """Read the stored form; raises RegisterError if it is not a register of this format."""
        try:
            register = _REGISTER.validate_json(raw)
        except ValidationError as error:
            raise RegisterError(f"the register cannot be read: {error.errors()[0]['msg']}") from error
        if register.format != REGISTER_FORMAT:
            raise RegisterError(
                f"the register has format {register.format}, this version reads {REGISTER_FORMAT}: "
                "upgrade every process of the cluster to the same version"
            )
        return register


@dataclass(frozen=True, slots=True)
class Recruit:
    """What a member wrote when it joined a new epoch: it streams from nobody any more, and its log ends here.

    ``history`` lists the timelines before ``position.timeline``: others learn from it whether they can follow.
    ``replayed_lsn`` is how much of the log it has replayed; the rest has to be before a promotion ends. ``silent_ms``
    is for how long it had received nothing: what the old leader sent later was confirmed by others only.
    """

    member: Member
    epoch: int
    position: Position
    history: History
    replayed_lsn: Lsn = Lsn(0)  # noqa: RUF009 - an immutable number
    silent_ms: int = 0

    def to_json(self) -> bytes:
        """The stored form."""
        return _RECRUIT.dump_json(self)

    @classmethod
    def from_json(cls, raw: bytes) -> Recruit:
        """Read the stored form; raises RegisterError."""
        try:
            return _RECRUIT.validate_json(raw)
        except ValidationError as error:
            raise RegisterError(f"a recruit's record cannot be read: {error.errors()[0]['msg']}") from error


class NodeState(StrEnum):
    """What a node's PostgreSQL is, as its agent tells the world: for routing and for people, never for safety."""

    STOPPED = "stopped"
    STARTING = "starting"
    STANDBY = "standby"
    PRIMARY = "primary"
    REBUILDING = "rebuilding"
    WITNESS = "witness"
    """No PostgreSQL, on purpose."""
    SILENT = "silent"
    """Its agent is away: nothing is known but its address."""


@dataclass(frozen=True, slots=True)
class NodeRecord:
    """Where a node is and what it does now; its agent keeps it in the store under a lease.

    ``epoch`` is the epoch of the leader that it follows or the one that it leads (0 if neither). The address alone is
    kept without a lease, too: a leader that serves without its agent must be found by those who start meanwhile.
    """

    member: Member
    state: NodeState
    epoch: int
    postgres_host: str
    postgres_port: int
    api_url: str

    def address(self) -> NodeRecord:
        """What stays true of it when its agent falls silent."""
        return replace(self, state=NodeState.SILENT, epoch=0)

    def moved_to(self, address: NodeRecord) -> NodeRecord:
        """The same node elsewhere."""
        return replace(address, state=self.state, epoch=self.epoch)

    def to_json(self) -> bytes:
        """The stored form."""
        return _NODE.dump_json(self)

    @classmethod
    def from_json(cls, raw: bytes) -> NodeRecord:
        """Read the stored form; raises RegisterError."""
        try:
            return _NODE.validate_json(raw)
        except ValidationError as error:
            raise RegisterError(f"a node's record cannot be read: {error.errors()[0]['msg']}") from error


_REGISTER = TypeAdapter(Register)
_RECRUIT = TypeAdapter(Recruit)
_NODE = TypeAdapter(NodeRecord)
