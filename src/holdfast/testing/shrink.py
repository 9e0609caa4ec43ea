"""Makes a failing plan smaller: fewer faults, shorter ones, earlier ones, fewer nodes; it must still fail alike."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import replace

from holdfast.testing.plan import FIRST_FAULT_MS, Plan
from holdfast.testing.run import Result, run
from holdfast.testing.wiring import Wiring

_RUNS_MAX = 400


def shrink(result: Result, wiring: Wiring) -> Result:
    """The smallest plan found that violates the same property; the given result if none is smaller."""
    if result.violation is None:
        return result
    kind, runs = result.violation.kind, 0
    smaller = True
    while smaller:
        smaller = False
        for plan in _smaller(result.plan):
            if runs >= _RUNS_MAX:
                return result
            runs += 1
            tried = run(plan, wiring)
            if tried.violation is not None and tried.violation.kind == kind:
                result, smaller = tried, True
                break
    return result


def _smaller(plan: Plan) -> Iterator[Plan]:
    for index in range(len(plan.faults)):
        yield plan.without(index)
    mentioned = {int(a[1:]) for fault in plan.faults for a in fault.args if a[0] == "n" and a[1:].isdigit()}
    if plan.nodes > max(3, *mentioned):
        yield replace(plan, nodes=plan.nodes - 1)
    if plan.witnesses and not any(a.startswith("w") for fault in plan.faults for a in fault.args):
        yield replace(plan, witnesses=0)
    if plan.from_nothing:
        yield replace(plan, from_nothing=False)
    for index, fault in enumerate(plan.faults):
        if fault.for_ms is not None and fault.for_ms > 100:
            shorter = replace(fault, for_ms=max(100, fault.for_ms // 200 * 100))
            if shorter != fault:
                yield replace(plan, faults=(*plan.faults[:index], shorter, *plan.faults[index + 1 :]))
    early_ms = min((fault.at_ms for fault in plan.faults), default=0) - FIRST_FAULT_MS
    if early_ms > 0:
        yield replace(plan, faults=tuple(replace(f, at_ms=f.at_ms - early_ms) for f in plan.faults))
