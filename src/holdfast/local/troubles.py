"""What keeps a process or a node of a local cluster from taking part: its last words, and where its log is."""

from __future__ import annotations

import contextlib
import json
import os
import re
import time
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from holdfast.local.servers import make_plan
from holdfast.model.errors import EnvironmentFault, StoreUnavailable
from holdfast.model.event import Event
from holdfast.model.report import NodeReport
from holdfast.model.server import ServerStatus
from holdfast.postgres.faults import last_complaint
from holdfast.postgres.layout import Layout as ServerLayout

if TYPE_CHECKING:
    from holdfast.local.cluster import LocalCluster

FINAL_S = 5.0
"""For the other nodes of a cluster to serve without one that will not come up."""
LASTING_S = 25.0
"""Trouble that has not passed by then is for a person to mend; a clone may heal it after 20 s."""
LOOK_INTERVAL_S = 0.5
_RECENT_S = 15.0
"""Agents try again after 10 s at most, a walreceiver after 0.1 s: older words are of the past, and so are those from
before the cluster was last started."""
_EVENTS = 100
_TAIL_BYTES = 16_384
_RECENT_LINES = 50
_REASON = "Error: "
_HOPELESS = re.compile(
    r"password authentication failed|no pg_hba\.conf entry|permission denied|No space left|identifier differs|"
    r"role \".*\" does not exist",
    re.IGNORECASE,
)
_PASSING = re.compile(r"is starting up|is shutting down|not yet accepting|[Cc]onnection refused|due to administrator")

_SAID_ELSEWHERE = re.compile(r"terminating walreceiver")
"""That a standby does not stream, whoever ended its walreceiver, is no reason of its own."""


@dataclass(frozen=True, slots=True)
class Trouble:
    """``words`` is what ``who`` said last; ``final`` if it will not pass by itself."""

    who: str
    words: str
    log: Path
    final: bool = False

    def __str__(self) -> str:
        return f"{self.who}: {self.words}; its log is {self.log}"


class InTrouble(EnvironmentFault):
    """A cluster does not come up, or one of its nodes does not."""

    def __init__(self, trouble: Trouble, before: str = "") -> None:
        super().__init__(f"{before}{trouble}")
        self.trouble = trouble


async def troubles_of(cluster: LocalCluster, reports: Mapping[str, NodeReport | None]) -> tuple[Trouble, ...]:
    """What troubles the cluster now, first the processes that keep ending; never raises because something is away."""
    found = list(processes_in_trouble(cluster))
    events: tuple[Event, ...] = ()
    found += [alarm for name, report in reports.items() if (alarm := _alarm(cluster, name, report)) is not None]
    known = {trouble.who for trouble in found}
    waiting = [n for n, r in reports.items() if n not in known and r is not None and _waits(r)]
    if waiting:
        with contextlib.suppress(StoreUnavailable):
            events = await cluster.store().read_events(_EVENTS)
    for name in waiting:
        trouble = _of_agent(cluster, name, events) or _of_postgres(cluster, name)
        if trouble is not None:
            found.append(trouble)
    return tuple(found)


def _alarm(cluster: LocalCluster, name: str, report: NodeReport | None) -> Trouble | None:
    if report is None or report.alarm is None:
        return None
    return Trouble(name, f"ALARM: {report.alarm}", cluster.layout.agent_log(name))


def processes_in_trouble(cluster: LocalCluster) -> tuple[Trouble, ...]:
    """Processes that keep ending, however often they are started again."""
    looping = {name: state for name, state in cluster.state().processes.items() if state.keeps_ending()}
    if not looping:
        return ()
    plan = make_plan(cluster.layout, cluster.file, cluster.timeouts)
    found = []
    for name, state in looping.items():
        spec = plan.spec(name)
        if spec is not None:
            log = Path(spec.log_file)
            words = f"does not stay up (exit status {state.last_status}): {last_words(log) or 'it says nothing'}"
            found.append(Trouble(name, words, log, final=True))
    return tuple(found)


def _waits(report: NodeReport) -> bool:
    """Whether a node takes no part, and nothing is under way that would change it."""
    return not report.streaming and report.status is not ServerStatus.PRIMARY and report.progress is None


def _of_agent(cluster: LocalCluster, name: str, events: Iterable[Event]) -> Trouble | None:
    since_ms = (time.time() - _recent_s(cluster)) * 1000
    failed = [e for e in events if (e.source, e.kind) == (name, "action.failed") and e.at_ms > since_ms]
    if not failed:
        return None
    detail = failed[-1].detail
    return Trouble(name, f"{detail.get('action')} fails: {detail.get('error')}", cluster.layout.agent_log(name))


def _of_postgres(cluster: LocalCluster, name: str) -> Trouble | None:
    server = ServerLayout(cluster.layout.data_dir(name), cluster.layout.socket_dir(cluster.file, name), None)
    complaint = last_complaint(server, _recent_s(cluster))
    if complaint is not None and _SAID_ELSEWHERE.search(complaint[0]):
        return None
    return None if complaint is None else Trouble(name, f"PostgreSQL: {complaint[0]}", complaint[1])


def _recent_s(cluster: LocalCluster) -> float:
    supervisor = cluster.state().supervisor
    return _RECENT_S if supervisor is None else min(_RECENT_S, supervisor.age_s())


def last_words(log: Path) -> str:
    """What the last process that ended gave as its reason, else the last line, as people read it.

    The next process may have written to the log since.
    """
    try:
        with log.open("rb") as file:
            file.seek(max(0, os.fstat(file.fileno()).st_size - _TAIL_BYTES))
            lines = file.read().decode(errors="replace").strip().splitlines()
    except OSError:
        return ""
    if not lines:
        return ""
    for line in reversed(lines[-_RECENT_LINES:]):
        if line.startswith(_REASON):
            return line.removeprefix(_REASON)
    try:
        entry: Any = json.loads(lines[-1])
        return str(entry.get("error") or entry.get("event") or lines[-1])
    except (json.JSONDecodeError, AttributeError):
        return lines[-1]


class Patience:
    """Tells the troubles of a cluster that starts, each once, and gives up on one that does not pass."""

    def __init__(self, cluster: LocalCluster, progress: Callable[[str], None], final_s: float = FINAL_S) -> None:
        self._cluster = cluster
        self._final_s = final_s
        self._progress = progress
        self._since: dict[str, float] = {}
        self._told: set[str] = set()
        self._next_look = 0.0
        self._lasting: tuple[Trouble, ...] = ()

    async def look(self, reports: Mapping[str, NodeReport | None], before: str = "") -> None:
        """Look, not too often; raises InTrouble, its message beginning with ``before``."""
        now = time.monotonic()
        if now < self._next_look:
            return
        self._next_look = now + LOOK_INTERVAL_S
        troubles = await troubles_of(self._cluster, reports)
        self._lasting = tuple(trouble for trouble in troubles if not _PASSING.search(trouble.words))
        lasting = {trouble.who for trouble in self._lasting}
        self._since = {who: self._since.get(who, now) for who in lasting}
        for trouble in troubles:
            hopeless = trouble.final or _HOPELESS.search(trouble.words)
            limit_s = self._final_s if hopeless else LASTING_S
            if trouble.who in lasting and now - self._since[trouble.who] >= limit_s:
                raise InTrouble(trouble, before)
            if trouble.words not in self._told:
                self._told.add(trouble.words)
                self._progress(str(trouble))

    def end(self, before: str = "") -> None:
        """The time is over; raises InTrouble if there was trouble at the last look."""
        for trouble in self._lasting:
            raise InTrouble(trouble, before)
