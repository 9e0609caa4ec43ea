from __future__ import annotations

import struct

import pytest
from hypothesis import given
from hypothesis import strategies as st

from holdfast.model.errors import ProtocolViolation
from holdfast.wire import messages as m
from holdfast.wire.startup import (
    CancelRequest,
    GssRequest,
    Login,
    TlsRequest,
    UnsupportedVersion,
    cut_packet,
)

names = st.text(st.characters(exclude_characters="\0", exclude_categories=["Cs"]), min_size=1, max_size=20)


def packet(code: int, body: bytes = b"") -> bytes:
    return struct.pack("!II", 8 + len(body), code) + body


@given(st.dictionaries(names, names, max_size=5), names, st.integers(0, 9))
def test_login(parameters: dict[str, str], user: str, minor: int) -> None:
    given_parameters = {**parameters, "user": user}
    stream = m.startup_message(given_parameters, minor)
    buffer = bytearray()
    for byte in stream[:-1]:
        buffer.append(byte)
        assert cut_packet(buffer) is None
    buffer += stream[-1:] + b"more"
    login = cut_packet(buffer)
    assert isinstance(login, Login)
    assert buffer == b"more"
    known = {k: v for k, v in given_parameters.items() if not k.startswith("_pq_.")}
    assert (login.minor, login.parameters, login.user) == (minor, known, user)
    assert login.needs_negotiation == (minor > 2 or known != given_parameters)


def test_database_defaults_to_the_user() -> None:
    login = cut_packet(bytearray(m.startup_message({"user": "a"})))
    assert isinstance(login, Login)
    assert login.database == "a"


@pytest.mark.parametrize("size", [1, 4, 32, 256])
def test_cancel_keys_of_any_length(size: int) -> None:
    assert cut_packet(bytearray(m.cancel_request(7, b"k" * size))) == CancelRequest(7, b"k" * size)


def test_encryption_requests() -> None:
    assert cut_packet(bytearray(packet(80877103))) == TlsRequest()
    assert cut_packet(bytearray(packet(80877104))) == GssRequest()
    assert cut_packet(bytearray(packet(2 << 16, b"x"))) == UnsupportedVersion(2, 0)


@pytest.mark.parametrize(
    "raw",
    [
        b"\0\0\0\7",
        b"\0\1\0\0",
        b"GET / HTTP/1.1\r\n\r\n",
        packet(80877103, b"x"),
        packet(80877102, b"\0\0\0\1"),
        packet(80877102, b"\0\0\0\1" + b"k" * 257),
        packet(3 << 16, b"user\0me"),
        packet(3 << 16, b"user\0me\0"),
        packet(3 << 16, b"user\0\0\0"),
        packet(3 << 16, b"database\0x\0\0"),
        packet(3 << 16, b"user\0me\0odd\0\0"),
        packet(3 << 16, b"user\0\xff\0\0"),
        packet(3 << 16, b"\0"),
        packet(3 << 16),
    ],
)
def test_malformed(raw: bytes) -> None:
    with pytest.raises(ProtocolViolation):
        cut_packet(bytearray(raw))


@given(st.binary(max_size=400))
def test_garbage(raw: bytes) -> None:
    buffer = bytearray(raw)
    try:
        while cut_packet(buffer) is not None:
            pass
    except ProtocolViolation:
        return
