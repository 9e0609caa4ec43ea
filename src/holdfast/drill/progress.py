"""A drill on the terminal: live with rich, or plain lines for files, pipes and ``--plain``.

Nothing is said by colour alone.
"""

from __future__ import annotations

import itertools
from collections import deque
from dataclasses import dataclass, field
from typing import IO

from rich.console import Console, Group, RenderableType
from rich.live import Live
from rich.table import Table
from rich.text import Text

from holdfast.core.phases import PHASES, failover_marks
from holdfast.core.words import amount, duration
from holdfast.drill.observer import Observer, Plan, Step
from holdfast.drill.result import DrillResult
from holdfast.drill.words import figures, headline
from holdfast.drill.workload import Counters
from holdfast.model.event import Event

SPARK = "▁▂▃▄▅▆▇█"
SPARK_SAMPLES = 40
"""Samples in the sparkline: four seconds at ten a second, and a line of 80 columns holds it."""

RATE_SAMPLES = 3
"""The rate shown is over so many samples, so that it can be read and still falls at once."""

PLAIN_EVERY_MS = 1000.0
"""Between two lines of counters in plain output."""

MOMENTS = {
    "detect": "the loss is noticed, a new epoch is open",
    "recruit": "enough standbys have stopped listening to the old primary",
    "choose": "the one with the most log is chosen",
    "promote": "it has left recovery",
    "barrier": "its standbys hold the new epoch: it serves",
    "reroute": "the first write is acknowledged",
}


def make_observer(*, plain: bool, err: bool = False) -> Observer:
    """The display for this process's standard output, or with ``err`` its standard error."""
    return observer_for(Console(stderr=err), plain=plain)


def observer_for(console: Console, *, plain: bool) -> Observer:
    """The display that fits: live on a terminal, else lines."""
    if plain or not console.is_terminal or console.is_dumb_terminal:
        return PlainProgress(console.file)
    return LiveProgress(console)


@dataclass
class _Seen:
    """What both displays remember of the run."""

    plan: Plan | None = None
    fault_at_ms: float | None = None
    marks: dict[str, float] = field(default_factory=dict)
    events: list[Event] = field(default_factory=list)
    epoch_before: int = 0
    fault: str = ""

    def note(self, event: Event) -> list[tuple[str, float]]:
        """The moments that are new with this event: name and milliseconds after the fault."""
        self.events.append(event)
        fault_at_ms = self.fault_at_ms
        if fault_at_ms is None:
            return []
        found = failover_marks(self.events, epoch_before=self.epoch_before)
        new = [name for name in PHASES if name in found and name not in self.marks and self._is_final(name, found)]
        for name in new:
            self.marks[name] = max(0.0, found[name] - fault_at_ms)
        return [(name, self.marks[name]) for name in new]

    @staticmethod
    def _is_final(name: str, found: dict[str, float]) -> bool:
        """Recruiting is over when one is chosen; until then every recruit moves its end."""
        return name != "recruit" or "choose" in found

    def first_write(self, at_ms: float) -> float:
        """Milliseconds from the fault to the first write under the new primary."""
        self.marks["reroute"] = max(0.0, at_ms - (self.fault_at_ms or at_ms))
        return self.marks["reroute"]


class PlainProgress:
    """One line for each thing that happens, and one a second for the counters."""

    def __init__(self, stream: IO[str]) -> None:
        self._stream = stream
        self._seen = _Seen()
        self._printed_ms = 0.0
        self._earlier: Counters | None = None

    def _say(self, text: str) -> None:
        print(text, file=self._stream, flush=True)

    def begin(self, plan: Plan) -> None:
        """Say what is about to happen."""
        self._seen.plan = plan
        for line in _plan_lines(plan):
            self._say(line)

    def step(self, step: Step, detail: str = "") -> None:
        """Say where the drill is."""
        self._say(f"{step.value}{f': {detail}' if detail else ''}")

    def fault(self, at_ms: float, detail: str, epoch_before: int) -> None:
        """Say what was broken."""
        self._seen.fault_at_ms = at_ms
        self._seen.epoch_before = epoch_before
        self._seen.fault = detail
        self._say(f"   +0 ms  {detail}")

    def event(self, event: Event) -> None:
        """Say which part of the failover is over."""
        for name, after_ms in self._seen.note(event):
            self._moment(name, after_ms)

    def first_write(self, at_ms: float) -> None:
        """Say that the failover is over for the clients."""
        self._moment("reroute", self._seen.first_write(at_ms))

    def _moment(self, name: str, after_ms: float) -> None:
        self._say(f"{'+' + duration(after_ms):>8}  {name}: {MOMENTS[name]}")

    def sample(self, counters: Counters) -> None:
        """Say once a second how many writes there are."""
        if counters.at_ms - self._printed_ms < PLAIN_EVERY_MS:
            return
        rate = _rate(self._earlier, counters)
        self._printed_ms, self._earlier = counters.at_ms, counters
        self._say(
            f"          {amount(counters.acknowledged)} writes acknowledged ({rate:.0f}/s), {counters.errors} errors, "
            f"{counters.unknown} unknown, {counters.dropped} connections dropped"
        )

    def end(self, result: DrillResult) -> None:
        """Say how it ended."""
        self._say("")
        self._say(f"{'PASSED' if result.passed else 'FAILED'}: {headline(result)}")
        for problem in result.problems:
            self._say(f"  problem: {problem}")
        rows = figures(result)
        width = max(len(name) for name, _ in rows)
        for name, value in rows:
            self._say(f"  {name:<{width}}  {value}")

    def close(self) -> None:
        """Nothing to put back."""


