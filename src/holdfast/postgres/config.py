"""The server's configuration: ``holdfast.conf``, which the agent owns, ``pg_hba.conf`` and the password file."""

from __future__ import annotations

import re
from collections.abc import Collection, Mapping
from dataclasses import dataclass, replace
from pathlib import Path

from psycopg import ProgrammingError
from psycopg.conninfo import conninfo_to_dict, make_conninfo

from holdfast.model.errors import ConfigurationError
from holdfast.model.register import BARRIER_NAME, NODE_NAME, Member
from holdfast.model.server import Upstream
from holdfast.model.settings import PostgresSettings
from holdfast.postgres.files import write_atomically, write_if_changed
from holdfast.postgres.installation import Installation
from holdfast.postgres.layout import Layout

CONF_FILE = "holdfast.conf"
REPLICATION_ROLE = "holdfast_replication"
BARRIER = f"ANY 1 ({BARRIER_NAME})"
SLOT_PREFIX = "holdfast_"
SOCKET_PATH_BYTES_MAX = 107
"""What fits into ``sun_path`` (unix(7)), without the closing zero."""

_NAME = re.compile(r"\A[a-z_][a-z0-9_]*(\.[a-z_][a-z0-9_]*)*\Z")
_SETTING_LINE = re.compile(r"\A\s*([A-Za-z_][A-Za-z0-9_.]*)\s*(?:=|\s)\s*(.*?)\s*\Z")
_INCLUDE_LINE = re.compile(rf"\A\s*include\s*=?\s*'{re.escape(CONF_FILE)}'")

DEFAULTS: Mapping[str, str] = {
    "max_connections": "300",
    "superuser_reserved_connections": "5",
    "max_wal_senders": "20",
    "max_replication_slots": "20",
    # As PostgreSQL has them for files of 16 MB; initdb makes them less where files are smaller.
    "min_wal_size": "80MB",
    "max_wal_size": "1GB",
    "wal_keep_size": "256MB",
    "max_slot_wal_keep_size": "4GB",
    "wal_sender_timeout": "10s",
    # What replay is behind has to be replayed before a promotion ends: a reader may hold it up for this long, not for
    # PostgreSQL's 30 s.
    "max_standby_streaming_delay": "5s",
    "max_standby_archive_delay": "5s",
    "log_line_prefix": "%m [%p] %q%u@%d ",
}
"""What ``postgres.parameters`` may change."""

_FIXED: Mapping[str, str] = {
    "fsync": "on",
    "full_page_writes": "on",
    "hot_standby": "on",
    "wal_log_hints": "on",
    "restart_after_crash": "off",
    "password_encryption": "scram-sha-256",
    "recovery_target_timeline": "latest",
    "restore_command": "",
    "wal_receiver_timeout": "5s",
    "wal_receiver_status_interval": "1s",
    # A standby that meets a new timeline waits out this pause before it asks for it, and the barrier with it.
    "wal_retrieve_retry_interval": "50ms",
    "recovery_min_apply_delay": "0",
    "update_process_title": "on",
    "lc_messages": "C",
    "logging_collector": "on",
    "log_destination": "stderr",
    "log_filename": "postgresql-%Y%m%d-%H%M%S.log",
    "log_rotation_size": "20MB",
    "log_rotation_age": "1d",
    "log_file_mode": "0600",
}
"""What the protocol, or the agent's own reading of the server, stands on."""

_WALSENDER_OPTIONS = "-c wal_sender_timeout=5s -c tcp_user_timeout=5s"
"""What a standby asks of its own walsender, whatever the upstream's settings: that it gives a broken connection up when
the walreceiver does (wal_receiver_timeout), for it holds the slot, also while nobody takes its output."""

_COMPUTED = frozenset(
    {"listen_addresses", "port", "unix_socket_directories", "cluster_name", "log_directory"}
    | {"synchronous_standby_names", "primary_conninfo", "primary_slot_name"}
)
_FORBIDDEN = frozenset(
    {"data_directory", "config_file", "hba_file", "ident_file", "external_pid_file", "promote_trigger_file"}
    | {"recovery_target", "recovery_target_action", "recovery_target_inclusive", "recovery_target_lsn"}
    | {"recovery_target_name", "recovery_target_time", "recovery_target_xid"}
)
_RESTRICTED: Mapping[str, frozenset[str]] = {
    "wal_level": frozenset({"replica", "logical"}),
    "synchronous_commit": frozenset({"on", "remote_apply"}),
}
"""What may be set, but not to anything: below these, an acknowledged commit may be nowhere else."""
_DELAYS = ("max_standby_streaming_delay", "max_standby_archive_delay")

OWNED = _COMPUTED | _FORBIDDEN | frozenset(_FIXED)
"""What ``postgres.parameters`` may not set."""
STRIPPED = OWNED | frozenset(_RESTRICTED) | frozenset(_DELAYS)
"""What is taken out of ``postgresql.auto.conf``, which PostgreSQL reads last."""


