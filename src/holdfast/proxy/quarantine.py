"""The writable port's suspects: noted when a primary is lost, and let in on trial afterwards.

What a session has in flight is looked at about once a second, and again when its server is lost; the statements
themselves are never held up for it. Only while there are suspects is each statement's fingerprint asked for.
"""

from __future__ import annotations

import asyncio
import random
import time
from collections import Counter, deque
from collections.abc import Callable, Iterable
from dataclasses import dataclass, field
from functools import partial
from itertools import chain
from typing import Any, Protocol

from pydantic import JsonValue

from holdfast.core.admission.gate import Permit
from holdfast.core.admission.quarantine import Trial
from holdfast.core.admission.suspicion import InFlight, Usual, accuse, accused, proven
from holdfast.model.policy import DEFAULT_POLICY, Policy, Quarantining
from holdfast.model.suspect import Standing, Suspect
from holdfast.proxy.admission import Admission, Waiting
from holdfast.proxy.footing import Switched
from holdfast.wire import messages as m
from holdfast.wire.fingerprint import does_work, fingerprint

LOOK_S = 1.0
"""Between two looks at what is in flight."""
SEEN_MAX = 10
"""Sessions that one look sees: an even sample of them."""
LOST_MAX = 20_000
"""Statements that are remembered from the loss of a primary."""
ANSWERED_SINCE_MS = 1000
"""If any statement has ended so long after a loss, that was not the loss of the primary."""
FINGERPRINTS_MAX = 200
"""Different texts that are looked at then, those that ran longest first: a fingerprint costs up to a tenth of a
millisecond, and clients wait."""
WAITING_MAX = 1000
"""Sessions that wait for one suspect; more are refused."""
RETRY_MS = 1000
"""After which a refused client may try again, before jitter."""

REFUSED = "53400"
"""configuration_limit_exceeded (PostgreSQL manual, appendix A)."""

Change = Callable[[Suspect | None], Suspect | None]
"""Makes a record what it is to be; None: there is none."""
Update = Callable[[str, Change], None]
Tell = Callable[[str, int, str | None, dict[str, JsonValue]], None]
"""Told the kind of an entry of the journal, the epoch, the rule, and its details."""


class Holder(Protocol):
    """Whose a permit is."""

    def in_flight(self) -> tuple[bytes, float] | None:
        """The text of the statement that the server works on, and since when (monotonic, milliseconds)."""


@dataclass(slots=True, eq=False)
class Custody:
    """What one session has to do with the quarantine: nothing, a suspect let in, or one that waits to be."""

    cell: _Cell | None = None
    since_ms: float = 0
    is_run: bool = False
    """It is executed, not only prepared."""
    waiting: Waiting | None = None
    timer: asyncio.TimerHandle | None = None


@dataclass(slots=True, eq=False)
class _Cell:
    """One suspect that is held."""

    suspect: Suspect
    trial: Trial
    line: deque[Custody] = field(default_factory=deque)
    refused: int = 0


