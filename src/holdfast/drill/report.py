"""The page that a drill leaves behind: one file that opens without a network."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

from holdfast.drill.result import DrillResult
from holdfast.drill.series import Samples
from holdfast.model.event import Event


def write_report(path: Path, result: DrillResult, samples: Samples, events: Sequence[Event]) -> None:
    """Write the page."""
    path.write_text(f"<!doctype html><title>{result.drill}</title><pre>{result.to_json()}</pre>", encoding="utf-8")
