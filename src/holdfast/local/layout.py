"""The directory of a local cluster: what is where, and the file that says what it is.

cluster.json              what it is: format, nodes, ports, versions (`ClusterFile`)
config/n1.toml …          configuration of the agents and of the proxy, generated, readable
secrets/                  random passwords, one per file, readable by the owner alone
etcd/data, etcd/etcd.log
n1/data, state, socket, log
proxy/proxy.log
run/                      lock, plan and state of the supervisor
"""

from __future__ import annotations

import json
import os
import secrets
import shutil
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import asdict, dataclass, field, replace
from pathlib import Path
from typing import Annotated, Any, ClassVar

from pydantic import ConfigDict, Field, TypeAdapter, ValidationError
from pydantic_core import ErrorDetails

from holdfast.local.ports import free_ports, is_free, proxy_ports
from holdfast.model.errors import ConfigurationError, EnvironmentFault
from holdfast.model.register import NodeName
from holdfast.model.settings import ClusterName
from holdfast.model.wish import wish_in_words
from holdfast.postgres.shared_memory import remove_shared_memory, shared_memory_left_in

FORMAT = 1
MINIMUM_NODES = 3
MINIMUM_NODES_WITH_WITNESS = 2
WITNESS = "w1"
MAXIMUM_NODES = 9

_SOCKET_PATH_MAX_BYTES = 107
"""Of a Unix socket's address (unix(7): sun_path holds 108 bytes with its end)."""
_SOCKET_NAME_BYTES = len("/.s.PGSQL.65535")

_STRICT = ConfigDict(extra="forbid", strict=True)
_Port = Annotated[int, Field(ge=1, le=65_535)]

SECRETS = ("superuser", "replication", "api-token", "read-token", "app")
APP_USER = "app"
APP_DATABASE = "app"
PROXY = "proxy"
LOOPBACK = "127.0.0.1"


@dataclass(frozen=True, slots=True)
class NodePorts:
    """Where a node's PostgreSQL and its agent listen."""

    postgres: _Port
    api: _Port
    __pydantic_config__: ClassVar[ConfigDict] = _STRICT


@dataclass(frozen=True, slots=True)
class Ports:
    """All ports of a cluster; ``seed`` is what they were drawn with."""

    seed: int
    write: _Port
    read: _Port
    proxy_api: _Port
    etcd_client: _Port
    etcd_peer: _Port
    nodes: dict[str, NodePorts]
    witness_api: _Port | None = None
    __pydantic_config__: ClassVar[ConfigDict] = _STRICT

    def labelled(self) -> Iterator[tuple[str, int]]:
        """Every port with the words that name it in cluster.json."""
        for name in ("write", "read", "proxy_api", "etcd_client", "etcd_peer"):
            yield f"ports.{name}", getattr(self, name)
        for node, ports in self.nodes.items():
            yield f"ports.nodes.{node}.postgres", ports.postgres
            yield f"ports.nodes.{node}.api", ports.api
        if self.witness_api is not None:
            yield "ports.witness_api", self.witness_api


@dataclass(frozen=True, slots=True)
class Program:
    """A server that the cluster was made with."""

    version: str
    source: str
    path: str
    __pydantic_config__: ClassVar[ConfigDict] = _STRICT


