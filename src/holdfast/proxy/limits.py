"""Counts and sizes the proxy keeps, each with its reason."""

from __future__ import annotations

from typing import Final

CONNECTS_AT_ONCE: Final = 20
"""Server connections of one port that are being opened at the same time: a fresh primary forks this many backends at
once and no more, and a dead one is asked by this many and no more."""

HELD_BYTES_MAX: Final = 64 * 1024
"""What a waiting client may send ahead; beyond it, it is no longer read."""

WRITE_BUFFER_BYTES: Final = 256 * 1024
"""What may wait for a slow reader before the other side is no longer read."""

LISTEN_BACKLOG: Final = 1024
"""Clients that may wait to be accepted: all of them come back at once after a network break."""

STATUS_CACHE_MAX: Final = 1024
"""Ways of logging in whose server parameters are remembered, for clients that come while no primary serves."""
