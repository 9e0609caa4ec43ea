"""Configuration of the processes, as values. Reading files is the business of ``cli``."""

from __future__ import annotations

import tomllib
from ipaddress import ip_network
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Literal, TypeVar

from pydantic import BaseModel, ConfigDict, Field, ValidationError, field_validator

from holdfast.model.errors import ConfigurationError
from holdfast.model.register import NodeName
from holdfast.model.thresholds import Thresholds
from holdfast.model.timeouts import Timeouts
from holdfast.model.wish import CLUSTER_NAME, HTTP_URL, ROLE, SENT_TO, wish_in_words

if TYPE_CHECKING:
    from pydantic_core import ErrorDetails


class _Section(BaseModel):
    model_config = ConfigDict(extra="forbid", frozen=True)


Port = int
Pooling = Literal["session", "transaction"]
ClusterName = Annotated[str, Field(pattern=CLUSTER_NAME)]


class StoreSettings(_Section):
    """``[store]``: where etcd is."""

    endpoints: tuple[str, ...] = Field(min_length=1, description="URLs of the etcd members, tried in turn")
    ca_file: Path | None = Field(None, description="certificate authority of an https endpoint")
    cert_file: Path | None = Field(None, description="client certificate")
    key_file: Path | None = Field(None, description="key of the client certificate")
    user: str | None = Field(None, description="etcd user")
    password_file: Path | None = Field(None, description="file that holds the etcd user's password")

    @field_validator("endpoints")
    @classmethod
    def _urls(cls, value: tuple[str, ...]) -> tuple[str, ...]:
        for url in value:
            if not url.startswith(("http://", "https://")):
                raise ValueError(f"{url!r} is not a URL: write it as http://host:2379 or https://host:2379")
        return tuple(url.rstrip("/") for url in value)


class PostgresSettings(_Section):
    """``[postgres]``: the one server that a node's agent owns."""

    data_dir: Path = Field(description="the data directory; made by the agent, owned by the server's user")
    bin_dir: Path | None = Field(None, description="directory of postgres, initdb…; found by itself if unset")
    host: str = Field("127.0.0.1", description="address to listen on and to be reached at")
    port: Port = Field(ge=1, le=65535, description="port to listen on")
    socket_dir: Path = Field(description="directory of the Unix socket that the agent uses")
    os_user: str | None = Field(None, description="unprivileged user to run PostgreSQL as, when the agent is root")
    superuser_password_file: Path = Field(description="file that holds the password of role postgres")
    replication_password_file: Path = Field(description="file that holds the password of role holdfast_replication")
    parameters: dict[str, str] = Field({}, description="further PostgreSQL settings, as in postgresql.conf")
    hba: tuple[str, ...] = Field(
        ("host all all 127.0.0.1/32 scram-sha-256", "host all all ::1/128 scram-sha-256"),
        description="lines of pg_hba.conf for applications; those of Holdfast's own roles are added",
    )
    wal_segment_mib: int = Field(
        4, ge=1, le=1024, description="size of one file of the log (pg_wal) in a cluster made anew, a power of two; "
        "a promotion waits until one is written"
    )  # fmt: skip
    salvage: bool = Field(
        True, description="whether the rows of lost transactions are read from a copy of the data directory before an "
        "old primary is rewound; the transactions are listed in any case"
    )  # fmt: skip
    salvage_dir: Path | None = Field(
        None, description="where that copy is made, for a while; beside the data directory if unset, which takes no "
        "room where the file system can share blocks (XFS, Btrfs)"
    )  # fmt: skip

    @field_validator("wal_segment_mib")
    @classmethod
    def _power_of_two(cls, value: int) -> int:
        if value & (value - 1):
            raise ValueError(f"{value} is no power of two: write 1, 2, 4, 8, 16 and so on up to 1024")
        return value


class ApiSettings(_Section):
    """``[api]``: the agent's HTTP endpoint for peers, people and load balancers."""

    host: str = Field("127.0.0.1", description="address to listen on and to be reached at")
    port: Port = Field(ge=1, le=65535, description="port to listen on")
    token_file: Path = Field(
        description="file that holds the cluster's shared token; orders carry it, and questions about clients"
    )
    read_token_file: Path | None = Field(
        None,
        description="file that holds another token, for applications: it opens what tells of clients (GET /outcome), "
        "and no orders",
    )


