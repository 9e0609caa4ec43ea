"""The steps of an incident as one table, and how far each of them is, by what the journal says.

F fails over, A has the pools let go, I isolates, L sheds load, O takes an offline snapshot, V verifies parity, E eases
traffic back, R looks back. Each leaves evidence, or the reason why it was not done.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from enum import StrEnum

from pydantic import JsonValue

from holdfast.core.story import Story
from holdfast.core.words import amount, duration, plural
from holdfast.model.event import Event

UNTOLD_MS = 60_000
"""So long after writes are served a proxy that has noted nothing has nothing to note."""


@dataclass(frozen=True, slots=True)
class Step:
    """One step. It begins when the steps of ``needs`` are over, done or not; ``proves`` is what its evidence says."""

    letter: str
    name: str
    does: str
    needs: tuple[str, ...]
    proves: str


STEPS = (
    Step("F", "failover", "an epoch is opened, a standby promoted", (), "one node serves writes, and no other can"),
    Step("A", "pools shed", "proxies let go of the lost primary, and keep their clients", (), "what clients met"),
    Step("I", "isolate", "the lost primary is cut off from standbys and clients", (), "it acknowledges nothing more"),
    Step("L", "load shed", "a part of the usual load is let in at first", ("F",), "the new primary is not overrun"),
    Step("O", "offline snapshot", "the lost primary is captured as it was left", ("I",), "what it was, untouched"),
    Step("V", "verify parity", "what did not make it is listed, nodes compared", ("F", "O"), "what is lost"),
    Step("E", "ease traffic back", "more and more is let in", ("L",), "the new primary bears all of it"),
    Step("R", "retrospective", "it is written down for those who were asleep", ("F", "A", "V", "E"), "what to change"),
)
"""In the order in which they are told."""

_BY_LETTER = {step.letter: step for step in STEPS}


def needed_by(letter: str) -> frozenset[str]:
    """Every step that must be over before this one begins."""
    direct = _BY_LETTER[letter].needs
    return frozenset(direct).union(*(needed_by(other) for other in direct))


def beside(letter: str) -> tuple[str, ...]:
    """The steps that may run at the same time as this one."""
    before = needed_by(letter)
    others = (s.letter for s in STEPS if s.letter != letter)
    return tuple(other for other in others if other not in before and letter not in needed_by(other))


class State(StrEnum):
    """How far a step is."""

    WAITING = "waiting"
    RUNNING = "running"
    DONE = "done"
    NOT_DONE = "not done"


class Why(StrEnum):
    """Why a step is not done, for good or so far."""

    PLANNED = "the hand-over was planned: nothing had failed"
    SAME_LEADER = "the same node leads again"
    UNTOLD = "no proxy has told of clients that had to wait"
    NO_RAMP = "no proxy held the load down"
    TOUCHED = "the node was brought back without it (capture_wait_s is 0, or somebody waited for the node)"
    FAILED = "it was tried, and failed"
    UNWRITTEN = "nobody has written it: `holdfast incident report`"


# ---- evidence -----------------------------------------------------------------------------------------------------


@dataclass(frozen=True, slots=True)
class FailedOver:
    """Of F."""

    leader: str
    epoch: int
    after_ms: int

    @property
    def says(self) -> str:
        """In words."""
        return f"{self.leader} leads in epoch {self.epoch}; it served after {duration(self.after_ms)}"


@dataclass(frozen=True, slots=True)
class PoolsShed:
    """Of A: what all proxies told together."""

    proxies: tuple[str, ...]
    held: int
    failed: int
    longest_ms: int

    @property
    def says(self) -> str:
        """In words."""
        failed = f"{amount(self.failed)} failed" if self.failed else "none failed"
        return f"{plural(self.held, 'statement')} waited, at most {duration(self.longest_ms)}; {failed}"


@dataclass(frozen=True, slots=True)
class Isolated:
    """Of I: who no longer listens to the old primary, and what was done to it.

    ``kept_out``: whom it let in no more, and by what; ``command``: what became of the one that cuts it off from
    outside; ``failed``: what was tried and could not be done; ``lifted``: why others are let in again.
    """

    detached: tuple[str, ...]
    stopped: bool
    lease_revoked: bool
    fenced: str | None
    kept_out: str | None = None
    command: str | None = None
    failed: tuple[str, ...] = ()
    lifted: str | None = None

    @property
    def says(self) -> str:
        """In words."""
        said = [f"{', '.join(self.detached)} listen to it no more"] if self.detached else []
        said += ["it was stopped"] if self.stopped else []
        said += ["its lease is revoked"] if self.lease_revoked else []
        said += [f"fencing: {self.fenced}"] if self.fenced is not None else []
        said += [f"kept out: {self.kept_out}"] if self.kept_out is not None else []
        said += [f"cut off from outside: {self.command}"] if self.command is not None else []
        said += [f"failed: {what}" for what in self.failed]
        said += [f"lifted: {self.lifted}"] if self.lifted is not None else []
        return "; ".join(said) or "the register has another leader"


@dataclass(frozen=True, slots=True)
class LoadShed:
    """Of L."""

    proxies: tuple[str, ...]
    limit: int
    percent: int

    @property
    def says(self) -> str:
        """In words."""
        return f"{plural(self.limit, 'statement')} at once at first, {self.percent} % of the usual"


@dataclass(frozen=True, slots=True)
class Captured:
    """Of O."""

    directory: str
    files: int
    size_bytes: int
    missing: str

    @property
    def says(self) -> str:
        """In words."""
        lacks = f"; missing is {self.missing}" if self.missing else ""
        return f"{plural(self.files, 'file')}, {amount(self.size_bytes)} bytes, in {self.directory}{lacks}"


@dataclass(frozen=True, slots=True)
class Verified:
    """Of V: ``compared`` says what comparisons of content found, if any were made."""

    nothing_lost: bool
    transactions: int
    lost_bytes: int
    fork: str | None
    rows: int
    compared: tuple[str, ...]

    @property
    def says(self) -> str:
        """In words."""
        lost = "nothing acknowledged is lost: proved"
        if not self.nothing_lost:
            lost = f"{plural(self.transactions, 'transaction')} did not make it, {plural(self.rows, 'row')} salvaged"
        log = f"; {amount(self.lost_bytes)} bytes of log beyond {self.fork}" if self.fork is not None else ""
        return "; ".join((lost + log, *(self.compared or ("contents not compared: `holdfast parity`",))))


@dataclass(frozen=True, slots=True)
class Eased:
    """Of E."""

    steps: int
    took_ms: int

    @property
    def says(self) -> str:
        """In words."""
        return f"everybody was let in after {duration(self.took_ms)}, in {plural(self.steps + 1, 'step')}"


@dataclass(frozen=True, slots=True)
class Reported:
    """Of R."""

    by: str
    files: tuple[str, ...]

    @property
    def says(self) -> str:
        """In words."""
        return f"written by {self.by}: {', '.join(self.files)}"


Evidence = FailedOver | PoolsShed | Isolated | LoadShed | Captured | Verified | Eased | Reported


@dataclass(frozen=True, slots=True)
class Standing:
    """How far one step is. Times are milliseconds after the incident's first sign.

    ``waits_for`` are steps that must be over before; ``note`` says more than ``why``.
    """

    step: Step
    state: State
    began_ms: int | None = None
    ended_ms: int | None = None
    evidence: Evidence | None = None
    why: Why | None = None
    note: str = ""
    waits_for: tuple[str, ...] = ()

    @property
    def is_over(self) -> bool:
        """Whether those that need it need not wait any longer."""
        return self.state in (State.DONE, State.NOT_DONE)

    @property
    def says(self) -> str:
        """What there is to say, in words."""
        if self.evidence is not None:
            return self.evidence.says
        if self.waits_for:
            return f"waits for {' and '.join(self.waits_for)}"
        return ": ".join(words for words in (self.why.value if self.why is not None else "", self.note) if words)


# ---- the judgement ------------------------------------------------------------------------------------------------


@dataclass(frozen=True, slots=True)
class Scene:
    """What is known: the incident's part of the journal in order, all of the journal, and the time (Unix, ms)."""

    story: Story
    own: Sequence[Event]
    events: Sequence[Event]
    nothing_lost: bool
    transactions: int
    now_ms: float

    def since_opening(self, *kinds: str, source: str | None = None) -> list[Event]:
        """The entries of these kinds after the first epoch was opened."""
        opened_ms = self.story.began_at_ms + (self.story.opened_ms or 0)
        return [e for e in self.own if e.kind in kinds and e.time_ms >= opened_ms - 1 and source in (None, e.source)]

    def offset(self, event: Event) -> int:
        """When it happened, from the first sign."""
        return round(event.time_ms - self.story.began_at_ms)

    @property
    def is_settled(self) -> bool:
        """Whether proxies have had time to tell what they met."""
        served_ms = self.story.serving_ms
        return served_ms is not None and self.now_ms - self.story.began_at_ms - served_ms > UNTOLD_MS


