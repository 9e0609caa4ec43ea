"""What people decide about a running cluster: durability, who may be promoted and when. Kept in the store."""

from __future__ import annotations

from enum import StrEnum
from typing import Annotated, Any

from pydantic import BaseModel, ConfigDict, Field, ValidationError, field_validator

from holdfast.model.errors import ConfigurationError, RegisterError
from holdfast.model.register import NodeName
from holdfast.model.suspect import FINGERPRINT_DIGITS
from holdfast.model.traffic import BUILT_IN, ClassName, TrafficClass, with_changes
from holdfast.model.wish import ZONE, wish_in_words

POLICY_FORMAT = 1
DEFAULT_MAXIMUM_LAG_BYTES = 1024 * 1024


class Durability(StrEnum):
    """What an acknowledged commit has survived."""

    STRICT = "strict"
    """It is on a quorum of standbys; without one, writes wait."""
    DEGRADING = "degrading"
    """It is on a quorum of standbys while there is one; without one, writes go on locally."""
    ASYNCHRONOUS = "asynchronous"
    """It is on the primary only; a promotion may lose up to ``maximum_lag_bytes``."""


class Promotion(StrEnum):
    """Who starts a failover."""

    AUTOMATIC = "automatic"
    APPROVED = "approved"
    """The voters wait for a person's ``holdfast approve``; a switchover asks nobody again."""


class Quarantining(StrEnum):
    """What becomes of statements that may have killed a primary."""

    ALONE = "alone"
    """Each proxy lets in one at a time, and more step by step as they do no harm."""
    REFUSED = "refused"
    """Nobody may run them until a person releases them."""
    OFF = "off"


class Route(StrEnum):
    """Where a session's reads on the writable port go."""

    PRIMARY = "primary"
    AUTO = "auto"
    """What surely only reads goes to a standby that shows all that the session has written; the rest to the primary."""


class NodeTags(BaseModel):
    """What is special about one node."""

    model_config = ConfigDict(extra="forbid", frozen=True)

    promotable: bool = Field(True, description="whether it may become the primary; if not, no commit waits for it")
    priority: int = Field(0, ge=0, le=100, description="among equally good candidates the highest is promoted")
    readable: bool = Field(True, description="whether clients may read from it; if not, they read elsewhere")
    zone: str = Field("", pattern=ZONE, description="among equals, one in the lost primary's zone is preferred")


