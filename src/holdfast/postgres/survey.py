"""How busy a server is, and how the heartbeat rows go: evidence for verdicts, never for a decision on data."""

from __future__ import annotations

from holdfast.model.vitals import Survey
from holdfast.postgres.instance import Instance

LOCAL_ROW, QUORUM_ROW = 1, 2

_SURVEY = """
SELECT count(*) FILTER (WHERE backend_type = 'client backend'),
       count(*) FILTER (WHERE backend_type = 'client backend' AND state = 'active' AND pid <> pg_backend_pid()),
       current_setting('max_connections')::int,
       count(*) FILTER (WHERE lower(wait_event) IN ('walsync', 'walwrite')),
       (SELECT (1000 * extract(epoch FROM clock_timestamp() - last_msg_receipt_time))::bigint
          FROM pg_stat_wal_receiver),
       (SELECT at::text FROM holdfast.heartbeat WHERE id = 1),
       (SELECT at::text FROM holdfast.heartbeat WHERE id = 2)
  FROM pg_stat_activity
"""
HEARTBEAT = """
INSERT INTO holdfast.heartbeat (id, epoch, at) VALUES (%s, %s, clock_timestamp())
ON CONFLICT (id) DO UPDATE SET epoch = excluded.epoch, at = excluded.at
"""


async def take_survey(instance: Instance) -> Survey:
    """Ask the server; raises PostgresError."""
    deadline_ms = instance.timeouts.heartbeat_interval_ms * 2
    (row,) = await instance.session("survey").fetch(_SURVEY, deadline_ms=deadline_ms)
    sessions, active, sessions_max, log_waits, upstream_age_ms, local, quorum = row
    age_ms = None if upstream_age_ms is None else max(0, int(upstream_age_ms))
    return Survey(sessions, active, sessions_max, log_waits, age_ms, (local, quorum))


async def confirm(instance: Instance, epoch: int) -> None:
    """Commit the row that the standbys have to confirm, however long that takes.

    A session that waits for them cannot be ended by closing it (the server looks at its socket only later), so a new
    one for each try would pile them up: there is one, and it waits.
    """
    session = instance.session("confirm", synchronous_commit="on")
    await session.fetch(HEARTBEAT, (QUORUM_ROW, epoch), deadline_ms=None)
