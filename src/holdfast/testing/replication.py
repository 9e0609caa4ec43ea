"""Streaming between simulated servers: a walsender, a walreceiver, and what is in flight between them."""

from __future__ import annotations

from typing import TYPE_CHECKING

from holdfast.model.lsn import Lsn
from holdfast.model.server import ServerStatus
from holdfast.testing.network import Channel

if TYPE_CHECKING:
    from holdfast.testing.directory import Directory, Record
    from holdfast.testing.postgres import Names, Postgres

RETRY_MS = 300.0
"""Between two attempts of a standby to connect (the product sets 100 ms; nothing depends on it)."""

SILENCE_MS = 5000.0
"""``wal_receiver_timeout`` and the walsender's: a cut longer than this ends the connection at both ends."""


class Sender:
    """A walsender: the upstream's end of a connection."""

    __slots__ = (
        *("caught_up", "down", "flushed", "is_open", "name", "names", "pid", "receiver", "replies", "sent", "server"),
        "up",
    )

    def __init__(self, server: Postgres, receiver: Receiver, name: str, sent: int) -> None:
        self.server = server
        self.receiver = receiver
        self.name = name
        self.sent = sent
        self.names: Names = server.real_names if server.real_names is not None else server.names
        self.flushed = Lsn(0)
        self.caught_up = False
        self.replies = 0
        self.is_open = True
        server.forks += 1
        self.pid = server.forks
        loop, network, there = server.loop, server.network, receiver.server.host
        self.down = Channel(network, loop, server.host, there)
        self.up = Channel(network, loop, there, server.host)

    def pump(self) -> None:
        """Send what has been flushed here since the last time."""
        directory = self.server.directory
        if directory is None or self.sent >= directory.flushed:
            return
        records = directory.log[self.sent : directory.flushed]
        self.sent = directory.flushed
        self.down.send(self.receiver.arrived, self, records)

    def reported(self, flushed: Lsn) -> None:
        """The standby's word arrives, maybe long after it follows somebody else."""
        if not self.is_open:
            return
        self.replies += 1
        self.flushed = max(self.flushed, flushed)
        directory = self.server.directory
        self.caught_up = self.caught_up or (directory is not None and self.sent >= directory.flushed)
        self.server.release(self)

    def lost(self) -> None:
        """The other end is gone: a walsender, frozen maybe, reads that after all reports that came before."""
        self.server.soon(0, self.close)

    def take_names(self, names: Names) -> None:
        """This walsender has read the new setting."""
        self.names = names

    def close(self, *, silently: bool = False) -> None:
        """The upstream's end goes away; the other end hears of it unless the whole host went down."""
        if self.is_open:
            self.is_open = False
            self.server.senders.remove(self)
            self.server.loop.after(SILENCE_MS if silently else 0.0, self.down.send, self.receiver.lost, self)


class Receiver:
    """A walreceiver and its attempts to connect: the standby's end."""

    __slots__ = ("is_open", "name", "sender", "server", "streams", "upstream")

    def __init__(self, server: Postgres, upstream: Postgres, name: str) -> None:
        self.server = server
        self.upstream = upstream
        self.name = name
        self.sender: Sender | None = None
        self.streams = False
        self.is_open = True

    def connect(self) -> None:
        """Ask the upstream for the log from where the own one ends; for ever, unless replay is behind.

        It is the startup process that starts a walreceiver anew, when it has nothing left to replay.
        """
        server = self.server
        if self.is_open and self.sender is None and server.is_replaying:
            server.end_receiver()
        elif self.is_open and not self.streams:
            server.network.send(server.host, self.upstream.host, self._asked)
            server.soon(4 * RETRY_MS, self._unanswered)

    def _unanswered(self) -> None:
        if self.is_open and self.sender is None:
            self.connect()

    def _asked(self) -> None:
        """At the upstream."""
        upstream = self.upstream
        if not upstream.running:
            return  # refused; tried again anyway
        upstream.soon(0, self._serve)

    def _serve(self) -> None:
        upstream, directory = self.upstream, self.server.directory
        if not self.is_open or self.sender is not None or directory is None or upstream.directory is None:
            return
        if upstream.status not in (ServerStatus.PRIMARY, ServerStatus.STANDBY) or upstream.stopping:
            return
        if not upstream.lets_in(self.server.host):
            return
        if not upstream.accepts(directory.position()):
            self._serve_in_vain(upstream, directory)
            return
        count = len(directory.log)
        upstream.checks.connected(upstream, self.server, count)
        self.sender = sender = Sender(upstream, self, self.name, min(count, len(upstream.directory.log)))
        upstream.senders.append(sender)
        sender.down.send(self._connected, sender)
        sender.pump()

    def _serve_in_vain(self, upstream: Postgres, directory: Directory) -> None:
        """A log that goes beyond the upstream's: let in for a moment, for streaming begins with a whole segment.

        In that moment the standby says how far it has replayed, and PostgreSQL takes that for a confirmation.
        """
        assert upstream.directory is not None
        sender = Sender(upstream, self, self.name, len(upstream.directory.log))
        upstream.senders.append(sender)
        sender.down.send(self._turned_away, sender, directory)

    def _turned_away(self, sender: Sender, directory: Directory) -> None:
        if self.is_open:
            sender.up.send(self._reported, sender, directory.position().lsn)
        sender.up.send(sender.lost)

    def _connected(self, sender: Sender) -> None:
        if self.is_open and self.sender is sender:
            self.server.soon(0, self._begin, sender)

    def _begin(self, sender: Sender) -> None:
        if self.is_open and self.sender is sender:
            self.streams = True
            self.server.heard_s = self.server.loop.time()
            self.report()

    def arrived(self, sender: Sender, records: list[Record]) -> None:
        """Log arrives at the standby's host."""
        if self.is_open and self.sender is sender:
            self.server.soon(0, self._write, sender, records)

    def _write(self, sender: Sender, records: list[Record]) -> None:
        server, directory = self.server, self.server.directory
        if not self.is_open or self.sender is not sender or directory is None:
            return
        server.heard_s = server.loop.time()
        server.checks.received(server, self.upstream, records)
        for record in records:
            directory.append(record)
        server.flush_soon()

    def report(self) -> None:
        """Tell the upstream what is flushed here."""
        sender, directory = self.sender, self.server.directory
        if self.streams and sender is not None and directory is not None:
            sender.up.send(self._reported, sender, directory.position().lsn)

    def _reported(self, sender: Sender, flushed: Lsn) -> None:
        if sender.is_open:
            sender.server.soon(0, sender.reported, flushed)

    def lost(self, sender: Sender) -> None:
        """The other end is gone, which is read after all that it has sent."""
        self.server.soon(0, self._lost, sender)

    def _lost(self, sender: Sender) -> None:
        if self.sender is sender and self.is_open:
            self.sender, self.streams = None, False
            self.server.soon(RETRY_MS, self.connect)

    def close(self, *, silently: bool = False) -> None:
        """The standby's end goes away."""
        if not self.is_open:
            return
        self.is_open = self.streams = False
        if self.sender is not None:
            sender = self.sender
            self.server.loop.after(SILENCE_MS if silently else 0.0, sender.up.send, sender.lost)

    def break_off(self) -> None:
        """The connection breaks, and only the standby learns of it; its upstream waits for `SILENCE_MS`."""
        sender = self.sender
        if sender is not None:
            self.lost(sender)
            self.server.loop.after(SILENCE_MS, sender.close)

    def cut_off(self) -> None:
        """Silence for too long: both ends give the connection up, each for itself."""
        sender = self.sender
        if sender is not None:
            self.lost(sender)
            sender.lost()