class NodeIdentity(_Section):
    """``[node]``: who this node is."""

    name: NodeName = Field(description="the node's name, unique in the cluster: 1 to 16 lower-case letters and digits")
    state_dir: Path = Field(description="where the agent keeps its promise; must survive a reboot")


class ClusterSettings(_Section):
    """``[cluster]``: which cluster this process belongs to."""

    name: ClusterName = Field("main", description="the cluster's name in the store")
    nodes: tuple[NodeName, ...] = Field((), description="all nodes, needed to create the cluster; they are its voters")
    witnesses: tuple[NodeName, ...] = Field(
        (), description="further voters, without a PostgreSQL: `holdfast witness`; needed to create the cluster"
    )

    @field_validator("nodes")
    @classmethod
    def _each_once(cls, value: tuple[str, ...]) -> tuple[str, ...]:
        twice = sorted({name for name in value if value.count(name) > 1})
        if twice:
            raise ValueError(f"{', '.join(twice)} is listed twice: name every node once, a voter has one vote")
        return value


class FencingSettings(_Section):
    """``[fencing]``: what is done about a lost primary besides stopping it, where its agent still can."""

    command: tuple[str, ...] = Field(
        (), description="program and arguments that cut a lost primary off (power, security group); run once by the "
        "voter that opened the epoch, with HOLDFAST_LOST_NODE, HOLDFAST_EPOCH and HOLDFAST_CLUSTER in its environment"
    )  # fmt: skip
    command_timeout_s: float = Field(30.0, gt=0, le=3600, description="after this it is killed with all it started")
    watchdog_device: Path | None = Field(
        None, description="kernel watchdog (/dev/watchdog) that resets this machine when the agent of a primary hangs"
    )
    watchdog_timeout_s: int = Field(
        15, ge=5, le=600, description="how long the agent may not turn before the machine is reset"
    )


class IsolationSettings(_Section):
    """``[isolation]``: who may still reach a node whose leadership was lost, until it is back."""

    enabled: bool = Field(
        True, description="whether PostgreSQL then lets nobody in but replication, its agent and the investigator, "
        "instead of those of `postgres.hba`"
    )  # fmt: skip
    investigator_role: str = Field(
        "postgres", pattern=ROLE, description="the role that may come in all the same, "
        "over the Unix socket and from `investigator_addresses`"
    )  # fmt: skip
    investigator_addresses: tuple[str, ...] = Field(
        (), description="addresses and networks from which the investigator may come"
    )
    nftables: bool = Field(
        False, description="whether the kernel, too, turns everybody else away from PostgreSQL's port once nobody "
        "counts on the node's data (a table of its own; the agent needs `nft` and CAP_NET_ADMIN)"
    )  # fmt: skip
    command: tuple[str, ...] = Field(
        (), description="program and arguments that cut a lost node off from outside (a security group) and let it in "
        "again; run by the agent of the leader, with HOLDFAST_ISOLATION (`begin` or `lift`), HOLDFAST_LOST_NODE, "
        "HOLDFAST_NODE, HOLDFAST_EPOCH and HOLDFAST_CLUSTER in its environment"
    )  # fmt: skip
    command_timeout_s: float = Field(30.0, gt=0, le=3600, description="after this it is killed with all it started")

    @field_validator("investigator_addresses")
    @classmethod
    def _networks(cls, value: tuple[str, ...]) -> tuple[str, ...]:
        try:
            return tuple(str(ip_network(address, strict=False)) for address in value)
        except ValueError as error:
            raise ValueError(f"{error}: write an address, or a network such as 10.0.0.0/24") from error