class Quarantine(Switched):
    """The suspects of one port."""

    def __init__(
        self,
        admission: Admission | None = None,
        update: Update = lambda key, change: None,
        tell: Tell = lambda kind, epoch, rule, detail: None,
    ) -> None:
        """``update`` makes a change known to all proxies."""
        super().__init__()
        self._admission = admission or Admission()
        self._update = update
        self._tell = tell
        self._policy: Policy = DEFAULT_POLICY
        self._suspects: dict[str, Suspect] = {}
        self._cells: dict[str, _Cell] = {}
        self._usual = Usual()
        self._lost: deque[tuple[bytes, float]] = deque(maxlen=LOST_MAX)
        self._lost_ms = 0.0

    # what is known of suspects

    def policy_is(self, policy: Policy) -> None:
        """A policy is in force."""
        self._policy = policy
        self._hold()

    def heard(self, suspect: Suspect) -> None:
        """The record of a suspect is this now."""
        self._suspects[suspect.id] = suspect
        self._hold()

    def forgotten(self, key: str) -> None:
        """There is no record of it any more."""
        if self._suspects.pop(key, None) is not None:
            self._hold()

    def are(self, suspects: Iterable[Suspect]) -> None:
        """These are all."""
        self._suspects = {suspect.id: suspect for suspect in suspects}
        self._hold()

    @property
    def _is_wanted(self) -> bool:
        return self._policy.admission and self._policy.quarantine is not Quarantining.OFF

    def _hold(self) -> None:
        """Hold those that are to be held, and let go of the others."""
        held = {key: s for key, s in self._suspects.items() if s.is_held} if self._is_wanted else {}
        for key in self._cells.keys() - held.keys():
            cell = self._cells.pop(key)
            for custody in cell.line:
                _answer(custody, None)
        for key, suspect in held.items():
            known = self._cells.get(key)
            if known is None or suspect.epochs != known.suspect.epochs:
                line, refused = (known.line, known.refused) if known is not None else (deque[Custody](), 0)
                known = self._cells[key] = _Cell(suspect, Trial(suspect.sessions, _now_ms()), line, refused)
            known.suspect = suspect
            self._let_in(known)
        self.is_on = bool(self._cells)

    # statements

    def holds(self, sql: bytes) -> bool:
        """Whether it is a suspect."""
        return self.is_on and fingerprint(sql).id in self._cells

    def ask(
        self, custody: Custody, sql: bytes | None, permit: Permit, *, may_wait: bool, is_run: bool
    ) -> Waiting | m.Report | None:
        """Whether a statement may go on (None), must wait, or is refused.

        ``is_run``: it is executed by this message.
        """
        cell = self._cells.get(fingerprint(sql).id) if sql is not None else None
        if cell is None:
            return None
        if custody.cell is cell:
            custody.is_run |= is_run
            return None
        if cell.suspect.standing is Standing.REFUSED:
            cell.refused += 1
            return _report_refused(cell.suspect)
        if custody.cell is not None:
            return None  # two suspects in one batch: one at a time is enough
        if cell.trial.has_room and not cell.line:
            _enter(custody, cell, is_run=is_run)
            return None
        if not may_wait or len(cell.line) >= WAITING_MAX:
            cell.refused += 1
            return _report_alone(cell.suspect)
        loop = asyncio.get_running_loop()
        custody.waiting = loop.create_future()
        custody.is_run = is_run
        wait_s = self._admission.wait_max_ms(permit) / 1000
        custody.timer = loop.call_later(wait_s, partial(self._overdue, cell, custody))
        cell.line.append(custody)
        return custody.waiting

    def _overdue(self, cell: _Cell, custody: Custody) -> None:
        if custody in cell.line:
            cell.line.remove(custody)
            cell.refused += 1
            _answer(custody, _report_alone(cell.suspect))

    def ended(self, custody: Custody, *, failed: bool) -> None:
        """The batch with the suspect is done."""
        cell, custody.cell = custody.cell, None
        if cell is None:
            return
        if failed or not custody.is_run:
            cell.trial.left()
        elif cell.trial.ended(_now_ms() - custody.since_ms, _now_ms()) and self._is_current(cell):
            self._change(cell.suspect.id, lambda known: None if known is None else proven(known, _wall_ms()))
            self._told("suspect.released", cell.suspect, "suspect.harmless")
            return
        self._let_in(cell)

    def left(self, custody: Custody) -> None:
        """The session does not wait any more, or its statement has ended in a way that proves nothing."""
        for cell in self._cells.values():
            if custody.waiting is not None and custody in cell.line:
                cell.line.remove(custody)
        if custody.timer is not None:
            custody.timer.cancel()
        custody.waiting = custody.timer = None
        left, custody.cell = custody.cell, None
        if left is not None:
            left.trial.left()
            self._let_in(left)

    def _is_current(self, cell: _Cell) -> bool:
        return self._cells.get(cell.suspect.id) is cell

    def _let_in(self, cell: _Cell) -> None:
        while cell.line and (cell.trial.has_room or cell.suspect.standing is Standing.REFUSED):
            custody = cell.line.popleft()
            if custody.waiting is None or custody.waiting.done():
                continue
            if cell.suspect.standing is Standing.REFUSED:
                cell.refused += 1
                _answer(custody, _report_refused(cell.suspect))
            else:
                _enter(custody, cell, is_run=custody.is_run)
                _answer(custody, None)

    # losses

    def lost(self, permit: Permit) -> None:
        """The server that a session had is lost, and what it has in flight with it."""
        found = _in_flight(permit)
        if found is None:
            return
        if self._lost and self._admission.gate.left_ms > self._lost_ms + ANSWERED_SINCE_MS:
            self._lost.clear()
        self._lost_ms = _now_ms()
        self._lost.append(found)

    def primary_lost(self, epoch: int) -> None:
        """The primary of this epoch is lost: say who may have done it."""
        lost = list(self._lost)
        self._lost.clear()
        answered_ms = self._admission.gate.left_ms
        if not lost or not self._is_wanted or answered_ms > self._lost_ms + ANSWERED_SINCE_MS:
            return
        known_ms = max(answered_ms, min(began_ms for _, began_ms in lost))
        spent: Counter[bytes] = Counter()
        for sql, began_ms in lost:
            spent[sql] += max(1, round(known_ms - began_ms))
        prints = {sql: fingerprint(sql) for sql, _ in spent.most_common(FINGERPRINTS_MAX)}
        on_trial = {key for key, cell in self._cells.items() if cell.suspect.standing is Standing.ALONE}
        in_flight = []
        for sql, began_ms in lost:
            if sql in prints:
                key, ran_ms = prints[sql].id, known_ms - began_ms
                in_flight.append(InFlight(key, max(ran_ms, 0.0) if key in on_trial else ran_ms))
        texts = {found.id: found for found in prints.values()}
        for accusation in accuse(in_flight, self._usual, on_trial):
            again = accusation.rule == "suspect.again"
            refuse = again or self._policy.quarantine is Quarantining.REFUSED
            standing = Standing.REFUSED if refuse else Standing.ALONE
            text = texts[accusation.id].text
            change = partial(accused, text=text, by=accusation, epoch=epoch, standing=standing, at_ms=_wall_ms())
            self._told("suspect.accused", self._change(accusation.id, change), accusation.rule)

    def _change(self, key: str, change: Change) -> Suspect | None:
        """In force here at once, and soon everywhere."""
        suspect = change(self._suspects.get(key))
        if suspect is not None:
            self.heard(suspect)
        self._update(key, change)
        return suspect

    def _told(self, kind: str, suspect: Suspect | None, rule: str) -> None:
        if suspect is None:
            return
        detail: dict[str, JsonValue] = {
            "suspect": suspect.id,
            "statement": suspect.text,
            "sessions": suspect.sessions,
            "ran_ms": suspect.ran_ms,
            "standing": suspect.standing.value,
        }
        self._tell(kind, suspect.epochs[-1], rule, detail)

    # time

    async def run(self) -> None:
        """Look at what is in flight, for ever."""
        while True:
            await asyncio.sleep(LOOK_S)
            self.look()

    def look(self) -> None:
        """See what is in flight now, if the primary answers."""
        if not self._is_wanted or self._admission.is_disturbed():
            return
        inside = self._admission.gate.lines.values()
        permits = list(chain.from_iterable(chain(line.short, line.long) for line in inside))
        now_ms = _now_ms()
        step = -(-len(permits) // SEEN_MAX) or 1
        seen = [found for permit in permits[::step] if (found := _in_flight(permit)) is not None]
        self._usual.look([InFlight(fingerprint(sql).id, now_ms - began_ms) for sql, began_ms in seen])

    def status(self) -> list[dict[str, Any]]:
        """What ``/status`` says: one entry for each suspect that is held."""
        return [
            {
                "id": cell.suspect.id,
                "statement": cell.suspect.text,
                "standing": cell.suspect.standing.value,
                "rule": cell.suspect.rule,
                "epochs": list(cell.suspect.epochs),
                "limit": 0 if cell.suspect.standing is Standing.REFUSED else cell.trial.limit,
                "inside": cell.trial.inside,
                "waiting": len(cell.line),
                "refused": cell.refused,
            }
            for cell in self._cells.values()
        ]


def _enter(custody: Custody, cell: _Cell, *, is_run: bool) -> None:
    cell.trial.enter()
    custody.cell, custody.since_ms, custody.is_run = cell, _now_ms(), is_run


def _answer(custody: Custody, report: m.Report | None) -> None:
    waiting, custody.waiting = custody.waiting, None
    if custody.timer is not None:
        custody.timer.cancel()
        custody.timer = None
    if waiting is not None and not waiting.done():
        waiting.set_result(report)


def _in_flight(permit: Permit) -> tuple[bytes, float] | None:
    holder: Holder | None = permit.holder
    found = holder.in_flight() if holder is not None else None
    return found if found is not None and does_work(found[0]) else None


def _report_alone(suspect: Suspect) -> m.Report:
    retry_ms = round(RETRY_MS * (0.5 + random.random()))
    return m.error(
        REFUSED,
        f"statement {suspect.id} is suspected of the loss of a primary and let in on trial, and others run it now",
        detail=f"suspect={suspect.id} standing=alone retry_after_ms={retry_ms}",
        hint=f"Nothing was executed. Try again in {retry_ms} ms, or let everybody run it: "
        f"`holdfast quarantine release {suspect.id}`.",
    )


def _report_refused(suspect: Suspect) -> m.Report:
    epochs = ", ".join(map(str, suspect.epochs))
    return m.error(
        REFUSED,
        f"statement {suspect.id} is refused: it is suspected of the loss of the primary of epoch {epochs}",
        detail=f"suspect={suspect.id} standing=refused",
        hint=f"Nothing was executed. `holdfast quarantine release {suspect.id}` lets it in again.",
    )


def _now_ms() -> float:
    return time.monotonic() * 1000


def _wall_ms() -> float:
    return time.time() * 1000
