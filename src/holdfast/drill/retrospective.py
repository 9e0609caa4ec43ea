"""The retrospective of each failover that a drill caused, beside the page of the drill: as after a real one."""

from __future__ import annotations

import asyncio
from pathlib import Path

import structlog

from holdfast.drill.cluster import ClusterUnderTest
from holdfast.local.cluster import LocalCluster
from holdfast.local.incidents import Record, read_record
from holdfast.model.errors import EnvironmentFault, HoldfastError
from holdfast.pages.incident import incident_page
from holdfast.pages.page import write_whole

log = structlog.get_logger(__name__)


async def write_retrospectives(cluster: ClusterUnderTest, epoch_before: int, page: Path) -> tuple[str, ...]:
    """Write what ``holdfast incident report`` would for everything that came after ``epoch_before``.

    Returns the paths: ``PAGE-incident-NUMBER.html`` in the directory of ``page``. What cannot be read or written is
    logged, and left out.
    """
    if not isinstance(cluster, LocalCluster):
        return ()
    try:
        record = await read_record(cluster)
        return await asyncio.to_thread(_write, record, epoch_before, page)
    except (HoldfastError, EnvironmentFault) as error:
        log.warning("the run stands, but its failovers have no retrospective", error=str(error))
        return ()


def _write(record: Record, epoch_before: int, page: Path) -> tuple[str, ...]:
    written: list[str] = []
    for incident in record.incidents:
        if incident.number <= epoch_before:
            continue
        path = page.with_name(f"{page.stem}-incident-{incident.number}.html")
        write_whole(path, incident_page(incident, record.cluster, record.accounts_of(incident)))
        written.append(str(path))
    return tuple(written)
