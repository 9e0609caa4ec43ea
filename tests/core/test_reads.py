"""When a candidate may serve without anybody still reading from the old leader."""

from __future__ import annotations

from dataclasses import replace

import pytest

from holdfast.core import actions as a
from holdfast.core.leadership import decide
from holdfast.core.observation import Observation
from holdfast.core.reads import old_reads_are_over
from holdfast.model.lsn import Lsn
from holdfast.model.register import Phase, Quorum, Recruit, Register
from holdfast.model.server import ServerStatus
from tests.core.builders import (
    BARRIER,
    BOTH,
    N1,
    N2,
    N3,
    NOW_MS,
    TIMEOUTS,
    new_register,
    observation,
    peer,
    primary,
    recruit,
    register,
    streaming,
)

PROMOTING = register(2, Phase.PROMOTING, N2)
LONG_MS = TIMEOUTS.freshness_ms * 102 // 100


def silent(ms: int) -> tuple[Recruit, ...]:
    return replace(recruit(N2, 2, 1, 100), silent_ms=ms), replace(recruit(N3, 2, 1, 100), silent_ms=ms + 50)


def candidate(**changes: object) -> Observation:
    """N2 promotes in epoch 2, its record is on N3, and N1 was not heard of again."""
    o = observation(
        register=PROMOTING, promised=2, recruits=silent(LONG_MS), lead_address=None, marker=Lsn(150),
        server=primary(2, 160, BARRIER, (streaming(N3, 150),)), phase_since_ms=NOW_MS,
    )  # fmt: skip
    return replace(o, **changes)  # type: ignore[arg-type]


def over(o: Observation, of: Register = PROMOTING) -> bool:
    return old_reads_are_over(o, of)


def test_a_leader_that_fell_silent_long_ago_is_not_waited_for() -> None:
    assert over(candidate())
    assert decide(candidate()).actions == (a.CommitConfiguration(replace(BOTH, members=frozenset({N3}))),)


def test_one_that_was_heard_a_moment_ago_is() -> None:
    just_now = candidate(recruits=silent(0))
    assert not over(just_now)
    assert decide(just_now).rule.id == "barrier.commit"
    assert decide(just_now).actions == (a.AskPeers(),)
    assert over(replace(just_now, phase_since_ms=NOW_MS - LONG_MS))


def test_recruits_that_could_not_have_confirmed_anything_do_not_count() -> None:
    stranger = replace(N3, incarnation="ffffffff")
    joined = (silent(LONG_MS)[0], replace(recruit(stranger, 2, 1, 100), silent_ms=0))
    assert over(candidate(recruits=joined))


NO_PRIMARY = [ServerStatus.STOPPED, ServerStatus.ABSENT, ServerStatus.STARTING, ServerStatus.STANDBY]


@pytest.mark.parametrize("status", NO_PRIMARY)
def test_a_leader_whose_agent_says_that_it_is_stopped_or_a_standby_shows_nothing_any_more(status: ServerStatus) -> None:
    heard = candidate(recruits=silent(0), obeying={"p": 1})
    assert not over(heard)
    assert over(replace(heard, peers={"n1": peer(N1, status=status, promised=2)}))
    assert not over(replace(heard, peers={"n1": peer(N1, status=status, promised=1)}))
    for other in set(ServerStatus) - set(NO_PRIMARY):
        assert not over(replace(heard, peers={"n1": peer(N1, status=other, promised=2)}))
    assert over(replace(heard, recruits=(*silent(0), recruit(N1, 2, 1, 100))))


def test_every_living_proxy_must_have_obeyed() -> None:
    assert not over(candidate(obeying={"p": 2, "q": 1}))
    assert over(candidate(obeying={"p": 2, "q": 3}))


def test_local_commits_were_fenced_by_the_lease() -> None:
    local = PROMOTING.requorumed(Quorum(BOTH.members, 0))
    assert over(candidate(recruits=silent(0)), local)
    assert not over(candidate(recruits=silent(0), obeying={"p": 1}), local)


def test_a_new_cluster_has_no_old_leader() -> None:
    first = replace(new_register(), committed=replace(new_register().committed, epoch=0))
    assert over(candidate(recruits=(), obeying={"p": 0}), first)
