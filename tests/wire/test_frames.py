"""Messages come out the same, however the stream was cut."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from holdfast.model.errors import ProtocolViolation
from holdfast.wire import messages as m
from holdfast.wire.frames import CONTINUED, WHOLE_BYTES_MAX, FrameCutter
from tests.wire.streams import cut_at

bodies = st.binary(max_size=60)
some_messages = st.lists(st.tuples(st.integers(1, 255), bodies), max_size=12)


@given(some_messages, st.lists(st.integers(0, 800)))
def test_any_fragmentation(parts: list[tuple[int, bytes]], cuts: list[int]) -> None:
    stream = b"".join(m.message(kind, body) for kind, body in parts)
    cutter = FrameCutter()
    seen = []
    for piece in cut_at(stream, cuts):
        buffer, frames = cutter.feed(piece)
        seen += [(kind, buffer[start + 5 : end]) for kind, start, end in frames]
    assert seen == parts
    assert cutter.waiting_bytes == 0


@given(st.binary(max_size=200), st.lists(st.integers(0, 200)))
def test_garbage_ends_or_waits(garbage: bytes, cuts: list[int]) -> None:
    cutter = FrameCutter(size_max=100)
    try:
        for piece in cut_at(garbage, cuts):
            for _, start, end in cutter.feed(piece)[1]:
                assert 5 <= end - start <= 101
    except ProtocolViolation:
        return
    assert cutter.waiting_bytes <= 105


@given(st.integers(WHOLE_BYTES_MAX + 1, 3 * WHOLE_BYTES_MAX), st.integers(500, 100_000))
def test_large_rows_pass_in_pieces(size: int, step: int) -> None:
    stream = m.message(m.DATA_ROW, b"r" * size) + m.ready_for_query(m.IDLE)
    cutter = FrameCutter(frozenset((m.DATA_ROW,)))
    passed = bytearray()
    kinds = []
    for start in range(0, len(stream), step):
        buffer, frames = cutter.feed(stream[start : start + step])
        kinds += [kind for kind, _, _ in frames]
        for _, begin, end in frames:
            passed += buffer[begin:end]
        assert cutter.waiting_bytes < 6
    assert passed == stream
    assert kinds[0] == m.DATA_ROW
    assert kinds[-1] == m.READY_FOR_QUERY
    assert set(kinds[1:-1]) <= {CONTINUED}


@given(some_messages.filter(len), st.data())
def test_pushed_back_messages_come_again(parts: list[tuple[int, bytes]], data: st.DataObject) -> None:
    stream = b"".join(m.message(kind, body) for kind, body in parts)
    end = data.draw(st.integers(0, len(stream)))
    cutter = FrameCutter()
    buffer, frames = cutter.feed(stream[:end])
    stop = data.draw(st.integers(0, len(frames)))
    seen = [(kind, buffer[start + 5 : end]) for kind, start, end in frames[:stop]]
    if stop < len(frames):
        cutter.push_back(buffer[frames[stop][1] : frames[-1][2]])
    cutter.hold(stream[end:])
    buffer, frames = cutter.feed(b"")
    seen += [(kind, buffer[start + 5 : end]) for kind, start, end in frames]
    assert seen == parts


@pytest.mark.parametrize("length", [0, 3, 0x40000000, 0xFFFFFFFF])
def test_absurd_lengths(length: int) -> None:
    with pytest.raises(ProtocolViolation, match=str(length)):
        FrameCutter().feed(b"Q" + length.to_bytes(4, "big"))


def test_a_forged_tail_is_no_message() -> None:
    """A row that ends in the bytes of ReadyForQuery."""
    stream = m.message(m.DATA_ROW, b"\0\1\0\0\0\6" + m.ready_for_query(m.IDLE))
    _, frames = FrameCutter().feed(stream)
    assert [kind for kind, _, _ in frames] == [m.DATA_ROW]
