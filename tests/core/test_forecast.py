"""What the loss of a node would mean now."""

from __future__ import annotations

from dataclasses import replace

from holdfast.core.forecast import Estimate, Forecast, Standing, forecast
from holdfast.model.policy import DEFAULT_POLICY, Durability, Policy, Promotion
from holdfast.model.register import Configuration, Phase, Quorum, Register
from holdfast.model.report import NodeReport, VerdictKind
from holdfast.model.server import ServerStatus
from holdfast.model.vitals import Space, Vitals
from tests.core.builders import BOTH, N1, N2, N3, at, register, report, verdict

LAST = Estimate(700, "the last failover")
LEADING = report(N1, status=ServerStatus.PRIMARY, streaming=False, position=at(1, 500))
WHOLE: dict[str, NodeReport | None] = {
    "n1": LEADING,
    "n2": report(N2, position=at(1, 480)),
    "n3": report(N3, position=at(1, 500)),
}


def look(
    reports: dict[str, NodeReport | None], of: Register | None = None, policy: Policy = DEFAULT_POLICY
) -> Forecast:
    return forecast(Standing(of or register(), reports, policy, LAST))


def test_a_whole_cluster_loses_nothing_and_the_one_with_the_most_log_takes_over() -> None:
    found = look(WHOLE)
    takeover = found.if_primary_died
    assert (found.primary, takeover.candidate, takeover.rpo_bytes, takeover.rto) == ("n1", "n3", 0, LAST)
    assert takeover.obstacles == ()


def test_a_second_loss_that_nobody_could_confirm() -> None:
    for loss in look(WHOLE).if_standby_died:
        assert loss.writes_go_on
        assert loss.then_primary.candidate is None
        assert "only 1 of 3 voters would be left" in loss.then_primary.obstacles[0]


def test_a_silent_agent_stands_in_the_way() -> None:
    found = look({**WHOLE, "n3": None})
    assert found.if_primary_died.candidate is None
    assert "1 of the 2 members of the quorum could join, and 2 must" in found.if_primary_died.because
    assert "n3: its agent does not answer" in found.if_primary_died.obstacles
    by_node = {loss.node: loss for loss in found.if_standby_died}
    assert not by_node["n2"].writes_go_on


def test_what_stands_in_the_way_is_named() -> None:
    full = Vitals(data_space=Space(1, 10, "a"), log_space=Space(10**12, 10**13, "b"))
    sick = replace(WHOLE["n2"] or LEADING, store_connected=False, streaming=False, vitals=full)
    obstacles = look({**WHOLE, "n2": sick}).if_primary_died.obstacles
    assert obstacles[:3] == (
        "n2: cannot reach the store",
        "n2: does not stream (standby)",
        "n2: its data disk is nearly full",
    )
    alarmed = replace(WHOLE["n2"] or LEADING, alarm="the register is older than this node's promise")
    found = look({**WHOLE, "n2": alarmed}).if_primary_died
    assert found.candidate is None
    assert found.obstacles[0].startswith("n2: alarm: ")


def test_local_commits_may_lose_what_the_candidate_lacks() -> None:
    degraded = replace(register(), committed=Configuration(N1, 1, Quorum(BOTH.members, 0)))
    loose = Policy(durability=Durability.ASYNCHRONOUS, maximum_lag_bytes=100)
    behind: dict[str, NodeReport | None] = {**WHOLE, "n3": report(N3, position=at(1, 470))}
    takeover = look(behind, degraded, loose).if_primary_died
    assert (takeover.candidate, takeover.rpo_bytes) == ("n2", 20)
    assert any("until the lease ends" in words for words in takeover.obstacles)
    tight = Policy(durability=Durability.ASYNCHRONOUS, maximum_lag_bytes=10)
    assert look(behind, degraded, tight).if_primary_died.candidate is None


def test_what_policy_asks_for_first_is_told() -> None:
    careful = Policy(promotion=Promotion.APPROVED, paused=True)
    takeover = look(WHOLE, policy=careful).if_primary_died
    assert "the policy asks for approval: a failover waits for `holdfast approve`" in takeover.obstacles
    assert takeover.candidate is None
    assert takeover.because == "the cluster is paused by policy: nobody would take over before `holdfast resume`"


def test_nobody_takes_over_when_too_few_are_left_to_agree() -> None:
    watched = replace(register(), voters=("n1", "n2", "n3", "w1", "w2"), witnesses=("w1", "w2"))
    takeover = look({**WHOLE, "w1": None, "w2": None}, watched).if_primary_died
    assert takeover.candidate is None
    assert takeover.because.startswith("only 2 of 5 voters would be left, and 3 must agree")


def test_five_nodes_survive_a_standby_and_then_the_primary() -> None:
    from holdfast.model.register import Member

    others = [N2, N3, Member("n4", "00000004"), Member("n5", "00000005")]
    five = replace(
        register(),
        voters=("n1", "n2", "n3", "n4", "n5"),
        committed=Configuration(N1, 1, Quorum(frozenset(others), 2)),
    )
    reports: dict[str, NodeReport | None] = {"n1": LEADING, **{m.node: report(m, position=at(1, 500)) for m in others}}
    assert all(loss.then_primary.candidate is not None for loss in look(reports, five).if_standby_died)


def test_while_the_primary_is_lost_it_is_told_who_can_take_over() -> None:
    lost = verdict(VerdictKind.UNREACHABLE)
    alone: dict[str, NodeReport | None] = {
        "n1": None,
        "n2": report(N2, position=at(1, 480), streaming=False, verdict=lost),
        "n3": report(N3, position=at(1, 500), streaming=False),
    }
    assert look(alone).primary_lost is None  # one of three voters
    assert "n2: does not stream (standby)" in look(alone).if_primary_died.obstacles
    agreed = {**alone, "n3": replace(alone["n3"] or LEADING, verdict=lost)}
    found = look(agreed, policy=Policy(promotion=Promotion.APPROVED))
    assert (found.primary_lost, found.if_primary_died.candidate, found.if_standby_died) == ("unreachable", "n3", ())
    assert found.if_primary_died.obstacles == ("the policy asks for approval: a failover waits for `holdfast approve`",)


def test_while_nobody_serves_there_is_nothing_to_foretell() -> None:
    found = look(WHOLE, register(2, Phase.RECRUITING))
    assert (found.primary, found.if_primary_died.candidate, found.if_standby_died) == (None, None, ())
