"""Variants of the product that leave one rule out each. The simulator must catch every one of them.

A rule is left out by putting something else in its place while a run lasts; the product itself carries no switches.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

from holdfast.core import choice, coordination, durability, giving_up, leadership, membership, quorum
from holdfast.core.forecast import Standing
from holdfast.core.observation import Observation, RegisterTrouble
from holdfast.model.lsn import Lsn, Position
from holdfast.model.register import Member, Quorum, Register, RegisterAge
from holdfast.model.server import Upstream
from holdfast.model.timeouts import Timeouts
from holdfast.node import observer
from holdfast.node.promise import Names
from holdfast.testing import ending
from holdfast.testing.directory import Directory, Record
from holdfast.testing.host import CountedNames
from holdfast.testing.postgres import NOBODY, Postgres
from holdfast.testing.replication import Receiver, Sender
from holdfast.testing.server import SimulatedServer
from holdfast.testing.wiring import Wiring
from holdfast.testing.world import World


class Broken(Wiring):
    """A variant: what it puts in the place of what. Subclasses say which rule they leave out."""

    replacements: tuple[tuple[Any, str, Any], ...] = ()

    @contextmanager
    def in_force(self) -> Iterator[None]:
        """See `Wiring.in_force`."""
        former = [(place, name, vars(place).get(name)) for place, name, _ in self.replacements]
        for place, name, other in self.replacements:
            setattr(place, name, other)
        try:
            yield
        finally:
            for place, name, real in former:
                if real is None:
                    delattr(place, name)  # a name of Python's own
                else:
                    setattr(place, name, real)


# ---- safety ---------------------------------------------------------------------------------------------------


class AnybodySuffices(Broken):
    """Recruit anybody instead of the committed leader or |S| - k + 1 members."""

    replacements = (
        (choice, "standbys_suffice", lambda committed, recruits: bool(recruits)),
        (coordination, "recruits_suffice", lambda committed, recruits: True),
    )


class GoesOnStreaming(Broken):
    """Report the position of a standby that still receives, and make it stop a moment later."""

    def server(self, postgres: Postgres, timeouts: Timeouts) -> SimulatedServer:
        """See `Wiring.server`."""
        return _UndetachedServer(postgres, timeouts)


class _UndetachedServer(SimulatedServer):
    async def detach(self) -> Position:
        """The position, while log still comes in."""
        directory = await self._statement()
        postgres = self.postgres
        postgres.soon(postgres.random.uniform(100, 400), postgres.follow, None, "")
        return directory.position()


class AnyLog(Broken):
    """Promote the recruit with the least log instead of the most."""

    replacements = ((choice, "max", min),)


def _always_covered(members: Quorum, flushed: object, lsn: Lsn) -> bool:
    return True


class NoBarrier(Broken):
    """Commit the new configuration before its record is on k of its members."""

    replacements = ((leadership, "covered", _always_covered),)


class OpenAtOnce(Broken):
    """PostgreSQL acknowledges as soon as it is promoted."""

    def server(self, postgres: Postgres, timeouts: Timeouts) -> SimulatedServer:
        """See `Wiring.server`."""
        return _OpenServer(postgres, timeouts)


class _OpenServer(SimulatedServer):
    async def promote(self, epoch: int) -> None:
        """What is shown is the barrier; what is in force is nothing."""
        self.postgres.real_names = NOBODY
        await super().promote(epoch)


_trouble = observer._trouble


_OLD = (RegisterTrouble.OLDER_THAN_PROMISE, RegisterTrouble.OLDER_THAN_SEEN)


def _any_register(look: observer.Look, newest: RegisterAge) -> RegisterTrouble | None:
    trouble = _trouble(look, newest)
    return None if trouble in _OLD else trouble


def _any_of_its_epoch(look: observer.Look, newest: RegisterAge) -> RegisterTrouble | None:
    trouble = _trouble(look, newest)
    return None if trouble is RegisterTrouble.OLDER_THAN_SEEN else trouble


class NoPromise(Broken):
    """Obey whatever the register says, also if it is older than what was promised."""

    replacements = ((observer, "_trouble", _any_register),)


class NoGeneration(Broken):
    """Obey a register that is older than one seen before, if its epoch is not."""

    replacements = ((observer, "_trouble", _any_of_its_epoch),)


def _implies_anything(stronger: Quorum, weaker: Quorum) -> bool:
    return True


class NotImplied(Broken):
    """PostgreSQL's setting need not imply the register's."""

    replacements = ((quorum, "implies", _implies_anything),)


class NotCaughtUp(Broken):
    """The register tightens before the log so far is on the members that it will name."""

    replacements = ((quorum, "covered", _always_covered),)


class NamesOnly(Broken):
    """A directory made anew is the former member: it streams under its name, also while it is half made."""

    def names(self, world: World, node: str) -> Names:
        """See `Wiring.names`."""
        return _NodeNames(world, node)

    def server(self, postgres: Postgres, timeouts: Timeouts) -> SimulatedServer:
        """See `Wiring.server`."""
        return _SameNameServer(postgres, timeouts)


class _NodeNames(CountedNames):
    def __init__(self, world: World, node: str) -> None:
        super().__init__(world)
        self._node = node

    def incarnation(self) -> str:
        """Always the same."""
        return f"{int(self._node[1:]):08x}"


class _SameNameServer(SimulatedServer):
    async def _copy(self, found: Directory, source: Upstream, member: Member) -> None:
        """While the files travel, the log is streamed under the member's name, and what is flushed is reported."""
        upstream = self.postgres.servers[source.node]
        receiver = _CopyingReceiver(self.postgres, upstream, member.application_name)
        receiver.begin(found)
        try:
            await super()._copy(found, source, member)
        finally:
            receiver.close()