@dataclass(frozen=True, slots=True)
class Runtime:
    """The settings that change while the server runs."""

    synchronous_names: str = BARRIER
    upstream: Upstream | None = None
    application_name: str | None = None
    quick_replay: bool = False
    """Cancel every query that replay would have to wait for."""

    @property
    def uses_slot(self) -> bool:
        """Whether it streams through its node's slot: not under a name that no member has, which counts for nothing."""
        a_member = self.application_name is None or Member.parse(self.application_name) is not None
        return self.upstream is not None and a_member


class Configuration:
    """Writes the configuration of one server. The caller reloads.

    Nothing is brought to the disk by force, which could take long on the way to a promotion: every start writes it all.
    """

    def __init__(self, settings: PostgresSettings, node: str, installation: Installation, layout: Layout) -> None:
        """Raises ConfigurationError for a setting that cannot be, naming it and the fix."""
        self._settings = settings
        self._node = node
        self._layout = layout
        self.peer_addresses: Collection[str] = ()
        self.only: Collection[str] | None = None
        """Lines of pg_hba.conf that stand for those of the settings while the node is isolated."""
        self._parameters = _checked_parameters(settings.parameters)
        socket = str(settings.socket_dir / f".s.PGSQL.{settings.port}")
        if len(socket.encode()) > SOCKET_PATH_BYTES_MAX:
            raise ConfigurationError(
                f"postgres.socket_dir makes the socket's path {socket} {len(socket.encode())} bytes long, and a Unix "
                f"socket's path has at most {SOCKET_PATH_BYTES_MAX}: choose a shorter directory"
            )

    def write(self, runtime: Runtime) -> None:
        """Bring everything on the disk to ``runtime``: the password file first, the settings last."""
        data_dir, owner = self._layout.data_dir, self._layout.owner
        if runtime.upstream is None:
            self._layout.passfile.unlink(missing_ok=True)
        else:
            self.write_passfile(self._layout.passfile)
        self.write_hba()
        self._include()
        strip_owned(data_dir / "postgresql.auto.conf", self._layout)
        write_if_changed(data_dir / CONF_FILE, self.render(runtime), owner)

    def write_passfile(self, path: Path) -> None:
        """Write a password file for the replication role, whatever the host."""
        password = read_secret(self._settings.replication_password_file, "postgres.replication_password_file")
        escaped = password.replace("\\", "\\\\").replace(":", "\\:")
        write_if_changed(path, f"*:*:*:{REPLICATION_ROLE}:{escaped}\n", self._layout.owner)

    def render(self, runtime: Runtime) -> str:
        """The text of ``holdfast.conf``."""
        computed = {
            "listen_addresses": self._settings.host,
            "port": str(self._settings.port),
            "unix_socket_directories": str(self._settings.socket_dir),
            "cluster_name": self._node,
            "log_directory": str(self._layout.log_dir),
            "synchronous_standby_names": runtime.synchronous_names,
            "primary_conninfo": self._conninfo(runtime),
            "primary_slot_name": slot_of(self._node) if runtime.uses_slot else "",
        }
        delays = dict.fromkeys(_DELAYS, "0") if runtime.quick_replay else {}
        wal_level = {"wal_level": "replica"}
        merged = {**DEFAULTS, **wal_level, **self._parameters, **_FIXED, **computed, **delays}
        lines = "".join(f"{name} = {quote(value)}\n" for name, value in merged.items())
        return f"# Written by Holdfast, whole, whenever something changes. Use postgres.parameters instead.\n{lines}"

    def render_hba(self) -> str:
        """The text of ``pg_hba.conf``: Holdfast's own lines first, then those of the settings."""
        peers = ["samenet", "127.0.0.1/32", "::1/128", *map(_as_network, self.peer_addresses)]
        own = ["local all postgres scram-sha-256", f"local replication {REPLICATION_ROLE} scram-sha-256"]
        for peer in peers:
            own.append(f"host replication {REPLICATION_ROLE} {peer} scram-sha-256")
            own.append(f"host postgres {REPLICATION_ROLE} {peer} scram-sha-256")
        others = ["# postgres.hba", *self._settings.hba]
        if self.only is not None:
            others = ["# Isolated: postgres.hba counts again once the node is back.", *self.only]
        return "\n".join(["# Written by Holdfast. Use postgres.hba instead.", *own, *others, ""])

    def write_hba(self) -> bool:
        """Bring ``pg_hba.conf`` alone to what it should say; returns whether it said something else."""
        return write_if_changed(self._layout.data_dir / "pg_hba.conf", self.render_hba(), self._layout.owner)

    def read_back(self) -> Runtime:
        """The runtime settings that a former agent wrote."""
        runtime, slot = Runtime(), ""
        for name, value in read_settings(self._layout.data_dir / CONF_FILE):
            if name == "synchronous_standby_names":
                runtime = replace(runtime, synchronous_names=value)
            elif name == "max_standby_streaming_delay":
                runtime = replace(runtime, quick_replay=value == "0")
            elif name == "primary_conninfo" and value:
                found = conninfo_to_dict(value)
                member = Member.parse(str(found.get("application_name")))
                host, port = str(found.get("host")), int(found.get("port") or 5432)
                upstream = Upstream(str(found.get("fallback_application_name") or ""), host, port)
                name_used = member.application_name if member else None
                runtime = replace(runtime, upstream=upstream, application_name=name_used)
            elif name == "primary_slot_name":
                slot = value
        # What an older agent wrote streams through no slot: it counts as unnamed, so that it is written anew.
        return runtime if slot else replace(runtime, application_name=None)

    def _conninfo(self, runtime: Runtime) -> str:
        if runtime.upstream is None:
            return ""
        return upstream_conninfo(
            runtime.upstream,
            runtime.application_name or f"{self._node}_unnamed",
            self._layout.passfile,
            options=_WALSENDER_OPTIONS,
        )

    def _include(self) -> None:
        path = self._layout.data_dir / "postgresql.conf"
        lines = path.read_text().splitlines() if path.exists() else []
        kept = [line for line in lines if not _INCLUDE_LINE.match(line)]
        write_if_changed(path, "\n".join([*kept, f"include '{CONF_FILE}'", ""]), self._layout.owner)


