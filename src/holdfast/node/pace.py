"""How soon an agent looks again."""

from __future__ import annotations

from holdfast.core.leadership import Decision, Duty, Situation
from holdfast.core.observation import Observation
from holdfast.model.register import Phase


def is_urgent(o: Observation | None, decision: Decision | None) -> bool:
    """Whether every tick is part of somebody's stall."""
    if o is None or decision is None or o.register is None:
        return False
    if o.now_ms - o.progress_ms >= o.timeouts.promote_phase_ms:
        return False
    moving = (Situation.STARTING, Situation.CLOSED, Situation.MARKED, Situation.COVERED)
    urgent = decision.duty in (Duty.JOIN, Duty.PROMOTE, Duty.YIELD)
    unattached = decision.duty is Duty.SUPPORT and decision.situation is not Situation.ATTACHED
    choosing = o.register.phase is Phase.RECRUITING and o.enough_since_ms is not None
    awaited = o.register.phase is Phase.SERVING and o.register.handover == o.node
    return decision.situation in moving or urgent or unattached or choosing or awaited
