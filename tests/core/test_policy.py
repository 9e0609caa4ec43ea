"""What people may decide about a cluster, and what speaks against it."""

from __future__ import annotations

import pytest

from holdfast.core.durability import confirmations, may_pledge, may_take
from holdfast.core.policy import objections
from holdfast.model.errors import ConfigurationError, RegisterError
from holdfast.model.lease import LeaseRecord
from holdfast.model.lsn import Lsn
from holdfast.model.policy import DEFAULT_POLICY, Durability, NodeTags, Policy
from tests.core.builders import N1, N3, observation

VOTERS = ("n1", "n2", "n3")


def test_answers_that_may_be_old_are_named_by_fingerprints() -> None:
    assert DEFAULT_POLICY.changed({"stale_by": {"a1b2c3d4e5f6": 300}}).stale_by == {"a1b2c3d4e5f6": 300}
    for wrong in ("select 1", "A1B2C3D4E5F6", "a1b2"):
        with pytest.raises(ConfigurationError, match="is no fingerprint: `holdfast quarantine fingerprint"):
            DEFAULT_POLICY.changed({"stale_by": {wrong: 300}})


def test_a_policy_survives_the_store() -> None:
    policy = Policy(durability=Durability.DEGRADING, nodes={"n2": NodeTags(priority=3, zone="b")}, paused=True)
    assert Policy.from_json(policy.to_json()) == policy
    with pytest.raises(RegisterError, match="cannot be read"):
        Policy.from_json(b"{}x")
    with pytest.raises(RegisterError, match="upgrade every process"):
        Policy.from_json(Policy(format=2).to_json())


def test_changes_merge_into_what_there_is() -> None:
    tagged = DEFAULT_POLICY.changed({"nodes": {"n2": {"priority": 3}}})
    both = tagged.changed({"nodes": {"n2": {"zone": "b"}, "n3": {"promotable": False}}, "durability": "degrading"})
    assert both.tags("n2") == NodeTags(priority=3, zone="b")
    assert not both.promotable("n3")
    assert both.durability is Durability.DEGRADING
    assert both.changed({"nodes": {"n2": {"zone": None}}}).tags("n2") == NodeTags(priority=3)
    assert both.changed({"durability": None}).durability is Durability.STRICT


@pytest.mark.parametrize(
    ("changes", "said"),
    [
        ({"durability": "sometimes"}, "policy durability: should be"),
        ({"colour": "red"}, "policy colour is not known"),
        ({"confirmations": 0}, "policy confirmations: should be at least 1, not 0"),
        (
            {"nodes": {"n2": {"zone": "Zone A"}}},
            "policy nodes.n2.zone: should be at most 31 of a-z, 0-9 and -",
        ),
        ({"paused": "maybe"}, "policy paused: should be true or false, not 'maybe'"),
        ({"capture_wait_s": 1.5}, "policy capture_wait_s: should be a whole number, not 1.5"),
        ({"objective_availability_percent": 100}, "should be less than 100, not 100"),
        ({"classes": {"Own": {"share": 3}}}, "policy classes.Own: should be 1 to 31 of a-z"),
        ({"format": 3}, "policy format is not a setting"),
        ({"nodes": {"n2": {"colour": None}}}, "policy nodes.n2.colour is not known"),
        ({"nodes": {"N2": {}}}, "a node's name is 1 to 16"),
    ],
)
def test_a_wrong_value_names_itself(changes: dict[str, object], said: str) -> None:
    with pytest.raises(ConfigurationError, match=said):
        DEFAULT_POLICY.changed(changes)


def test_a_policy_must_suit_the_cluster() -> None:
    assert objections(DEFAULT_POLICY, VOTERS) == []
    assert "there is no such node" in objections(Policy(nodes={"n7": NodeTags()}), VOTERS)[0]
    not_promotable = {name: NodeTags(promotable=False) for name in ("n2", "n3")}
    assert "nobody could take over" in objections(Policy(nodes=not_promotable), VOTERS)[0]
    reporting = {"n3": NodeTags(promotable=False)}
    assert "only n1 and n2 would lead or confirm" in objections(Policy(nodes=reporting), VOTERS)[0]
    assert objections(Policy(nodes=reporting), (*VOTERS, "n4")) == []
    assert objections(Policy(nodes=reporting, durability=Durability.DEGRADING), VOTERS) == []
    assert objections(DEFAULT_POLICY, ("n1", "n2")) == []
    assert "would stop all writes at the loss of one node: at most 1" in objections(Policy(confirmations=2), VOTERS)[0]
    assert objections(Policy(confirmations=2, durability=Durability.DEGRADING), VOTERS) == []
    assert "only 2 standbys" in objections(Policy(confirmations=3, durability=Durability.DEGRADING), VOTERS)[0]


def test_how_many_confirm() -> None:
    assert [confirmations(Policy(), size) for size in range(4)] == [None, 1, 1, 2]
    assert [confirmations(Policy(confirmations=2), size) for size in range(4)] == [None, None, 2, 2]
    degrading = Policy(durability=Durability.DEGRADING, confirmations=2)
    assert [confirmations(degrading, size) for size in range(4)] == [0, 1, 2, 2]
    assert confirmations(Policy(durability=Durability.ASYNCHRONOUS), 3) == 0


def test_a_lease_is_taken_over_from_the_past_only() -> None:
    mine = LeaseRecord(N1, 3, Lsn(100))
    assert may_take(None, 3)
    assert may_take(mine, 3)
    assert may_take(mine, 4)
    assert not may_take(mine.withdrawn(4, 9), 3)
    assert may_take(mine.withdrawn(4, 9), 4)


def test_a_word_is_given_to_the_leader_of_the_register_only() -> None:
    assert may_pledge(observation(), N1, 1)
    assert not may_pledge(observation(), N3, 1)
    assert not may_pledge(observation(), N1, 2)
    assert not may_pledge(observation(promised=2), N1, 1)
