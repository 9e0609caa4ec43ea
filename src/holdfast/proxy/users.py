"""Who may log in, and the keys to log in elsewhere as them."""

from __future__ import annotations

import hashlib
import hmac
import re
import secrets
from dataclasses import dataclass, field
from pathlib import Path

import structlog

from holdfast.model.errors import ConfigurationError
from holdfast.wire.scram import ITERATIONS, Keys, Secret, derive_keys

log = structlog.get_logger(__name__)

_LINE = re.compile(r'\A(?P<user>"(?:[^"]|"")+"|[^\s"]+)\s+(?P<secret>"(?:[^"]|"")*"|\S.*)\Z')
_SALT_BYTES = 16


class KeysMissing(Exception):
    """Nothing known here lets us log in with that salt; the message names the setting and the fix."""


@dataclass(slots=True)
class _User:
    password: str | None = field(default=None, repr=False)
    secret: Secret | None = None
    keys: dict[tuple[bytes, int], Keys] = field(default_factory=dict, repr=False)


class Users:
    """The users file: ``user password`` or ``user SCRAM-SHA-256$…`` a line; either may be in double quotes.

    With stored secrets only (copied from ``pg_authid.rolpassword``), the key towards the servers is learned when the
    user logs in here.
    """

    def __init__(self, users: dict[str, _User]) -> None:
        self._users = users
        self._strangers_key = secrets.token_bytes(32)

    @classmethod
    def parse(cls, text: str, origin: str = "users_file") -> Users:
        """Read the file's text; raises ConfigurationError that names the line, never the secret."""
        users: dict[str, _User] = {}
        for number, raw in enumerate(text.splitlines(), 1):
            line = raw.strip()
            if not line or line[0] in "#;":
                continue
            match = _LINE.match(line)
            if match is None:
                raise ConfigurationError(f"{origin}, line {number}: expected a user and a password or SCRAM secret")
            name, secret = _unquote(match["user"]), _unquote(match["secret"])
            if name in users:
                raise ConfigurationError(f"{origin}, line {number}: user {name!r} is listed twice; keep one line")
            users[name] = _read_user(secret, f"{origin}, line {number}")
        return cls(users)

    @classmethod
    def load(cls, path: Path) -> Users:
        """Read the file; raises ConfigurationError. Warns if others than its owner may read it."""
        try:
            text = path.read_text(encoding="utf-8")
            mode = path.stat().st_mode
        except (OSError, UnicodeDecodeError) as error:
            reason = error.strerror if isinstance(error, OSError) else "it is not UTF-8"
            raise ConfigurationError(f"setting proxy.users_file: {path} cannot be read: {reason}") from error
        if mode & 0o077:
            log.warning("users_file.readable_by_others", path=str(path), fix=f"chmod 600 {path}")
        return cls.parse(text, f"proxy.users_file {path}")

    def __contains__(self, name: str) -> bool:
        return name in self._users

    def secret_of(self, name: str) -> tuple[Secret, bool]:
        """What to check a client against, and whether it exists: strangers get one that never fits."""
        user = self._users.get(name)
        if user is None:
            salt = hmac.digest(self._strangers_key, name.encode(), "sha256")[:_SALT_BYTES]
            nothing = hashlib.sha256(salt + self._strangers_key).digest()
            return Secret(salt, ITERATIONS, nothing, nothing), False
        if user.secret is None:
            keys = self._derive(user, secrets.token_bytes(_SALT_BYTES), ITERATIONS)
            user.secret = keys.secret()
        return user.secret, True

    def learn(self, name: str, keys: Keys) -> None:
        """Keep what a client proved to have."""
        user = self._users.get(name)
        if user is not None:
            user.keys[keys.salt, keys.iterations] = keys

    def keys_of(self, name: str, salt: bytes, iterations: int) -> Keys:
        """The keys for logging in to a server that stores the password with this salt; raises KeysMissing."""
        user = self._users.get(name)
        if user is None:
            raise KeysMissing(f"proxy.users_file has no user {name!r}: add a line for it")
        known = user.keys.get((salt, iterations))
        if known is not None:
            return known
        if user.password is None:
            raise KeysMissing(
                f"proxy.users_file: the SCRAM secret of user {name!r} is not the one that the servers store: "
                "copy it from pg_authid.rolpassword, or list the password"
            )
        return self._derive(user, salt, iterations)

    @staticmethod
    def _derive(user: _User, salt: bytes, iterations: int) -> Keys:
        keys = derive_keys(user.password or "", salt, iterations)
        user.keys[salt, iterations] = keys
        return keys


def _unquote(text: str) -> str:
    return text[1:-1].replace('""', '"') if text.startswith('"') and text.endswith('"') and len(text) > 1 else text


def _read_user(secret: str, where: str) -> _User:
    if not secret:
        raise ConfigurationError(f"{where}: the password is empty; PostgreSQL refuses such a login")
    if re.fullmatch(r"md5[0-9a-f]{32}", secret):
        raise ConfigurationError(f"{where}: md5 secrets are not supported; set the password again as scram-sha-256")
    if not secret.startswith("SCRAM-SHA-256$"):
        return _User(password=secret)
    try:
        return _User(secret=Secret.parse(secret))
    except ValueError as error:
        raise ConfigurationError(f"{where}: {error}") from error
