"""SCRAM-SHA-256 (RFC 5802, RFC 7677), both sides, without channel binding. Nonces come from the caller.

A server that only has stored secrets (PostgreSQL's ``rolpassword``) learns the *client key* when a client logs in. With
it, and no password, it can log in as that user wherever the secret has the same salt and iterations.
"""

from __future__ import annotations

import base64
import binascii
import hashlib
import hmac
import re
from dataclasses import dataclass, field
from typing import Final

from holdfast.model.errors import ProtocolViolation
from holdfast.wire.saslprep import prepare_password

MECHANISM: Final = "SCRAM-SHA-256"
ITERATIONS: Final = 4096
"""What PostgreSQL uses by default (scram_iterations)."""

ITERATIONS_MAX: Final = 1_000_000
"""More than this asked for by a server is an attack on our time."""

_SECRET = re.compile(r"\ASCRAM-SHA-256\$(\d{1,9}):([A-Za-z0-9+/=]+)\$([A-Za-z0-9+/=]+):([A-Za-z0-9+/=]+)\Z")


class AuthenticationFailed(Exception):
    """The other side did not prove that it knows the password."""


@dataclass(frozen=True, slots=True)
class Secret:
    """What a server stores instead of a password."""

    salt: bytes
    iterations: int
    stored_key: bytes = field(repr=False)
    server_key: bytes = field(repr=False)

    @classmethod
    def parse(cls, text: str) -> Secret:
        """Read ``SCRAM-SHA-256$<iterations>:<salt>$<stored key>:<server key>``; raises ValueError."""
        match = _SECRET.match(text)
        if match is None:
            raise ValueError("not a SCRAM secret (SCRAM-SHA-256$<iterations>:<salt>$<stored key>:<server key>)")
        salt, stored_key, server_key = (base64.b64decode(part, validate=True) for part in match.group(2, 3, 4))
        iterations = int(match[1])
        if not salt or len(stored_key) != 32 or len(server_key) != 32 or iterations < 1:
            raise ValueError("a SCRAM secret with keys of the wrong length")
        return cls(salt, iterations, stored_key, server_key)


@dataclass(frozen=True, slots=True)
class Keys:
    """What a client needs to prove itself for one salt and iteration count."""

    salt: bytes
    iterations: int
    client_key: bytes = field(repr=False)
    server_key: bytes = field(repr=False)

    def secret(self) -> Secret:
        """What a server would store for them."""
        return Secret(self.salt, self.iterations, _hash(self.client_key), self.server_key)


def derive_keys(password: str, salt: bytes, iterations: int) -> Keys:
    """The keys of a password. Slow on purpose: 1 to 2 ms for 4096 iterations."""
    salted = hashlib.pbkdf2_hmac("sha256", prepare_password(password), salt, iterations)
    return Keys(salt, iterations, _hmac(salted, b"Client Key"), _hmac(salted, b"Server Key"))


def _hmac(key: bytes, data: bytes) -> bytes:
    return hmac.digest(key, data, "sha256")


def _hash(data: bytes) -> bytes:
    return hashlib.sha256(data).digest()


def _xor(a: bytes, b: bytes) -> bytes:
    return bytes(x ^ y for x, y in zip(a, b, strict=True))


def _attributes(message: str, *expected: str) -> list[str]:
    """The values of the attributes that must come first, in this order; raises ProtocolViolation."""
    parts = message.split(",")
    if len(parts) < len(expected):
        raise ProtocolViolation("a SCRAM message lacks an attribute")
    values = []
    for part, name in zip(parts, expected, strict=False):
        if not part.startswith(name + "="):
            raise ProtocolViolation(f"a SCRAM message has {part[:2]!r} where {name}= belongs")
        values.append(part[2:])
    return values


def _decode(text: str) -> bytes:
    try:
        return base64.b64decode(text, validate=True)
    except (binascii.Error, ValueError) as wrong:
        raise ProtocolViolation("a SCRAM message has broken base64") from wrong


def _text(data: bytes) -> str:
    try:
        return data.decode()
    except UnicodeDecodeError as wrong:
        raise ProtocolViolation("a SCRAM message is not UTF-8") from wrong