def playbook(scene: Scene) -> tuple[Standing, ...]:
    """Every step of an incident, in the order of `STEPS`."""
    found: dict[str, Standing] = {}
    for step in STEPS:
        waits_for = tuple(letter for letter in step.needs if not found[letter].is_over)
        found[step.letter] = _JUDGES[step.letter](scene, step, waits_for, found)
    return tuple(found.values())


Found = dict[str, Standing]


def _failover(scene: Scene, step: Step, waits_for: tuple[str, ...], found: Found) -> Standing:
    story = scene.story
    if story.serving_ms is not None:
        evidence = FailedOver(story.new or "?", story.epoch, story.serving_ms)
        return Standing(step, State.DONE, 0, story.serving_ms, evidence)
    waiting = scene.since_opening("waiting", "alarm")
    return Standing(step, State.RUNNING, 0, note=str(waiting[-1].detail.get("reason")) if waiting else "")


def _pools_shed(scene: Scene, step: Step, waits_for: tuple[str, ...], found: Found) -> Standing:
    began_ms, told = scene.story.opened_ms, scene.since_opening("clients.held")
    if told:
        failed = sum(_figure(e, name) for e in told for name in ("refused", "unknown", "undone"))
        longest_ms = max(_figure(e, "longest_ms") for e in told)
        evidence = PoolsShed(_sources(told), sum(_figure(e, "held") for e in told), failed, longest_ms)
        return Standing(step, State.DONE, began_ms, scene.offset(told[-1]), evidence)
    if scene.is_settled:
        return Standing(step, State.NOT_DONE, why=Why.UNTOLD)
    return Standing(step, State.RUNNING, began_ms)


