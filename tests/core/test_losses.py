"""Nothing is said to be lost only where that is proved."""

from __future__ import annotations

from dataclasses import replace

import pytest

from holdfast.core.losses import covered, is_unacknowledged, opened_under, proof
from holdfast.model.event import Event
from holdfast.model.lost import LostLog, LostTransaction, Salvage, Tuples
from holdfast.model.lsn import Lsn
from holdfast.model.register import Member

QUORUM, LOCAL = "ANY 1 (n2_0000000a, n3_0000000b)", "ANY 0 (n2_0000000a)"
CLIENTS = LostTransaction(7, Lsn(110), "then", relations={"app.public.t": Tuples(inserted=1)})
OWN = LostTransaction(8, Lsn(120), "then", relations={"postgres.holdfast.heartbeat": Tuples(updated=1)})


def opened(epoch: int, quorum: str | None) -> Event:
    return Event(epoch, "n2", "epoch.opened", epoch, None, {} if quorum is None else {"quorum": quorum})


def serving(epoch: int, leader: str) -> Event:
    return Event(epoch + 0.5, leader, "epoch.serving", epoch, None, {"leader": leader})


def account(*lost: LostTransaction, node: str = "n1", timeline: int = 1, epoch: int = 2, unread: str = "") -> LostLog:
    return LostLog(Member(node, "0000000c"), epoch, timeline, Lsn(100), Lsn(200), "", lost, unread=unread)


BEGAN = serving(1, "n1")


@pytest.mark.parametrize(
    ("events", "accounts", "silent", "epoch", "doubt"),
    [
        ([BEGAN], [], [], 1, None),
        ([BEGAN, opened(2, QUORUM), serving(2, "n2")], [], [], 2, None),
        ([BEGAN, opened(2, QUORUM), serving(2, "n2")], [account(CLIENTS)], [], 2, None),
        ([BEGAN, opened(2, QUORUM), opened(3, QUORUM)], [account(CLIENTS, epoch=3)], [], 3, None),
        ([BEGAN, opened(2, LOCAL), serving(2, "n2")], [account(OWN)], [], 2, None),
        ([BEGAN, opened(2, LOCAL), serving(2, "n2")], [account(OWN, CLIENTS)], [], 2, "n1 may have acknowledged 1"),
        ([BEGAN, opened(2, LOCAL), serving(2, "n2")], [], [], 2, "commits were local before epoch 2"),
        ([BEGAN, opened(2, LOCAL)], [account(OWN, unread="a record is broken")], [], 2, "n1 may have acknowledged"),
        ([BEGAN, opened(2, LOCAL)], [account(OWN, node="n3")], [], 2, "commits were local before epoch 2"),
        ([BEGAN, opened(2, QUORUM), opened(3, LOCAL)], [account(CLIENTS, epoch=3)], [], 3, "n1 may have"),
        ([BEGAN, opened(2, None), serving(2, "n2")], [], [], 2, "does not tell its quorum before epoch 2"),
        ([opened(3, QUORUM)], [], [], 3, "does not tell its quorum before epoch 2"),
        ([BEGAN, opened(2, QUORUM), opened(2, LOCAL)], [], [], 2, "does not tell its quorum before epoch 2"),
        ([BEGAN, opened(2, QUORUM)], [], ["n3"], 2, "n3 does not answer"),
        ([], [], [], None, "the store has no register"),
        (
            [BEGAN, opened(2, LOCAL), serving(2, "n2"), opened(3, LOCAL)],
            [account(OWN, epoch=3)],
            [],
            3,
            "commits were local before epoch 2",
        ),
    ],
)
def test_proof(events: list[Event], accounts: list[LostLog], silent: list[str], epoch: int, doubt: str | None) -> None:
    found = proof(events, accounts, silent, epoch)
    assert found.nothing_lost is (doubt is None), found
    assert bool(found.doubts) is (doubt is not None)
    if doubt is not None:
        assert doubt in " ".join(found.doubts)


def test_a_log_of_the_same_timeline_proves_nothing() -> None:
    assert not is_unacknowledged(account(CLIENTS, timeline=2, epoch=2), opened_under([opened(2, QUORUM)]))


def test_what_two_nodes_list_is_brought_back_once() -> None:
    """A standby had more of the old primary's log than the one that was promoted."""
    other = LostTransaction(9, Lsn(150), "then", relations={"app.public.t": Tuples(inserted=1)})
    read = Salvage(is_whole=True, rows=1)
    old = replace(account(CLIENTS, other), salvage=read)
    standby = replace(account(CLIENTS, OWN, node="n2"), salvage=read)
    assert covered([standby, old]) == {0: old}
    assert covered([old, replace(standby, transactions=(CLIENTS, other))]) == {1: old}
    later = replace(CLIENTS, lsn=Lsn(190))  # the same number, given away again
    assert covered([replace(standby, transactions=(later,)), old]) == {}
    assert covered([replace(standby, timeline=2), old]) == {}
    assert covered([standby, replace(old, salvage=Salvage(is_whole=False))]) == {}
    assert covered([account(OWN, node="n2"), old]) == {}
