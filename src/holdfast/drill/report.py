"""The page that a drill leaves behind: one file that opens without a network, for a person at three in the morning."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import asdict
from pathlib import Path
from typing import NamedTuple

from markupsafe import Markup

from holdfast import __version__
from holdfast.core.phases import PHASE_MEANING
from holdfast.core.story import told
from holdfast.core.words import amount, duration
from holdfast.drill.result import DrillResult
from holdfast.drill.series import Samples, Series
from holdfast.drill.words import headline, story
from holdfast.model.event import Event
from holdfast.pages.page import asset, source, style, template, write_whole

EVENTS_BEFORE_MS = 2000.0
"""How much of the journal before the fault the timeline shows."""


class _Tile(NamedTuple):
    name: str
    figure: str
    note: str


class _Phase(NamedTuple):
    number: int
    name: str
    ms: float
    meaning: str


class _Entry(NamedTuple):
    at_ms: float
    after: str
    who: str
    what: str
    rule: str | None
    epoch: int | str
    mark: bool


def write_report(path: Path, result: DrillResult, samples: Samples, events: Sequence[Event]) -> None:
    """Write the page for one run, whole or not at all; raises EnvironmentFault.

    ``events`` is the journal of the run, in any order.
    """
    write_whole(path, render_report(result, samples, events))


def render_report(result: DrillResult, samples: Samples, events: Sequence[Event]) -> str:
    """The page as text."""
    phases = [_Phase(i, n, ms, PHASE_MEANING[n]) for i, (n, ms) in enumerate(result.phases_ms.in_order(), 1)]
    total_ms = sum(phase.ms for phase in phases)
    lines = story(result)
    return template(source("holdfast.drill", "assets", "report.html.j2")).render(
        r=result,
        version=__version__,
        headline=headline(result),
        story=lines,
        tiles=_tiles(result),
        phases=phases,
        total_ms=total_ms,
        samples=samples,
        close_rows=_rows(samples.close),
        chart_text=_chart_text(result, samples),
        whole_text=_whole_text(samples, _moment(result)),
        timeline=_timeline(result, samples, events, total_ms),
        figures=_figures(result),
        data=_data(result, samples, phases, total_ms),
        css=style(),
        js=_asset("report.js"),
        moment=_moment(result),
        uplot_css=_asset("uPlot.min.css"),
        uplot_js=_asset("uPlot.iife.min.js"),
        uplot_license=_asset("uPlot.LICENSE.txt"),
    )


def _moment(result: DrillResult) -> str:
    """What the times are counted from."""
    return "fault" if result.fault else "kill"


def _asset(name: str) -> Markup:
    return asset("holdfast.drill", "assets", name)


def _tiles(result: DrillResult) -> list[_Tile]:
    writes, connections = result.writes, result.connections
    lost = "not known" if writes.lost is None else amount(writes.lost)
    back = "no" if result.rejoin_ms is None else duration(result.rejoin_ms)
    return [
        _Tile("Longest stall", duration(result.rto_ms), "without an acknowledged write"),
        _Tile("Acknowledged writes lost", lost, f"of {amount(writes.acknowledged)}"),
        _Tile(
            "Idle sessions dropped",
            amount(connections.dropped_idle),
            f"of {amount(connections.idle)}",
        ),
        _Tile(
            "Cluster whole again" if result.failovers == 0 else f"{result.old_primary} back as a standby",
            back,
            "by itself" if result.rejoined else "see the problems",
        ),
    ]


def _rows(series: Series) -> list[tuple[str, ...]]:
    def cell(value: float | None) -> str:
        return "–" if value is None else f"{value:g}"

    columns = (series.writes_per_s, series.reads_per_s, series.latency_p50_ms, series.latency_max_ms, series.failed)
    return [
        (f"{at_s:+.3f}", *(cell(value) for value in values))
        for at_s, *values in zip(series.at_s, *columns, strict=True)
    ]


def _chart_text(result: DrillResult, samples: Samples) -> str:
    close = samples.close
    before = [n for at_s, n in zip(close.at_s, close.writes_per_s, strict=True) if at_s < 0]
    usual = sum(before) / len(before) if before else 0.0
    return (
        f"Two charts over time. Acknowledged writes run at about {usual:.0f} a second, fall to nothing "
        f"at the {_moment(result)}, and resume after {duration(result.rto_ms)}. "
        "The longest wait of a write peaks at the end of the stall. "
        "Numbered bands mark the parts of the failover listed above."
    )


def _whole_text(samples: Samples, moment: str) -> str:
    whole = samples.whole
    return (
        f"Acknowledged writes a second from {whole.at_s[0]:.1f} s to {whole.at_s[-1]:.1f} s relative to the {moment}, "
        f"with the {moment}, the new primary and the return of the old one marked."
    )


def _timeline(result: DrillResult, samples: Samples, events: Sequence[Event], total_ms: float) -> list[_Entry]:
    fault_ms = samples.fault_at_ms

    def entry(at_ms: float, who: str, what: str, rule: str | None, epoch: int | str, mark: bool = False) -> _Entry:
        return _Entry(at_ms, _signed(at_ms - fault_ms), who, what, rule, epoch, mark)

    found = [
        entry(e.at_ms, e.source, told(e), e.rule, e.epoch) for e in events if e.at_ms >= fault_ms - EVENTS_BEFORE_MS
    ]
    found.append(
        entry(
            fault_ms,
            "the drill",
            result.fault or f"killed the whole PostgreSQL of {result.old_primary} (SIGKILL)",
            None,
            "",
            True,
        )
    )
    if result.phases_ms.barrier or result.phases_ms.reroute:
        first = f"first write acknowledged by {result.new_primary}"
        found.append(entry(fault_ms + total_ms, "clients", first, None, "", True))
    return sorted(found, key=lambda e: (e.at_ms, not e.mark))


def _signed(ms: float) -> str:
    return f"{'−' if ms < 0 else '+'}{duration(abs(ms))}"


def _figures(result: DrillResult) -> list[list[tuple[str, str]]]:
    writes, reads, connections, cluster = result.writes, result.reads, result.connections, result.cluster

    def known(value: int | None) -> str:
        return "not known" if value is None else amount(value)

    ends = ", ".join(f"{name}: {count}" for name, count in writes.sqlstates.items()) or "none"
    agree = ", ".join(f"{node} {'yes' if same else 'NO'}" for node, same in result.standbys_agree.items())
    return [
        [
            ("Longest stall", duration(result.rto_ms)),
            ("Available", f"{100 * result.availability:.2f} %"),
            ("Writes acknowledged", amount(writes.acknowledged)),
            ("… of these lost", known(writes.lost)),
            ("Rows there twice", known(writes.duplicated)),
            ("Rows with other content", known(writes.altered)),
            ("Rows there despite an error", known(writes.wrong_errors)),
            ("Writes that failed", amount(writes.errors)),
            ("Writes with unknown outcome", amount(writes.unknown)),
            ("… found committed", known(writes.unknown_committed)),
            ("Not acknowledged: in flight / later", f"{writes.failed_in_flight} / {writes.failed_later}"),
            ("How writes ended otherwise", ends),
        ],
        [
            ("Reads answered / failed", f"{amount(reads.answered)} / {amount(reads.errors)}"),
            ("Connections dropped: writers", f"{connections.dropped_writers} of {connections.clients}"),
            ("… readers", amount(connections.dropped_readers)),
            ("… idle sessions", f"{connections.dropped_idle} of {connections.idle}"),
            ("Same rows on the standbys", agree or "not compared"),
            ("Old and new primary", f"{result.old_primary} → {result.new_primary or 'none'}"),
            ("Old primary back after", "not" if result.rejoin_ms is None else duration(result.rejoin_ms)),
            ("Cluster", f"{cluster.nodes} nodes, {cluster.durability}"),
            ("PostgreSQL, etcd", f"{cluster.postgresql}, {cluster.etcd}"),
            ("Load", f"{connections.clients} writers, {result.rate_per_s:g} writes/s"),
            ("Seed", str(result.seed)),
            (f"The {_moment(result)} itself took", duration(result.injection_ms)),
            ("The drill took", duration(result.duration_ms)),
        ],
    ]


def _data(result: DrillResult, samples: Samples, phases: list[_Phase], total_ms: float) -> dict[str, object]:
    """What the charts are drawn from."""
    bands: list[dict[str, object]] = []
    at_s = 0.0
    for phase in phases if total_ms > 0 else []:
        to_s = at_s + phase.ms / 1000
        bands.append({"number": phase.number, "name": phase.name, "ms": phase.ms, "from_s": at_s, "to_s": to_s})
        at_s = to_s
    marks: list[dict[str, object]] = [
        {"at_s": 0.0, "label": "fault" if result.fault else f"{result.old_primary} killed"}
    ]
    if result.new_primary is not None and total_ms > 0:
        marks.append({"at_s": total_ms / 1000, "label": f"{result.new_primary} serves"})
    if result.rejoin_ms is not None and result.new_primary != result.old_primary:
        marks.append({"at_s": result.rejoin_ms / 1000, "label": f"{result.old_primary} is back"})
    return {
        "close": asdict(samples.close),
        "whole": asdict(samples.whole),
        "phases": bands,
        "marks": marks,
        "stall": samples.stall_s,
        "stall_text": f"no write acknowledged for {duration(result.rto_ms)}",
    }