def _isolate(scene: Scene, step: Step, waits_for: tuple[str, ...], found: Found) -> Standing:
    story = scene.story
    ended_ms = story.chosen_ms if story.chosen_ms is not None else story.serving_ms
    if ended_ms is None:
        return Standing(step, State.RUNNING, story.opened_ms)
    detached = tuple(s for s in _sources(scene.since_opening("recruit.joined")) if s != story.old)
    stops = [e for e in scene.own if e.kind in ("postgres.stopped", "postgres.killed") and e.source == story.old]
    fences = [e for e in scene.since_opening("fence.done") if e.detail.get("node") == story.old]
    evidence = Isolated(
        detached,
        bool(stops),
        bool(scene.since_opening("lease.revoked")),
        str(fences[-1].detail.get("outcome")) if fences else None,
        *_cut_off(scene, story.old),
    )
    return Standing(step, State.DONE, story.opened_ms, ended_ms, evidence)


def _cut_off(scene: Scene, old: str | None) -> tuple[str | None, str | None, tuple[str, ...], str | None]:
    """Whom the lost node itself keeps out, what came of the command about it, what failed, and why it was lifted."""
    own = scene.since_opening("isolation.begun", "isolation.lifted", source=old)
    begun = [e for e in own if e.kind == "isolation.begun"]
    measures = dict.fromkeys(m for e in begun for m in str(e.detail.get("measures")).split(", "))
    kept_out = f"{begun[-1].detail.get('kept_out')} (by {', '.join(measures)})" if begun else None
    commands = [e for e in scene.since_opening("isolation.command") if e.detail.get("node") == old]
    cut = [str(e.detail.get("outcome")) for e in commands if e.detail.get("order") == "begin"]
    failures = scene.since_opening("isolation.failed", source=old)
    failed = dict.fromkeys(f"{e.detail.get('measure')} ({e.detail.get('reason')})" for e in failures)
    let_in = [str(e.detail.get("outcome")) for e in commands if e.detail.get("order") == "lift"]
    lifted = [str(own[-1].detail.get("reason"))] if own and own[-1].kind == "isolation.lifted" else []
    lifted += [f"from outside, {let_in[-1]}"] if let_in else []
    return kept_out, cut[-1] if cut else None, tuple(failed), ", ".join(lifted) or None


def _load_shed(scene: Scene, step: Step, waits_for: tuple[str, ...], found: Found) -> Standing:
    begun = scene.since_opening("ramp.begun")
    if begun:
        evidence = LoadShed(_sources(begun), _figure(begun[0], "limit"), _figure(begun[0], "percent"))
        return Standing(step, State.DONE, found["F"].ended_ms, scene.offset(begun[0]), evidence)
    if waits_for:
        return Standing(step, State.WAITING, waits_for=waits_for)
    if scene.is_settled:
        return Standing(step, State.NOT_DONE, why=Why.NO_RAMP)
    return Standing(step, State.RUNNING, found["F"].ended_ms)


