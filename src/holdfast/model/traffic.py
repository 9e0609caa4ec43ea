"""Classes of traffic: who is let into the database first when not everybody can be."""

from __future__ import annotations

from collections.abc import Mapping
from enum import StrEnum
from typing import Annotated, Any, Final

from pydantic import BaseModel, ConfigDict, Field, StringConstraints

from holdfast.model.wish import CLASS_NAME

ClassName = Annotated[str, StringConstraints(pattern=CLASS_NAME)]

NORMAL: Final = "normal"
"""The class of every session that no other class asks for."""


class Each(StrEnum):
    """Whom the quota of a class is for."""

    CLASS = "class"
    """All of its sessions together."""
    USER = "user"
    DATABASE = "database"


class TrafficClass(BaseModel):
    """One class of sessions. Which sessions are meant: those that meet every condition that the class names."""

    model_config = ConfigDict(extra="forbid", frozen=True)

    share: int = Field(
        10, ge=1, le=100, description="how much of the database it has when classes compete, relative to the others"
    )
    most_percent: int = Field(
        100, ge=1, le=100, description="of the statements let in at once, how many may be of this class"
    )
    queue_max: int = Field(1000, ge=0, le=100_000, description="statements of it that may wait; more are refused")
    wait_max_ms: int = Field(3000, ge=0, le=600_000, description="how long one may wait before it is refused")
    statements_max: int | None = Field(
        None, ge=1, le=100_000, description="quota: statements of it that a proxy lets in at once; unset: any number"
    )
    statements_per_s: float | None = Field(
        None, gt=0, le=1_000_000, allow_inf_nan=False,
        description="quota: statements of it that may begin in a second at each proxy; unset: any number",
    )  # fmt: skip
    each: Each = Field(Each.CLASS, description="whom its quota is for: the whole class, each user or each database")
    users: tuple[str, ...] = Field((), description="users whose sessions belong to it; unset: of any")
    databases: tuple[str, ...] = Field((), description="databases whose sessions belong to it; unset: any")
    application_names: tuple[str, ...] = Field((), description="values of application_name; unset: any")

    @property
    def without_quota(self) -> TrafficClass:
        """The same class, for a proxy that bounds nothing."""
        return self.model_copy(update={"statements_max": None, "statements_per_s": None})

    @property
    def conditions(self) -> int:
        """How many kinds of conditions it names; a class without any is nobody's by itself."""
        return sum(map(bool, (self.users, self.databases, self.application_names)))

    def takes(self, user: str, database: str, application_name: str) -> bool:
        """Whether a session meets all of its conditions, and there are some."""
        pairs = ((self.users, user), (self.databases, database), (self.application_names, application_name))
        return self.conditions > 0 and all(value in wanted for wanted, value in pairs if wanted)


BUILT_IN: Final[Mapping[str, TrafficClass]] = {
    "critical": TrafficClass(share=60, queue_max=20_000, wait_max_ms=30_000),
    NORMAL: TrafficClass(share=30, queue_max=20_000, wait_max_ms=10_000),
    "background": TrafficClass(share=10, most_percent=30, queue_max=500),
}
"""The classes of every cluster; the policy may change them and add others."""


def default_of(name: str) -> TrafficClass:
    """What a class is before the policy says anything of it."""
    return BUILT_IN.get(name, TrafficClass())


def with_changes(name: str, now: Mapping[str, Any], changes: Mapping[str, Any]) -> dict[str, Any]:
    """The values of a class after changes; a value of None is the default again."""
    defaults = default_of(name).model_dump()
    values = {**defaults, **now, **changes}
    return {key: defaults.get(key) if value is None else value for key, value in values.items()}


def class_of(classes: Mapping[str, TrafficClass], user: str, database: str, application_name: str) -> str:
    """The class of a session: of those that take it the one with the most conditions, then the smallest share."""
    fitting = [(-c.conditions, c.share, n) for n, c in classes.items() if c.takes(user, database, application_name)]
    return min(fitting)[2] if fitting else NORMAL
