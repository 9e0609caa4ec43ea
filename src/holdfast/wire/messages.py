"""Single messages: the type bytes, how they are built, and how the few that matter are read."""

from __future__ import annotations

import struct
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Final

from holdfast.model.errors import ProtocolViolation

# From the client.
QUERY: Final = ord("Q")
PARSE: Final = ord("P")
BIND: Final = ord("B")
DESCRIBE: Final = ord("D")
EXECUTE: Final = ord("E")
CLOSE: Final = ord("C")
FLUSH: Final = ord("H")
SYNC: Final = ord("S")
FUNCTION_CALL: Final = ord("F")
COPY_FAIL: Final = ord("f")
TERMINATE: Final = ord("X")
PASSWORD: Final = ord("p")
# From either side.
COPY_DATA: Final = ord("d")
COPY_DONE: Final = ord("c")
# From the server.
AUTHENTICATION: Final = ord("R")
BACKEND_KEY_DATA: Final = ord("K")
PARAMETER_STATUS: Final = ord("S")
READY_FOR_QUERY: Final = ord("Z")
ROW_DESCRIPTION: Final = ord("T")
DATA_ROW: Final = ord("D")
COMMAND_COMPLETE: Final = ord("C")
EMPTY_QUERY: Final = ord("I")
ERROR: Final = ord("E")
NOTICE: Final = ord("N")
NOTIFICATION: Final = ord("A")
PARSE_COMPLETE: Final = ord("1")
BIND_COMPLETE: Final = ord("2")
CLOSE_COMPLETE: Final = ord("3")
NO_DATA: Final = ord("n")
PARAMETER_DESCRIPTION: Final = ord("t")
PORTAL_SUSPENDED: Final = ord("s")
COPY_IN: Final = ord("G")
COPY_OUT: Final = ord("H")
COPY_BOTH: Final = ord("W")
FUNCTION_RESULT: Final = ord("V")
NEGOTIATE_VERSION: Final = ord("v")

IDLE: Final = ord("I")
IN_TRANSACTION: Final = ord("T")
IN_FAILED_TRANSACTION: Final = ord("E")

AUTH_OK: Final = 0
AUTH_SASL: Final = 10
AUTH_SASL_CONTINUE: Final = 11
AUTH_SASL_FINAL: Final = 12

_LENGTH = struct.Struct("!I")


def message(kind: int, body: bytes = b"") -> bytes:
    """One message of any type."""
    return bytes((kind,)) + _LENGTH.pack(len(body) + 4) + body


def query(sql: str | bytes) -> bytes:
    """A simple Query."""
    return message(QUERY, (sql.encode() if isinstance(sql, str) else sql) + b"\0")


SYNC_MESSAGE: Final = message(SYNC)
TERMINATE_MESSAGE: Final = message(TERMINATE)


def ready_for_query(status: int) -> bytes:
    """ReadyForQuery with one of `IDLE`, `IN_TRANSACTION`, `IN_FAILED_TRANSACTION`."""
    return message(READY_FOR_QUERY, bytes((status,)))


def authentication(code: int, body: bytes = b"") -> bytes:
    """One of the Authentication messages."""
    return message(AUTHENTICATION, _LENGTH.pack(code) + body)


def sasl_mechanisms(names: Sequence[str]) -> bytes:
    """AuthenticationSASL: the mechanisms on offer."""
    return authentication(AUTH_SASL, b"".join(name.encode() + b"\0" for name in names) + b"\0")


def sasl_initial_response(mechanism: str, data: bytes) -> bytes:
    """SASLInitialResponse."""
    return message(PASSWORD, mechanism.encode() + b"\0" + _LENGTH.pack(len(data)) + data)


def parameter_status(name: str, value: str) -> bytes:
    """ParameterStatus."""
    return message(PARAMETER_STATUS, name.encode() + b"\0" + value.encode() + b"\0")


def backend_key_data(process_id: int, secret: bytes) -> bytes:
    """BackendKeyData; ``secret`` is 4 bytes in protocol 3.0 and up to 256 from 3.2 on."""
    return message(BACKEND_KEY_DATA, _LENGTH.pack(process_id) + secret)


def negotiate_version(minor: int, unknown_options: Sequence[str]) -> bytes:
    """NegotiateProtocolVersion: the newest minor version supported, and the options that are not."""
    body = _LENGTH.pack((3 << 16) | minor) + _LENGTH.pack(len(unknown_options))
    return message(NEGOTIATE_VERSION, body + b"".join(name.encode() + b"\0" for name in unknown_options))


