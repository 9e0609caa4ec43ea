"""The network between simulated hosts: delay, loss, cuts in one direction, connections that outlive a short cut."""

from __future__ import annotations

import random
from collections.abc import Callable
from typing import Any

from holdfast.testing.loop import SimulatedLoop

RETRANSMISSION_MS = 200.0
"""What a lost packet costs on a connection (TCP's smallest retransmission time-out)."""

_SENT_AGAIN_MS = 2000.0


class Network:
    """Carries messages as TCP does: late, never lost while the connection lives, held back by a cut until it heals."""

    def __init__(self, loop: SimulatedLoop, rng: random.Random) -> None:
        self._loop = loop
        self._random = rng.random
        self._cut: dict[tuple[str, str], list[tuple[Channel | None, Callable[..., object], tuple[Any, ...]]]] = {}
        self._cuts = 0
        self._cut_number: dict[tuple[str, str], int] = {}
        self.delay_ms = 0.4
        """Typical delay of a message, one way."""
        self.loss = 0.0
        """Share of messages that must be sent again."""
        self.duplication = 0.0
        """Share of requests that arrive twice: what is on the way, or a client's library, has sent them again."""
        self.on_change: list[Callable[[str, str], None]] = []
        """Called when a direction is cut or heals."""

    def is_cut(self, source: str, target: str) -> bool:
        """Whether nothing arrives in this direction."""
        return (source, target) in self._cut

    def is_apart(self, a: str, b: str) -> bool:
        """Whether a conversation between the two is impossible."""
        return (a, b) in self._cut or (b, a) in self._cut

    def latency_ms(self) -> float:
        """How long the next message takes."""
        latency = self.delay_ms * (0.5 + self._random())
        if self.loss and self._random() < self.loss:
            latency += RETRANSMISSION_MS * (1 + self._random())
        return latency

    def send(self, source: str, target: str, callback: Callable[..., object], *args: object) -> None:
        """Call back at the target when the message arrives."""
        held = self._cut.get((source, target))
        if held is not None:
            held.append((None, callback, args))
        else:
            self._loop.after(self.latency_ms(), callback, *args)

    def request(self, source: str, target: str, callback: Callable[..., object], *args: object) -> None:
        """The same for what may be asked twice: the second time long after its sender has gone on, maybe."""
        self.send(source, target, callback, *args)
        if self.duplication and self._random() < self.duplication:
            self._loop.after(_SENT_AGAIN_MS * self._random(), self.send, source, target, callback, *args)

    def hold(self, channel: Channel, callback: Callable[..., object], args: tuple[Any, ...]) -> bool:
        """Keep a message of a connection back if its direction is cut."""
        held = self._cut.get((channel.source, channel.target))
        if held is None:
            return False
        held.append((channel, callback, args))
        return True

    def cut(self, source: str, target: str) -> None:
        """Nothing arrives in this direction from now on."""
        if (source, target) not in self._cut:
            self._cut[source, target] = []
            self._cuts += 1
            self._cut_number[source, target] = self._cuts
            self._changed(source, target)

    def cut_number(self, source: str, target: str) -> int | None:
        """Which cut it is, to tell later whether it is still the same; None if there is none."""
        return self._cut_number.get((source, target))

    def heal(self, source: str, target: str) -> None:
        """What was held back arrives now, late."""
        held = self._cut.pop((source, target), None)
        if held is None:
            return
        del self._cut_number[source, target]
        for channel, callback, args in held:
            if channel is None:
                self._loop.after(self.latency_ms(), callback, *args)
            else:
                channel.send(callback, *args)
        self._changed(source, target)

    def heal_all(self) -> None:
        """Mend every cut."""
        for source, target in list(self._cut):
            self.heal(source, target)

    def _changed(self, source: str, target: str) -> None:
        for listener in self.on_change:
            listener(source, target)


class Channel:
    """One direction of one connection: what is sent arrives in order."""

    __slots__ = ("_arrives_s", "_loop", "_network", "source", "target")

    def __init__(self, network: Network, loop: SimulatedLoop, source: str, target: str) -> None:
        self._network = network
        self._loop = loop
        self.source = source
        self.target = target
        self._arrives_s = 0.0

    def send(self, callback: Callable[..., object], *args: object) -> None:
        """Call back at the target when the message arrives, after all that was sent before."""
        if self._network.hold(self, callback, args):
            return
        now_s = self._loop.time()
        self._arrives_s = max(now_s + self._network.latency_ms() / 1000, self._arrives_s)
        self._loop.after((self._arrives_s - now_s) * 1000, callback, *args)
