"""A new register from what all agents say."""

from __future__ import annotations

from dataclasses import replace

from holdfast.core.choice import Wishes, choose
from holdfast.core.quorum import recruits_suffice
from holdfast.core.recovery import Asked, Recovery, Refusal, recover
from holdfast.model.register import Phase, Register
from holdfast.model.report import NodeReport
from holdfast.model.server import ServerStatus
from tests.core.builders import BOTH, N1, N2, N3, at, recruit, register, report

ALARM = "there is no register although this node has promised an epoch"


def node(member: object, **changes: object) -> NodeReport:
    return report(member, **{"alarm": ALARM, "promised": 4, "system_identifier": "sys", **changes})  # type: ignore[arg-type]


LEADING = node(N1, status=ServerStatus.PRIMARY, position=at(4, 500), synchronous_names=str(BOTH), streaming=False)
ALL: dict[str, NodeReport | None] = {
    "n1": LEADING,
    "n2": node(N2, position=at(4, 520)),
    "n3": node(N3, position=at(4, 480)),
}


def ask(reports: dict[str, NodeReport | None], found: Register | None = None, *ignored: str) -> Recovery | Refusal:
    return recover(Asked("main", ("n1", "n2", "n3"), ("w1",), reports, frozenset(ignored), found))


def recovered(reports: dict[str, NodeReport | None], found: Register | None = None, *ignored: str) -> Recovery:
    answer = ask(reports, found, *ignored)
    assert isinstance(answer, Recovery), answer
    return answer


def refused(reports: dict[str, NodeReport | None], found: Register | None = None, *ignored: str) -> str:
    answer = ask(reports, found, *ignored)
    assert isinstance(answer, Refusal), answer
    return "; ".join(answer.reasons)


def test_an_epoch_above_everything_that_was_ever_promised_or_led() -> None:
    new = recovered({**ALL, "n3": node(N3, promised=7, position=at(4, 480))}).register
    assert (new.epoch, new.phase, new.candidate) == (8, Phase.RECRUITING, None)
    assert (new.cluster_id, new.system_identifier, new.voters, new.witnesses) == (
        "id", "sys", ("n1", "n2", "n3", "w1"), ("w1",),
    )  # fmt: skip
    later = recovered({**ALL, "n2": node(N2, position=at(9, 10))}).register
    assert later.epoch == 10
    assert later.committed.leader == N2, "the newest timeline is the newest leadership"


def test_a_primary_that_runs_has_more_than_it_last_said() -> None:
    assert recovered(ALL).register.committed.leader == N1


def test_only_the_newest_node_or_one_with_all_of_its_log_can_be_promoted() -> None:
    committed = recovered(ALL).register.committed
    standbys = [recruit(N2, 5, 4, 520), recruit(N3, 5, 4, 480)]
    assert not recruits_suffice(committed, [N2, N3])
    assert choose(committed, standbys, Wishes(leader_may_lead=True)) is None
    choice = choose(committed, [*standbys, recruit(N1, 5, 4, 530)], Wishes())
    assert choice is not None
    assert choice.candidate == N1
    choice = choose(committed, [*standbys, recruit(N1, 5, 4, 520)], Wishes())
    assert choice is not None
    assert choice.candidate == N2


def test_a_silent_agent_is_named_and_may_be_ignored_with_its_risk() -> None:
    silent = {**ALL, "n3": None}
    assert "n3: its agent does not answer" in refused(silent)
    assert "--ignore n3" in refused(silent)
    assert "nothing acknowledged is lost" in recovered(silent, None, "n3").risks[0]
    both = {**ALL, "n2": None, "n3": None}
    assert "is lost for good" in recovered(both, None, "n2", "n3").risks[0]
    without_leader = {**ALL, "n1": None}
    assert "is lost for good" in recovered(without_leader, None, "n1").risks[0]
    assert recovered(ALL).risks == ()


def test_what_cannot_be_told_is_refused() -> None:
    assert "where its log ends is not known yet" in refused({**ALL, "n2": node(N2, position=None)})
    assert "wait until that has ended" in refused({**ALL, "n2": node(N2, progress="copying 40%")})
    assert "disagree on the cluster_id" in refused({**ALL, "n2": node(N2, cluster_id="another")})
    assert "there is no such node" in refused(ALL, None, "n9")
    empty = replace(node(N1, position=None), member=None)
    assert "nothing to recover" in refused({"n1": empty, "n2": empty, "n3": empty})


def test_a_register_in_force_is_left_alone_and_an_older_one_is_replaced() -> None:
    sound = {name: replace(r, alarm=None) for name, r in ALL.items() if r is not None}
    assert "is in force: nothing to do" in refused({**sound}, register(4, Phase.RECRUITING))
    old = recovered(ALL, register(2, Phase.RECRUITING))
    assert old.register.epoch == 5
    assert old.because[0] == "the store's register is of epoch 2"
    ahead = recovered(ALL, register(9, Phase.RECRUITING))
    assert ahead.register.epoch == 10
