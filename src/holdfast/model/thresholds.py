"""Every limit of Holdfast that is no time, each with its reason. Units are in the names; times are in ``timeouts``."""

from __future__ import annotations

from pydantic import BaseModel, ConfigDict, Field


class Thresholds(BaseModel):
    """``[thresholds]``: from which measure on a verdict is passed. All processes of a cluster need the same ones."""

    model_config = ConfigDict(extra="forbid", frozen=True)

    disk_full_bytes: int = Field(
        32 * 1024 * 1024,
        ge=0,
        description="a data or log file system with less than this free is full: PostgreSQL stops when it cannot add "
        "the next 16 MB of log",
    )
    disk_low_bytes: int = Field(
        1024 * 1024 * 1024, ge=0, description="with less than this free, `status` and `forecast` warn"
    )
    sessions_percent: int = Field(
        95, ge=1, le=100, description="a primary with this share of `max_connections` in use is overloaded"
    )
