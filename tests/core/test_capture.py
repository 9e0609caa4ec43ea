"""What a capture takes within its bounds, what it says of the rest, and when it is due."""

from __future__ import annotations

from dataclasses import replace

import pytest
from hypothesis import given
from hypothesis import strategies as st

from holdfast.core.capture import (
    CONTIGUOUS,
    ESSENTIAL,
    ORDER,
    TAIL_BYTES_MIN,
    Bounds,
    Candidate,
    Item,
    fits_in_time,
    gathered,
    is_awaited,
    plan,
    to_remove,
    trouble_of,
)
from holdfast.model.capture import Capture, Kind, LeftOut, Occasion, Reason, State, file_from_json
from holdfast.model.errors import RegisterError
from holdfast.model.register import Phase
from holdfast.model.report import ReplicaReport, VerdictKind
from holdfast.model.server import ServerStatus, ServerView
from tests.core.builders import N1, N2, N3, observation, peer, primary, register, verdict

MEBIBYTE = 1024 * 1024
PLENTY = Bounds(1 << 50, 1 << 50, 1 << 50)

kinds = st.sampled_from(list(Kind))
sizes = st.integers(0, 64 * MEBIBYTE)
candidates = st.builds(
    Candidate,
    path=st.uuids().map(str),
    kind=kinds,
    size_bytes=sizes,
    place=st.integers(0, 20),
    asked=st.sampled_from([True, True, True, False]),
    secret=st.sampled_from([False, False, False, True]),
)
many = st.lists(candidates, max_size=40, unique_by=lambda c: c.path)
bounds = st.builds(
    Bounds,
    bytes_max=st.integers(0, 512 * MEBIBYTE),
    room_bytes=st.integers(0, 512 * MEBIBYTE),
    server_log_bytes_max=st.integers(0, 64 * MEBIBYTE),
    shares_blocks=st.booleans(),
)


@given(many, bounds)
def test_a_plan_keeps_its_bounds_and_forgets_nothing(found: list[Candidate], limits: Bounds) -> None:
    made = plan(found, limits)
    taken = sum(item.size_bytes for item in made.items)
    assert taken <= limits.bytes_max
    assert limits.shares_blocks or taken <= limits.room_bytes
    assert sum(i.size_bytes for i in made.items if i.kind is Kind.SERVER_LOG) <= limits.server_log_bytes_max
    total = sum(c.size_bytes for c in found)
    assert taken + sum(one.size_bytes for one in made.left_out) == total
    parts = [one for one in made.left_out if one.detail]
    assert len(made.items) + sum(one.files for one in made.left_out) - len(parts) >= len(found) - len(parts)
    paths = {item.path for item in made.items}
    assert all(c.path not in paths for c in found if c.secret or not c.asked)


@given(many, bounds)
def test_what_is_worth_more_comes_first_and_log_has_no_gap(found: list[Candidate], limits: Bounds) -> None:
    made = plan(found, limits)
    order = [ORDER.index(item.kind) for item in made.items]
    assert order == sorted(order)
    taken = {item.path for item in made.items}
    for kind in CONTIGUOUS:
        wanted = sorted(
            (c for c in found if c.kind is kind and c.asked and not c.secret), key=lambda c: (c.place, c.path)
        )
        flags = [c.path in taken for c in wanted]
        assert flags == sorted(flags, reverse=True), "a segment was taken behind one that was not"


@given(many)
def test_with_room_for_everything_only_what_is_unwanted_is_left_out(found: list[Candidate]) -> None:
    made = plan(found, PLENTY)
    assert {item.path for item in made.items} == {c.path for c in found if c.asked and not c.secret}
    assert all(not one.reason.is_lack for one in made.left_out)


@given(many, bounds)
def test_of_a_node_that_clients_wait_for_the_small_files_are_taken(found: list[Candidate], limits: Bounds) -> None:
    made = plan(found, limits, essentials=True)
    assert {item.kind for item in made.items} <= ESSENTIAL


def test_of_a_long_server_log_the_end_is_taken() -> None:
    log = Candidate("server-log/a.log", Kind.SERVER_LOG, 10 * MEBIBYTE)
    made = plan([log], replace(PLENTY, server_log_bytes_max=3 * MEBIBYTE))
    assert made.items == (Item(log.path, log.kind, 3 * MEBIBYTE, offset=7 * MEBIBYTE),)
    (left,) = made.left_out
    assert (left.size_bytes, left.reason, left.detail) == (7 * MEBIBYTE, Reason.NOT_ASKED, "its beginning")
    none = plan([log], replace(PLENTY, server_log_bytes_max=TAIL_BYTES_MIN - 1))
    assert none.items == ()


def test_what_lacks_names_the_bound_that_it_met() -> None:
    log = Candidate("data/pg_wal/1", Kind.DIVERGENT_LOG, 16 * MEBIBYTE)
    assert plan([log], replace(PLENTY, bytes_max=MEBIBYTE)).left_out[0].reason is Reason.BYTES
    assert plan([log], replace(PLENTY, room_bytes=MEBIBYTE)).left_out[0].reason is Reason.ROOM
    assert "capture.bytes_max" in Reason.BYTES.explained
    assert "capture.directory" in Reason.ROOM.explained
    assert "capture_wait_s" in Reason.TIME.explained