def slot_of(node: str) -> str:
    """The physical slot through which a node streams, by the same name on every server."""
    return f"{SLOT_PREFIX}{node}"


def upstream_conninfo(upstream: Upstream, application_name: str, passfile: Path, **extra: str | int) -> str:
    """How to reach another server as the replication role: no secret in it, and no long waits."""
    return make_conninfo(
        "",
        host=upstream.host,
        port=upstream.port,
        user=REPLICATION_ROLE,
        application_name=application_name,
        passfile=str(passfile),
        connect_timeout=2,
        keepalives=1,
        keepalives_idle=2,
        keepalives_interval=1,
        keepalives_count=3,
        tcp_user_timeout=5000,
        gssencmode="disable",
        **({"fallback_application_name": upstream.node} if NODE_NAME.match(upstream.node) else {}),
        **extra,
    )


def upstream_of(conninfo: str) -> str | None:
    """``host:port`` of a primary_conninfo; None if it is empty."""
    if not conninfo.strip():
        return None
    try:
        found = conninfo_to_dict(conninfo)
    except ProgrammingError:
        return "unreadable"
    return f"{found.get('host', '')}:{found.get('port', 5432)}"


def read_secret(path: Path, setting: str) -> str:
    """The first line of a file that holds a password; raises ConfigurationError naming the setting."""
    try:
        text = path.read_text()
    except OSError as error:
        raise ConfigurationError(f"{setting} = {str(path)!r} cannot be read: {error.strerror}") from error
    secret = text.splitlines()[0] if text else ""
    if not secret:
        raise ConfigurationError(f"{setting} = {str(path)!r} is empty: write the password into its first line")
    return secret


def strip_owned(auto_conf: Path, layout: Layout) -> list[str]:
    """Take what Holdfast owns out of ``postgresql.auto.conf``; returns the names taken out."""
    try:
        lines = auto_conf.read_text().splitlines()
    except FileNotFoundError:
        return []
    kept, taken = [], []
    for line in lines:
        match = _SETTING_LINE.match(line)
        if match and match[1].lower() in STRIPPED:
            taken.append(match[1].lower())
        else:
            kept.append(line)
    if taken:
        write_atomically(auto_conf, "\n".join([*kept, ""]), layout.owner)
    return taken


def read_settings(path: Path) -> list[tuple[str, str]]:
    """Names and values of a file in the format of postgresql.conf that ``Configuration`` wrote."""
    try:
        lines = path.read_text().splitlines()
    except OSError:
        return []
    found = []
    for line in lines:
        match = _SETTING_LINE.match(line)
        if match and not line.startswith("#"):
            value = match[2]
            if value.startswith("'") and value.endswith("'"):
                value = value[1:-1].replace("''", "'").replace("\\\\", "\\")
            found.append((match[1].lower(), value))
    return found


def quote(value: str) -> str:
    """A value as postgresql.conf wants it."""
    return "'" + value.replace("\\", "\\\\").replace("'", "''") + "'"


def _checked_parameters(parameters: Mapping[str, str]) -> dict[str, str]:
    checked = {}
    for given, value in parameters.items():
        name = given.strip().lower()
        if name in OWNED:
            raise ConfigurationError(f"postgres.parameters may not set {name}: Holdfast owns it; remove it there")
        if not _NAME.match(name):
            raise ConfigurationError(f"postgres.parameters: {given!r} is not the name of a PostgreSQL setting")
        if "\n" in value or "\0" in value:
            raise ConfigurationError(f"postgres.parameters: the value of {name} must be one line")
        allowed = _RESTRICTED.get(name)
        if allowed is not None and value.strip().lower() not in allowed:
            raise ConfigurationError(
                f"postgres.parameters: {name} = {value!r} would break the cluster's guarantees; "
                f"it may be {' or '.join(sorted(allowed))}"
            )
        checked[name] = value
    return checked


def _as_network(address: str) -> str:
    if "/" in address or not re.fullmatch(r"[0-9.]+|[0-9A-Fa-f:.]*:[0-9A-Fa-f:.]*", address):
        return address  # a network, or a host name
    return f"{address}/128" if ":" in address else f"{address}/32"
