"""An event loop for a proxy: asyncio's own, which serves the proxy's sockets while it waits."""

from __future__ import annotations

import asyncio
import selectors
from collections.abc import Callable, Mapping
from contextvars import Context
from types import TracebackType
from typing import Any, TypeVarTuple, Unpack

from holdfast.proxy.reactor import IN, Reactor

_Args = TypeVarTuple("_Args")


class Poller(selectors.BaseSelector):
    """What a `ProxyLoop` waits with: for its own descriptors as ever, and for the sockets of a reactor meanwhile."""

    def __init__(self) -> None:
        self._own = selectors.EpollSelector()
        self._reactor: Reactor | None = None
        self._is_own_ready = False
        self.tell: Callable[[Exception], None] = _nobody_told

    def serve(self, reactor: Reactor) -> bool:
        """Serve its sockets; False: there is another one already."""
        if self._reactor is not None:
            return False
        self._reactor = reactor
        reactor.wait(self._own.fileno(), IN, self._own_is_ready)
        return True

    def leave(self, reactor: Reactor) -> bool:
        """Serve it no more; False: it was not served."""
        if self._reactor is not reactor:
            return False
        reactor.wait(self._own.fileno(), 0, self._own_is_ready)
        self._reactor = None
        reactor.must_return = True
        return True

    def hurry(self) -> None:
        """The event loop has something to do."""
        if self._reactor is not None:
            self._reactor.must_return = True

    def _own_is_ready(self, mask: int) -> None:
        self._is_own_ready = True
        self.hurry()

    def select(self, timeout: float | None = None) -> list[tuple[selectors.SelectorKey, int]]:
        """As any selector; returns early when the event loop has something to do."""
        if self._reactor is None:
            return self._own.select(timeout)
        self._is_own_ready = False
        with _Telling(self):
            self._reactor.serve(-1.0 if timeout is None else timeout)
        return self._own.select(0) if self._is_own_ready else []

    def register(self, fileobj: Any, events: int, data: Any = None) -> selectors.SelectorKey:
        """As any selector."""
        return self._own.register(fileobj, events, data)

    def unregister(self, fileobj: Any) -> selectors.SelectorKey:
        """As any selector."""
        return self._own.unregister(fileobj)

    def modify(self, fileobj: Any, events: int, data: Any = None) -> selectors.SelectorKey:
        """As any selector."""
        return self._own.modify(fileobj, events, data)

    def get_map(self) -> Mapping[Any, selectors.SelectorKey]:
        """As any selector."""
        return self._own.get_map()

    def close(self) -> None:
        """As any selector."""
        self._own.close()


def _nobody_told(fault: Exception) -> None:
    raise fault


class _Telling:
    """A fault in a handler is told to the event loop's exception handler, as that of any callback."""

    def __init__(self, poller: Poller) -> None:
        self._poller = poller

    def __enter__(self) -> None:
        pass

    def __exit__(self, kind: type[BaseException] | None, fault: BaseException | None, at: TracebackType | None) -> bool:
        if not isinstance(fault, Exception):
            return False
        self._poller.tell(fault)
        return True


class ProxyLoop(asyncio.SelectorEventLoop):
    """asyncio's own event loop with a `Poller`, which it tells when it has something to do: a `Host`."""

    def __init__(self) -> None:
        self.poller = Poller()
        super().__init__(self.poller)
        self.poller.tell = self._tell

    def serve(self, reactor: Reactor) -> bool:
        """Serve its sockets from now on; False: there is another one already."""
        return self.poller.serve(reactor)

    def leave(self, reactor: Reactor) -> bool:
        """Serve it no more; False: it was not served."""
        return self.poller.leave(reactor)

    def _tell(self, fault: Exception) -> None:
        self.call_exception_handler({"message": "a socket's handler failed", "exception": fault})

    def call_soon(
        self, callback: Callable[[Unpack[_Args]], object], *args: *_Args, context: Context | None = None
    ) -> asyncio.Handle:
        """As any event loop."""
        self.poller.hurry()
        return super().call_soon(callback, *args, context=context)

    def call_at(
        self,
        when: float,
        callback: Callable[[Unpack[_Args]], object],
        *args: *_Args,
        context: Context | None = None,
    ) -> asyncio.TimerHandle:
        """As any event loop."""
        self.poller.hurry()
        return super().call_at(when, callback, *args, context=context)


def new_event_loop() -> asyncio.AbstractEventLoop:
    """An event loop for a proxy."""
    return ProxyLoop()
