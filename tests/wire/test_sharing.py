"""Prepared statements on shared connections: every client is answered as on a connection of its own."""

from __future__ import annotations

from dataclasses import dataclass, field

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from holdfast.wire import messages as m
from holdfast.wire import sharing
from holdfast.wire.held import Held
from holdfast.wire.parameters import Parameters
from holdfast.wire.replies import Replies
from holdfast.wire.requests import Requests
from holdfast.wire.sharing import SharedNames
from holdfast.wire.state import SessionState

BAD = b"syntax error"


def parse(name: bytes, text: bytes) -> bytes:
    return m.message(m.PARSE, name + b"\0" + text + b"\0\0\0")


def bind(name: bytes) -> bytes:
    return m.message(m.BIND, b"\0" + name + b"\0\0\0\0\0\0\0")


def describe(name: bytes) -> bytes:
    return m.message(m.DESCRIBE, b"S" + name + b"\0")


def close(name: bytes) -> bytes:
    return m.message(m.CLOSE, b"S" + name + b"\0")


EXECUTE = m.message(m.EXECUTE, b"\0\0\0\0\0")


@dataclass
class Backend:
    """What PostgreSQL does with these messages; ``EXECUTE`` answers with the text that was bound."""

    statements: dict[bytes, bytes] = field(default_factory=dict)
    bound: bytes = b""
    is_skipping: bool = False
    parsed: int = 0
    outdated: set[bytes] = field(default_factory=set)

    def take(self, data: bytes) -> bytes:
        out = b""
        while data:
            size = 1 + int.from_bytes(data[1:5], "big")
            out += self._answer(data[0], data[5:size])
            data = data[size:]
        return out

    def _answer(self, kind: int, body: bytes) -> bytes:
        if kind == m.SYNC:
            self.is_skipping, self.bound = False, b""
            return m.ready_for_query(m.IDLE)
        if kind == m.QUERY:
            return self._query(body[:-1])
        if self.is_skipping:
            return b""
        match kind:
            case m.PARSE:
                (name, text), _ = m.read_strings(body, 2)
                return self._parse(name, text)
            case m.BIND:
                (_, name), _ = m.read_strings(body, 2)
                if name not in self.statements:
                    return self._fail(b"26000")
                if name in self.outdated:
                    return self._fail(b"0A000", b"RRevalidateCachedQuery\0")
                self.bound = self.statements[name]
                return m.message(m.BIND_COMPLETE)
            case m.DESCRIBE:
                if body[1:-1] not in self.statements:
                    return self._fail(b"26000")
                return m.message(m.PARAMETER_DESCRIPTION, b"\0\0") + m.message(m.NO_DATA)
            case m.CLOSE:
                self.statements.pop(body[1:-1], None)
                self.outdated.discard(body[1:-1])
                return m.message(m.CLOSE_COMPLETE)
            case m.EXECUTE:
                return self._execute()
        raise AssertionError(chr(kind))

    def _parse(self, name: bytes, text: bytes) -> bytes:
        self.parsed += 1
        if text == BAD:
            if not name:
                self.statements.pop(name, None)
            return self._fail(b"42601")
        if name and name in self.statements:
            return self._fail(b"42P05")
        self.statements[name] = text
        return m.message(m.PARSE_COMPLETE)

    def _execute(self) -> bytes:
        if not self.bound:
            return self._fail(b"34000")
        if self.bound.lower().startswith(b"deallocate "):
            return self._deallocate(self.bound[11:])
        return m.message(m.DATA_ROW, b"\0\1" + len(self.bound).to_bytes(4, "big") + self.bound) + m.message(
            m.COMMAND_COMPLETE, b"SELECT 1\0"
        )

    def _query(self, sql: bytes) -> bytes:
        if self.is_skipping:
            return b""
        self.statements.pop(b"", None)
        answer = self._deallocate(sql[11:])
        self.is_skipping = False
        return answer + m.ready_for_query(m.IDLE)

    def _deallocate(self, name: bytes) -> bytes:
        if name.lower() == b"all":
            self.statements.clear()
            return m.message(m.COMMAND_COMPLETE, b"DEALLOCATE ALL\0")
        if name not in self.statements:
            return self._fail(b"26000")
        del self.statements[name]
        return m.message(m.COMMAND_COMPLETE, b"DEALLOCATE\0")

    def _fail(self, sqlstate: bytes, more: bytes = b"") -> bytes:
        self.is_skipping = True
        return m.message(m.ERROR, b"SERROR\0VERROR\0C" + sqlstate + b"\0Mfailed\0" + more + b"\0")


