"""When a node is cut off and when it is let in again: never in the way of who may be needed."""

from __future__ import annotations

from dataclasses import replace

import pytest

from holdfast.core.isolation import Loss, Order, Reach, lost_between, next_order, reach_of, remember, why_lifted
from holdfast.core.observation import Observation, RegisterTrouble
from holdfast.model.isolation import CutOff, Note
from holdfast.model.lsn import TimelineSwitch
from holdfast.model.policy import DEFAULT_POLICY
from holdfast.model.register import Configuration, Member, Phase, Quorum, Register
from holdfast.model.server import ServerStatus, ServerView
from tests.core.builders import BOTH, N1, N2, N3, at, observation, peer, primary, register, standby, streaming

STOPPED = ServerView(ServerStatus.STOPPED)
WITHOUT_N1 = Quorum(frozenset({N3}), 1)


def served_by(leader: Member, epoch: int, quorum: Quorum) -> Register:
    return replace(register(), epoch=epoch, committed=Configuration(leader, epoch, quorum))


def served_by_n2(quorum: Quorum = WITHOUT_N1) -> Register:
    return served_by(N2, 2, quorum)


def seen_by_n1(**changes: object) -> Observation:
    """N2 leads in epoch 2, from 100 on; N1 is stopped, and its log ends at 140."""
    leads = peer(N2, status=ServerStatus.PRIMARY, position=at(2, 150), history=(TimelineSwitch(1, at(1, 100).lsn),))
    plain: dict[str, object] = {
        "server": STOPPED,
        "own_end": at(1, 140),
        "register": served_by_n2(),
        "lead_address": "n2:1",
        "peers": {"n2": leads},
    }
    return observation(N1, **{**plain, **changes})


BACK = {"server": replace(standby(2, 150, "n2:1"), through_slot=True), "own_end": None}
LEADING = observation(N1, server=primary(1, 100), lead_address="n1:1")


def test_the_old_leader_is_cut_off_once_another_serves_and_let_in_when_it_streams() -> None:
    loss, reaches = Loss(), []
    looks = [
        LEADING,
        seen_by_n1(register=register(2, Phase.RECRUITING)),
        seen_by_n1(register=register(2, Phase.PROMOTING, N2)),
        seen_by_n1(),
        seen_by_n1(server=standby(1, 100), own_end=None),
        seen_by_n1(**BACK),
    ]
    for o in looks:
        loss = remember(loss, o)
        reaches.append(reach_of(loss, o))
    out, everybody = Reach.INVESTIGATOR, Reach.ANYBODY
    assert reaches == [everybody, everybody, everybody, out, out, everybody]
    assert loss == Loss()
    assert why_lifted(looks[-1]) == "it streams from n2"


def test_the_next_failure_lets_the_node_in_at_once_and_it_may_lead_again() -> None:
    loss = remember(Loss(led=True), seen_by_n1())
    assert loss == Loss(epoch=2)
    opened = seen_by_n1(register=served_by_n2().opened())
    assert remember(loss, opened) == loss
    assert reach_of(loss, opened) is Reach.ANYBODY
    assert "an epoch is open" in why_lifted(opened)
    again = served_by(N1, 3, BOTH)
    leads = seen_by_n1(register=again, server=primary(3, 200), own_end=None)
    assert remember(loss, leads) == Loss(led=True)
    assert reach_of(loss, leads) is Reach.ANYBODY
    assert why_lifted(leads) == "it leads again"


@pytest.mark.parametrize(
    "o",
    [
        seen_by_n1(server=primary(1, 140), own_end=None),  # its agent was away meanwhile, and finds it running
        seen_by_n1(),  # its log goes beyond the fork
        seen_by_n1(own_end=at(1, 90), condemned=True),
    ],
    ids=["runs as a primary", "diverged", "condemned"],
)
def test_an_agent_that_remembers_nothing_finds_out(o: Observation) -> None:
    assert remember(Loss(), o) == Loss(epoch=2)


def test_a_standby_that_only_fell_behind_is_let_alone() -> None:
    o = seen_by_n1(server=standby(1, 90), own_end=None)
    assert remember(Loss(), o) == Loss()
    assert reach_of(Loss(), o) is Reach.ANYBODY


