"""A way to a server on which a connection can break so that only one end learns of it."""

from __future__ import annotations

import asyncio
import contextlib
from collections.abc import AsyncIterator

from holdfast.model.server import Upstream

_CHUNK_BYTES = 65_536


class Relay:
    """Carries bytes between its own port and a server."""

    def __init__(self, to: Upstream) -> None:
        self._to = to
        self._pairs: list[tuple[asyncio.StreamWriter, asyncio.StreamWriter]] = []
        self._lingering: list[asyncio.StreamWriter] = []
        self._tasks: set[asyncio.Task[None]] = set()
        self.upstream = to

    @contextlib.asynccontextmanager
    async def running(self) -> AsyncIterator[Relay]:
        """Listen; everything is closed at the end."""
        server = await asyncio.start_server(self._accept, "127.0.0.1", 0)
        self.upstream = Upstream(self._to.node, "127.0.0.1", server.sockets[0].getsockname()[1])
        try:
            yield self
        finally:
            server.close()
            for task in self._tasks:
                task.cancel()
            await asyncio.gather(*self._tasks, return_exceptions=True)
            for writer in (*(w for pair in self._pairs for w in pair), *self._lingering):
                writer.transport.abort()

    def sever(self) -> None:
        """Who came in loses every connection. The server does not hear of it, and nobody takes what it sends."""
        for task in self._tasks:
            task.cancel()
        pairs, self._pairs = self._pairs, []
        for client, server in pairs:
            client.transport.abort()
            self._lingering.append(server)

    async def _accept(self, reader: asyncio.StreamReader, client: asyncio.StreamWriter) -> None:
        from_server, server = await asyncio.open_connection(self._to.host, self._to.port)
        self._pairs.append((client, server))
        for source, target in ((reader, server), (from_server, client)):
            task = asyncio.create_task(self._carry(source, target))
            self._tasks.add(task)
            task.add_done_callback(self._tasks.discard)

    async def _carry(self, source: asyncio.StreamReader, target: asyncio.StreamWriter) -> None:
        with contextlib.suppress(OSError):
            while data := await source.read(_CHUNK_BYTES):
                target.write(data)
                await target.drain()
            target.close()