class Client:
    """A client of a proxy that shares connections, and what it sees."""

    def __init__(self, outdated: sharing.Outdated | None = None) -> None:
        self.state = SessionState()
        self.requests = Requests()
        self.names = SharedNames(outdated)
        self.replies = Replies(self.requests, self.state, self.names)

    def attach(self, held: Held) -> None:
        self.replies.begin(m.IDLE, Parameters(), held)
        self.names.attached(held)
        self.requests.ended()

    def send(self, messages: list[bytes], held: Held) -> bytes:
        out = b""
        for message in messages:
            owed = self.requests.read(message[0], message, 0, len(message))
            out += self.names.send(message[0], owed, message, held, self.replies.ledger) or message
            self.replies.ledger.sent(message[0], owed)
        return out

    def hear(self, data: bytes) -> bytes:
        heard = self.replies.take(data)
        if self.replies.is_over:
            self.names.settled(self.state.prepared)
        return heard


NAMES = (b"", b"a", b"b")
TEXTS = (b"select 1", b"select 2", b"select 3", BAD)

step = st.one_of(
    st.builds(parse, st.sampled_from(NAMES), st.sampled_from(TEXTS)),
    st.builds(bind, st.sampled_from(NAMES)),
    st.builds(describe, st.sampled_from(NAMES)),
    st.builds(close, st.sampled_from(NAMES)),
    st.just(EXECUTE),
).map(lambda message: [message])
deallocation = st.sampled_from(NAMES[1:]).map(
    lambda name: [parse(b"d", b"deallocate " + name), bind(b"d"), EXECUTE, close(b"d")]
)
batch = st.one_of(
    st.lists(st.one_of(step, step, step, deallocation), max_size=6).map(
        lambda steps: [*(message for some in steps for message in some), m.SYNC_MESSAGE]
    ),
    st.sampled_from([b"DEALLOCATE a", b"deallocate b", b"DEALLOCATE all"]).map(lambda sql: [m.query(sql)]),
)
turns = st.lists(st.tuples(st.integers(0, 2), st.integers(0, 1), batch), max_size=25)


def kinds(data: bytes) -> list[tuple[int, bytes]]:
    """What a client makes of the answers: an error is an error, whatever its text."""
    seen: list[tuple[int, bytes]] = []
    while data:
        size = 1 + int.from_bytes(data[1:5], "big")
        seen.append((data[0], b"" if data[0] == m.ERROR else data[5:size]))
        data = data[size:]
    return seen


def remakes_one_that_it_has(messages: list[bytes], own: Backend) -> bool:
    """Making a named statement again without closing it fails on PostgreSQL; on a shared connection it replaces it."""
    there = set(own.statements)
    for message in messages:
        if message[0] == m.PARSE:
            (name,), _ = m.read_strings(message, 1, 5)
            if name and name in there:
                return True
            there.add(name)
    return False


@settings(max_examples=400, deadline=None)
@given(turns=turns, fragments=st.integers(1, 40))
def test_every_client_is_answered_as_on_a_connection_of_its_own(
    turns: list[tuple[int, int, list[bytes]]], fragments: int
) -> None:
    clients, own = [Client() for _ in range(3)], [Backend() for _ in range(3)]
    backends, held = [Backend(), Backend()], [Held(), Held()]
    for who, where, messages in turns:
        if remakes_one_that_it_has(messages, own[who]):
            continue
        client = clients[who]
        client.attach(held[where])
        expected = own[who].take(b"".join(messages))
        answers = backends[where].take(client.send(messages, held[where]))
        heard = b"".join(client.hear(answers[at : at + fragments]) for at in range(0, len(answers), fragments))
        assert kinds(heard) == kinds(expected)
        assert client.replies.ledger.is_idle
        there = {name for name in backends[where].statements if name}
        assert there.issuperset(held[where].prepared), "what is said to be there is there"


def test_a_parse_that_fails_takes_the_unnamed_statement_away() -> None:
    client, own, backend, held = Client(), Backend(), Backend(), Held()
    for messages in (
        [parse(b"", b"select 1"), parse(b"", BAD), m.SYNC_MESSAGE],
        [bind(b""), EXECUTE, m.SYNC_MESSAGE],
    ):
        client.attach(held)
        heard = client.hear(backend.take(client.send(messages, held)))
        assert kinds(heard) == kinds(own.take(b"".join(messages)))


def test_a_statement_is_made_once_for_all_who_have_it() -> None:
    first, second, backend, held = Client(), Client(), Backend(), Held()
    for client in (first, second):
        client.attach(held)
        client.hear(backend.take(client.send([parse(b"mine", b"select 1"), m.SYNC_MESSAGE], held)))
    made = backend.parsed
    for client in (first, second, first, second):
        client.attach(held)
        client.hear(backend.take(client.send([bind(b"mine"), EXECUTE, m.SYNC_MESSAGE], held)))
    assert backend.parsed == made
    assert len(backend.statements) == 1


