"""What status says about losses, in words."""

from __future__ import annotations

import pytest

from holdfast.core.forecast import Forecast, Takeover
from holdfast.core.quorum import Tolerance, tolerance
from holdfast.local.status import durability_in_words, in_words, while_lost, without_register
from holdfast.model.policy import Durability, Policy
from holdfast.model.register import Member, Quorum

N2 = Member("n2", "00000002")


@pytest.mark.parametrize(
    ("primary", "standbys", "words"),
    [
        (True, 1, "the primary or one standby may be lost"),
        (True, 2, "the primary or 2 standbys may be lost"),
        (True, 0, "the primary may be lost; no standby may be lost: writes would wait"),
        (False, 1, "the primary may not be lost: nobody could take over without risk; one standby may be lost"),
        (False, 0, "the primary may not be lost: nobody could take over without risk; no standby may be lost"),
    ],
)
def test_in_words(primary: bool, standbys: int, words: str) -> None:
    assert in_words(Tolerance(primary, standbys), None, serving=True).startswith(words)


def test_a_cluster_that_may_degrade_can_lose_every_standby() -> None:
    last = tolerance(Quorum(frozenset({N2}), 1), [N2], may_degrade=True)
    assert (last.primary, last.standbys) == (False, 1)
    words = in_words(Tolerance(primary=True, standbys=2), None, serving=True, may_degrade=True)
    assert words.startswith("the primary or 2 standbys may be lost; without any standby, writes go on")
    assert "wait" not in in_words(Tolerance(primary=False, standbys=0), None, serving=True, may_degrade=True)


def test_in_words_when_something_is_missing() -> None:
    nothing = Tolerance(primary=False, standbys=0)
    assert in_words(nothing, None, serving=False) == "no primary serves at the moment: writes wait"
    assert in_words(nothing, None, serving=True, running=False) == "nothing runs"
    assert "nobody can be promoted" in in_words(Tolerance(True, 1), None, serving=True, store=False)


def test_a_lost_primary_in_words() -> None:
    found = Takeover("n3", "most log", 0, None, ())
    assert while_lost(Forecast("n1", found, ())) is None
    assert while_lost(Forecast("n1", found, (), "dead")) == "the primary n1 is lost (dead); n3 can take over"
    nobody = Takeover(None, "nobody would be left", None, None, ())
    assert while_lost(Forecast("n1", nobody, (), "dead")) == (
        "the primary n1 is lost (dead); nobody can take over: nobody would be left"
    )
    assert while_lost(None) is None


def test_a_primary_that_goes_on_without_a_register_in_words() -> None:
    words = "the store has no register, so nobody can be promoted; n1 goes on as primary; of its standbys 1 may be lost"
    assert without_register(Tolerance(primary=False, standbys=1), "n1", store=True) == words
    away = without_register(Tolerance(primary=False, standbys=0), "n1", store=False)
    assert away.startswith("the store does not answer")
    assert away.endswith("no standby may be lost")


def test_local_commits_in_words() -> None:
    both = Quorum(frozenset({Member("n2", "00000002"), Member("n3", "00000003")}), 1)
    local = Quorum(both.members, 0)
    assert durability_in_words(Policy(), both) == "strict: each commit is confirmed by 1 of n2, n3"
    asynchronous = Policy(durability=Durability.ASYNCHRONOUS)
    assert durability_in_words(asynchronous, local) == "asynchronous: commits are on the primary only; n2, n3 follow"
    degrading = Policy(durability=Durability.DEGRADING)
    assert durability_in_words(degrading, local).endswith("on the primary only until a standby is back")
    words = in_words(Tolerance(primary=False, standbys=2), 1024, serving=True)
    assert words == "if the primary is lost, up to 1,024 bytes of its log are; writes go on without standbys"
    alone = in_words(Tolerance(primary=False, standbys=0), 1024, serving=True, successor=False)
    assert alone == "the primary may not be lost: nobody could take over; writes go on without standbys"
