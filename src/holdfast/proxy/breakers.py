"""The breakers of a proxy's servers, joined to the clock, to the journal and to the policy."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

from pydantic import JsonValue

from holdfast.core.admission.breaker import Breaker, BreakerLimits, BreakerState, Outcome
from holdfast.model.policy import DEFAULT_POLICY, Policy
from holdfast.proxy.routing import Target
from holdfast.proxy.server import ServerNotReady, ServerRefused, ServerUnavailable

Tell = Callable[[str, int, dict[str, JsonValue]], None]
"""Told the kind of an entry of the journal, the epoch, and its details."""

Key = tuple[str, str, int, int]


@dataclass(slots=True)
class _Server:
    target: Target
    breaker: Breaker


class Breakers:
    """One breaker for each server and epoch: what was so before a promotion says nothing after it."""

    def __init__(
        self,
        connect_ms: int = 1000,
        tell: Tell = lambda kind, epoch, detail: None,
        changed: Callable[[], None] = lambda: None,
    ) -> None:
        """``connect_ms`` is how long a server may take to answer. ``changed`` is called when one opens or closes."""
        self._connect_ms = connect_ms
        self._tell = tell
        self._changed = changed
        self._servers: dict[Key, _Server] = {}
        self._limits = self._limits_of(DEFAULT_POLICY)
        self._epoch = 0
        self.opened = 0
        """How often one opened, since the start."""

    def _limits_of(self, policy: Policy) -> BreakerLimits:
        failures_max = policy.breaker_failures if policy.admission else 0
        # A trial logs in and asks one question, each within the limit; then it has told.
        return BreakerLimits(failures_max, policy.breaker_open_ms, 2 * self._connect_ms + policy.breaker_open_ms)

    def policy_is(self, policy: Policy) -> None:
        """A policy is in force."""
        limits = self._limits_of(policy)
        if limits == self._limits:
            return
        self._limits = limits
        for server in list(self._servers.values()):
            with self._noted(server):
                server.breaker.limits_are(limits)

    def heard(self, epoch: int) -> None:
        """The store has news, in this committed epoch: pauses are over, and servers of older ones are forgotten."""
        if not self._servers:
            return
        if epoch > self._epoch:
            self._epoch = epoch
            self._servers = {key: s for key, s in self._servers.items() if s.target.epoch >= epoch}
        now_ms = _now_ms()
        for server in self._servers.values():
            server.breaker.hurry(now_ms)

    def admits(self, target: Target) -> bool:
        """Whether the server may be tried now."""
        server = self._servers.get(_key_of(target))
        return server is None or server.breaker.admits(_now_ms())

    def is_closed(self, target: Target) -> bool:
        """Whether nothing speaks against the server."""
        server = self._servers.get(_key_of(target))
        return server is None or server.breaker.state is BreakerState.CLOSED

    @contextmanager
    def trying(self, target: Target) -> Iterator[bool]:
        """Whether the block may try the server, and a note of what came of it.

        ServerUnavailable is a failure, but for ServerNotReady: that is an answer, as ServerRefused is.
        """
        server = self._servers.get(_key_of(target))
        if server is None:
            server = self._servers[_key_of(target)] = _Server(target, Breaker(self._limits))
        trial = server.breaker.ask(_now_ms())
        if trial is None:
            yield False
            return
        outcome = Outcome.UNKNOWN
        try:
            yield True
            outcome = Outcome.ALIVE
        except (ServerRefused, ServerNotReady):
            outcome = Outcome.ALIVE
            raise
        except ServerUnavailable:
            outcome = Outcome.FAILED
            raise
        finally:
            with self._noted(server):
                server.breaker.settle(trial, outcome, _now_ms())

    @contextmanager
    def _noted(self, server: _Server) -> Iterator[None]:
        """Tell if the block opens or closes it."""
        breaker, target = server.breaker, server.target
        was_closed = breaker.state is BreakerState.CLOSED
        yield
        is_closed = breaker.state is BreakerState.CLOSED
        if was_closed is is_closed:
            return
        if is_closed:
            took_ms = round(_now_ms() - breaker.since_ms)
            self._tell("breaker.closed", target.epoch, {"node": target.node, "took_ms": took_ms})
        else:
            self.opened += 1
            self._tell("breaker.opened", target.epoch, {"node": target.node, "failures": breaker.failures})
        self._changed()

    def status(self) -> list[dict[str, Any]]:
        """What ``/status`` says: one entry for each server that was tried."""
        now_ms = _now_ms()
        return [
            {
                "node": server.target.node,
                "epoch": server.target.epoch,
                "state": server.breaker.state.value,
                "failures": server.breaker.failures,
                "since_ms": None if self.is_closed(server.target) else round(now_ms - server.breaker.since_ms),
            }
            for server in self._servers.values()
        ]


def _key_of(target: Target) -> Key:
    return target.node, target.host, target.port, target.epoch


def _now_ms() -> float:
    return time.monotonic() * 1000
