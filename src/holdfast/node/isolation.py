"""Cuts the own node off once another leads where it led, until it is back: beside everything, and in nobody's way."""

from __future__ import annotations

import asyncio
from collections.abc import Callable
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Protocol

import structlog

from holdfast.core.isolation import Loss, Reach, reach_of, remember, why_lifted
from holdfast.core.observation import Observation
from holdfast.model.errors import EnvironmentFault, PostgresError, RegisterError
from holdfast.model.isolation import Note
from holdfast.model.register import Phase
from holdfast.model.settings import IsolationSettings, NodeSettings
from holdfast.node.clock import monotonic_ms
from holdfast.node.cutting_off import CuttingOff
from holdfast.node.firewall import Firewall
from holdfast.node.parts import Gate
from holdfast.postgres.disk import Disk
from holdfast.postgres.files import remove_durably, write_durably
from holdfast.store.contract import Store
from holdfast.store.journal import Journal

log = structlog.get_logger(__name__)
_NOTE_FILE = "isolation.json"
_KEPT_OUT = {Reach.PEERS: "clients", Reach.INVESTIGATOR: "clients and peers"}


class Measure(Protocol):
    """One way to keep others out. Both calls are idempotent; they raise PostgresError or EnvironmentFault."""

    @property
    def name(self) -> str: ...  # noqa: D102

    async def begin(self) -> None: ...  # noqa: D102

    async def lift(self) -> None: ...  # noqa: D102


class OwnRules:
    """PostgreSQL's own pg_hba.conf: no session but the agent's, replication and the investigator's."""

    name = "pg_hba"

    def __init__(self, gate: Gate, settings: IsolationSettings) -> None:
        self._gate = gate
        self._only = investigators_lines(settings)

    def tell(self, *, isolated: bool) -> None:
        """What counts from the next start, or change of settings, on; returns at once."""
        self._gate.isolate(self._only if isolated else None)

    async def begin(self) -> None:
        """Bring a running server to what it was told last. Raises PostgresError."""
        await self._gate.settle_isolation()

    async def lift(self) -> None:
        """Bring a running server to what it was told last. Raises PostgresError."""
        await self._gate.settle_isolation()


def investigators_lines(settings: IsolationSettings) -> tuple[str, ...]:
    """The lines of pg_hba.conf for who looks into what happened."""
    role = f'"{settings.investigator_role}"'
    hosts = (f"host all {role} {network} scram-sha-256" for network in settings.investigator_addresses)
    return f"local all {role} scram-sha-256", *hosts


@dataclass(slots=True)
class Held:
    """A measure, from which `Reach` on it is in force, and whether it is now (None: a former agent may know)."""

    measure: Measure
    at: Reach
    in_force: bool | None = None
    failed: str | None = None


