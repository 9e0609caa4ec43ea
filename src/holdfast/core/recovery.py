"""A new register from what all agents say, after the store was lost or restored from a backup (docs/protocol.md).

The register that is built names the node with the newest log as the committed leader under k = 0: an epoch then needs
that very node, or one that has all of its log. Nothing of the former quorum has to be believed.
"""

from __future__ import annotations

from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass

from holdfast.core.membership import in_effect
from holdfast.model.register import Configuration, Phase, Quorum, Register
from holdfast.model.report import NodeReport
from holdfast.model.server import ServerStatus


@dataclass(frozen=True, slots=True)
class Asked:
    """What is known. ``found`` is the register that the store has, if it can be read."""

    cluster: str
    data_nodes: tuple[str, ...]
    witnesses: tuple[str, ...]
    reports: Mapping[str, NodeReport | None]
    ignored: frozenset[str] = frozenset()
    found: Register | None = None


@dataclass(frozen=True, slots=True)
class Recovery:
    """What would be written, why, and what it could cost."""

    register: Register
    because: tuple[str, ...]
    risks: tuple[str, ...]


@dataclass(frozen=True, slots=True)
class Refusal:
    """Why nothing may be written, each reason with its fix."""

    reasons: tuple[str, ...]


def recover(asked: Asked) -> Recovery | Refusal:
    """The register to write, or why none may be written now."""
    known = {name: r for name in asked.data_nodes if (r := asked.reports.get(name)) is not None}
    reasons = _unusable(asked, known)
    counted = {name: r for name, r in known.items() if name not in asked.ignored and r.member is not None}
    if not reasons and not counted:
        reasons = ["no agent that answers has a data directory: there is nothing to recover a cluster from"]
    if reasons:
        return Refusal(tuple(reasons))
    if _is_sound(asked, list(known.values())):
        return Refusal((f"the register of epoch {asked.found.epoch if asked.found else 0} is in force: nothing to do",))
    newest = max(counted.values(), key=_order)
    epoch = 1 + max(
        [r.promised for r in known.values()]
        + [r.position.timeline for r in counted.values() if r.position is not None]
        + [asked.found.epoch if asked.found is not None else 0]
    )
    leader = newest.member
    assert leader is not None
    members = frozenset(r.member for r in counted.values() if r.member is not None and r.member != leader)
    register = Register(
        cluster=asked.cluster,
        cluster_id=str(newest.cluster_id),
        system_identifier=str(newest.system_identifier),
        epoch=epoch,
        phase=Phase.RECRUITING,
        candidate=None,
        voters=(*asked.data_nodes, *asked.witnesses),
        committed=Configuration(leader, epoch - 1, Quorum(members, 0)),
        witnesses=asked.witnesses,
    )
    return Recovery(register, _because(newest, epoch, asked), _risks(asked, newest))


def _unusable(asked: Asked, known: Mapping[str, NodeReport]) -> list[str]:
    silent = [n for n in asked.data_nodes if n not in known and n not in asked.ignored]
    reasons = [
        f"{name}: its agent does not answer; it may have log that nobody else has. Start it, or say --ignore {name}"
        for name in silent
    ]
    reasons += [f"--ignore {name}: there is no such node" for name in sorted(asked.ignored - set(asked.data_nodes))]
    counted = [r for name, r in known.items() if name not in asked.ignored]
    for r in counted:
        if r.progress is not None or r.situation == "rebuilding":
            reasons.append(f"{r.node}: {r.progress or 'its directory is being rebuilt'}; wait until that has ended")
        elif r.member is not None and r.position is None:
            reasons.append(f"{r.node}: where its log ends is not known yet ({r.status.value}); try again in a moment")
    for what in ("cluster_id", "system_identifier"):
        values = {getattr(r, what) for r in counted if r.member is not None}
        if len(values) > 1:
            reasons.append(
                f"the agents disagree on the {what}: they belong to different clusters; --ignore the strangers"
            )
    return reasons


def _is_sound(asked: Asked, known: Sequence[NodeReport]) -> bool:
    """Whether the register that is there is obeyed by everybody who answers."""
    if asked.found is None or any(r.alarm is not None for r in known):
        return False
    return asked.found.epoch >= max((r.promised for r in known), default=0)


def _order(report: NodeReport) -> tuple[int, int, bool]:
    """By log; among equals one that leads is taken, which may have written more since it said so."""
    if report.position is None:
        return 0, 0, False
    is_primary = report.status is ServerStatus.PRIMARY
    # What a primary reports is behind what it has: it goes before any standby of its own timeline.
    return report.position.timeline, 2**64 if is_primary else int(report.position.lsn), is_primary


def _because(newest: NodeReport, epoch: int, asked: Asked) -> tuple[str, ...]:
    position = newest.position
    end = f"{position.lsn} of timeline {position.timeline}" if position is not None else "?"
    what = "is a primary" if newest.status is ServerStatus.PRIMARY else f"is {newest.status.value}"
    found = (
        "the store has no register" if asked.found is None else f"the store's register is of epoch {asked.found.epoch}"
    )
    return (
        found,
        f"{newest.node} has the newest log: it {what}, and its log ends at {end}",
        f"epoch {epoch} is above every promise and every timeline",
        f"all nodes join epoch {epoch}; {newest.node}, or one that has all of its log, is promoted in it",
    )


def _risks(asked: Asked, newest: NodeReport) -> tuple[str, ...]:
    """What could be lost because nodes are ignored."""
    if not asked.ignored:
        return ()
    names = ", ".join(sorted(asked.ignored))
    quorum = in_effect(newest.synchronous_names) if newest.status is ServerStatus.PRIMARY else None
    if quorum is not None and quorum.k > 0 and _cannot_have_led(quorum, asked.ignored):
        return (
            f"{names}: could not have taken over alone from {newest.node}, which leads and answers, so nothing "
            "acknowledged is lost; its directory is rewound or cloned when it comes back",
        )
    return (
        f"{names}: if it was promoted later than everybody who answers, or has log that nobody else has, what was "
        "acknowledged there is lost for good when it comes back and is rewound; make sure that it does not run",
    )


def _cannot_have_led(quorum: Quorum, ignored: Collection[str]) -> bool:
    """Whether the ignored members of a primary's quorum are too few to have been recruited without it."""
    return sum(m.node in ignored for m in quorum.members) < quorum.recruits_needed