class CaptureSettings(_Section):
    """``[capture]``: what is taken of a failed node before anything touches it, and where it goes."""

    directory: Path | None = Field(
        None, description="where captures go; best on another disk than the data directory's, which may be the fault; "
        "`captures` below `node.state_dir` if unset"
    )  # fmt: skip
    bytes_max: int = Field(4 * 1024**3, ge=1024**2, description="what one capture may have")
    server_log_bytes: int = Field(64 * 1024**2, ge=0, description="of the server's log, the newest part")
    log_before_bytes: int = Field(64 * 1024**2, ge=0, description="of the write-ahead log before the fork")
    data_files: bool = Field(False, description="whether tables and indexes are taken as well")
    secrets: bool = Field(
        False, description="whether passwords in configuration files and statements stay; keys of TLS are never taken"
    )
    kernel_log: bool = Field(True, description="whether the end of the kernel's log is taken, where the agent may")
    keep: int = Field(10, ge=1, le=10_000, description="captures of this node that are kept, the newest")
    keep_bytes: int = Field(16 * 1024**3, ge=0, description="what they may have together; the newest stays in any case")
    recipients: tuple[str, ...] = Field(
        (), description="public keys of age (`age1…`) to which everything is encrypted; the private key stays elsewhere"
    )
    send_to: str | None = Field(
        None, pattern=SENT_TO, description="where captures are sent when they are taken: "
        "`ssh://USER@HOST[:PORT]/DIRECTORY` or `s3://BUCKET[/PREFIX]`; the node's return waits for it as for the "
        "capture itself"
    )  # fmt: skip
    ssh_key_file: Path | None = Field(None, description="private key for ssh; else what the agent's user has")
    ssh_options: tuple[str, ...] = Field(
        (), description="further options of ssh, as in ssh_config: `UserKnownHostsFile=/etc/holdfast/known_hosts`"
    )
    s3_endpoint: str | None = Field(
        None, pattern=HTTP_URL, description="URL of the storage: https://s3.eu-central-1.amazonaws.com"
    )
    s3_region: str = Field("us-east-1", min_length=1, description="region that requests are signed for")
    s3_key_file: Path | None = Field(None, description="file that holds the access key's id and its secret, two words")
    s3_ca_file: Path | None = Field(None, description="certificate authority of an https endpoint")
    snapshot_command: tuple[str, ...] = Field(
        (), description="program and arguments that make a snapshot of the volume before anything is copied, with "
        "HOLDFAST_NODE, HOLDFAST_EPOCH, HOLDFAST_CLUSTER and HOLDFAST_DATA_DIR in its environment"
    )  # fmt: skip
    snapshot_timeout_s: float = Field(60.0, gt=0, le=3600, description="after this it is killed with all it started")

    @field_validator("recipients")
    @classmethod
    def _public_keys(cls, value: tuple[str, ...]) -> tuple[str, ...]:
        for key in value:
            if not key.startswith("age1"):
                shown = "a private key" if key.startswith("AGE-SECRET-KEY") else "what is given"
                raise ValueError(f"{shown} is no public key of age: one begins with age1, see `age-keygen -y`")
        return value


class WebhookSettings(_Section):
    """One receiver."""

    url: str = Field(pattern=HTTP_URL, description="where a POST with a JSON body goes")
    secret_file: Path | None = Field(
        None, description="file with the secret that signs the body: X-Holdfast-Signature: sha256=HMAC"
    )


class HookSettings(_Section):
    """``[hooks]``: who is told when this node becomes a primary, a standby, or stops being one."""

    on_role_change: tuple[str, ...] = Field(
        (), description="program and arguments, with HOLDFAST_ROLE, HOLDFAST_FORMER_ROLE, HOLDFAST_NODE, "
        "HOLDFAST_EPOCH and HOLDFAST_CLUSTER in its environment"
    )  # fmt: skip
    webhooks: tuple[WebhookSettings, ...] = Field((), description="receivers of a POST: url, secret_file")
    timeout_s: float = Field(10.0, gt=0, le=600, description="for the program, and for each POST")
    attempts: int = Field(5, ge=1, le=100, description="how often a POST is tried until it is answered with 2xx")
    retry_s: float = Field(1.0, gt=0, le=600, description="pause after the first POST that failed; doubled each time")


class NodeSettings(_Section):
    """Configuration of ``holdfast node``."""

    cluster: ClusterSettings = ClusterSettings()
    node: NodeIdentity
    postgres: PostgresSettings
    api: ApiSettings
    store: StoreSettings
    fencing: FencingSettings = FencingSettings()
    isolation: IsolationSettings = IsolationSettings()
    hooks: HookSettings = HookSettings()
    capture: CaptureSettings = CaptureSettings()
    thresholds: Thresholds = Thresholds()
    timeouts: Timeouts = Timeouts()


class WitnessIdentity(_Section):
    """``[witness]``: who this voter is."""

    name: NodeName = Field(description="its name, one of `cluster.witnesses`")
    replication_password_file: Path = Field(
        description="file that holds the password of role holdfast_replication, with which it looks at the primary"
    )