@given(st.lists(st.builds(LeftOut, st.text(), kinds, st.sampled_from(list(Reason)), st.just(1), sizes), max_size=60))
def test_gathering_keeps_the_sums(left_out: list[LeftOut]) -> None:
    short = gathered(left_out)
    assert sum(one.files for one in short) == len(left_out)
    assert sum(one.size_bytes for one in short) == sum(one.size_bytes for one in left_out)
    assert {(one.kind, one.reason) for one in short} == {(one.kind, one.reason) for one in left_out}


def test_a_file_is_begun_only_if_it_will_be_done_in_time() -> None:
    big = Item("a", Kind.DATA, 100 * MEBIBYTE)
    assert fits_in_time(big, 0.0, 0, 1.0)
    assert fits_in_time(big, 1.0, 50 * MEBIBYTE, 3.0)
    assert not fits_in_time(big, 1.0, 50 * MEBIBYTE, 2.9)
    assert fits_in_time(big, 1.0, MEBIBYTE, 3.0), "who has taken small files only knows nothing of the speed"
    assert not fits_in_time(replace(big, size_bytes=1), 3.0, MEBIBYTE, 3.0)


@given(st.lists(st.tuples(st.integers(0, 9), st.booleans()), max_size=20), st.integers(1, 10), st.integers(0, 30))
def test_the_newest_captures_are_kept(found: list[tuple[int, bool]], keep: int, keep_bytes: int) -> None:
    kept = [(str(i), size, ended) for i, (size, ended) in enumerate(found)]
    gone = set(to_remove(kept, keep, keep_bytes))
    left = [one for one in kept if one[0] not in gone]
    assert len(left) <= keep
    if kept:
        assert kept[-1] in left
    if all(ended for _, ended in found):
        assert len(left) <= 1 or sum(size for _, size, _ in left) <= keep_bytes
        assert gone == {name for name, _, _ in kept[: len(gone)]}


def test_a_primary_in_trouble_is_noted_once_for_each_change() -> None:
    well = observation(N1, server=primary(1, 100))
    slow = replace(well, verdict=verdict(VerdictKind.OVERLOADED))
    assert trouble_of(well, None) is None
    assert trouble_of(slow, well) == "the primary is held for overloaded: as the test says"
    assert trouble_of(slow, slow) is None
    hung = replace(well, verdict=verdict(VerdictKind.HUNG))
    assert trouble_of(hung, slow) is not None
    assert trouble_of(replace(well, server=ServerView(ServerStatus.STOPPED)), well) == "the primary has ended"
    silent = replace(well, server=ServerView(ServerStatus.UNRESPONSIVE))
    assert trouble_of(silent, well) == "the primary does not answer"
    assert trouble_of(silent, silent) is None
    opened = replace(well, register=register(2, Phase.RECRUITING))
    assert trouble_of(opened, well) == "epoch 2 was opened against this primary"
    assert trouble_of(opened, opened) is None


def test_others_troubles_and_a_planned_stop_are_not_noted() -> None:
    well = observation(N1, server=primary(1, 100))
    about_another = replace(well, verdict=verdict(VerdictKind.DEAD, about=N2))
    assert trouble_of(about_another, well) is None
    handing_over = replace(well, register=register().handing_over("n2"), server=ServerView(ServerStatus.STOPPED))
    assert trouble_of(handing_over, well) is None
    stopped_standby = observation(N2, server=ServerView(ServerStatus.STOPPED))
    assert trouble_of(stopped_standby, observation(N2)) is None


@pytest.mark.parametrize(("streaming", "awaited"), [((N3,), False), ((), True)])
def test_a_member_is_awaited_while_too_few_others_stream(streaming: tuple[object, ...], awaited: bool) -> None:
    replicas = tuple(ReplicaReport(member, "streaming", None) for member in (N3,) if member in streaming)
    leader = peer(N1, status=ServerStatus.PRIMARY, replicas=replicas)
    o = observation(N2, server=ServerView(ServerStatus.STOPPED), peers={"n1": leader})
    assert is_awaited(o) is awaited


def test_a_node_is_awaited_while_nobody_serves_and_not_for_its_name_alone() -> None:
    assert is_awaited(observation(N2, register=register(2, Phase.RECRUITING)))
    assert is_awaited(observation(N2, register=register(2, Phase.PROMOTING, N3)))
    stranger = replace(N2, incarnation="0000000f")
    leader = peer(N1, status=ServerStatus.PRIMARY, replicas=())
    assert not is_awaited(observation(stranger, peers={"n1": leader}))


def test_a_manifest_is_read_back_and_a_torn_line_is_none() -> None:
    made = Capture(
        node="n1", incarnation="00000001", epoch=2, identity="abc", occasion=Occasion.REWIND, state=State.PARTIAL,
        begun_at_ms=1, directory="/somewhere", left_out=(LeftOut("data/base", Kind.DATA, Reason.NOT_ASKED),),
    )  # fmt: skip
    assert Capture.from_json(made.to_json()) == made
    assert made.lacking == ()
    assert file_from_json(b'{"path": "data/PG_VER') is None
    with pytest.raises(RegisterError, match="manifest of a capture"):
        Capture.from_json(b"{}")
