"""Errors, by whose fault they are.

HoldfastError            everything we raise on purpose; the message says what to do next
  ConfigurationError     a setting or an argument is wrong          (exit status 2)
  EnvironmentFault       the machine lacks something                (exit status 2)
  StoreUnavailable       the store did not answer in time
  RegisterError          the register is missing, foreign, unreadable or older than a promise
  PostgresError          a PostgreSQL server did not do what it was told
  ProtocolViolation      an illegal pair in a table: our own bug, or somebody else's writing in the store
"""

from __future__ import annotations


class HoldfastError(Exception):
    """Base of all errors raised on purpose."""


class ConfigurationError(HoldfastError):
    """A setting or an argument is wrong. The message names it and the fix."""


class EnvironmentFault(HoldfastError):
    """The machine lacks something: a server, a port, disk space, a right. The message names the fix."""


class StoreUnavailable(HoldfastError):
    """The store did not answer within its deadline."""


class RegisterError(HoldfastError):
    """The register is missing, foreign, unreadable or older than a promise: raise an alarm, never bootstrap."""


class PostgresError(HoldfastError):
    """A PostgreSQL server did not do what it was told."""


class ProtocolViolation(HoldfastError):
    """A pair of state and input that no rule covers, or a message out of order."""
