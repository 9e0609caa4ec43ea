"""What a client may send before it is logged in: untyped packets of a length, a code and a body."""

from __future__ import annotations

import struct
from dataclasses import dataclass
from typing import Final

from holdfast.model.errors import ProtocolViolation

STARTUP_BYTES_MAX: Final = 10_000
"""PostgreSQL's own limit of a start-up packet (MAX_STARTUP_PACKET_LENGTH)."""

CANCEL_KEY_BYTES_MAX: Final = 256
"""The longest key of a CancelRequest (protocol 3.2)."""

LOGIN_BYTES_MAX: Final = 65_535
"""PostgreSQL's own limit of a message while a client logs in (PG_MAX_AUTH_TOKEN_LENGTH)."""

NEWEST_MINOR: Final = 2
"""The newest minor version of protocol 3 that is spoken."""

_CANCEL: Final = (1234 << 16) | 5678
_TLS: Final = (1234 << 16) | 5679
_GSS: Final = (1234 << 16) | 5680
_HEAD = struct.Struct("!II")


@dataclass(frozen=True, slots=True)
class TlsRequest:
    """SSLRequest: answer one byte, ``S`` or ``N``."""


@dataclass(frozen=True, slots=True)
class GssRequest:
    """GSSENCRequest: answer one byte, ``G`` or ``N``."""


@dataclass(frozen=True, slots=True)
class CancelRequest:
    """A request to cancel what the session with this key runs."""

    process_id: int
    secret: bytes


@dataclass(frozen=True, slots=True)
class UnsupportedVersion:
    """A StartupMessage of another major version."""

    major: int
    minor: int


@dataclass(frozen=True, slots=True)
class Login:
    """StartupMessage: the minor version asked for, the parameters, and protocol options nobody here knows."""

    minor: int
    parameters: dict[str, str]
    unknown_options: tuple[str, ...]

    @property
    def user(self) -> str:
        """Who logs in."""
        return self.parameters["user"]

    @property
    def database(self) -> str:
        """To which database; the user's name unless said."""
        return self.parameters.get("database") or self.user

    @property
    def needs_negotiation(self) -> bool:
        """Whether NegotiateProtocolVersion must be the first answer."""
        return self.minor > NEWEST_MINOR or bool(self.unknown_options)


Packet = TlsRequest | GssRequest | CancelRequest | UnsupportedVersion | Login


def cut_packet(buffer: bytearray) -> Packet | None:
    """Take the first start-up packet off ``buffer``; None while it is incomplete. Raises ProtocolViolation."""
    if len(buffer) < 4:
        return None
    (length,) = struct.unpack_from("!I", buffer)
    if not 8 <= length <= STARTUP_BYTES_MAX:
        raise ProtocolViolation(f"a start-up packet claims a length of {length} bytes")
    if len(buffer) < length:
        return None
    packet = bytes(buffer[:length])
    del buffer[:length]
    return _read_packet(packet)


def _read_packet(packet: bytes) -> Packet:
    _, code = _HEAD.unpack_from(packet)
    body = packet[8:]
    if code in (_TLS, _GSS):
        if body:
            raise ProtocolViolation("an encryption request has a body")
        return TlsRequest() if code == _TLS else GssRequest()
    if code == _CANCEL:
        if not 5 <= len(body) <= 4 + CANCEL_KEY_BYTES_MAX:
            raise ProtocolViolation("a cancel request has a key of impossible length")
        return CancelRequest(int.from_bytes(body[:4], "big"), body[4:])
    major, minor = code >> 16, code & 0xFFFF
    if major != 3:
        return UnsupportedVersion(major, minor)
    return _read_login(minor, body)


def _read_login(minor: int, body: bytes) -> Login:
    if not body.endswith(b"\0"):
        raise ProtocolViolation("a start-up message has no end")
    try:
        parts = [part.decode() for part in body[:-1].split(b"\0")]
    except UnicodeDecodeError as wrong:
        raise ProtocolViolation("a start-up parameter is not UTF-8") from wrong
    if parts.pop() != "" or len(parts) % 2:
        raise ProtocolViolation("a start-up parameter has no value")
    given = dict(zip(parts[::2], parts[1::2], strict=True))
    if "" in given:
        raise ProtocolViolation("a start-up parameter has no name")
    if not given.get("user"):
        raise ProtocolViolation("no user name in the start-up message")
    options = tuple(name for name in given if name.startswith("_pq_."))
    return Login(minor, {k: v for k, v in given.items() if k not in options}, options)
