"""What a server knows of a transaction, and of where each epoch began."""

from __future__ import annotations

import psycopg
import structlog

from holdfast.model.errors import PostgresError
from holdfast.model.lsn import Lsn
from holdfast.model.outcome import EpochStart, XactStatus
from holdfast.postgres.instance import Instance

_log = structlog.get_logger(__name__)

_STATUS = "SELECT pg_xact_status(%s::text::xid8)"
_NEXT_XID = "SELECT pg_snapshot_xmax(pg_current_snapshot())::text"
_STARTS = "SELECT epoch, fork_lsn::text, next_xid::bigint FROM holdfast.epochs ORDER BY epoch"
_INVALID_PARAMETER_VALUE = "22023"
"""What ``pg_xact_status`` says of an id that is not given away yet."""
_UNREADABLE = ("58", "XX")
"""System errors and internal ones (PostgreSQL manual, "PostgreSQL Error Codes"): its commit log is damaged, say."""


async def transaction_status(instance: Instance, xid: int) -> XactStatus:
    """What the server says of a transaction id of 64 bits; raises PostgresError."""
    try:
        ((said,),) = await instance.session("outcome").fetch(_STATUS, (str(xid),))
    except PostgresError as error:
        code = error.__cause__.sqlstate or "" if isinstance(error.__cause__, psycopg.Error) else ""
        if code == _INVALID_PARAMETER_VALUE:
            return XactStatus.FUTURE
        if code.startswith(_UNREADABLE):
            _log.warning("the outcome of a transaction cannot be read", xid=xid, reason=str(error), node=instance.node)
            return XactStatus.UNREADABLE
        raise
    return XactStatus.FORGOTTEN if said is None else XactStatus(said)


async def next_xid(instance: Instance) -> int:
    """The next transaction id of 64 bits that the server gives away, or a little less; raises PostgresError."""
    ((found,),) = await instance.session("outcome").fetch(_NEXT_XID)
    return int(found)


async def epoch_starts(instance: Instance) -> tuple[EpochStart, ...]:
    """The records of all epochs that the server's log holds, oldest first; raises PostgresError."""
    rows = await instance.session("outcome").fetch(_STARTS)
    return tuple(EpochStart(epoch, Lsn.parse(fork), next_xid) for epoch, fork, next_xid in rows)