class _CopyingReceiver(Receiver):
    """Takes log into a directory that is no directory yet."""

    def begin(self, found: Directory) -> None:
        """Stream from what is there now."""
        self.streams = True
        self.sender = sender = Sender(self.upstream, self, self.name, found.flushed)
        self.upstream.senders.append(sender)

    def _write(self, sender: Sender, records: list[Record]) -> None:
        if self.is_open:
            sender.up.send(self._reported, sender, records[-1].end)


def _whoever_leads(o: Observation, register: Register) -> bool:
    return register.candidate is not None and giving_up.leads_now(o, register, register.candidate) is not None


class GivesUpForAnybody(Broken):
    """Give a log that does not fit up as soon as a candidate is promoted, whoever it is."""

    replacements = ((leadership, "gives_up", _whoever_leads),)


class AnyConnection(Broken):
    """Members stream through no slot of their own: one that has connected again is counted twice."""

    replacements = ((Postgres, "lets_in", lambda server, host: True),)


class NoLeaseWait(Broken):
    """Promote without a leader whose commits were local as soon as its lease is revoked, not when it is over."""

    replacements = ((durability, "lease_is_over", durability.is_revoked),)


def _holds_anyway(o: Observation) -> bool:
    return True


class NoLease(Broken):
    """Turn to local commits, and stay there, without the lease."""

    replacements = ((membership, "holds_lease", _holds_anyway), (leadership, "holds_lease", _holds_anyway))


# ---- liveness -------------------------------------------------------------------------------------------------


class NoPreVote(Broken):
    """Open an epoch without asking who could join it."""

    replacements = ((coordination, "prevote_passes", lambda o, register, willing: True),)


def _same_timeout_ms(o: Observation, register: Register) -> int:
    return o.timeouts.recruit_phase_ms


class NoBackOff(Broken):
    """Each phase has the same time-out, however many epochs were replaced."""

    replacements = ((coordination, "phase_timeout_ms", _same_timeout_ms),)


def _only_replaced(o: Observation, member: Member) -> bool:
    return membership._superseded(o, member) or not o.policy.promotable(member.node)


class KeepsTheSilent(Broken):
    """A member that does not stream stays in S for ever."""

    replacements = ((membership, "_is_leaving", _only_replaced),)


class NeverGivesUp(Broken):
    """Keep a log that does not fit until somebody serves, also if that is the last who could confirm it."""

    replacements = ((leadership, "gives_up", lambda o, register: False),)


def _nothing_to_say(now: Standing) -> None:
    return None


class SaysNothing(Broken):
    """Status does not say why writes wait."""

    replacements = ((ending, "impasse", _nothing_to_say),)


VARIANTS: dict[str, Callable[[], Broken]] = {
    "intersect": AnybodySuffices,
    "revoke-first": GoesOnStreaming,
    "best-log": AnyLog,
    "barrier": NoBarrier,
    "closed-until-serving": OpenAtOnce,
    "promise": NoPromise,
    "generation": NoGeneration,
    "implied": NotImplied,
    "caught-up": NotCaughtUp,
    "incarnation": NamesOnly,
    "log-kept": GivesUpForAnybody,
    "slot": AnyConnection,
    "lease": NoLeaseWait,
    "lease-first": NoLease,
    "pre-vote": NoPreVote,
    "back-off": NoBackOff,
    "drop-silent": KeepsTheSilent,
    "give-up": NeverGivesUp,
    "say-why": SaysNothing,
}
"""What can be left out, by name; the safety rules have the names that the protocol's model gives them."""

RULES = {name: (variant.__doc__ or "") for name, variant in VARIANTS.items()}
"""What each variant does instead."""