class LiveProgress:
    """A display that stays in place: the steps, the failover's parts as they end, and the writes."""

    def __init__(self, console: Console) -> None:
        self._console = console
        self._seen = _Seen()
        self._step = Step.WAITING
        self._detail = ""
        self._samples: deque[Counters] = deque(maxlen=SPARK_SAMPLES + RATE_SAMPLES)
        self._live: Live | None = None

    def begin(self, plan: Plan) -> None:
        """Show what is about to happen, and start the display."""
        self._seen.plan = plan
        title, *rest = _plan_lines(plan)
        self._console.print(Text(title, style="bold"))
        for line in rest:
            self._console.print(Text(line, style="dim"))
        # Drawn from the drill's own event loop when something changed: no thread competes with the clients.
        self._live = Live(self._frame(), console=self._console, auto_refresh=False)
        self._live.start()

    def step(self, step: Step, detail: str = "") -> None:
        """Show where the drill is."""
        self._step, self._detail = step, detail
        if self._live is None:
            self._console.print(Text(f"{step.value}…", style="dim"))
        self._draw()

    def fault(self, at_ms: float, detail: str, epoch_before: int) -> None:
        """Show what was broken."""
        self._seen.fault_at_ms = at_ms
        self._seen.epoch_before = epoch_before
        self._seen.fault = detail
        self._detail = detail
        self._draw()

    def event(self, event: Event) -> None:
        """Show which part of the failover is over."""
        if self._seen.note(event):
            self._draw()

    def sample(self, counters: Counters) -> None:
        """Show how the writes go."""
        self._samples.append(counters)
        self._draw()

    def first_write(self, at_ms: float) -> None:
        """Show that the failover is over for the clients."""
        self._seen.first_write(at_ms)
        self._draw()

    def end(self, result: DrillResult) -> None:
        """Leave the display as it was last and print how it ended below it."""
        self.step(Step.DONE)
        self.close()
        self._console.print(_ending(result))

    def close(self) -> None:
        """Give the terminal back; also when the drill was interrupted."""
        live, self._live = self._live, None
        if live is not None:
            live.stop()

    def _draw(self) -> None:
        if self._live is not None:
            self._live.update(self._frame(), refresh=True)

    def _frame(self) -> RenderableType:
        lines: list[RenderableType] = [Text.assemble("\n▸ ", (self._step.value, "bold"), self._said_detail())]
        if self._samples:
            lines.append(self._writes_line())
        if self._seen.fault_at_ms is not None:
            lines.append(self._parts())
        return Group(*lines)

    def _said_detail(self) -> tuple[str, str]:
        return (f"  {self._detail}" if self._detail else "", "dim")

    def _writes_line(self) -> Text:
        samples = list(self._samples)
        newest = samples[-1]
        rate = _rate(samples[max(0, len(samples) - 1 - RATE_SAMPLES)], newest)
        line = Text("  ")
        line.append(_sparkline(samples), style="cyan")
        line.append(f"  {rate:4.0f}/s", style="bold")
        line.append(f"\n  {amount(newest.acknowledged)} writes acknowledged")
        troubles = {"errors": newest.errors, "unknown": newest.unknown, "dropped": newest.dropped}
        for name, count in troubles.items():
            line.append(f"   {count} {name}", style="yellow" if count else "dim")
        return line

    def _parts(self) -> Table:
        table = Table.grid(padding=(0, 2))
        table.add_column(width=2, justify="right")
        table.add_column(width=10, justify="right")
        table.add_column()
        table.add_column()
        table.add_row("✗", "+0 ms", "fault", Text(self._seen.fault, "dim"))
        for name in PHASES:
            after_ms = self._seen.marks.get(name)
            if after_ms is None:
                table.add_row(Text("·", "dim"), "", Text(name, "dim"), "")
            else:
                mark = Text("✓", "green")
                table.add_row(mark, Text(f"+{duration(after_ms)}", "bold"), name, Text(MOMENTS[name], "dim"))
        return table


def _plan_lines(plan: Plan) -> list[str]:
    lines = [
        f"Drill {plan.drill}: {plan.title[0].lower()}{plan.title[1:]}",
        f"  cluster {plan.cluster}: {', '.join(plan.nodes)}; primary {plan.primary}; durability {plan.durability}",
        f"  load: {plan.writers} writers ({plan.rate_per_s:g} writes/s), {plan.readers} readers, "
        f"{plan.idle} idle sessions; seed {plan.seed}",
    ]
    if plan.variants:
        lines.append(f"  harder by {', '.join(plan.variants)}")
    return lines


def _rate(earlier: Counters | None, later: Counters) -> float:
    if earlier is None or later.at_ms <= earlier.at_ms:
        return 0.0
    return 1000 * (later.acknowledged - earlier.acknowledged) / (later.at_ms - earlier.at_ms)


def _sparkline(samples: list[Counters]) -> str:
    rates = [_rate(a, b) for a, b in itertools.pairwise(samples)][-SPARK_SAMPLES:]
    top = max(rates, default=0.0)
    if top <= 0:
        return " " * SPARK_SAMPLES
    last = len(SPARK) - 1
    return "".join(SPARK[round(last * rate / top)] if rate else " " for rate in rates).rjust(SPARK_SAMPLES)


def _ending(result: DrillResult) -> RenderableType:
    word, style = ("✓ Passed", "bold green") if result.passed else ("✗ Failed", "bold red")
    parts: list[RenderableType] = [Text.assemble("\n", (word, style), "  ", (headline(result), "bold"))]
    parts += [Text(f"  ✗ {problem}", style="red") for problem in result.problems]
    table = Table.grid(padding=(0, 3))
    table.add_column(style="dim")
    table.add_column()
    for name, value in figures(result):
        table.add_row(f"  {name}", value)
    return Group(*parts, Text(""), table)
