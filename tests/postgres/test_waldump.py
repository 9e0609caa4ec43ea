"""What pg_waldump prints, read in the shapes of old and new versions."""

from __future__ import annotations

import pytest

from holdfast.model.lost import LostTransaction, Tuples
from holdfast.model.lsn import Lsn
from holdfast.model.owner import Owner
from holdfast.model.token import Mark
from holdfast.postgres.tokens import committed_in
from holdfast.postgres.waldump import DivergentLog, mark_in, own_token_in

T = "1663/5/16384"


def record(rmgr: str, xid: int, lsn: str, desc: str, relation: str | None = T) -> str:
    block = f", blkref #0: rel {relation} blk 0" if relation is not None else ""
    return f"rmgr: {rmgr:11} len (rec/tot):     61/    61, tx: {xid:10}, lsn: {lsn}, prev 0/0, desc: {desc}{block}"


def commit(xid: int, lsn: str, more: str = "") -> str:
    return record("Transaction", xid, lsn, f"COMMIT 2026-11-21 11:06:53.019278 UTC{more}", None)


def listed(*lines: str, fork: str = "0/100") -> tuple[LostTransaction, ...]:
    log = DivergentLog(Lsn.parse(fork))
    for line in lines:
        log.take(line)
    return log.transactions()


@pytest.mark.parametrize(
    ("desc", "tuples"),
    [
        ("INSERT off 2 flags 0x00", Tuples(inserted=1)),
        ("INSERT+INIT off: 1, flags: 0x00", Tuples(inserted=1)),
        ("MULTI_INSERT 3 tuples flags 0x02", Tuples(inserted=3)),
        ("MULTI_INSERT+INIT ntuples: 4, flags: 0x02, offsets: [6, 7, 8, 9]", Tuples(inserted=4)),
        ("HOT_UPDATE off 1 xmax 727 flags 0x20 ; new off 5 xmax 0", Tuples(updated=1)),
        ("UPDATE old_xmax: 741, old_off: 1, old_infobits: []", Tuples(updated=1)),
        ("DELETE xmax: 740, off: 2, infobits: [KEYS_UPDATED]", Tuples(deleted=1)),
    ],
)
def test_tuples(desc: str, tuples: Tuples) -> None:
    rmgr = "Heap2" if desc.startswith("MULTI") else "Heap"
    (lost,) = listed(record(rmgr, 7, "0/110", desc), commit(7, "0/120"))
    assert (lost.xid, lost.relations) == (7, {T: tuples})
    assert lost.committed_at == "2026-11-21 11:06:53.019278 UTC"


def test_what_was_written_before_the_fork_and_committed_beyond_it_is_lost() -> None:
    insert = record("Heap", 7, "0/90", "INSERT off 2 flags 0x00")
    (lost,) = listed(insert, commit(7, "0/100"))
    assert lost.relations == {T: Tuples(inserted=1)}
    assert listed(insert, commit(7, "0/90")) == ()


def message(xid: int, lsn: str, content: str, how: str = "transactional", prefix: str = "holdfast") -> str:
    payload = " ".join(f"{byte:02X}" for byte in content.encode())
    said = f'MESSAGE {how}, prefix "{prefix}"; payload ({len(content.encode())} bytes): {payload}'
    return record("LogicalMessage", xid, lsn, said, None)


def test_tokens_of_applications_are_those_of_their_transactions() -> None:
    first, second = message(7, "0/90", "order-17"), message(8, "0/110", "step 2")
    assert own_token_in(first) == (7, "order-17")
    assert own_token_in(message(7, "0/90", "order-17", "non-transactional")) == (None, "order-17")
    for other in (message(7, "0/90", "é"), message(7, "0/90", "x" * 201), message(7, "0/90", "a", prefix="app")):
        assert own_token_in(other) is None
    mark = Mark("t-1", Owner("u", "d", "a", "h")).to_text()
    assert own_token_in(message(7, "0/90", mark)) is None
    assert mark_in(message(7, "0/90", mark, "non-transactional")) is None
    (lost,) = listed(first, second, commit(7, "0/120", "; subxacts: 8"))
    assert lost.tokens == ("order-17", "step 2")
    (lost,) = listed(
        first, record("Transaction", 7, "0/100", "ABORT 2026-11-21 11:06:53.019278 UTC", None), commit(7, "0/120")
    )
    assert lost.tokens == ()


def test_subtransactions_belong_to_their_transaction() -> None:
    (lost,) = listed(
        record("Heap", 7, "0/110", "INSERT off 2 flags 0x00"),
        record("Heap", 8, "0/118", "DELETE off 2 flags 0x00"),
        commit(7, "0/120", "; subxacts: 8 9; inval msgs: catcache 80"),
    )
    assert (lost.subxids, lost.relations) == ((8, 9), {T: Tuples(inserted=1, deleted=1)})


def test_aborted_and_unfinished_ones_were_never_there() -> None:
    aborted = record("Transaction", 7, "0/120", "ABORT 2026-11-21 11:06:53.042691 UTC", None)
    assert listed(record("Heap", 7, "0/110", "INSERT off 2"), aborted, record("Heap", 8, "0/130", "INSERT off 3")) == ()


def prepare(xid: int, gid: str, lsn: str = "0/120") -> str:
    return record("Transaction", xid, lsn, f"PREPARE gid {gid}: 2026-11-21 11:06:53.031402 UTC", None)


