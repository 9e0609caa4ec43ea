"""The configuration files of a local cluster: the same that people write by hand for hosts of their own."""

from __future__ import annotations

import hashlib
import json
from pathlib import Path
from typing import Any

from pydantic import BaseModel

from holdfast.local.layout import LOOPBACK, PROXY, ClusterFile, Layout, write_atomically
from holdfast.model.settings import (
    ApiSettings,
    ClusterSettings,
    ListenerSettings,
    NodeIdentity,
    NodeSettings,
    PostgresSettings,
    ProxySettings,
    StoreSettings,
    WitnessIdentity,
    WitnessSettings,
)

_LOCAL = {"data_dir", "state_dir", "bin_dir", "socket_dir", "os_user", "port", "write_port", "read_port", "api_port"}
_LOCAL |= {"endpoints", "host", "name", "nodes", "witnesses"}
HOSTS_NETWORK = "10.77.0.0/16"
"""Addresses of clusters with hosts of their own: a network that no other machine sees."""


def store_settings(file: ClusterFile, nearest: str | None = None) -> StoreSettings:
    """Where the cluster's etcd is: beside each node if they have hosts of their own; the ``nearest`` comes first."""
    names = sorted(file.nodes, key=lambda name: name != nearest)
    addresses = [file.address(name) for name in names] if file.addresses else [LOOPBACK]
    return StoreSettings(endpoints=tuple(f"http://{address}:{file.ports.etcd_client}" for address in addresses))


def node_settings(layout: Layout, file: ClusterFile, name: str) -> NodeSettings:
    """The configuration of one node's agent."""
    ports = file.ports.nodes[name]
    host: dict[str, Any] = {"host": file.address(name)} if file.addresses else {}
    hba = {"hba": (f"host all all {HOSTS_NETWORK} scram-sha-256",)} if file.addresses else {}
    return NodeSettings(
        cluster=_cluster_settings(file),
        node=NodeIdentity(name=name, state_dir=layout.node(name) / "state"),
        postgres=PostgresSettings(
            data_dir=layout.data_dir(name),
            bin_dir=Path(file.postgresql.path),
            port=ports.postgres,
            socket_dir=layout.socket_dir(file, name),
            os_user=file.os_user,
            superuser_password_file=layout.secret_file("superuser"),
            replication_password_file=layout.secret_file("replication"),
            parameters=file.parameters,
            **host,
            **hba,
        ),
        api=_api_settings(layout, ports.api, **host),
        store=store_settings(file, nearest=name),
    )


def witness_settings(layout: Layout, file: ClusterFile, name: str, api_port: int) -> WitnessSettings:
    """The configuration of the witness."""
    return WitnessSettings(
        cluster=_cluster_settings(file),
        witness=WitnessIdentity(name=name, replication_password_file=layout.secret_file("replication")),
        api=_api_settings(layout, api_port),
        store=store_settings(file),
    )


def _api_settings(layout: Layout, port: int, **host: Any) -> ApiSettings:
    """A cluster that was made by an earlier version has no token for readers."""
    read_token = layout.secret_file("read-token")
    tokens = {"read_token_file": read_token} if read_token.exists() else {}
    return ApiSettings(port=port, token_file=layout.secret_file("api-token"), **tokens, **host)


def _cluster_settings(file: ClusterFile) -> ClusterSettings:
    witnesses = {"witnesses": (file.witness,)} if file.witness is not None else {}
    return ClusterSettings(name=file.cluster, nodes=file.nodes, **witnesses)


def proxy_settings(layout: Layout, file: ClusterFile, name: str = PROXY) -> ProxySettings:
    """The configuration of a proxy."""
    host: dict[str, Any] = {"host": file.address(name)} if file.addresses else {}
    return ProxySettings(
        cluster=ClusterSettings(name=file.cluster, nodes=file.nodes),
        proxy=ListenerSettings(
            write_port=file.ports.write,
            read_port=file.ports.read,
            api_port=file.ports.proxy_api,
            users_file=layout.users_file,
            **host,
        ),
        store=store_settings(file),
    )


def write_configs(layout: Layout, file: ClusterFile) -> None:
    """(Re)write every configuration file from cluster.json."""
    for name in file.nodes:
        text = to_toml(node_settings(layout, file, name), f"Agent of node {name}: holdfast node --config {name}.toml")
        write_atomically(layout.node_config(name), text, 0o600)
    if file.witness is not None and file.ports.witness_api is not None:
        settings = witness_settings(layout, file, file.witness, file.ports.witness_api)
        text = to_toml(settings, f"The witness: holdfast witness --config {file.witness}.toml")
        write_atomically(layout.node_config(file.witness), text, 0o600)
    for name in file.proxies:
        text = to_toml(proxy_settings(layout, file, name), f"The proxy: holdfast proxy --config {name}.toml")
        write_atomically(layout.proxy_config(name), text, 0o600)


def settings_hash(layout: Layout, file: ClusterFile) -> str:
    """``sha256:…`` over every effective setting, without what differs from machine to machine (paths, ports, names)."""
    effective = {
        "node": _comparable(node_settings(layout, file, file.nodes[0])),
        "proxy": _comparable(proxy_settings(layout, file)),
        "nodes": len(file.nodes),
    }
    return "sha256:" + hashlib.sha256(json.dumps(effective, sort_keys=True).encode()).hexdigest()


def _comparable(settings: BaseModel) -> dict[str, Any]:
    def strip(value: Any) -> Any:
        if not isinstance(value, dict):
            return value
        return {k: strip(v) for k, v in value.items() if k not in _LOCAL and not k.endswith("_file")}

    stripped: dict[str, Any] = strip(settings.model_dump(mode="json"))
    return stripped


def to_toml(settings: BaseModel, title: str) -> str:
    """The settings that were set, as TOML with each one's description; what is left out keeps its default."""
    lines = [f"# {title}"]
    for section in type(settings).model_fields:
        if section not in settings.model_fields_set:
            continue
        value = getattr(settings, section)
        lines += ["", f"[{section}]", *_section(value)]
    return "\n".join(lines) + "\n"


def _section(section: BaseModel) -> list[str]:
    lines = []
    for name, field in type(section).model_fields.items():
        value = getattr(section, name)
        if name not in section.model_fields_set or value is None:
            continue
        if field.description:
            lines.append(f"# {field.description}")
        lines.append(f"{name} = {_value(value)}")
    return lines


def _value(value: Any) -> str:
    if isinstance(value, bool):
        return "true" if value else "false"
    if isinstance(value, int | float):
        return repr(value)
    if isinstance(value, list | tuple):
        return "[" + ", ".join(_value(item) for item in value) + "]"
    if isinstance(value, dict):
        return "{ " + ", ".join(f"{_string(str(k))} = {_value(v)}" for k, v in value.items()) + " }" if value else "{}"
    return _string(str(value))


def _string(text: str) -> str:
    """A basic string (TOML 1.0, "String"): JSON's escapes, except that JSON leaves DEL as it is."""
    return json.dumps(text, ensure_ascii=False).replace("\x7f", "\\u007f")