@dataclass(frozen=True, slots=True)
class ClusterFile:
    """cluster.json. ``complete`` turns true when the cluster has served for the first time."""

    cluster: ClusterName
    nodes: tuple[NodeName, ...]
    ports: Ports
    postgresql: Program
    etcd: Program
    os_user: str | None
    socket_root: str | None = None
    parameters: dict[str, str] = field(default_factory=dict)
    complete: bool = False
    format: int = FORMAT
    addresses: dict[str, str] = field(default_factory=dict)
    """Of nodes and proxies with hosts of their own, by name; empty if all are on this one."""
    witness: NodeName | None = None
    """A voter without PostgreSQL."""
    __pydantic_config__: ClassVar[ConfigDict] = _STRICT

    def address(self, name: str) -> str:
        """Where a node or a proxy listens and is reached."""
        return self.addresses.get(name, LOOPBACK)

    @property
    def proxies(self) -> tuple[str, ...]:
        """The names of the proxies."""
        return tuple(name for name in self.addresses if name not in self.nodes) or (PROXY,)

    @classmethod
    def from_json(cls, text: str, origin: Path) -> ClusterFile:
        """Read the file; raises ConfigurationError if it is not one, or one of another format."""
        try:
            found = json.loads(text)
            if isinstance(found, dict) and found.get("format") not in (FORMAT, None):
                raise ConfigurationError(
                    f"{origin}: the directory has format {found['format']}, this version of Holdfast reads {FORMAT}: "
                    "use the version that made it, or another --dir"
                )
            file = _CLUSTER_FILE.validate_json(text)
        except json.JSONDecodeError as error:
            raise ConfigurationError(f"{origin} is not JSON ({error}): {_MEND}") from error
        except ValidationError as error:
            raise ConfigurationError(f"{origin}: {'; '.join(map(_describe, error.errors()))}: {_MEND}") from error
        if problem := file.contradiction():
            raise ConfigurationError(f"{origin}: {problem}: {_MEND}")
        return file

    def contradiction(self) -> str | None:
        """What does not fit together, by the names of the file; None if everything does."""
        if len(set(self.nodes)) < len(self.nodes):
            return f"nodes lists one twice: {', '.join(self.nodes)}"
        fewest = MINIMUM_NODES_WITH_WITNESS if self.witness is not None else MINIMUM_NODES
        if not fewest <= len(self.nodes) <= MAXIMUM_NODES:
            return f"nodes lists {len(self.nodes)}, not {fewest} to {MAXIMUM_NODES}"
        if (self.witness is None) != (self.ports.witness_api is None) or self.witness in self.nodes:
            return "witness and ports.witness_api belong together, and a witness is none of the nodes"
        if set(self.ports.nodes) != set(self.nodes):
            return f"ports.nodes has {', '.join(self.ports.nodes) or 'none'}, and nodes has {', '.join(self.nodes)}"
        owners: dict[int, str] = {}
        for label, port in () if self.addresses else self.ports.labelled():
            if port in owners:
                return f"{owners[port]} and {label} are both {port}"
            owners[port] = label
        return None


_CLUSTER_FILE = TypeAdapter(ClusterFile)
_MEND = "correct it, restore the file, or choose another --dir"


def _describe(error: ErrorDetails) -> str:
    name = ".".join(str(part) for part in error["loc"])
    if error["type"] in ("missing", "unexpected_keyword_argument"):
        return f"{name or 'the whole'} is {'missing' if error['type'] == 'missing' else 'not known'}"
    shown = "" if isinstance(error["input"], dict) else f", not {error['input']!r}"
    return f"{name or 'the whole'}: {wish_in_words(error['type'], error['msg'], error.get('ctx'))}{shown}"