class ScramServer:
    """The server's side of one login: `first`, then `final`.

    ``known`` False plays the whole exchange with a made-up secret and always refuses, so that a stranger cannot learn
    which users exist.
    """

    def __init__(self, secret: Secret, nonce: str, *, known: bool = True) -> None:
        self._secret = secret
        self._nonce = nonce
        self._known = known
        self._header = ""
        self._first = ""
        self.client_key: bytes | None = None

    def first(self, data: bytes) -> bytes:
        """Answer the client's first message; raises ProtocolViolation."""
        message = _text(data)
        parts = message.split(",", 2)
        if len(parts) != 3 or parts[0] not in ("n", "y"):
            raise ProtocolViolation("a SCRAM message asks for channel binding, which is not offered")
        if parts[1] and not parts[1].startswith("a="):
            raise ProtocolViolation("a SCRAM message has a broken header")
        self._header = f"{parts[0]},{parts[1]},"
        _, client_nonce = _attributes(parts[2], "n", "r")
        if not client_nonce:
            raise ProtocolViolation("a SCRAM message has an empty nonce")
        self._nonce = client_nonce + self._nonce
        salt = base64.b64encode(self._secret.salt).decode()
        answer = f"r={self._nonce},s={salt},i={self._secret.iterations}"
        self._first = f"{parts[2]},{answer}"
        return answer.encode()

    def final(self, data: bytes) -> bytes:
        """Check the client's proof and return ours; raises AuthenticationFailed or ProtocolViolation."""
        message = _text(data)
        without_proof, _, proof_text = message.rpartition(",p=")
        binding, nonce = _attributes(without_proof, "c", "r")
        if _decode(binding) != self._header.encode() or nonce != self._nonce:
            raise ProtocolViolation("a SCRAM message does not continue the one before")
        proof = _decode(proof_text)
        if len(proof) != 32:
            raise ProtocolViolation("a SCRAM proof has the wrong length")
        auth_message = f"{self._first},{without_proof}".encode()
        client_key = _xor(proof, _hmac(self._secret.stored_key, auth_message))
        if not (hmac.compare_digest(_hash(client_key), self._secret.stored_key) and self._known):
            raise AuthenticationFailed
        self.client_key = client_key
        return b"v=" + base64.b64encode(_hmac(self._secret.server_key, auth_message))

    def keys(self) -> Keys:
        """What the client proved to have, for logging in elsewhere as that user."""
        if self.client_key is None:
            raise AuthenticationFailed
        return Keys(self._secret.salt, self._secret.iterations, self.client_key, self._secret.server_key)


class ScramClient:
    """The client's side of one login: `first`, `challenge`, (derive keys,) `prove`, `verify`."""

    def __init__(self, nonce: str) -> None:
        self._first = f"n=,r={nonce}"
        self._nonce = nonce
        self._server_first = ""
        self._server_nonce = ""
        self._signature = b""

    def first(self) -> bytes:
        """The first message. PostgreSQL takes the user's name from the start-up message and ignores this one."""
        return f"n,,{self._first}".encode()

    def challenge(self, data: bytes) -> tuple[bytes, int]:
        """Read the server's first message: salt and iterations. Raises ProtocolViolation."""
        self._server_first = _text(data)
        self._server_nonce, salt, iterations = _attributes(self._server_first, "r", "s", "i")
        if not self._server_nonce.startswith(self._nonce) or len(self._server_nonce) == len(self._nonce):
            raise ProtocolViolation("the server's SCRAM nonce does not continue ours")
        if not iterations.isdecimal() or not 1 <= int(iterations) <= ITERATIONS_MAX:
            raise ProtocolViolation("the server asks for an impossible number of SCRAM iterations")
        return _decode(salt), int(iterations)

    def prove(self, keys: Keys) -> bytes:
        """The final message."""
        without_proof = f"c={base64.b64encode(b'n,,').decode()},r={self._server_nonce}"
        auth_message = f"{self._first},{self._server_first},{without_proof}".encode()
        self._signature = _hmac(keys.server_key, auth_message)
        proof = _xor(keys.client_key, _hmac(_hash(keys.client_key), auth_message))
        return f"{without_proof},p={base64.b64encode(proof).decode()}".encode()

    def verify(self, data: bytes) -> None:
        """Check that the server knows the secret too; raises AuthenticationFailed or ProtocolViolation."""
        (signature,) = _attributes(_text(data), "v")
        if not self._signature or not hmac.compare_digest(_decode(signature), self._signature):
            raise AuthenticationFailed