class WitnessSettings(_Section):
    """Configuration of ``holdfast witness``."""

    cluster: ClusterSettings = ClusterSettings()
    witness: WitnessIdentity
    api: ApiSettings
    store: StoreSettings
    fencing: FencingSettings = FencingSettings()
    thresholds: Thresholds = Thresholds()
    timeouts: Timeouts = Timeouts()


class ListenerSettings(_Section):
    """``[proxy]``: the endpoint that clients connect to."""

    host: str = Field("127.0.0.1", description="address to listen on")
    write_port: Port = Field(ge=1, le=65535, description="port that always leads to the primary")
    read_port: Port = Field(ge=1, le=65535, description="port that leads to a standby, else to the primary")
    api_port: Port | None = Field(None, ge=1, le=65535, description="port of the proxy's own /health and /status")
    hold_max_clients: int = Field(10_000, ge=0, description="clients that may wait for a primary at the same time")
    max_clients: int = Field(10_000, ge=1, description="client connections that are accepted at the same time")
    auth: Literal["scram-sha-256", "trust"] = Field("scram-sha-256", description="how clients prove who they are")
    users_file: Path = Field(description="lines of `user password-or-SCRAM-secret`; also used towards the servers")
    pooling: Pooling = Field(
        "session", description="how long a client keeps a server connection: as long as it is there, or a transaction"
    )
    pooling_by: dict[str, Pooling] = Field(
        {}, description="other than `pooling`, by `user`, `@database` or `user@database` (the narrowest counts)"
    )
    pool_size: int = Field(20, ge=1, description="server connections per user, database and port that are shared")
    pool_idle_s: float = Field(600, gt=0, description="a shared server connection is closed when unused for so long")
    pool_lifetime_s: float = Field(3600, gt=0, description="a shared server connection is closed when so old")
    tls_cert_file: Path | None = Field(None, description="certificate shown to clients that ask for TLS")
    tls_key_file: Path | None = Field(None, description="key of that certificate")

    @field_validator("pooling_by")
    @classmethod
    def _names(cls, value: dict[str, Pooling]) -> dict[str, Pooling]:
        for name in value:
            if not name.strip("@"):
                raise ValueError(f"{name!r} names nobody: write `user`, `@database` or `user@database`")
        return value

    def pooling_of(self, user: str, database: str) -> Pooling:
        """How long a user's clients keep a server connection to a database."""
        for name in (f"{user}@{database}", user, f"@{database}"):
            if name in self.pooling_by:
                return self.pooling_by[name]
        return self.pooling


class ProxySettings(_Section):
    """Configuration of ``holdfast proxy``."""

    cluster: ClusterSettings = ClusterSettings()
    proxy: ListenerSettings
    store: StoreSettings
    timeouts: Timeouts = Timeouts()


SettingsT = TypeVar("SettingsT", bound=BaseModel)


def parse_settings(text: str, kind: type[SettingsT], origin: str) -> SettingsT:
    """Read a TOML configuration; raises ConfigurationError that names every wrong setting and ``origin``."""
    try:
        return kind.model_validate(tomllib.loads(text))
    except tomllib.TOMLDecodeError as error:
        raise ConfigurationError(f"{origin}: not valid TOML: {error}") from error
    except ValidationError as error:
        problems = "; ".join(_describe(kind, e) for e in error.errors())
        raise ConfigurationError(f"{origin}: {problems}") from error


def _describe(kind: type[BaseModel], error: ErrorDetails) -> str:
    name, value = ".".join(map(str, error["loc"])), error.get("input")
    if error["type"] == "extra_forbidden":
        return f"unknown setting {name} (known here: {', '.join(_siblings(kind, error['loc']))})"
    if error["type"] == "missing":
        return f"setting {name} is missing"
    hidden = "password" in name or "SECRET-KEY" in str(value) or isinstance(value, dict)
    shown = "" if hidden else f", not {value!r}"
    return f"setting {name}: {wish_in_words(error['type'], error['msg'], error.get('ctx'))}{shown}"


def _siblings(kind: type[BaseModel], loc: tuple[int | str, ...]) -> list[str]:
    for part in loc[:-1]:
        field = kind.model_fields.get(str(part))
        if field is None or not (isinstance(field.annotation, type) and issubclass(field.annotation, BaseModel)):
            return []
        kind = field.annotation
    return sorted(kind.model_fields)
