"""Journals of clusters that changed their leader."""

from __future__ import annotations

from pydantic import JsonValue

from holdfast.model.event import Event

T0 = 1_000_000.0


def event(at: int, source: str, kind: str, epoch: int, rule: str | None = None, **detail: JsonValue) -> Event:
    return Event(T0 + at, source, kind, epoch, rule, detail)


def verdict(at: int, source: str, kind: str, about: str = "n1", epoch: int = 1) -> Event:
    readings: list[JsonValue] = [{"source": "fresh session", "age_ms": 1600, "says": "answered in 3 ms"}]
    words: dict[str, JsonValue] = {
        "about": about,
        "verdict": kind,
        "evidence": "as the test says",
        "readings": readings,
    }
    return event(at, source, "verdict.changed", epoch, "verdict.silence", **words)


def failover(at: int, old: str, new: str, epoch: int, quorum: str = "ANY 1 (n2_00000002, n3_00000003)") -> list[Event]:
    return [
        verdict(at, "n2", "unreachable", old, epoch - 1),
        verdict(at + 40, "n3", "unreachable", old, epoch - 1),
        event(
            at + 50,
            "n3",
            "epoch.opened",
            epoch,
            "epoch.suspect",
            reason="no answer on any path for 1500 ms",
            quorum=quorum,
        ),
        event(at + 60, "n2", "recruit.joined", epoch, "recruit.detach", position="0/5000", timeline=epoch - 1),
        event(at + 90, "n3", "candidate.chosen", epoch, "epoch.choose", candidate=new, reason="it has the most log"),
        event(at + 150, new, "primary.promoted", epoch, "barrier.mark"),
        event(at + 190, new, "epoch.serving", epoch, "barrier.commit", leader=new, quorum="ANY 1 (n3_00000003)"),
        event(at + 900, old, "node.rejoined", epoch, "follow.steady", upstream=new),
    ]


CREATED = event(-100_000, "n1", "cluster.created", 1, "create.register", node="n1")
SERVING = event(
    -90_000, "n1", "epoch.serving", 1, "barrier.commit", leader="n1", quorum="ANY 1 (n2_00000002, n3_00000003)"
)