def startup_message(parameters: Mapping[str, str], minor: int = 0) -> bytes:
    """StartupMessage (it has no type byte)."""
    body = b"".join(k.encode() + b"\0" + v.encode() + b"\0" for k, v in parameters.items()) + b"\0"
    return _LENGTH.pack(len(body) + 8) + _LENGTH.pack((3 << 16) | minor) + body


def cancel_request(process_id: int, secret: bytes) -> bytes:
    """CancelRequest (it has no type byte)."""
    return struct.pack("!III", 12 + len(secret), (1234 << 16) | 5678, process_id) + secret


@dataclass(frozen=True, slots=True)
class Report:
    """An ErrorResponse or NoticeResponse: the fields that Holdfast uses."""

    severity: str
    sqlstate: str
    text: str
    detail: str | None = None
    hint: str | None = None
    routine: str | None = None

    @property
    def is_fatal(self) -> bool:
        """Whether the server closes the connection after it."""
        return self.severity in ("FATAL", "PANIC")

    def encode(self, kind: int = ERROR) -> bytes:
        """The message; ``kind`` is `ERROR` or `NOTICE`."""
        fields = [("S", self.severity), ("V", self.severity), ("C", self.sqlstate), ("M", self.text)]
        fields += [(k, v) for k, v in (("D", self.detail), ("H", self.hint), ("R", self.routine)) if v is not None]
        return message(kind, b"".join(k.encode() + v.encode() + b"\0" for k, v in fields) + b"\0")


def error(sqlstate: str, text: str, *, detail: str | None = None, hint: str | None = None) -> Report:
    """An ERROR: the session goes on."""
    return Report("ERROR", sqlstate, text, detail, hint)


def fatal(sqlstate: str, text: str, *, detail: str | None = None, hint: str | None = None) -> Report:
    """A FATAL: the connection is closed after it."""
    return Report("FATAL", sqlstate, text, detail, hint)


def read_report(body: bytes) -> Report:
    """Read the body of an ErrorResponse or NoticeResponse; unknown fields are ignored, as the manual asks."""
    fields: dict[str, str] = {}
    for part in body.split(b"\0"):
        if part:
            fields[chr(part[0])] = part[1:].decode(errors="replace")
    severity = fields.get("V", fields.get("S", ""))
    return Report(
        severity, fields.get("C", "XX000"), fields.get("M", ""), fields.get("D"), fields.get("H"), fields.get("R")
    )


def read_strings(body: bytes, count: int, offset: int = 0) -> tuple[list[bytes], int]:
    """``count`` zero-terminated strings and where they end; raises ProtocolViolation."""
    strings = []
    for _ in range(count):
        end = body.find(b"\0", offset)
        if end < 0:
            raise ProtocolViolation("a string in a message has no end")
        strings.append(body[offset:end])
        offset = end + 1
    return strings, offset


def read_parameter_status(body: bytes) -> tuple[str, str]:
    """Name and value; raises ProtocolViolation."""
    (name, value), _ = read_strings(body, 2)
    return name.decode(errors="replace"), value.decode(errors="replace")


def read_data_row(body: bytes) -> list[bytes | None]:
    """The columns of a DataRow; raises ProtocolViolation."""
    try:
        (count,) = struct.unpack_from("!H", body)
        offset = 2
        columns: list[bytes | None] = []
        for _ in range(count):
            (size,) = struct.unpack_from("!i", body, offset)
            offset += 4
            columns.append(None if size < 0 else body[offset : offset + size])
            offset += max(size, 0)
    except struct.error as cut:
        raise ProtocolViolation("a row in a message has no end") from cut
    if offset > len(body):
        raise ProtocolViolation("a row in a message has no end")
    return columns


@dataclass(frozen=True, slots=True)
class Bound:
    """The head of a Bind: portal, statement and the values of its parameters."""

    portal: bytes
    statement: bytes
    values: tuple[bytes | None, ...]


def read_bind(body: bytes) -> Bound:
    """Read a Bind; raises ProtocolViolation."""
    (portal, statement), offset = read_strings(body, 2)
    try:
        (formats,) = struct.unpack_from("!H", body, offset)
        offset += 2 + 2 * formats
        return Bound(portal, statement, tuple(read_data_row(body[offset:])))
    except struct.error as cut:
        raise ProtocolViolation("a Bind message has no end") from cut
