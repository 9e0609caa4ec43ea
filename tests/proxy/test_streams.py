"""The proxy's own transport against real sockets: what an `asyncio.Protocol` may rely on."""

from __future__ import annotations

import asyncio
import errno
import os
import resource
import select
import socket
from collections.abc import AsyncIterator, Callable
from contextlib import suppress

import pytest
import pytest_asyncio

from holdfast.proxy.reactor import Reactor
from holdfast.proxy.streams import ACCEPTS_AT_ONCE, Listener, Stream, connect, listen
from holdfast.proxy.syscalls import READ_BYTES

HIGH_BYTES = 64 * 1024


class Recorder(asyncio.Protocol):
    """Writes down what a transport tells it."""

    def __init__(self) -> None:
        self.received = bytearray()
        self.told: list[str] = []
        self.error: Exception | None = None
        self.changed = asyncio.Event()
        self.on_data: Callable[[bytes], None] = lambda data: None

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        self._note("made")

    def data_received(self, data: bytes) -> None:
        self.received += data
        self.changed.set()
        self.on_data(data)

    def connection_lost(self, exc: Exception | None) -> None:
        self.error = exc
        self._note("lost")

    def pause_writing(self) -> None:
        self._note("pause")

    def resume_writing(self) -> None:
        self._note("resume")

    def _note(self, word: str) -> None:
        self.told.append(word)
        self.changed.set()

    async def until(self, condition: Callable[[], bool]) -> None:
        async with asyncio.timeout(10):
            while not condition():
                self.changed.clear()
                await self.changed.wait()


class Pair:
    """A stream and the other end of its socket."""

    def __init__(self, reactor: Reactor) -> None:
        ours, self.peer = socket.socketpair()
        ours.setblocking(False)
        self.peer.setblocking(False)
        self.protocol = Recorder()
        self.stream = Stream(reactor, ours, self.protocol, HIGH_BYTES)

    async def read(self, count: int) -> bytes:
        loop = asyncio.get_running_loop()
        data = bytearray()
        async with asyncio.timeout(10):
            while len(data) < count:
                data += await loop.sock_recv(self.peer, count - len(data))
        return bytes(data)


@pytest_asyncio.fixture
async def reactor() -> AsyncIterator[Reactor]:
    reactor = Reactor()
    reactor.open()
    yield reactor
    reactor.close()


@pytest_asyncio.fixture
async def pair(reactor: Reactor) -> AsyncIterator[Pair]:
    pair = Pair(reactor)
    yield pair
    pair.stream.abort()
    pair.peer.close()
    await pair.protocol.until(lambda: "lost" in pair.protocol.told)


async def test_bytes_go_both_ways(pair: Pair) -> None:
    pair.peer.send(b"question")
    await pair.protocol.until(lambda: pair.protocol.received == b"question")
    pair.stream.write(b"answer")
    assert await pair.read(6) == b"answer"


async def test_what_the_socket_does_not_take_follows_in_order(pair: Pair) -> None:
    sent = os.urandom(3_000_000)
    for begin in range(0, len(sent), 100_000):
        pair.stream.write(sent[begin : begin + 100_000])
    assert pair.stream.get_write_buffer_size() > HIGH_BYTES
    assert await pair.read(len(sent)) == sent
    assert pair.stream.get_write_buffer_size() == 0


async def test_a_slow_reader_is_told_of_once_and_its_catching_up_once(pair: Pair) -> None:
    for _ in range(30):
        pair.stream.write(bytes(100_000))
    assert pair.protocol.told == ["made", "pause"]
    await pair.read(3_000_000)
    await pair.protocol.until(lambda: pair.protocol.told[-1] == "resume")
    assert pair.protocol.told == ["made", "pause", "resume"]


