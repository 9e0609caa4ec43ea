"""What a server owes: every pair of the table, and whole conversations."""

from __future__ import annotations

from collections import deque

import pytest
from hypothesis import given
from hypothesis import strategies as st

from holdfast.model.errors import ProtocolViolation
from holdfast.wire import messages as m
from holdfast.wire.owed import ASIDE, TABLE, Ledger, Owed, Reply, Step

CLIENT = dict(zip("QPBDECHSFdcfX", map(ord, "QPBDECHSFdcfX"), strict=True))


def talk(ledger: Ledger, script: str) -> None:
    """``>QPB`` sends, ``<12Z`` receives (``Z`` idle, ``T`` after a Z-less script is a row description)."""
    for word in script.split():
        side, kinds = word[0], word[1:]
        for kind in kinds:
            if side == ">":
                ledger.sent(ord(kind))
            elif kind == "Z":
                assert ledger.received(ord("Z")) is Step.READY
                ledger.ready(m.IDLE)
            else:
                ledger.received(ord(kind))


@pytest.mark.parametrize("reply", list(Reply))
def test_every_pair(reply: Reply) -> None:
    """Each type of message, under each state, is what the table says, an aside, or a violation."""
    for kind in range(256):
        ledger = Ledger()
        ledger._queue.append(Owed(reply))
        if kind in ASIDE:
            assert ledger.received(kind) is Step.ASIDE
        elif kind in TABLE[reply]:
            assert ledger.received(kind) is TABLE[reply][kind][0]
        else:
            with pytest.raises(ProtocolViolation):
                ledger.received(kind)


@pytest.mark.parametrize(
    "script",
    [
        ">Q <TDDCZ",
        ">Q <IZ",
        ">Q <CTDCEZ",
        ">QQQ <CZEZCZ",
        ">PBDES <12TDDCZ",
        ">PDS <1tTZ >BES <2CZ",
        ">PDH <1tn >BES <2sZ",
        ">PBES <E <Z",
        ">PBESPBES <EZ12CZ",
        ">PB <1E >DEES <Z",
        ">PBEBES <12CEZ",
        ">F <VZ >F <EZ",
        ">S <Z",
        ">PBES <12CEZ",  # a deferred constraint fails at Sync
        ">CS <3Z",
        ">Q <G >ddc <CZ",
        ">Q <G >d <E >dc <Z",
        ">Q <G >df <EZ",
        ">Qddc <GCZ",
        ">Qdcdc <GCGCZ",
        ">QddcQ <EZTDCZ",  # the copy never began: what was sent for it is ignored
        ">Q <HddcCZ",
        ">Q <HdEZ",
        ">PBES <12G >ddcS <CZ",  # the first Sync is swallowed by the copy
        ">PBESddcS <12GCZ",
        ">PBESddcS <E <Z <Z",
        ">PBES <12G >dd <E >dcS <Z",
        ">PBEScS <12GCZ",
        ">d >c >f >H",
        ">Q <NSACNZ",
    ],
)
def test_conversations(script: str) -> None:
    ledger = Ledger()
    talk(ledger, script)
    assert ledger.is_idle
    talk(ledger, ">Q <CZ")
    assert ledger.is_idle


@pytest.mark.parametrize(
    "script",
    [
        "<Z",
        "<C",
        ">Q <1",
        ">Q <W",
        ">Q <EC",
        ">P <2",
        ">B <C",
        ">S <C",
        ">Q <G >Q",
        ">QQ <G",
        ">Q <GD",
        ">p",
        ">\x01",
        ">Q <\x01",
    ],
)
def test_violations(script: str) -> None:
    with pytest.raises(ProtocolViolation):
        talk(Ledger(), script)


def test_unknown_status() -> None:
    ledger = Ledger()
    ledger.sent(m.QUERY)
    with pytest.raises(ProtocolViolation, match="status"):
        ledger.ready(ord("?"))