class Policy(BaseModel):
    """The policy of a cluster, changed at run time with ``holdfast policy set``."""

    model_config = ConfigDict(extra="forbid", frozen=True)

    durability: Durability = Field(
        Durability.STRICT,
        description="where an acknowledged commit is: on a quorum, on a quorum while there is one, or on the primary",
    )
    confirmations: int | None = Field(
        None, ge=1, le=15, description="standbys that confirm each commit; half of them, rounded up, if unset"
    )
    maximum_lag_bytes: int = Field(
        DEFAULT_MAXIMUM_LAG_BYTES, ge=0, le=1 << 50,
        description="log that a promotion may lose at most while commits are local; above it people decide",
    )  # fmt: skip
    promotion: Promotion = Field(
        Promotion.AUTOMATIC, description="whether a failover starts by itself or waits for `holdfast approve`"
    )
    paused: bool = Field(False, description="agents look on and touch nothing: no start, stop, failover or rejoin")
    nodes: dict[NodeName, NodeTags] = Field({}, description="tags of single nodes: promotable, priority, zone")
    admission: bool = Field(True, description="whether proxies bound and ramp what they let into a server at once")
    statements_max: int | None = Field(
        None, ge=1, le=100_000,
        description="statements that a proxy lets into a server at once, on each port; unset: any number",
    )  # fmt: skip
    statements_adaptive: bool = Field(
        False,
        description="whether each proxy finds by trial how many statements at once the server bears, "
        "and lets in no more; at most `statements_max`",
    )
    ramp_start_percent: int = Field(
        10, ge=1, le=100, description="after a promotion, the part of the usual number that is let in first; 100: all"
    )
    ramp_window_s: int = Field(
        60, ge=1, le=3600, description="in which it climbs to all, if the new primary is not as fast as usual before"
    )
    breaker_failures: int = Field(
        5, ge=0, le=1000,
        description="connections to a server that fail in a row until a proxy only probes it; 0: all go on trying",
    )  # fmt: skip
    breaker_open_ms: int = Field(
        200,
        ge=10,
        le=60_000,
        description="from then to the first probe; doubled up to eight times with each that fails",
    )
    quarantine: Quarantining = Field(
        Quarantining.ALONE,
        description="what becomes of statements that may have killed a primary: alone (one at a time), refused, off",
    )
    quarantine_s: int = Field(
        3600, ge=1, le=2_592_000, description="how long such a statement is remembered, unless it is refused"
    )
    stale_answers_mib: int = Field(
        0, ge=0, le=65_536,
        description="memory of each port of a proxy for the last good answers to reads that say how old theirs may be; "
        "0: none is kept",
    )  # fmt: skip
    stale_by: dict[str, Annotated[int, Field(ge=1, le=31_536_000)]] = Field(
        {}, max_length=1000,
        description="how old an answer may be, in seconds, by the fingerprint of a statement, if its text does not say",
    )  # fmt: skip
    capture_wait_s: int = Field(
        120, ge=0, le=86_400,
        description="how long a failed node's return may wait for its capture; 0: nothing is captured",
    )  # fmt: skip
    commit_guard: bool = Field(
        False,
        description="whether proxies put a token into each writing transaction, so that a client whose commit lost its "
        "server is told what became of it",
    )
    objective_rto_ms: int | None = Field(
        None, ge=0, le=86_400_000,
        description="the longest stall that was promised; reports of incidents say whether it was kept",
    )  # fmt: skip
    objective_rpo_ms: int | None = Field(
        None, ge=0, le=86_400_000,
        description="how far back what is lost may reach; 0: nothing that was acknowledged may be lost",
    )  # fmt: skip
    objective_availability_percent: float | None = Field(
        None, ge=0, lt=100, description="the availability that was promised, in percent of 30 days: the error budget"
    )
    route: Route = Field(
        Route.PRIMARY,
        description="where reads on the writable port go: primary, or auto (to standbys, what surely only reads)",
    )
    route_by: dict[str, Route] = Field(
        {}, max_length=1000,
        description="other than `route`, by `user`, `@database` or `user@database` (the narrowest counts); "
        "for sessions that begin then",
    )  # fmt: skip
    read_lag_max_ms: int = Field(
        10_000, ge=10, le=600_000,
        description="a standby that is further behind is not read from, until it has been within half of it for "
        "`read_back_ms`",
    )  # fmt: skip
    read_back_ms: int = Field(2000, ge=0, le=600_000, description="see `read_lag_max_ms`")
    read_wait_ms: int = Field(
        500, ge=0, le=60_000,
        description="how long a read waits for a standby that shows what `holdfast.wait_for` names; then the primary",
    )  # fmt: skip
    classes: dict[ClassName, TrafficClass] = Field(
        {}, max_length=32, description="classes of sessions: shares, bounds, who is in them"
    )
    format: int = Field(POLICY_FORMAT, description="version of this record's layout")

    def tags(self, node: str) -> NodeTags:
        """The tags of a node; the plain ones if it has none."""
        return self.nodes.get(node, NodeTags())

    def promotable(self, node: str) -> bool:
        """Whether the node may become the primary."""
        return self.tags(node).promotable

    def readable(self, node: str) -> bool:
        """Whether the read-only port leads there."""
        return self.tags(node).readable

    def route_of(self, user: str, database: str) -> Route:
        """Where the reads of a user's sessions in a database go, if they say nothing themselves."""
        for name in (f"{user}@{database}", user, f"@{database}"):
            if name in self.route_by:
                return self.route_by[name]
        return self.route

    def traffic_classes(self) -> dict[str, TrafficClass]:
        """All classes by name: the built-in ones, as far as they are not changed, and own ones."""
        return {**BUILT_IN, **self.classes}

    @property
    def local_commits_allowed(self) -> bool:
        """Whether a commit may be acknowledged with no standby's word (k = 0)."""
        return self.durability is not Durability.STRICT

    def to_json(self) -> bytes:
        """The stored form."""
        return self.model_dump_json().encode()

    @classmethod
    def from_json(cls, raw: bytes) -> Policy:
        """Read the stored form; raises RegisterError if it is not a policy of this format."""
        try:
            policy = cls.model_validate_json(raw)
        except ValidationError as error:
            raise RegisterError(f"the policy cannot be read: {error.errors()[0]['msg']}") from error
        if policy.format != POLICY_FORMAT:
            raise RegisterError(
                f"the policy has format {policy.format}, this version reads {POLICY_FORMAT}: "
                "upgrade every process of the cluster to the same version"
            )
        return policy

    @field_validator("stale_by")
    @classmethod
    def _are_fingerprints(cls, stale_by: dict[str, int]) -> dict[str, int]:
        for name in stale_by:
            if not (len(name) == FINGERPRINT_DIGITS and set(name) <= set("0123456789abcdef")):
                raise ValueError(
                    f"{name!r} is no fingerprint: `holdfast quarantine fingerprint 'SELECT …'` says that of a statement"
                )
        return stale_by

    def changed(self, changes: dict[str, Any]) -> Policy:
        """This policy with other values; raises ConfigurationError that names every wrong one.

        A setting of None has its default again. ``nodes`` merges: tags of nodes that are not mentioned, and tags not
        mentioned of a node that is, stay. A tag of None has its default again. ``classes`` merges in the same way; a
        class of None is removed, or as built in.
        """
        if changes.get("format", POLICY_FORMAT) != POLICY_FORMAT:
            raise ConfigurationError("policy format is not a setting: it is the version of the stored record")
        merged = self.model_dump()
        for name, value in changes.items():
            if name == "nodes" and isinstance(value, dict):
                for node, tags in value.items():
                    now = {**merged["nodes"].get(node, {}), **(tags if isinstance(tags, dict) else {})}
                    known = NodeTags.model_fields
                    merged["nodes"][node] = {tag: v for tag, v in now.items() if v is not None or tag not in known}
            elif name == "classes" and isinstance(value, dict):
                for traffic_class, fields in value.items():
                    now = merged["classes"].pop(traffic_class, {})
                    if isinstance(fields, dict):
                        merged["classes"][traffic_class] = with_changes(traffic_class, now, fields)
            elif value is None and name in merged:
                del merged[name]
            else:
                merged[name] = value
        try:
            return Policy.model_validate(merged)
        except ValidationError as error:
            raise ConfigurationError("; ".join(_in_words(e) for e in error.errors())) from error


def _in_words(error: Any) -> str:
    name = ".".join(str(part) for part in error["loc"] if part != "[key]")
    if error["type"] == "extra_forbidden":
        return f"policy {name} is not known: see `holdfast policy show`"
    wish = wish_in_words(error["type"], error["msg"], error.get("ctx"))
    return f"policy {name}: {wish}, not {error.get('input')!r}"


DEFAULT_POLICY = Policy()
