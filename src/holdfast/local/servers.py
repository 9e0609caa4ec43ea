"""The servers that a local cluster uses, and the plan by which its supervisor runs them."""

from __future__ import annotations

import os
import sys
from pathlib import Path

from holdfast.local.layout import PROXY, ClusterFile, Layout, Program
from holdfast.local.plan import Plan, ProcessSpec
from holdfast.model.timeouts import LocalTimeouts, Timeouts

PROXY_STAGE, AGENT_STAGE, STORE_STAGE = 0, 1, 2


def _dotted(version: object) -> str:
    return ".".join(str(part) for part in version) if isinstance(version, tuple) else str(version)


def find_servers(private_copy_dir: Path, os_user: str | None) -> tuple[Program, Program]:
    """PostgreSQL and etcd; raises ConfigurationError or EnvironmentFault with the fix.

    One after the other: each may be copied and then tried, and a program that is forked for the one while the other is
    being copied keeps that file open for writing, so that it cannot be executed ("text file busy").
    """
    return find_postgresql(private_copy_dir, os_user), find_etcd(private_copy_dir, os_user)


def find_postgresql(private_copy_dir: Path, os_user: str | None) -> Program:
    """The PostgreSQL to use; raises ConfigurationError or EnvironmentFault with the fix."""
    from holdfast.postgres.installation import find_installation

    found = find_installation(None, private_copy_dir, os_user)
    return Program(_dotted(found.version), found.source, str(found.bin_dir))


def find_etcd(private_copy_dir: Path, os_user: str | None) -> Program:
    """The etcd to use; raises ConfigurationError or EnvironmentFault with the fix."""
    from holdfast.store.etcd_server import find_etcd as find

    found = find(os_user=os_user, copy_dir=private_copy_dir)
    return Program(_dotted(found.version), found.source, str(found.path))


def make_plan(layout: Layout, file: ClusterFile, timeouts: LocalTimeouts) -> Plan:
    """What has to run: the store, an agent for each node (the first creates the cluster), the proxy."""
    agents = [agent_spec(layout, file, name, timeouts) for name in file.nodes]
    if file.witness is not None:
        agents.append(witness_spec(layout, file.witness, timeouts))
    store = etcd_spec(file, layout.etcd_data, layout.etcd_log)
    return plan_of((store, *agents, proxy_spec(layout, file, PROXY, timeouts)), timeouts)


def plan_of(processes: tuple[ProcessSpec, ...], timeouts: LocalTimeouts) -> Plan:
    """A supervisor's plan for these processes."""
    return Plan(
        processes=processes,
        restart_min_ms=timeouts.supervisor_restart_min_ms,
        restart_max_ms=timeouts.supervisor_restart_max_ms,
        postgres_stop_ms=timeouts.local_stop_ms,
    )


def _stagger_ms(file: ClusterFile, timeouts: LocalTimeouts) -> int:
    """What others wait for, the first data directory, is made sooner if they do not load at the same time."""
    return 0 if file.complete else timeouts.local_stagger_ms


def agent_spec(layout: Layout, file: ClusterFile, name: str, timeouts: LocalTimeouts) -> ProcessSpec:
    """A node's agent; the first one's creates the cluster."""
    is_first = name == file.nodes[0]
    return ProcessSpec(
        name,
        _holdfast("node", "--config", str(layout.node_config(name))),
        extra=("--bootstrap",) if is_first and not file.complete else (),
        log_file=str(layout.agent_log(name)),
        stage=AGENT_STAGE,
        stop_ms=timeouts.local_stop_ms,
        data_dir=str(layout.data_dir(name)),
        delay_ms=0 if is_first else _stagger_ms(file, timeouts),
    )


def witness_spec(layout: Layout, name: str, timeouts: LocalTimeouts) -> ProcessSpec:
    """The witness."""
    return ProcessSpec(
        name,
        _holdfast("witness", "--config", str(layout.node_config(name))),
        log_file=str(layout.agent_log(name)),
        stage=AGENT_STAGE,
        stop_ms=timeouts.local_stop_ms,
    )


def proxy_spec(layout: Layout, file: ClusterFile, name: str, timeouts: LocalTimeouts) -> ProcessSpec:
    """A proxy."""
    return ProcessSpec(
        name,
        _holdfast("proxy", "--config", str(layout.proxy_config(name))),
        log_file=str(layout.proxy_log if name == PROXY else layout.node(name) / "proxy.log"),
        stage=PROXY_STAGE,
        stop_ms=timeouts.local_stop_ms,
        # Nobody needs it before the first standby is there.
        delay_ms=3 * _stagger_ms(file, timeouts),
    )


def _holdfast(*arguments: str) -> tuple[str, ...]:
    return (sys.executable, "-m", "holdfast.cli", *arguments)


def etcd_spec(
    file: ClusterFile, data_dir: Path, log_file: Path, name: str = "etcd", extra_arguments: tuple[str, ...] = ()
) -> ProcessSpec:
    """A member of the store; ``extra_arguments`` come last and win."""
    from holdfast.store.etcd_server import EtcdInstallation, PrivateEtcd

    server = PrivateEtcd(
        EtcdInstallation(Path(file.etcd.path), file.etcd.version, file.etcd.source),
        data_dir,
        file.ports.etcd_client,
        file.ports.etcd_peer,
        log_file,
        file.os_user,
        extra_arguments=extra_arguments,
    )
    return ProcessSpec(
        name,
        tuple(server.command()),
        log_file=str(log_file),
        stage=STORE_STAGE,
        stop_ms=Timeouts().store_stop_ms,
        user=file.os_user if os.geteuid() == 0 else None,
        may_kill=False,
        # Settings of somebody's etcdctl are not ours.
        hidden_environment="ETCD_",
    )