@dataclass(frozen=True, slots=True)
class Layout:
    """Where things are in the directory ``root`` (absolute)."""

    root: Path

    @classmethod
    def at(cls, directory: Path | str) -> Layout:
        """The layout of a directory, which need not exist yet."""
        return cls(Path(directory).expanduser().absolute())

    @property
    def cluster_file(self) -> Path:
        """What makes the directory a cluster."""
        return self.root / "cluster.json"

    @property
    def config(self) -> Path:
        """Generated configuration."""
        return self.root / "config"

    @property
    def secrets(self) -> Path:
        """Passwords."""
        return self.root / "secrets"

    @property
    def users_file(self) -> Path:
        """The proxy's users."""
        return self.secrets / "users"

    @property
    def run(self) -> Path:
        """The supervisor's own files."""
        return self.root / "run"

    @property
    def etcd_data(self) -> Path:
        """The store's data."""
        return self.root / "etcd" / "data"

    @property
    def etcd_log(self) -> Path:
        """The store's log."""
        return self.root / "etcd" / "etcd.log"

    @property
    def proxy_log(self) -> Path:
        """The proxy's log."""
        return self.root / "proxy" / "proxy.log"

    def node(self, name: str) -> Path:
        """Everything of one node."""
        return self.root / name

    def data_dir(self, name: str) -> Path:
        """A node's data directory."""
        return self.root / name / "data"

    def agent_log(self, name: str) -> Path:
        """The log of a node's agent and of its PostgreSQL's first words."""
        return self.root / name / "log" / "agent.log"

    def node_config(self, name: str) -> Path:
        """The configuration of a node's agent."""
        return self.config / f"{name}.toml"

    def proxy_config(self, name: str = PROXY) -> Path:
        """The configuration of a proxy."""
        return self.config / f"{name}.toml"

    def socket_dir(self, file: ClusterFile, name: str) -> Path:
        """Where a node's Unix socket is: below ``root`` unless that path is too long for one."""
        return Path(file.socket_root) / name if file.socket_root else self.root / name / "socket"

    def secret_file(self, name: str) -> Path:
        """The file of one secret."""
        return self.secrets / name

    def read_secret(self, name: str) -> str:
        """One secret; raises ConfigurationError if it cannot be read."""
        path = self.secret_file(name)
        try:
            return path.read_text().strip()
        except (OSError, UnicodeDecodeError) as error:
            reason = error.strerror if isinstance(error, OSError) else "it is not text"
            raise ConfigurationError(f"{path}: {reason}: restore the file, as the user who made the cluster") from error

    def exists(self) -> bool:
        """Whether there is a cluster here; raises ConfigurationError if that may not be looked at."""
        try:
            return self.cluster_file.exists()
        except PermissionError as error:
            raise ConfigurationError(f"--dir {self.root}: {error.strerror}: choose a directory of your own") from error

    def load(self) -> ClusterFile:
        """Read cluster.json; raises ConfigurationError if this is no cluster or one of another format."""
        try:
            text = self.cluster_file.read_text()
        except (FileNotFoundError, NotADirectoryError):
            raise ConfigurationError(
                f"--dir {self.root} holds no Holdfast cluster: create one with `holdfast up --dir {self.root}`"
            ) from None
        except PermissionError as error:
            raise ConfigurationError(f"--dir {self.root}: {error.strerror}: run as the user who made it") from error
        except (OSError, UnicodeDecodeError) as error:
            raise ConfigurationError(f"--dir {self.root}: {self.cluster_file.name} cannot be read: {error}") from error
        return ClusterFile.from_json(text, self.cluster_file)

    def save(self, file: ClusterFile) -> None:
        """Write cluster.json, all or nothing."""
        write_atomically(self.cluster_file, json.dumps(asdict(file), indent=2) + "\n", 0o644)


def write_atomically(path: Path, text: str, mode: int) -> None:
    """Replace a file so that a reader sees the old or the new text, and a crash leaves one of them."""
    temporary = path.with_name(f".{path.name}.{os.getpid()}")
    descriptor = os.open(temporary, os.O_WRONLY | os.O_CREAT | os.O_TRUNC, mode)
    with os.fdopen(descriptor, "w") as file:
        file.write(text)
        file.flush()
        os.fsync(file.fileno())
    temporary.replace(path)


def node_names(count: int, *, witness: bool = False) -> tuple[str, ...]:
    """The names of the nodes; raises ConfigurationError for a number that makes no cluster."""
    if count < (MINIMUM_NODES_WITH_WITNESS if witness else MINIMUM_NODES):
        raise ConfigurationError(
            f"--nodes {count}: at least {MINIMUM_NODES}, because of two nodes the one that is left after a loss has "
            "nobody to confirm a write; two with --witness"
        )
    if count > MAXIMUM_NODES:
        raise ConfigurationError(f"--nodes {count}: at most {MAXIMUM_NODES} on one machine")
    return tuple(f"n{number}" for number in range(1, count + 1))


def draw_ports(nodes: tuple[str, ...], wish: int | None, *, anywhere: bool = False, witness: bool = False) -> Ports:
    """Choose the ports of a new cluster; raises EnvironmentFault if ``wish`` (``--port``) is taken.

    ``anywhere`` leaves the usual port to others: for a cluster that lives for a minute only.
    """
    if wish is not None and not is_free(wish):
        raise EnvironmentFault(f"--port {wish}: the port is in use or not allowed; choose another, or leave it out")
    seed = secrets.randbelow(2**31)
    spare = free_ports(seed, taken=() if wish is None else (wish, wish + 1))
    write, read = (next(spare), next(spare)) if anywhere and wish is None else proxy_ports(wish, spare)
    return Ports(
        seed,
        write=write,
        read=read,
        proxy_api=next(spare),
        etcd_client=next(spare),
        etcd_peer=next(spare),
        nodes={node: NodePorts(next(spare), next(spare)) for node in nodes},
        witness_api=next(spare) if witness else None,
    )


_CLAIM = ".claimed"
"""Made first in a new directory, by one only."""