async def test_while_reading_is_paused_nothing_comes_and_nothing_spins(pair: Pair, reactor: Reactor) -> None:
    pair.stream.pause_reading()
    pair.peer.send(b"later")
    pair.peer.close()  # a hang-up, which epoll reports whether one asked for it or not
    await asyncio.sleep(0)
    assert select.select([reactor], [], [], 0) == ([], [], [])
    assert pair.protocol.received == b""
    pair.stream.resume_reading()
    await pair.protocol.until(lambda: "lost" in pair.protocol.told)
    assert pair.protocol.received == b"later"


async def test_closing_sends_all_that_was_written(pair: Pair) -> None:
    pair.stream.write(bytes(2_000_000))
    pair.stream.close()
    assert pair.stream.is_closing()
    assert pair.protocol.told[-1] == "pause"
    assert await pair.read(2_000_000) == bytes(2_000_000)
    await pair.protocol.until(lambda: "lost" in pair.protocol.told)
    assert pair.protocol.error is None
    assert await asyncio.get_running_loop().sock_recv(pair.peer, 1) == b""


async def test_aborting_sends_no_more_and_tells_in_a_turn_of_its_own(pair: Pair) -> None:
    pair.stream.write(bytes(2_000_000))
    pair.stream.abort()
    assert "lost" not in pair.protocol.told
    await pair.protocol.until(lambda: "lost" in pair.protocol.told)
    assert pair.protocol.told.count("lost") == 1
    assert "resume" not in pair.protocol.told
    pair.stream.write(b"nobody hears this")
    pair.stream.close()
    pair.stream.abort()
    await asyncio.sleep(0)
    assert pair.protocol.told.count("lost") == 1


async def test_the_end_of_file_closes_after_what_came_before(pair: Pair) -> None:
    pair.peer.send(b"last words")
    pair.peer.close()
    await pair.protocol.until(lambda: "lost" in pair.protocol.told)
    assert pair.protocol.received == b"last words"
    assert pair.protocol.error is None


async def test_a_reset_is_an_error(reactor: Reactor) -> None:
    (listening,) = await listen("127.0.0.1", 0, 5)
    server = asyncio.get_running_loop().create_future()
    listener = Listener(reactor, [listening], server.set_result)
    protocol = Recorder()
    stream = Stream(reactor, await connect(*listening.getsockname()), protocol, HIGH_BYTES)
    accepted: socket.socket = await server
    accepted.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, b"\x01\0\0\0\0\0\0\0")
    accepted.close()
    await protocol.until(lambda: "lost" in protocol.told)
    assert isinstance(protocol.error, ConnectionResetError)
    assert stream.is_closing()
    listener.close()


async def test_a_broken_pipe_met_by_writing_is_told_once(pair: Pair) -> None:
    pair.stream.pause_reading()
    pair.peer.close()
    for _ in range(3):
        pair.stream.write(b"into the void")
    await pair.protocol.until(lambda: "lost" in pair.protocol.told)
    assert isinstance(pair.protocol.error, BrokenPipeError)
    assert pair.protocol.told.count("lost") == 1


async def test_more_than_one_read_takes_comes_whole(pair: Pair) -> None:
    sent = os.urandom(5 * READ_BYTES + 1)
    await asyncio.get_running_loop().sock_sendall(pair.peer, sent)
    await pair.protocol.until(lambda: len(pair.protocol.received) == len(sent))
    assert pair.protocol.received == sent


async def test_one_that_is_closed_by_another_in_the_same_turn_is_not_called(reactor: Reactor) -> None:
    first, second = Pair(reactor), Pair(reactor)
    second.protocol.changed = first.protocol.changed
    first.protocol.on_data = lambda data: second.stream.abort()
    second.protocol.on_data = lambda data: first.stream.abort()
    first.peer.send(b"1")
    second.peer.send(b"2")
    await first.protocol.until(lambda: bool(first.protocol.told[1:] or second.protocol.told[1:]))
    for pair in (first, second):
        if not pair.stream.is_closing():
            pair.stream.abort()
        pair.peer.close()
    await asyncio.sleep(0)
    assert sorted([bytes(first.protocol.received), bytes(second.protocol.received)]) in ([b"", b"1"], [b"", b"2"])