def _offline_snapshot(scene: Scene, step: Step, waits_for: tuple[str, ...], found: Found) -> Standing:
    story = scene.story
    if story.switchover:
        return Standing(step, State.NOT_DONE, why=Why.PLANNED)
    taken = scene.since_opening("capture.done", "capture.partial", "capture.failed", source=story.old)
    if taken:
        last, ended_ms = taken[-1], scene.offset(taken[-1])
        began_ms = max(found["I"].began_ms or 0, ended_ms - _figure(last, "took_ms"))
        if last.kind == "capture.failed":
            return Standing(step, State.NOT_DONE, None, ended_ms, why=Why.FAILED, note=str(last.detail.get("reason")))
        detail = last.detail
        place, missing = str(detail.get("directory")), str(detail.get("missing") or "")
        evidence = Captured(place, _figure(last, "files"), _figure(last, "bytes"), missing)
        return Standing(step, State.DONE, began_ms, ended_ms, evidence)
    if story.old_back_ms is not None:
        return Standing(step, State.NOT_DONE, why=Why.TOUCHED)
    if story.old is None or story.new == story.old:
        return Standing(step, State.NOT_DONE, why=Why.SAME_LEADER)
    if waits_for:
        return Standing(step, State.WAITING, waits_for=waits_for)
    heard = [e for e in scene.since_opening(*_OF_AN_AGENT, source=story.old) if e.time_ms > scene.story.began_at_ms]
    if not heard:
        return Standing(step, State.WAITING, note=f"{story.old}'s agent has noted nothing since")
    return Standing(step, State.RUNNING, scene.offset(heard[0]))


def _verify_parity(scene: Scene, step: Step, waits_for: tuple[str, ...], found: Found) -> Standing:
    story = scene.story
    if not story.switchover and story.new is not None and story.new == story.old:
        return Standing(step, State.NOT_DONE, why=Why.SAME_LEADER)
    unlisted = scene.since_opening("log.unaccounted", source=story.old)
    listed = scene.since_opening("log.accounted", source=story.old)
    if unlisted and not listed:
        return Standing(step, State.NOT_DONE, why=Why.FAILED, note=str(unlisted[-1].detail.get("reason")))
    if waits_for:
        return Standing(step, State.WAITING, waits_for=waits_for)
    began_ms = max(found[letter].ended_ms or 0 for letter in step.needs)
    if story.old_back_ms is None:
        return Standing(step, State.RUNNING, began_ms, note=f"{story.old} is not back yet")
    rows = scene.since_opening("rows.salvaged", "rows.salvaged-in-part", source=story.old)
    checks = scene.since_opening("parity.checked")
    ended_ms = max(story.old_back_ms, *(scene.offset(e) for e in (*listed, *rows, *checks)), began_ms)
    evidence = Verified(
        scene.nothing_lost,
        scene.transactions,
        _figure(listed[-1], "lost_bytes") if listed else 0,
        str(listed[-1].detail.get("fork")) if listed else None,
        sum(_figure(e, "rows") for e in rows),
        tuple(str(e.detail.get("outcome")) for e in checks),
    )
    return Standing(step, State.DONE, began_ms, ended_ms, evidence)


def _ease_back(scene: Scene, step: Step, waits_for: tuple[str, ...], found: Found) -> Standing:
    if waits_for:
        return Standing(step, State.WAITING, waits_for=waits_for)
    if found["L"].state is State.NOT_DONE:
        return Standing(step, State.NOT_DONE, why=Why.NO_RAMP)
    begun, ended = scene.since_opening("ramp.begun"), scene.since_opening("ramp.ended")
    steps, began_ms = scene.since_opening("ramp.step"), scene.offset(begun[0])
    if set(_sources(begun)) <= set(_sources(ended)):
        evidence = Eased(len(steps), max(_figure(e, "took_ms") for e in ended))
        return Standing(step, State.DONE, began_ms, scene.offset(ended[-1]), evidence)
    percent = _figure((steps or begun)[-1], "percent")
    return Standing(step, State.RUNNING, began_ms, note=f"{percent} % of the usual is let in")


def _look_back(scene: Scene, step: Step, waits_for: tuple[str, ...], found: Found) -> Standing:
    written = [
        e for e in scene.events if e.kind == "incident.reported" and e.detail.get("incident") == scene.story.epoch
    ]
    if written:
        files = written[-1].detail.get("files")
        said = tuple(map(str, files)) if isinstance(files, list) else ()
        ended_ms = scene.offset(written[-1])
        return Standing(step, State.DONE, ended_ms, ended_ms, Reported(str(written[-1].detail.get("by")), said))
    if waits_for:
        return Standing(step, State.WAITING, waits_for=waits_for)
    return Standing(step, State.NOT_DONE, why=Why.UNWRITTEN)


_OF_AN_AGENT = ("postgres.stopped", "postgres.killed", "postgres.started", "verdict.changed", "waiting")
_JUDGES: dict[str, Callable[[Scene, Step, tuple[str, ...], Found], Standing]] = {
    "F": _failover,
    "A": _pools_shed,
    "I": _isolate,
    "L": _load_shed,
    "O": _offline_snapshot,
    "V": _verify_parity,
    "E": _ease_back,
    "R": _look_back,
}


def _figure(event: Event, name: str) -> int:
    value: JsonValue = event.detail.get(name)
    return int(value) if isinstance(value, int | float) else 0


def _sources(events: Sequence[Event]) -> tuple[str, ...]:
    return tuple(sorted({event.source for event in events}))
