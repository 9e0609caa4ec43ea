"""What a node does, for people who watch a cluster start."""

from __future__ import annotations

from holdfast.model.report import NodeReport
from holdfast.model.server import ServerStatus

IS_PRIMARY = "is primary"


def in_words(report: NodeReport | None) -> str:
    """A node as it is now; empty while its agent does not answer."""
    if report is None:
        return ""
    if report.alarm:
        return f"ALARM: {report.alarm}"
    if report.status is ServerStatus.PRIMARY:
        return IS_PRIMARY
    if report.status is ServerStatus.STANDBY:
        return "streams" if report.streaming else "is a standby"
    return {
        ServerStatus.ABSENT: "is making its data directory",
        ServerStatus.STOPPED: "is about to start",
        ServerStatus.STARTING: "is starting",
        ServerStatus.UNRESPONSIVE: "does not answer",
    }[report.status]