async def test_a_fault_costs_one_connection_and_the_loop_tells_of_it(reactor: Reactor) -> None:
    faulty, other = Pair(reactor), Pair(reactor)
    heard: list[object] = []
    asyncio.get_running_loop().set_exception_handler(lambda loop, context: heard.append(context.get("exception")))

    def stumble(data: bytes) -> None:
        raise LookupError("stumbled")

    faulty.protocol.on_data = stumble
    faulty.peer.send(b"x")
    other.peer.send(b"y")
    await faulty.protocol.until(lambda: "lost" in faulty.protocol.told)
    await other.protocol.until(lambda: other.protocol.received == b"y")
    assert [type(fault) for fault in heard] == [LookupError]
    for pair in (faulty, other):
        pair.stream.abort()
        pair.peer.close()


async def test_a_detached_socket_keeps_what_was_not_read(pair: Pair) -> None:
    pair.stream.pause_reading()
    pair.peer.send(b"for the next owner")
    sock = pair.stream.detach()
    assert await asyncio.get_running_loop().sock_recv(sock, 100) == b"for the next owner"
    assert pair.protocol.received == b""
    sock.close()
    pair.protocol.told.append("lost")  # nobody will


async def test_a_crowd_of_clients_is_accepted(reactor: Reactor) -> None:
    (listening,) = await listen("127.0.0.1", 0, 1024)
    accepted: list[socket.socket] = []
    all_in = asyncio.Event()

    def take(sock: socket.socket) -> None:
        accepted.append(sock)
        if len(accepted) == 3 * ACCEPTS_AT_ONCE:
            all_in.set()

    listener = Listener(reactor, [listening], take)
    clients = [socket.create_connection(listening.getsockname()) for _ in range(3 * ACCEPTS_AT_ONCE)]
    async with asyncio.timeout(10):
        await all_in.wait()
    assert not any(sock.getblocking() for sock in accepted)
    listener.close()
    for sock in [*clients, *accepted]:
        sock.close()


async def test_without_a_free_descriptor_it_goes_on_accepting_later(
    reactor: Reactor, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("holdfast.proxy.streams.ACCEPT_PAUSE_S", 0.01)
    (listening,) = await listen("127.0.0.1", 0, 8)
    came = asyncio.get_running_loop().create_future()
    listener = Listener(reactor, [listening], came.set_result)
    client = socket.create_connection(listening.getsockname())
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    taken: list[int] = []
    try:
        resource.setrlimit(resource.RLIMIT_NOFILE, (max(client.fileno(), listening.fileno()) + 8, hard))
        with suppress(OSError):
            while True:
                taken.append(os.dup(0))
        for _ in range(20):
            await asyncio.sleep(0)
        assert not came.done()
    finally:
        resource.setrlimit(resource.RLIMIT_NOFILE, (soft, hard))
        for descriptor in taken:
            os.close(descriptor)
    async with asyncio.timeout(10):
        (await came).close()
    listener.close()
    client.close()


async def test_connecting_tries_every_address_and_says_why_not() -> None:
    (listening,) = await listen("127.0.0.1", 0, 1)
    port = listening.getsockname()[1]
    sock = await connect("localhost", port)
    assert sock.getpeername()[1] == port
    sock.close()
    listening.close()
    with pytest.raises(ConnectionRefusedError):
        await connect("127.0.0.1", port)


async def test_a_port_in_use_is_an_error_and_leaves_nothing_open() -> None:
    (listening,) = await listen("127.0.0.1", 0, 1)
    with pytest.raises(OSError, match=f"Errno {errno.EADDRINUSE}"):
        await listen("127.0.0.1", listening.getsockname()[1], 1)
    listening.close()


def test_a_reactor_that_is_not_open_says_so() -> None:
    reactor = Reactor()
    with pytest.raises(RuntimeError, match="open the reactor first"):
        _ = reactor.loop
    reactor.close()
    reactor.close()
