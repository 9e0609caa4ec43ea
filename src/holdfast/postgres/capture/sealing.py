"""Encryption of captures with age (https://age-encryption.org/v1): to public keys; the node itself can read nothing."""

from __future__ import annotations

import importlib
from collections.abc import Sequence
from pathlib import Path
from types import ModuleType
from typing import BinaryIO, Protocol

from holdfast.model.errors import ConfigurationError, EnvironmentFault

SUFFIX = ".age"


class Readable(Protocol):
    """What is encrypted."""

    def read(self, size: int = -1, /) -> bytes: ...  # noqa: D102


class Writable(Protocol):
    """Where it goes."""

    def write(self, data: bytes, /) -> int: ...  # noqa: D102

    def flush(self) -> None: ...  # noqa: D102


class Sealer:
    """Encrypts streams to the recipients of the configuration."""

    def __init__(self, recipients: Sequence[str]) -> None:
        """Raises ConfigurationError for what is no public key."""
        self.recipients = tuple(recipients)
        self._age = pyrage = _library("capture.recipients")
        self._keys = []
        for key in recipients:
            try:
                self._keys.append(pyrage.x25519.Recipient.from_str(key))
            except pyrage.RecipientError as error:
                raise ConfigurationError(
                    f"capture.recipients: {key!r} is no public key of age ({error}): see `age-keygen -y`"
                ) from error

    def seal(self, reader: Readable, writer: Writable) -> None:
        """Encrypt what ``reader`` has; raises what it or ``writer`` raised as EncryptError of the library."""
        self._age.encrypt_io(reader, writer, self._keys)


class Opener:
    """Decrypts with the private keys of a file, as ``age-keygen`` writes it."""

    def __init__(self, identity_file: Path) -> None:
        """Raises ConfigurationError if there is no key in it."""
        try:
            lines = identity_file.read_text().splitlines()
        except (OSError, UnicodeDecodeError) as error:
            reason = error.strerror if isinstance(error, OSError) else "it is not text"
            raise ConfigurationError(f"--identity {identity_file}: {reason}") from error
        self._age = pyrage = _library("--identity")
        self._keys = []
        for number, line in enumerate((line.strip() for line in lines), 1):
            if not line or line.startswith("#"):
                continue
            try:
                self._keys.append(pyrage.x25519.Identity.from_str(line))
            except pyrage.IdentityError as error:
                raise ConfigurationError(
                    f"--identity {identity_file}: line {number} is no private key of age: `age-keygen` makes one"
                ) from error
        if not self._keys:
            raise ConfigurationError(f"--identity {identity_file} has no private key: `age-keygen` makes one")

    def open(self, source: BinaryIO, target: BinaryIO, name: str) -> None:
        """Decrypt; raises EnvironmentFault if no key fits, or if what is there was changed."""
        try:
            self._age.decrypt_io(source, target, self._keys)
        except self._age.DecryptError as error:
            raise EnvironmentFault(f"{name} cannot be decrypted: {error}; is it the right --identity?") from error


def _library(asked_by: str) -> ModuleType:
    """Imported when it is needed: it is an extra."""
    try:
        return importlib.import_module("pyrage")
    except ImportError as error:
        raise ConfigurationError(
            f"{asked_by} needs the Python package pyrage, which is not there: pip install 'holdfast[encryption]'"
        ) from error
