"""The retrospective of an incident, for those who were asleep: a page, and the same as Markdown."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import NamedTuple

from holdfast import __version__
from holdfast.core.cost import CLASS_HEAD, Objectives, class_rows
from holdfast.core.incident import Incident, against, cost_of
from holdfast.core.phases import ENDS
from holdfast.core.playbook import State
from holdfast.core.whose import Whose
from holdfast.core.words import amount, duration
from holdfast.model.lost import LostLog, Tuples
from holdfast.model.owner import Owner, Unanswered
from holdfast.pages.chart import Chart, chart_of
from holdfast.pages.page import clock, day, moment, source, style, template

LISTED_MAX = 200
"""Lost transactions that the page lists; `holdfast lost show` has all of them."""

UNTOLD = "These were in the log of the old primary alone; nobody was told that they had been committed."
"""What the listed transactions are when nothing that was acknowledged is lost."""


_THIS = "this is it"
"""What the report says of the step that is the report."""
_TOLD = {Unanswered.UNKNOWN: "outcome unknown", Unanswered.UNDONE: "undone"}


class _Tile(NamedTuple):
    name: str
    figure: str
    note: str


class _Part(NamedTuple):
    number: int
    name: str
    ms: float
    meaning: str


class _Client(NamedTuple):
    at: str
    told: str
    owner: Owner
    server: str


class _Step(NamedTuple):
    letter: str
    name: str
    does: str
    state: str
    mark: str
    left: float
    width: float
    took: str
    says: str


class _Lost(NamedTuple):
    node: str
    xid: int
    committed_at: str
    wrote: str


def incident_page(
    incident: Incident, cluster: str, accounts: Sequence[LostLog] = (), objectives: Objectives | None = None
) -> str:
    """The page as text; ``accounts`` are the lists of lost transactions that belong to the incident."""
    parts = [_Part(i, p.name, p.ms, p.meaning) for i, p in enumerate(incident.parts, 1)]
    lost = _lost(accounts)
    return template(source("holdfast.pages", "incident.html.j2")).render(
        i=incident,
        cluster=cluster,
        ended=incident.story.serving_ms is not None,
        began=moment(incident.story.began_at_ms),
        promised=against(objectives or Objectives(), incident),
        tiles=_tiles(incident),
        class_head=CLASS_HEAD,
        classes=_classes(incident, objectives),
        parts=parts,
        steps=_steps(incident),
        chart=_chart(incident),
        total_ms=sum(p.ms for p in parts),
        lost=lost[:LISTED_MAX],
        untold=UNTOLD,
        left_out=max(0, len(lost) - LISTED_MAX),
        clients=_clients(incident.whose),
        clients_left_out=_clients_left_out(incident.whose),
        marks=set(ENDS.values()),
        css=style(),
        version=__version__,
    )


def incident_markdown(
    incident: Incident, cluster: str, accounts: Sequence[LostLog] = (), objectives: Objectives | None = None
) -> str:
    """The same for a ticket or a wiki."""
    began = moment(incident.story.began_at_ms)
    promised = against(objectives or Objectives(), incident)
    lines = [
        f"# Incident {incident.number} of cluster {cluster}: {day(began)}, {clock(began)} UTC",
        "",
        *(f"- {line}" for line in (*incident.summary, *promised)),
        "",
        "## How far it is",
        "",
        *_table(
            ("step", "what it does", "state", "took", "evidence, or why not"),
            [(f"{s.letter} {s.name}", s.does, s.state, s.took, s.says) for s in _steps(incident)],
        ),
        "",
        "## Where the time went",
        "",
        *_table(("part", "took", "what it is"), [(p.name, duration(p.ms), p.meaning) for p in incident.parts]),
        "",
        *_classes_table(incident, objectives),
        "## Why it may have happened",
        "",
        *_causes(incident),
        "",
        "## What was lost",
        "",
        incident.summary[3],
        *(f"- {doubt}" for doubt in incident.losses.doubts),
        *_lost_table(accounts, proved=incident.losses.proved),
        "",
        *_clients_table(incident.whose),
        *_evidence(incident),
        "## What would make the next time better",
        "",
        *(f"- {g.what}." + (f" `{g.command}`" if g.command else "") for g in incident.guardrails),
        "",
        "## What happened",
        "",
        *_table(
            ("after", "who", "what", "rule"),
            [(f"+{duration(line.offset_ms)}", line.who, line.says, line.rule or "") for line in incident.story.lines],
        ),
    ]
    return "\n".join(lines) + "\n"


def _steps(incident: Incident) -> list[_Step]:
    """The bars are in percent of the time from the first sign to the end of the last step but the report."""
    moments = [ms for s in incident.steps if s.step.letter != "R" for ms in (s.began_ms, s.ended_ms) if ms is not None]
    whole_ms = max(moments, default=0) or 1
    rows = []
    for s in incident.steps:
        left = width = 0.0
        if s.began_ms is not None:
            ended_ms = whole_ms if s.ended_ms is None else s.ended_ms
            left = min(99.0, 100 * s.began_ms / whole_ms)
            width = min(100 - left, max(1.0, 100 * (ended_ms - s.began_ms) / whole_ms))
        took = "" if s.ended_ms is None or s.began_ms is None else duration(s.ended_ms - s.began_ms)
        state, says = (State.DONE, _THIS) if s.step.letter == "R" else (s.state, s.says)
        mark = state.value.replace(" ", "-")
        rows.append(_Step(s.step.letter, s.step.name, s.step.does, state.value, mark, left, width, took, says))
    return rows


def _chart(incident: Incident) -> Chart | None:
    story, course = incident.story, None if incident.impact is None else incident.impact.course
    moments = {
        "the first sign": 0,
        "an epoch is opened": story.opened_ms,
        "the new primary is promoted": story.promoted_ms,
        "it serves": story.serving_ms,
    }
    return chart_of(course, story.began_at_ms, moments)


def _classes(incident: Incident, objectives: Objectives | None) -> list[tuple[str, ...]]:
    told = () if incident.impact is None else incident.impact.classes
    return [*class_rows(told, cost_of(objectives or Objectives(), incident))]


def _classes_table(incident: Incident, objectives: Objectives | None) -> list[str]:
    rows = _classes(incident, objectives)
    return ["## What clients met, by class", "", *_table(CLASS_HEAD, rows), ""] if rows else []


def _evidence(incident: Incident) -> list[str]:
    if not incident.evidence:
        return []
    return ["## What was taken as evidence", "", *(f"- {words}" for words in incident.evidence), ""]


def _clients(whose: Whose) -> list[_Client]:
    return [
        _Client(clock(moment(c.at_ms)), _TOLD[c.told], c.owner, f"{c.node}, epoch {c.epoch}")
        for c in whose.clients[:LISTED_MAX]
    ]


def _clients_left_out(whose: Whose) -> int:
    return max(0, len(whose.clients) - LISTED_MAX) + whose.unnamed


def _clients_table(whose: Whose) -> list[str]:
    if not whose.clients:
        return []
    head = ("at (UTC)", "told", "user", "database", "application", "address", "server")
    rows = [
        (c.at, c.told, c.owner.user, c.owner.database, c.owner.application, c.owner.address, c.server)
        for c in _clients(whose)
    ]
    more = _clients_left_out(whose)
    left_out = ("", f"And {more} more.") if more else ()
    return ["## Whose transactions were cut off", "", *_table(head, rows), *left_out, ""]


def _tiles(incident: Incident) -> list[_Tile]:
    impact, stall_ms = incident.impact, incident.stall_ms
    told = "not known"
    failed = None if impact is None else impact.refused + impact.unknown + impact.undone
    return [
        _Tile(
            "Longest stall",
            told if stall_ms is None else duration(stall_ms),
            "from the first sign until writes were served" if impact is None else "wait of one statement at a proxy",
        ),
        _Tile(
            "Acknowledged writes lost",
            "0"
            if incident.losses.proved
            else f"up to {amount(incident.losses.transactions)}"
            if incident.losses.transactions
            else told,
            "proved" if incident.losses.proved else "transactions; see below",
        ),
        _Tile("Statements held", told if impact is None else amount(impact.held), "they waited and went on"),
        _Tile("Statements failed", told if failed is None else amount(failed), "refused, cut off or undone"),
    ]


def _causes(incident: Incident) -> list[str]:
    lines = []
    for cause in incident.causes:
        lines.append(f"- **{cause.what}**" + (f" (look at {cause.look_at})" if cause.look_at else ""))
        lines += [f"  - {words}" for words in cause.evidence]
    return lines or ["The journal tells of nothing that would explain it."]


def _lost(accounts: Sequence[LostLog]) -> list[_Lost]:
    return [
        _Lost(account.member.node, t.xid, t.committed_at, _wrote(t.relations))
        for account in accounts
        for t in account.of_clients
    ]


def _wrote(relations: Mapping[str, Tuples]) -> str:
    return ", ".join(f"{name}: {_counted(tuples)}" for name, tuples in relations.items())


def _counted(tuples: Tuples) -> str:
    counts = (("inserted", tuples.inserted), ("updated", tuples.updated), ("deleted", tuples.deleted))
    return " ".join(f"{count} {word}" for word, count in counts if count)


def _lost_table(accounts: Sequence[LostLog], *, proved: bool) -> list[str]:
    lost = _lost(accounts)
    if not lost:
        return []
    rows = [(row.node, str(row.xid), row.committed_at, row.wrote) for row in lost[:LISTED_MAX]]
    return [*(("", UNTOLD) if proved else ()), "", *_table(("node", "xid", "committed (UTC)", "what it wrote"), rows)]


def _table(head: Sequence[str], rows: Sequence[Sequence[str]]) -> list[str]:
    return [_row(head), _row(["---"] * len(head)), *(_row(row) for row in rows)]


def _row(cells: Sequence[str]) -> str:
    return "| " + " | ".join(cell.replace("|", "\\|").replace("\n", " ") for cell in cells) + " |"
