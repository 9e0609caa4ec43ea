"""The watchdog device: resets the machine when an agent that guards a primary does not turn any more.

Kernel documentation, watchdog/watchdog-api.rst: opening the device starts the countdown, any write starts it again, and
a "V" just before the close stops it (magic close).
"""

from __future__ import annotations

import asyncio
import fcntl
import os
import struct
from collections.abc import Callable
from pathlib import Path

import structlog

from holdfast.model.errors import ConfigurationError
from holdfast.model.settings import FencingSettings
from holdfast.node.clock import monotonic_ms

log = structlog.get_logger(__name__)

_SET_TIMEOUT = 0xC0045706
"""WDIOC_SETTIMEOUT: _IOWR('W', 6, int)."""
_KEEP_ALIVE, _MAGIC_CLOSE = b"\0", b"V"
_KEEP_ALIVES_PER_TIMEOUT = 5


class WatchdogDevice:
    """One device."""

    def __init__(self, path: Path, timeout_s: int) -> None:
        self._path = path
        self._timeout_s = timeout_s
        self._descriptor: int | None = None

    @property
    def armed(self) -> bool:
        """Whether the countdown runs."""
        return self._descriptor is not None

    def check(self) -> None:
        """Raises ConfigurationError if the device could not be opened."""
        if not os.access(self._path, os.W_OK):
            raise ConfigurationError(
                f"fencing.watchdog_device: {self._path} is not there or cannot be written to: load a watchdog driver "
                "(softdog, say), let this user write to it, or leave the setting out"
            )

    def keep_alive(self) -> None:
        """Start the countdown, or start it again; raises OSError."""
        if self._descriptor is None:
            self._descriptor = os.open(self._path, os.O_WRONLY | os.O_CLOEXEC | os.O_NONBLOCK)
            try:
                fcntl.ioctl(self._descriptor, _SET_TIMEOUT, struct.pack("i", self._timeout_s))
            except OSError as error:
                log.warning("watchdog.timeout_kept", device=str(self._path), reason=error.strerror)
            log.info("watchdog.armed", device=str(self._path), timeout_s=self._timeout_s)
        os.write(self._descriptor, _KEEP_ALIVE)

    def disarm(self) -> None:
        """Stop the countdown. Idempotent; raises OSError."""
        descriptor, self._descriptor = self._descriptor, None
        if descriptor is None:
            return
        try:
            os.write(descriptor, _MAGIC_CLOSE)
        finally:
            os.close(descriptor)
        log.info("watchdog.disarmed", device=str(self._path))


class Watchdog:
    """Armed while there is a primary here; kept alive while the agent turns."""

    def __init__(self, settings: FencingSettings, guards_primary: Callable[[], bool]) -> None:
        device = settings.watchdog_device
        self._device = WatchdogDevice(device, settings.watchdog_timeout_s) if device is not None else None
        self._timeout_ms = settings.watchdog_timeout_s * 1000
        self._guards_primary = guards_primary
        self._turned_ms: int | None = None

    def check(self) -> None:
        """Raises ConfigurationError if there is a device and it cannot be used."""
        if self._device is not None:
            self._device.check()

    def turned(self) -> None:
        """The agent has looked, decided and acted."""
        self._turned_ms = monotonic_ms()

    async def run(self) -> None:
        """Keep the device as it should be, for ever. The countdown goes on after that, until `close`."""
        while self._device is not None:
            self._once(self._device)
            await asyncio.sleep(self._timeout_ms / _KEEP_ALIVES_PER_TIMEOUT / 1000)

    def close(self) -> None:
        """The server has been stopped for certain: stop the countdown."""
        if self._device is not None:
            self._device.disarm()

    def _once(self, device: WatchdogDevice) -> None:
        try:
            if not self._guards_primary():
                device.disarm()
            elif self._turned_ms is not None and monotonic_ms() - self._turned_ms < self._timeout_ms // 2:
                device.keep_alive()
            else:
                log.error("watchdog.starving", reason="the agent does not turn any more")
        except OSError as error:
            log.error("watchdog.failed", reason=error.strerror)
