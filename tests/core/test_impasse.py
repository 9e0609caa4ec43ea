"""Why a cluster does not serve, in words that name who is missing."""

from __future__ import annotations

from dataclasses import replace

import pytest

from holdfast.core.forecast import Standing
from holdfast.core.impasse import impasse, uncreated
from holdfast.core.obstacle import Obstacle
from holdfast.model.policy import DEFAULT_POLICY, Durability, NodeTags, Policy, Promotion
from holdfast.model.register import Configuration, Member, Phase, Quorum, Register
from holdfast.model.report import NodeReport, ReplicaReport, VerdictKind
from holdfast.model.server import ServerStatus
from tests.core.builders import BARRIER, BOTH, N1, N2, N3, at, new_register, register, report, verdict

LOST = verdict(VerdictKind.UNREACHABLE)


def without_data(node: Member) -> NodeReport:
    gone = report(node, status=ServerStatus.ABSENT, streaming=False, position=None, verdict=LOST)
    return replace(gone, member=None)


WELL: dict[str, NodeReport | None] = {"n2": report(N2, verdict=LOST), "n3": report(N3, verdict=LOST)}
DEGRADING = Policy(durability=Durability.DEGRADING)


def look(
    reports: dict[str, NodeReport | None], of: Register | None = None, policy: Policy = DEFAULT_POLICY
) -> Obstacle | None:
    return impasse(Standing(of or register(), {"n1": None, **reports}, policy))


def leading(*streaming: Member, names: str = str(BOTH)) -> NodeReport:
    replicas = tuple(ReplicaReport(member, "streaming", None) for member in streaming)
    return report(N1, status=ServerStatus.PRIMARY, streaming=False, synchronous_names=names, replicas=replicas)


def test_what_passes_by_itself_is_no_impasse() -> None:
    assert look({**WELL, "n1": leading(N2)}) is None
    assert look(dict(WELL)) is None, "a failover is on its way"
    assert look({"n2": report(N2), "n3": report(N3)}) is None, "the agent alone is silent: nobody holds n1 for lost"
    assert look(dict(WELL), register(2, Phase.RECRUITING)) is None


@pytest.mark.parametrize(
    ("reports", "away", "words"),
    [
        ({"n2": without_data(N2), "n3": WELL["n3"]}, ("n1", "n2"), "n2 has lost its data directory"),
        ({"n2": report(replace(N2, incarnation="0000000a"), verdict=LOST), "n3": WELL["n3"]},
         ("n1", "n2"), "n2 has another data directory"),
        ({"n2": WELL["n2"], "n3": report(N3, alarm="x", verdict=LOST)}, ("n1", "n3"), "n3 is not fit"),
        ({"n2": WELL["n2"], "n3": None}, ("n1", "n3"), "2 of 3 voters must agree that n1 is lost, and 1 can be asked"),
    ],
)  # fmt: skip
def test_who_is_missing_for_a_failover(
    reports: dict[str, NodeReport | None], away: tuple[str, ...], words: str
) -> None:
    found = look(reports)
    assert found is not None
    assert found.away == away
    assert words in str(found)
    assert "bring back, with its data: n1" in found.remedy


def test_a_directory_that_was_replaced_cannot_come_back() -> None:
    """Both are counted on for a moment: the node that has the new one is not missing."""
    former = replace(N3, incarnation="0000000a")
    three = replace(register(), committed=Configuration(N1, 1, Quorum(frozenset({N2, N3, former}), 1)))
    found = look({"n1": without_data(N1), **WELL}, three)
    assert found is not None
    assert found.away == ("n1",)


def test_votes_and_data_may_be_missing_at_once() -> None:
    pair = replace(register(), voters=("n1", "n2"), committed=Configuration(N1, 1, Quorum(frozenset({N2}), 1)))
    beside = without_data(N1)
    found = look({"n1": beside, "n2": None}, pair)
    assert found is not None
    assert found.away == ("n2", "n1")


def test_a_candidate_whom_nobody_could_confirm() -> None:
    pair = replace(register(), voters=("n1", "n2"), committed=Configuration(N1, 1, Quorum(frozenset({N2}), 1)))
    beside = without_data(N1)
    found = look({"n1": beside, "n2": WELL["n2"]}, pair)
    assert found is not None
    assert "n2 could lead, and another node must confirm" in found.what
    assert "durability=degrading" in found.remedy
    assert look({"n1": beside, "n2": WELL["n2"]}, pair, DEGRADING) is None


def test_a_candidate_that_is_promoted_and_alone_is_not_called_unfit() -> None:
    alone = Configuration(N1, 1, Quorum(frozenset({N2}), 1))
    pair = replace(register(2, Phase.PROMOTING, N2), voters=("n1", "n2"), committed=alone)
    promoted = report(N2, status=ServerStatus.PRIMARY, streaming=False, position=at(2, 120), promised=2)
    found = look({"n2": promoted}, pair)
    assert found is not None
    assert found.away == ("n1",)
    assert "n2 could lead, and another node must confirm" in found.what


def test_a_witness_is_started_again_and_has_no_data() -> None:
    alone = Configuration(N1, 1, Quorum(frozenset({N2}), 1))
    pair = replace(register(), voters=("n1", "n2", "w1"), witnesses=("w1",), committed=alone)
    found = look({"n1": None, "n2": WELL["n2"], "w1": None}, pair, DEGRADING)
    assert found is not None
    assert found.away == ("n1", "w1")
    assert found.remedy == "bring back, with its data: n1, or start the witness w1 again"


def test_it_says_how_many_of_the_voters_will_do() -> None:
    found = look({"n1": None, "n2": WELL["n2"], "n3": None})
    assert found is not None
    assert found.remedy == "bring back, with its data: n1, n3 (1 of them will do)"


def test_writes_that_wait_for_standbys() -> None:
    found = look({"n1": leading(), "n2": report(N2, streaming=False), "n3": None})
    assert found is not None
    assert "1 of n2, n3 must confirm each commit: n2 does not stream, n3 does not answer" in found.what
    assert "durability=degrading" in found.remedy
    closed = look({"n1": leading(names=BARRIER), "n2": None, "n3": None})
    assert closed is not None
    assert "degrading" in closed.remedy, "a closed primary can be let go on alone as well"


def test_people_have_to_decide() -> None:
    for policy, word in (
        (Policy(paused=True), "resume"),
        (Policy(promotion=Promotion.APPROVED), "approve"),
        (Policy(nodes={"n2": NodeTags(promotable=False), "n3": NodeTags(promotable=False)}), "promotable"),
    ):
        found = look(dict(WELL), policy=policy)
        assert found is not None
        assert word in found.remedy


def test_local_commits_that_nobody_is_near_to() -> None:
    alone = replace(register(), committed=Configuration(N1, 1, Quorum(BOTH.members, 0)))
    found = look(dict(WELL), alone, Policy(durability=Durability.ASYNCHRONOUS))
    assert found is not None
    assert "maximum_lag_bytes" in found.remedy


def test_a_cluster_that_was_never_created() -> None:
    fresh = replace(without_data(N2), promised=0)
    found = uncreated({"n1": None, "n2": fresh})
    assert found is not None
    assert found.away == ("n1",)
    assert uncreated({"n1": None, "n2": report(N2)}) is None, "its alarm says more"
    assert uncreated({"n1": fresh, "n2": fresh}) is None
    found = look({"n2": fresh, "n3": None}, new_register())
    assert found is not None
    assert found.away == ("n1",)
