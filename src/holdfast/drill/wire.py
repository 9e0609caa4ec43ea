"""Cables whose delay wanders, for kernels without ``netem``: a process that passes frames on a little later.

Each cable is a pair of TAP devices, one on the host and one at the switch. In each direction the delay follows a target
that is drawn anew every now and then; frames keep their order, as on a path with a queue.
"""

from __future__ import annotations

import asyncio
import fcntl
import os
import random
import signal
import struct
import subprocess
import sys
from collections import deque
from collections.abc import Sequence
from dataclasses import dataclass

_TUNSETIFF = 0x400454CA
_IFF_TAP, _IFF_NO_PI = 0x0002, 0x1000
_FRAME_BYTES_MAX = 65_600
_TARGET_S = (0.05, 0.8)
"""How long a target delay lasts, at least and at most."""
_SLEW = 0.5
"""How much of the way to its target a delay goes with each frame, at most."""
_QUEUE_FRAMES_MAX = 20_000


def open_tap(name: str) -> int:
    """A TAP device in the current network namespace; its frames are read from and written to the descriptor.

    It has no offloads: the kernel hands over whole frames with their checksums (tun/tap, kernel documentation).
    Raises OSError.
    """
    descriptor = os.open("/dev/net/tun", os.O_RDWR | os.O_NONBLOCK | os.O_CLOEXEC)
    try:
        fcntl.ioctl(descriptor, _TUNSETIFF, struct.pack("16sH", name.encode(), _IFF_TAP | _IFF_NO_PI))
    except OSError:
        os.close(descriptor)
        raise
    return descriptor


@dataclass(frozen=True, slots=True)
class Cable:
    """The descriptors of its two ends."""

    host: int
    switch: int


class Direction:
    """Frames that go one way, up to ``jitter_s`` late."""

    def __init__(self, source: int, target: int, jitter_ms: float, rng: random.Random) -> None:
        self._source = source
        self._target = target
        self._jitter_s = jitter_ms / 1000
        self._rng = rng
        self._delay_s = 0.0
        self._goal_s = 0.0
        self._goal_until = 0.0
        self._last_due = 0.0
        self._queue: deque[tuple[float, bytes]] = deque()
        self._timer: asyncio.TimerHandle | None = None
        self._loop = asyncio.get_running_loop()
        self._loop.add_reader(source, self._read)

    def set_jitter(self, jitter_ms: float) -> None:
        """Delay frames by up to so much, at once."""
        self._jitter_s, self._goal_until = jitter_ms / 1000, 0.0

    def _read(self) -> None:
        now = self._loop.time()
        if now >= self._goal_until:
            self._goal_s = self._rng.uniform(0, self._jitter_s)
            self._goal_until = now + self._rng.uniform(*_TARGET_S)
        for _ in range(64):
            try:
                frame = os.read(self._source, _FRAME_BYTES_MAX)
            except BlockingIOError:
                break
            except OSError:  # the device went down or away
                break
            self._delay_s += (self._goal_s - self._delay_s) * _SLEW
            self._last_due = max(self._last_due, now + self._delay_s)
            if len(self._queue) < _QUEUE_FRAMES_MAX:
                self._queue.append((self._last_due, frame))
        self._arm()

    def _arm(self) -> None:
        if self._queue and self._timer is None:
            self._timer = self._loop.call_at(self._queue[0][0], self._write)

    def _write(self) -> None:
        self._timer = None
        now = self._loop.time() + 0.0005
        while self._queue and self._queue[0][0] <= now:
            _, frame = self._queue.popleft()
            try:
                os.write(self._target, frame)
            except OSError:  # its queue is full, or the device is down: a frame is lost, as frames are
                continue
        self._arm()


class Wires:
    """The process that carries the frames of these cables; it ends with us."""

    def __init__(self, cables: Sequence[Cable], jitter_ms: float, seed: int) -> None:
        descriptors = [end for cable in cables for end in (cable.host, cable.switch)]
        arguments = [str(jitter_ms), str(seed), *map(str, descriptors)]
        self._process = subprocess.Popen(
            [sys.executable, "-m", "holdfast.drill.wire", *arguments], stdin=subprocess.PIPE, pass_fds=descriptors
        )

    def set_jitter(self, jitter_ms: float) -> None:
        """Delay frames by up to so much from now on."""
        assert self._process.stdin is not None
        self._process.stdin.write(f"{jitter_ms}\n".encode())
        self._process.stdin.flush()

    def close(self) -> None:
        """Cut all of them."""
        self._process.send_signal(signal.SIGTERM)
        self._process.wait()
        if self._process.stdin is not None:
            self._process.stdin.close()


async def carry(cables: Sequence[Cable], jitter_ms: float, seed: int) -> None:
    """Pass frames on until standard input ends; a line there is another jitter."""
    loop = asyncio.get_running_loop()
    ended = asyncio.Event()
    rng = random.Random(seed)
    directions = [Direction(c.host, c.switch, jitter_ms, rng) for c in cables]
    directions += [Direction(c.switch, c.host, jitter_ms, rng) for c in cables]

    def told() -> None:
        line = os.read(sys.stdin.fileno(), 4096)
        if not line:
            loop.remove_reader(sys.stdin.fileno())
            ended.set()
            return
        for direction in directions:
            direction.set_jitter(float(line.split()[-1]))

    loop.add_reader(sys.stdin.fileno(), told)
    await ended.wait()


def main(arguments: Sequence[str]) -> None:
    """``jitter_ms seed host switch host switch…``: the ends are inherited descriptors."""
    jitter_ms, seed, *ends = arguments
    numbers = [int(end) for end in ends]
    cables = [Cable(*pair) for pair in zip(numbers[::2], numbers[1::2], strict=True)]
    asyncio.run(carry(cables, float(jitter_ms), int(seed)))


if __name__ == "__main__":
    main(sys.argv[1:])
