"""The kernel's contract, kept towards a FIFO: writes keep the watchdog alive, a "V" before the close disarms it."""

from __future__ import annotations

import asyncio
import os
from collections.abc import Iterator
from pathlib import Path

import pytest

from holdfast.model.errors import ConfigurationError
from holdfast.model.settings import FencingSettings
from holdfast.node.watchdog import Watchdog, WatchdogDevice


class Machine:
    """What a machine with a watchdog would have been told."""

    def __init__(self, path: Path) -> None:
        os.mkfifo(path)
        self.path = path
        self._descriptor = os.open(path, os.O_RDONLY | os.O_NONBLOCK)

    def told(self) -> bytes:
        try:
            return os.read(self._descriptor, 4096)
        except BlockingIOError:
            return b""

    def close(self) -> None:
        os.close(self._descriptor)


@pytest.fixture
def machine(tmp_path: Path) -> Iterator[Machine]:
    made = Machine(tmp_path / "watchdog")
    yield made
    made.close()


def test_the_countdown_is_started_renewed_and_stopped_with_the_magic_close(machine: Machine) -> None:
    device = WatchdogDevice(machine.path, 15)
    device.keep_alive()
    device.keep_alive()
    assert (device.armed, machine.told()) == (True, b"\0\0")
    device.disarm()
    device.disarm()
    assert (device.armed, machine.told()) == (False, b"V")


def test_a_device_that_is_not_there_is_told_at_the_start(tmp_path: Path) -> None:
    settings = FencingSettings(watchdog_device=tmp_path / "none")
    with pytest.raises(ConfigurationError, match=r"fencing\.watchdog_device"):
        Watchdog(settings, lambda: True).check()
    Watchdog(FencingSettings(), lambda: True).check()


async def test_it_is_armed_only_beside_a_primary_and_starves_with_the_agent(machine: Machine) -> None:
    guards = True
    settings = FencingSettings(watchdog_device=machine.path, watchdog_timeout_s=5)
    watchdog = Watchdog(settings, lambda: guards)
    running = asyncio.create_task(watchdog.run())
    try:
        watchdog.turned()
        await _until(lambda: b"\0" in machine.told(), turning=watchdog)
        await asyncio.sleep(3.2)  # the agent does not turn: past half of the time-out nothing more is written
        machine.told()
        await asyncio.sleep(1.5)
        assert machine.told() == b""
        watchdog.turned()
        await _until(lambda: b"\0" in machine.told(), turning=watchdog)
        guards = False
        await _until(lambda: machine.told().endswith(b"V"), turning=watchdog)
    finally:
        running.cancel()
        await asyncio.gather(running, return_exceptions=True)
        watchdog.close()


async def _until(condition: object, turning: Watchdog) -> None:
    assert callable(condition)
    async with asyncio.timeout(60):
        while not condition():
            turning.turned()
            await asyncio.sleep(0.05)  # the device is written to on a timer: there is nothing to await
