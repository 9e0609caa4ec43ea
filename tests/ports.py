"""Ports for the servers of the tests."""

from __future__ import annotations

import secrets

from holdfast.local.ports import free_ports

_ports = free_ports(secrets.randbits(32))


def free_port() -> int:
    """A free port, each only once, and none that an outgoing connection could take before the server has it."""
    return next(_ports)