class Isolation:
    """The own node's part, and the command that the leader runs about others."""

    def __init__(
        self, settings: NodeSettings, gate: Gate | None, store: Store, journal: Journal, on_change: Callable[[], None]
    ) -> None:
        """``on_change`` is called when something was done."""
        self._settings = settings.isolation
        self._timeouts = settings.timeouts
        self._journal = journal
        self._on_change = on_change
        self._outside = CuttingOff(settings, store, journal)
        self._path = settings.node.state_dir / _NOTE_FILE
        self._disk = Disk()
        self._gate = gate
        self._rules = OwnRules(gate, settings.isolation) if gate is not None else None
        self._firewall = Firewall(settings)
        self._held = [Held(self._rules, Reach.PEERS)] if self._rules is not None else []
        if settings.isolation.enabled and settings.isolation.nftables:
            self._held.append(Held(self._firewall, Reach.INVESTIGATOR))
        self._loss = Loss()
        self._noted: Note | None = None
        self._resumed = False
        self._wanted = Reach.ANYBODY
        self._why = ""
        self._task: asyncio.Task[None] | None = None
        self._pause_ms = self._again_ms = 0
        self._since_ms: int | None = None

    @property
    def shut(self) -> bool:
        """Whether clients are kept out, or may still be."""
        return self._wanted > Reach.ANYBODY or (bool(self._held) and self._held[0].in_force is True)

    @property
    def told(self) -> str | None:
        """What people are told: who is kept out, by what, and what could not be done."""
        in_force = [held for held in self._held if held.in_force]
        failed = [f"{held.measure.name} failed: {held.failed}" for held in self._held if held.failed is not None]
        if not in_force and not failed:
            return None
        by = ", ".join(held.measure.name for held in in_force) or "nothing yet"
        return "; ".join((f"{self._kept_out()} are kept out (by {by}), {self._why}", *failed))

    async def prepare(self) -> None:
        """Take up what a former agent left. Raises ConfigurationError if nftables is asked for and cannot be used."""
        if self._gate is None or self._rules is None:
            return
        if self._settings.enabled and self._settings.nftables:
            self._firewall.check()
        self._noted = await asyncio.to_thread(_read_note, self._path)
        if self._noted is not None:
            if self._firewall.name in self._noted.measures and len(self._held) == 1:
                self._held.append(Held(self._firewall, Reach.INVESTIGATOR))
            self._loss, self._resumed = Loss(epoch=self._noted.epoch), True
            self._why = "as before its agent was started again"
            self._held[0].in_force = True
            self._rules.tell(isolated=True)
            return
        try:
            async with asyncio.timeout(self._timeouts.statement_ms / 1000):
                self._loss = Loss(led=await self._gate.has_failed())
        except (EnvironmentFault, PostgresError, OSError, TimeoutError) as error:
            log.warning("isolation.unknown", error=str(error))

    def look(self, o: Observation) -> None:
        """Bring about what this look asks for; returns at once."""
        self._outside.look(o)
        if self._rules is None:
            return
        self._loss = remember(self._loss, o) if self._settings.enabled else Loss()
        reach = reach_of(self._loss, o)
        if reach is None or o.register is None:
            return
        if reach is not self._wanted:
            self._wanted, self._pause_ms, self._again_ms = reach, 0, 0
        self._rules.tell(isolated=reach > Reach.ANYBODY)
        leader = o.register.leader
        if reach > Reach.ANYBODY and leader is not None:
            self._why = f"as {leader.node} leads since epoch {o.register.epoch}"
        if self._task is not None and not self._task.done():
            return
        # While an epoch is open whatever PostgreSQL is told anyway tells it this, too; nothing waits for it.
        serving = o.register.phase is Phase.SERVING
        due = [held for held in self._held if self._is_due(held) and (serving or held is not self._held[0])]
        if (due or self._is_over() or self._is_unnoted()) and o.now_ms >= self._again_ms:
            self._task = asyncio.create_task(self._bring_about(due, o.register.epoch, why_lifted(o)))

    async def close(self) -> None:
        """The agent ends, and PostgreSQL with it: nothing of the kernel's is left behind. The note stays."""
        if self._task is not None:
            self._task.cancel()
            await asyncio.gather(self._task, return_exceptions=True)
        await self._outside.close()
        for held in self._held[1:]:
            if held.in_force is not False:
                try:
                    await held.measure.lift()
                except EnvironmentFault as error:
                    log.error("isolation.left", measure=held.measure.name, error=str(error))

    def _kept_out(self) -> str:
        return _KEPT_OUT[max((held.at for held in self._held if held.in_force), default=Reach.PEERS)]

    # ---- beside the loop --------------------------------------------------------------------------------------

    def _is_due(self, held: Held) -> bool:
        wanted = self._wanted >= held.at
        return held.in_force is None or held.in_force is not wanted or (wanted and self._resumed)

    def _is_unnoted(self) -> bool:
        return self._wanted > Reach.ANYBODY and self._noted != self._note_now()

    def _note_now(self) -> Note:
        return Note(self._loss.epoch or 0, tuple(held.measure.name for held in self._held))

    def _is_over(self) -> bool:
        """Whether all is undone, the node is back, and only the note of it is left."""
        undone = all(held.in_force is False for held in self._held)
        return self._noted is not None and self._loss.epoch is None and undone

    async def _bring_about(self, due: list[Held], epoch: int, why_lifted: str) -> None:
        wanted, resumed, self._resumed = self._wanted, self._resumed, False
        begun: list[str] = []
        lifted: list[str] = []
        failed = False
        if wanted > Reach.ANYBODY:
            failed = not await self._note()
        for held in due:
            begins, before = wanted >= held.at, held.in_force
            if not await self._do(held, epoch, begins=begins):
                failed = True
            elif begins:
                begun.append(held.measure.name)
            elif before:
                lifted.append(held.measure.name)
        if begun:
            self._since_ms = self._since_ms or monotonic_ms()
            self._journal.record(
                "isolation.begun", epoch, None, measures=", ".join(begun), kept_out=self._kept_out(), resumed=resumed
            )
        if lifted:
            for_ms = None if self._since_ms is None else monotonic_ms() - self._since_ms
            self._journal.record(
                "isolation.lifted", epoch, None, measures=", ".join(lifted), reason=why_lifted, for_ms=for_ms
            )
        if self._is_over():
            self._since_ms = None
            failed |= not await self._forget()
        if not failed:
            self._pause_ms = 0
        else:
            self._pause_ms = min(max(2 * self._pause_ms, self._timeouts.retry_min_ms), self._timeouts.retry_max_ms)
            self._again_ms = monotonic_ms() + self._pause_ms
        self._on_change()

    async def _do(self, held: Held, epoch: int, *, begins: bool) -> bool:
        try:
            await (held.measure.begin() if begins else held.measure.lift())
        except (EnvironmentFault, PostgresError, OSError) as error:
            held.in_force = None  # it may have been done in part: it is settled again, whichever way is wanted by then
            # A server on its way down or up refuses its agent for a moment: the first failure is not told yet.
            if self._pause_ms and held.failed != str(error):
                held.failed = str(error)
                order = "begin" if begins else "lift"
                self._journal.record(
                    "isolation.failed", epoch, None, measure=held.measure.name, order=order, reason=held.failed
                )
            return False
        held.in_force, held.failed = begins, None
        return True

    async def _note(self) -> bool:
        """Before anything is done: who comes later must know."""
        note = self._note_now()
        if note == self._noted:
            return True
        write = partial(write_durably, self._path, note.to_json(), owner=None)
        try:
            await self._disk.call("note", write, self._timeouts.statement_ms)
        except (PostgresError, OSError) as error:
            log.warning("isolation.not-noted", error=str(error))
            return False
        self._noted = note
        return True

    async def _forget(self) -> bool:
        try:
            await self._disk.call("note", partial(remove_durably, self._path), self._timeouts.statement_ms)
        except (PostgresError, OSError) as error:
            log.warning("isolation.note-left", error=str(error))
            return False
        self._noted = None
        return True


def _read_note(path: Path) -> Note | None:
    """What a former agent wrote; one that cannot be read says at least that there is something to undo."""
    try:
        return Note.from_json(path.read_bytes())
    except FileNotFoundError:
        return None
    except (OSError, RegisterError) as error:
        log.error("isolation.unreadable", path=str(path), error=str(error))
        return Note(0, (OwnRules.name, Firewall.name))