def check_new(layout: Layout) -> None:
    """Raise ConfigurationError unless a cluster may be made here: an absent or an empty directory."""
    if layout.root.exists() and not layout.root.is_dir():
        raise ConfigurationError(f"--dir {layout.root} is not a directory: choose another")
    if layout.root.is_dir() and any(layout.root.iterdir()):
        raise ConfigurationError(
            f"--dir {layout.root} is not empty and holds no Holdfast cluster: choose another, or empty it"
        )


def needs_short_sockets(layout: Layout) -> bool:
    """Whether a socket below the directory would have a longer name than the system allows."""
    longest = len(os.fsencode(layout.root / "n99" / "socket")) + _SOCKET_NAME_BYTES
    return longest > _SOCKET_PATH_MAX_BYTES


def make_directories(layout: Layout, file: ClusterFile, owner: tuple[int, int] | None) -> ClusterFile:
    """Make the directories and the secrets; servers' directories belong to ``owner`` (uid, gid) if given."""
    # Enterable by the servers' user, listable by nobody else; the parts are closed one by one.
    _make(layout.root, 0o711 if owner else 0o700)
    for path in (layout.config, layout.secrets, layout.run, layout.proxy_log.parent):
        _make(path, 0o700)
    _make(layout.etcd_data.parent, 0o700, owner)
    file = ensure_socket_directories(layout, file, owner)
    for name in file.nodes:
        make_node_directories(layout, file, name, owner)
    if file.witness is not None:
        _make(layout.agent_log(file.witness).parent, 0o700)
    for name in SECRETS:
        write_atomically(layout.secret_file(name), secrets.token_urlsafe(24) + "\n", 0o600)
    write_atomically(layout.users_file, f"{APP_USER} {layout.read_secret('app')}\n", 0o600)
    layout.save(file)
    return file


def make_node_directories(layout: Layout, file: ClusterFile, name: str, owner: tuple[int, int] | None) -> None:
    """Make the directories of one node, as on an empty disk."""
    _make(layout.node(name), 0o711 if owner else 0o700)
    _make(layout.node(name) / "state", 0o700)
    _make(layout.node(name) / "log", 0o700, owner)
    _make(layout.socket_dir(file, name), 0o700, owner)


def ensure_socket_directories(layout: Layout, file: ClusterFile, owner: tuple[int, int] | None) -> ClusterFile:
    """Make the sockets' directories, in a short place if need be (again after a reboot emptied that place)."""
    if needs_short_sockets(layout) and not (file.socket_root and Path(file.socket_root).is_dir()):
        file = replace(file, socket_root=tempfile.mkdtemp(prefix="holdfast-"))
        os.chmod(str(file.socket_root), 0o711 if owner else 0o700)
    for name in file.nodes:
        if not file.socket_root:
            _make(layout.node(name), 0o711 if owner else 0o700)
        _make(layout.socket_dir(file, name), 0o700, owner)
    return file


def _make(path: Path, mode: int, owner: tuple[int, int] | None = None) -> None:
    path.mkdir(mode=mode, parents=True, exist_ok=True)
    path.chmod(mode)
    if owner is not None:
        os.chown(path, *owner)


def remove(layout: Layout) -> None:
    """Remove the whole cluster from the disk; nothing of it may run any more."""
    socket_root: str | None = None
    if layout.exists():
        try:
            socket_root = layout.load().socket_root
        except ConfigurationError:
            socket_root = None
    if socket_root:
        shutil.rmtree(socket_root, ignore_errors=True)
    for data_dir in layout.root.glob("*/data"):
        remove_shared_memory(shared_memory_left_in(data_dir))
    shutil.rmtree(layout.root, ignore_errors=True)


@contextmanager
def claimed(layout: Layout) -> Iterator[None]:
    """Make the cluster's directory ours alone, and leave nothing half-made behind when what happens inside fails.

    Raises ConfigurationError, touching nothing, if somebody else is making a cluster there.
    """
    existed = layout.root.is_dir()
    layout.root.mkdir(mode=0o700, parents=True, exist_ok=True)
    try:
        os.close(os.open(layout.root / _CLAIM, os.O_CREAT | os.O_EXCL | os.O_WRONLY, 0o600))
    except FileExistsError:
        raise ConfigurationError(
            f"--dir {layout.root}: another `holdfast up` is making a cluster there: wait for it, or choose another"
        ) from None
    try:
        yield
    except BaseException:
        remove(layout)
        if existed:
            layout.root.mkdir(exist_ok=True)
        raise


def dump(value: Any) -> str:
    """Pretty JSON, as in the files of the directory."""
    return json.dumps(value, indent=2, default=str)
