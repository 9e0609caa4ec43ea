"""A connection between two servers on which the standby's words can be held back, and outlive the standby's end."""

from __future__ import annotations

import asyncio
import contextlib


class HoldingRelay:
    """Carries connections to a port; what comes from whoever has connected waits while it is held."""

    def __init__(self, host: str, port: int) -> None:
        self._target = (host, port)
        self._goes_on = asyncio.Event()
        self._goes_on.set()
        self._connections: list[asyncio.Task[None]] = []
        self._server: asyncio.Server | None = None

    async def start(self) -> int:
        """Listen; returns the port."""
        self._server = await asyncio.start_server(self._accept, self._target[0], 0)
        return int(self._server.sockets[0].getsockname()[1])

    def hold(self) -> None:
        """Keep back what is sent from now on, its end included."""
        self._goes_on.clear()

    def let_go(self) -> None:
        """What was held back arrives."""
        self._goes_on.set()

    async def close(self) -> None:
        """End every connection."""
        if self._server is not None:
            self._server.close()
        for connection in self._connections:
            connection.cancel()
        await asyncio.gather(*self._connections, return_exceptions=True)

    def _accept(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        self._connections.append(asyncio.ensure_future(self._carry(reader, writer)))

    async def _carry(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        try:
            there_reader, there = await asyncio.open_connection(*self._target)
        except OSError:
            writer.close()
            return
        down = asyncio.ensure_future(_pump(there_reader, writer, None))
        try:
            await _pump(reader, there, self._goes_on)
        finally:
            there.close()
            down.cancel()
            writer.close()


async def _pump(reader: asyncio.StreamReader, writer: asyncio.StreamWriter, goes_on: asyncio.Event | None) -> None:
    with contextlib.suppress(ConnectionError):
        while data := await reader.read(65536):
            if goes_on is not None:
                await goes_on.wait()
            writer.write(data)
            await writer.drain()
    if goes_on is not None:
        await goes_on.wait()
    else:
        writer.close()