def test_a_planned_hand_over_is_no_loss() -> None:
    handing_over = replace(LEADING, register=register().handing_over("n2"))
    loss = remember(remember(Loss(), LEADING), handing_over)
    assert loss == Loss()
    assert reach_of(remember(loss, seen_by_n1(own_end=at(1, 100))), seen_by_n1(own_end=at(1, 100))) is Reach.ANYBODY


def test_peers_of_a_directory_that_the_quorum_counts_on_are_not_kept_out() -> None:
    counted = seen_by_n1(register=served_by_n2(Quorum(frozenset({N1, N3}), 1)))
    assert reach_of(Loss(epoch=2), counted) is Reach.PEERS


@pytest.mark.parametrize(
    "changes",
    [
        {"register": None},
        {"trouble": RegisterTrouble.OLDER_THAN_SEEN},
        {"policy": DEFAULT_POLICY.model_copy(update={"paused": True})},
    ],
    ids=["no register", "a register not to be obeyed", "paused"],
)
def test_what_was_done_stays_while_nothing_is_known_or_people_want_hands_off(changes: dict[str, object]) -> None:
    assert reach_of(Loss(epoch=2), seen_by_n1(**changes)) is None


def test_a_pause_does_not_keep_out_a_node_that_is_back() -> None:
    paused = seen_by_n1(**BACK, policy=DEFAULT_POLICY.model_copy(update={"paused": True}))
    assert reach_of(remember(Loss(epoch=2), paused), paused) is Reach.ANYBODY


def test_one_that_streams_log_beyond_the_fork_is_not_back() -> None:
    loss = remember(Loss(epoch=2), seen_by_n1(server=replace(standby(1, 140, "n2:1"), through_slot=True), own_end=None))
    assert loss == Loss(epoch=2)


# ---- the leader and others ------------------------------------------------------------------------------------------


def test_the_new_leader_knows_whom_it_replaced() -> None:
    promoting = register(2, Phase.PROMOTING, N2)
    assert lost_between(promoting, served_by_n2()) == "n1"
    assert lost_between(promoting, promoting) is None
    assert lost_between(served_by_n2(), served_by_n2()) is None
    renamed = Quorum(frozenset({Member("n1", "0000000a")}), 1)
    assert lost_between(promoting, served_by_n2(renamed)) is None, "the quorum counts on it"
    assert lost_between(replace(promoting, handover="n2"), served_by_n2()) is None, "planned"
    again = served_by(N1, 2, BOTH)
    assert lost_between(register(2, Phase.PROMOTING, N1), again) is None, "the same node leads again"


def leading(*replicas: Member, **changes: object) -> Observation:
    server = primary(2, 150, replicas=tuple(streaming(member, 150) for member in replicas))
    peers = {m.node: peer(m, position=at(2, 150)) for m in replicas}
    return observation(N2, server=server, register=served_by_n2(), peers=peers, **changes)


def test_a_lost_node_is_cut_off_once_and_let_in_when_it_streams() -> None:
    assert next_order({}, leading()) is None
    assert next_order({"n1": CutOff("n1", 2)}, leading()) == Order("n1", lift=False)
    done = {"n1": CutOff("n1", 2, ran=True)}
    assert next_order(done, leading(N3)) is None
    assert next_order(done, leading(N1)) == Order("n1", lift=True)
    assert next_order({**done, "n3": CutOff("n3", 2)}, leading(N1)) == Order("n1", lift=True)


def test_who_leads_or_is_no_voter_any_more_is_let_in() -> None:
    for node in ("n2", "n9"):
        assert next_order({node: CutOff(node, 1, ran=True)}, leading()) == Order(node, lift=True)


def test_only_the_leader_of_a_serving_epoch_orders_anything() -> None:
    cut_off = {"n1": CutOff("n1", 2)}
    assert next_order(cut_off, seen_by_n1()) is None
    assert next_order(cut_off, replace(leading(), register=served_by_n2().opened())) is None


def test_what_is_kept_reads_back() -> None:
    assert CutOff.from_json(CutOff("n1", 7, ran=True).to_json()) == CutOff("n1", 7, ran=True)
    assert Note.from_json(Note(7, ("pg_hba", "nftables")).to_json()) == Note(7, ("pg_hba", "nftables"))