def test_prepared_ones_are_lost_once_as_what_became_of_them() -> None:
    insert = record("Heap", 7, "0/110", "INSERT off 2")
    (open_one,) = listed(insert, prepare(7, "my: gid"))
    assert (open_one.prepared_as, open_one.relations) == ("my: gid", {T: Tuples(inserted=1)})
    ended = "2026-11-21 11:06:53.034633 UTC"
    (done,) = listed(
        insert, prepare(7, "g"), record("Transaction", 0, "0/130", f"COMMIT_PREPARED 7: {ended}; subxacts: 8", None)
    )
    assert (done.xid, done.prepared_as, done.subxids, done.committed_at) == (7, None, (8,), ended)
    assert listed(insert, prepare(7, "g"), record("Transaction", 0, "0/130", f"ABORT_PREPARED 7: {ended}", None)) == ()


def test_holdfasts_own_are_told_apart() -> None:
    own = LostTransaction(7, Lsn(1), "", relations={"postgres.holdfast.heartbeat": Tuples(updated=1)})
    assert own.is_own
    assert LostTransaction(7, Lsn(1), "").is_own
    assert not LostTransaction(7, Lsn(1), "", relations={"app.public.t": Tuples(inserted=1)}).is_own
    assert not LostTransaction(7, Lsn(1), "", relations={T: Tuples(inserted=1)}).is_own


def running(lsn: str, next_xid: int) -> str:
    return record("Standby", 0, lsn, f"RUNNING_XACTS nextXid {next_xid} latestCompletedXid 6 oldestRunningXid 7", None)


def test_what_may_have_begun_before_all_that_was_read_is_a_clients() -> None:
    """Its writes may be where nobody looked, so that it must not pass for one that wrote nothing."""
    early, late = listed(running("0/80", 8), commit(7, "0/120"), commit(8, "0/130"))
    assert (early.is_partial, early.is_own) == (True, False)
    assert (late.is_partial, late.is_own) == (False, True)
    (unknown,) = listed(commit(9, "0/120"))
    assert (unknown.is_partial, unknown.is_own) == (True, False)


def test_what_was_prepared_before_the_fork_may_still_be_open() -> None:
    insert = record("Heap", 7, "0/80", "INSERT off 2")
    ended = record("Transaction", 0, "0/130", "COMMIT_PREPARED 7: 2026-11-21 11:06:53.034633 UTC", None)
    (done,) = listed(insert, prepare(7, "g", "0/90"), ended)
    assert (done.xid, done.open_as, done.prepared_as) == (7, "g", None)
    assert done.relations == {T: Tuples(inserted=1)}
    (within,) = listed(insert, prepare(7, "g", "0/110"), ended)
    assert within.open_as is None


def test_the_ids_that_a_log_beyond_the_fork_gave_away() -> None:
    """Also of what was not committed; what the log says before the fork is on the new primary, too."""

    def next_xid(*lines: str) -> int | None:
        log = DivergentLog(Lsn.parse("0/100"))
        for line in lines:
            log.take(line)
        return log.next_xid

    assert next_xid(commit(20, "0/80")) is None
    assert next_xid(commit(7, "0/120"), record("Heap", 9, "0/130", "INSERT off 2"), commit(8, "0/140")) == 10
    assert next_xid(commit(7, "0/120"), running("0/130", 12)) == 12
    assert next_xid(commit(2**32 - 1, "0/120")) == 0
    assert next_xid(commit(2**32 - 1, "0/120"), commit(3, "0/130"), commit(2**32 - 2, "0/140")) == 4


def test_a_guarded_commit_says_whose_it_was() -> None:
    owner = Owner("alice", "app", "billing", "10.0.0.7:5")

    def message(xid: int, lsn: str, text: str, prefix: str = "holdfast") -> str:
        content = text.encode().hex(" ").upper()
        desc = f'MESSAGE transactional, prefix "{prefix}"; payload ({len(text)} bytes): {content}'
        return record("LogicalMessage", xid, lsn, desc, None)

    mark = Mark("t-1", owner).to_text()
    found = listed(
        record("Heap", 700, "0/90", "INSERT off 2 flags 0x00"),
        message(700, "0/95", mark),  # before the fork, and committed beyond it
        commit(700, "0/100"),
        message(702, "0/110", mark),
        commit(701, "0/120", "; subxacts: 702"),
        message(703, "0/130", "not a mark"),
        commit(703, "0/140"),
        message(704, "0/150", mark, prefix="other"),
        commit(704, "0/160"),
        commit(705, "0/170"),
    )
    assert [(t.xid, t.owner) for t in found] == [
        *((700, owner), (701, owner)),
        *((xid, None) for xid in (703, 704, 705)),
    ]
    assert mark_in(message(700, "0/95", mark)) == (700, Lsn.parse("0/95"), Mark("t-1", owner))
    assert mark_in(commit(700, "0/100")) is None


def test_the_ids_of_a_commit() -> None:
    assert committed_in(commit(700, "0/100", "; subxacts: 701 702; inval msgs: catcache 80")) == (700, 701, 702)
    assert committed_in(record("Transaction", 700, "0/100", "ABORT 2026-11-21 11:06:53 UTC", None)) == ()
