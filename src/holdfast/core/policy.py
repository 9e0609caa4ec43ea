"""Whether a policy suits a cluster."""

from __future__ import annotations

from collections.abc import Sequence

from holdfast.model.policy import Durability, Policy


def objections(policy: Policy, voters: Sequence[str]) -> list[str]:
    """What speaks against a policy for a cluster of these nodes, each with the fix; empty if it may be set."""
    found = [
        f"policy nodes.{name}: there is no such node (the nodes are {', '.join(voters)})"
        for name in sorted(policy.nodes)
        if name not in voters
    ]
    promotable = [name for name in voters if policy.promotable(name)]
    if len(promotable) < 2 <= len(voters):
        found.append(
            "policy promotable: fewer than two nodes would be left to lead, and nobody could take over: "
            "leave at least two promotable"
        )
    elif len(promotable) < min(3, len(voters)) and policy.durability is Durability.STRICT:
        names = " and ".join(promotable)
        found.append(
            f"policy promotable: only {names} would lead or confirm commits, and with durability = strict neither "
            "could lead without the other: nobody would take over. Leave three nodes promotable, or set "
            "durability = degrading"
        )
    if policy.confirmations is not None:
        found += _too_many(policy, policy.confirmations, len(promotable) - 1)
    return found


def _too_many(policy: Policy, confirmations: int, standbys: int) -> list[str]:
    if policy.durability is Durability.STRICT and confirmations > max(1, standbys - 1):
        return [
            f"policy confirmations: {confirmations} of {standbys} standbys would stop all writes at the loss of one "
            f"node: at most {max(1, standbys - 1)}, or durability = degrading"
        ]
    if policy.durability is Durability.DEGRADING and confirmations > standbys:
        there_are = "there is only 1 standby" if standbys == 1 else f"there are only {standbys} standbys"
        return [f"policy confirmations: {there_are} to confirm a commit, not {confirmations}"]
    return []