def test_statements_that_are_used_least_are_closed(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(sharing, "PREPARED_MAX", 3)
    owner, other, backend, held = Client(), Client(), Backend(), Held()
    names = [b"s%d" % n for n in range(6)]
    owner.attach(held)
    owner.hear(backend.take(owner.send([*(parse(n, b"select " + n) for n in names), m.SYNC_MESSAGE], held)))
    other.attach(fresh := Held())
    server = Backend()
    owner.attach(fresh)
    for name in (*names, *names[:2]):
        heard = owner.hear(server.take(owner.send([bind(name), EXECUTE, m.SYNC_MESSAGE], fresh)))
        assert (m.DATA_ROW, b"\0\1\0\0\0\x09select " + name) in kinds(heard)
        assert len(server.statements) <= 3
    assert set(fresh.prepared) == {n for n in server.statements if n}


def test_one_that_is_closed_to_make_room_is_made_again_in_the_same_batch(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(sharing, "PREPARED_MAX", 3)
    client, backend, held = Client(), Backend(), Held()
    client.attach(held)
    names = [b"s%d" % n for n in range(3)]
    client.hear(backend.take(client.send([*(parse(n, b"select " + n) for n in names), m.SYNC_MESSAGE], held)))
    elsewhere, fresh = Backend(), Held()
    client.attach(fresh)
    client.hear(elsewhere.take(client.send([parse(b"new", b"select new"), m.SYNC_MESSAGE], fresh)))
    client.attach(held)
    batch = [bind(b"new"), EXECUTE, *(part for n in names for part in (bind(n), EXECUTE)), m.SYNC_MESSAGE]
    heard = kinds(client.hear(backend.take(client.send(batch, held))))
    assert [kind for kind, _ in heard].count(m.DATA_ROW) == 4
    assert m.ERROR not in [kind for kind, _ in heard]


def test_nobody_uses_or_closes_a_statement_by_its_shared_name() -> None:
    owner, thief, backend, held = Client(), Client(), Backend(), Held()
    owner.attach(held)
    owner.hear(backend.take(owner.send([parse(b"mine", b"select 1"), m.SYNC_MESSAGE], held)))
    (shared,) = held.prepared
    thief.attach(held)
    heard = thief.hear(backend.take(thief.send([close(shared), bind(shared), m.SYNC_MESSAGE], held)))
    assert [kind for kind, _ in kinds(heard)] == [m.CLOSE_COMPLETE, m.ERROR, m.READY_FOR_QUERY]
    assert shared in backend.statements


def test_nobody_meets_the_unnamed_statement_of_another() -> None:
    owner, other, backend, held = Client(), Client(), Backend(), Held()
    owner.attach(held)
    owner.hear(backend.take(owner.send([parse(b"", b"select 1"), m.SYNC_MESSAGE], held)))
    other.attach(held)
    heard = other.hear(backend.take(other.send([bind(b""), EXECUTE, m.SYNC_MESSAGE], held)))
    assert [kind for kind, _ in kinds(heard)] == [m.ERROR, m.READY_FOR_QUERY]
    owner.attach(held)
    heard = owner.hear(backend.take(owner.send([bind(b""), EXECUTE, m.SYNC_MESSAGE], held)))
    assert (m.DATA_ROW, b"\0\1\0\0\0\x08select 1") in kinds(heard)


def test_who_makes_a_statement_makes_room_for_it(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(sharing, "PREPARED_MAX", 3)
    backend, held = Backend(), Held()
    for number in range(9):
        client = Client()
        client.attach(held)
        batch = [parse(b"s", b"select %d" % number), bind(b"s"), EXECUTE, m.SYNC_MESSAGE]
        heard = kinds(client.hear(backend.take(client.send(batch, held))))
        assert m.ERROR not in [kind for kind, _ in heard]
        assert len(backend.statements) <= 3
        assert set(held.prepared) == {name for name in backend.statements if name}


def test_a_statement_whose_results_have_changed_is_refused_once_and_then_made_again() -> None:
    outdated = sharing.Outdated()
    clients = [Client(outdated) for _ in range(2)]
    backends, held = [Backend(), Backend()], [Held(), Held()]
    ask = [bind(b"s"), EXECUTE, m.SYNC_MESSAGE]

    def asked(who: int, where: int) -> list[int]:
        clients[who].attach(held[where])
        return [kind for kind, _ in kinds(clients[who].hear(backends[where].take(clients[who].send(ask, held[where]))))]

    for who, client in enumerate(clients):
        client.attach(held[who])
        client.hear(backends[who].take(client.send([parse(b"s", b"select * from t"), m.SYNC_MESSAGE], held[who])))
        assert m.DATA_ROW in asked(who, 0)
        assert m.DATA_ROW in asked(who, 1)
    for backend in backends:
        backend.outdated = set(backend.statements)  # somebody altered the table
    assert asked(0, 0) == [m.ERROR, m.READY_FOR_QUERY]
    for who, where in ((0, 0), (0, 1), (1, 0), (1, 1)):
        assert m.DATA_ROW in asked(who, where)
    made = [backend.parsed for backend in backends]
    for who, where in ((0, 0), (0, 1), (1, 0), (1, 1)):
        assert m.DATA_ROW in asked(who, where)
    assert [backend.parsed for backend in backends] == made