def test_a_batch_is_open_until_its_sync() -> None:
    ledger = Ledger()
    talk(ledger, ">PBEH <12C")
    assert not ledger.is_between_statements
    talk(ledger, ">S")
    assert not ledger.is_idle
    talk(ledger, "<Z")
    assert ledger.is_idle


def test_an_error_without_a_question_is_unsolicited() -> None:
    assert Ledger().received(m.ERROR) is Step.UNSOLICITED


class ServerModel:
    """Reads messages as PostgreSQL does and answers them; ``choices`` decides what fails and what copies."""

    def __init__(self, choices: st.DataObject) -> None:
        self.choices = choices
        self.inbox: deque[int] = deque()
        self.skipping = False
        self.copying: int | None = None
        self.may_copy = True

    def _fails(self) -> bool:
        return self.choices.draw(st.integers(0, 5)) == 0

    def step(self) -> list[int]:
        """Read one message; returns the types it answers with."""
        kind = self.inbox.popleft()
        if self.copying is not None:
            return self._copy(kind)
        if kind in (m.COPY_DATA, m.COPY_DONE, m.COPY_FAIL, m.FLUSH):
            return []
        if kind == m.SYNC:
            self.skipping = False
            return [m.READY_FOR_QUERY]
        if self.skipping:
            return []
        if kind == m.QUERY:
            if self.may_copy and self.choices.draw(st.booleans()):
                self.copying = m.QUERY
                return [m.COPY_IN]
            return [m.ERROR, m.READY_FOR_QUERY] if self._fails() else list(b"TDDCZ")
        if self._fails():
            self.skipping = True
            return [m.ERROR]
        if kind == m.EXECUTE and self.may_copy and self.choices.draw(st.booleans()):
            self.copying = m.EXECUTE
            return [m.COPY_IN]
        return {m.PARSE: [ord("1")], m.BIND: [ord("2")], m.DESCRIBE: list(b"tn"), m.EXECUTE: list(b"DC")}[kind]

    def _copy(self, kind: int) -> list[int]:
        if kind in (m.SYNC, m.FLUSH):
            return []
        failed = kind == m.COPY_FAIL or self._fails()
        if kind == m.COPY_DATA and not failed:
            return []
        simple, self.copying = self.copying == m.QUERY, None
        self.skipping = failed and not simple
        return [m.ERROR if failed else m.COMMAND_COMPLETE] + ([m.READY_FOR_QUERY] if simple else [])


BATCHES = ["Q", "QddHc", "Qdf", "PBDES", "PBEddcS", "PBESddcS", "PBEBES", "PS", "S"]


@given(st.lists(st.sampled_from(BATCHES), max_size=5), st.data())
def test_no_count_is_lost(batches: list[str], data: st.DataObject) -> None:
    """Batches one after the other, any of them ahead of the server's answers inside of a batch."""
    ledger, server = Ledger(), ServerModel(data)
    for batch in batches:
        sent = deque(batch)
        server.may_copy = batch != "PBEBES"  # the rest would be sent into the copy, which is a client's error
        while sent or server.inbox:
            if sent and (not server.inbox or data.draw(st.booleans())):
                kind = ord(sent.popleft())
                ledger.sent(kind)
                server.inbox.append(kind)
            else:
                for kind in server.step():
                    if ledger.received(kind) is Step.READY:
                        ledger.ready(m.IDLE)
        if server.copying is not None:  # the batch lacked the end of a copy that began
            finish = "c" if server.copying == m.QUERY else "cS"
            for kind in finish.encode():
                ledger.sent(kind)
                server.inbox.append(kind)
            while server.inbox:
                for kind in server.step():
                    if ledger.received(kind) is Step.READY:
                        ledger.ready(m.IDLE)
        assert ledger.is_idle, batch


@given(st.lists(st.tuples(st.booleans(), st.integers(0, 255)), max_size=30))
def test_garbage(events: list[tuple[bool, int]]) -> None:
    ledger = Ledger()
    for sent, kind in events:
        try:
            if sent:
                ledger.sent(kind)
            elif ledger.received(kind) is Step.READY:
                ledger.ready(m.IDLE)
        except ProtocolViolation:
            return
