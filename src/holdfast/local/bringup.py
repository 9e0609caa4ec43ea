"""Bringing a local cluster up, new or not, so that a failure on the way leaves nothing half-made."""

from __future__ import annotations

import os
import tempfile
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager
from dataclasses import replace
from pathlib import Path

from holdfast.local import machine
from holdfast.local.cluster import LocalCluster, Progress
from holdfast.local.layout import Layout, remove
from holdfast.local.ports import is_free
from holdfast.local.servers import find_etcd, find_postgresql
from holdfast.local.troubles import InTrouble
from holdfast.model.errors import ConfigurationError, EnvironmentFault

DEFAULT_NODES = 3
DEFAULT_NODES_WITH_WITNESS = 2


async def bring_up(
    directory: Path, *, nodes: int | None, port: int | None, progress: Progress, witness: bool = False
) -> tuple[LocalCluster, bool]:
    """Start the cluster of a directory, or make one; returns it serving, and whether it had to be started.

    Raises ConfigurationError or EnvironmentFault with the fix; a new directory is gone then. One that serves, but
    without all of its nodes, raises InTrouble and goes on serving.
    """
    layout = Layout.at(directory)
    is_new = not layout.exists()
    if is_new:
        default = DEFAULT_NODES_WITH_WITNESS if witness else DEFAULT_NODES
        count = default if nodes is None else nodes
        cluster = LocalCluster.create(directory, nodes=count, port=port, witness=witness)
        announce(cluster, progress)
    else:
        cluster = _reopen(layout, nodes, port, witness)
        if cluster.state().is_alive:
            await cluster.wait_until_serving(progress)
            await _join(cluster, progress)
            return cluster, False
    try:
        cluster.start(remove_unless_kept=is_new)
        await cluster.wait_until_serving(progress)
        await cluster.wait_until_proxy_answers()
        cluster.keep()
    except BaseException as error:
        await cluster.stop()
        await cluster.close()
        if is_new:
            kept = _keep_log(error)
            remove(layout)
            if kept is not None:
                raise kept from error
        raise
    await _join(cluster, progress)
    return cluster, True


async def _join(cluster: LocalCluster, progress: Progress) -> None:
    try:
        await cluster.wait_until_joined(progress)
    except BaseException:
        await cluster.close()
        raise


def _keep_log(error: BaseException) -> InTrouble | None:
    """The same error, but the log that it names outlives the directory; None if it names none."""
    if not isinstance(error, InTrouble):
        return None
    try:
        with tempfile.NamedTemporaryFile(prefix="holdfast-error-", suffix=".log", delete=False) as copy:
            copy.write(error.trouble.log.read_bytes())
    except OSError:
        return None
    return InTrouble(replace(error.trouble, log=Path(copy.name)))


def announce(cluster: LocalCluster, progress: Progress) -> None:
    """Say what the cluster uses."""
    file = cluster.file
    progress(f"PostgreSQL {file.postgresql.version} ({file.postgresql.source}: {file.postgresql.path})")
    progress(f"etcd {file.etcd.version} ({file.etcd.source}: {file.etcd.path})")
    user = file.os_user or machine.current_user()
    progress(f"{len(cluster.nodes)} nodes as user {user} in {cluster.layout.root}")


def _reopen(layout: Layout, nodes: int | None, port: int | None, witness: bool) -> LocalCluster:
    """The cluster of an existing directory, its servers found again if they have moved."""
    file = layout.load()
    if witness and file.witness is None:
        raise ConfigurationError(
            f"--witness: the cluster in {layout.root} was made without one; leave --witness out, or use another --dir"
        )
    if nodes is not None and nodes != len(file.nodes):
        raise ConfigurationError(
            f"--nodes {nodes}: the cluster in {layout.root} has {len(file.nodes)}; "
            "leave --nodes out, or use another --dir"
        )
    cluster = LocalCluster(layout, file)
    if cluster.state().is_alive:
        if port not in (None, file.ports.write):
            raise ConfigurationError(f"--port {port}: the cluster runs on port {file.ports.write}; stop it first")
        return cluster
    if (os.geteuid() == 0) != (file.os_user is not None):
        maker = "root" if file.os_user else "an ordinary user"
        raise ConfigurationError(f"--dir {layout.root}: {maker} made this cluster, and only they can start it")
    if port is not None and port != file.ports.write:
        if not is_free(port):
            raise EnvironmentFault(f"--port {port}: the port is in use or not allowed; choose another")
        read = file.ports.read if port == file.ports.read - 1 or not is_free(port + 1) else port + 1
        file = replace(file, ports=replace(file.ports, write=port, read=read))
    if not Path(file.postgresql.path, "postgres").exists():
        found = find_postgresql(machine.private_copy_dir(layout), file.os_user)
        if found.version.split(".")[0] != file.postgresql.version.split(".")[0]:
            raise EnvironmentFault(
                f"the data in {layout.root} are of PostgreSQL {file.postgresql.version}, which is no longer in "
                f"{file.postgresql.path}; found {found.version} in {found.path}: set HOLDFAST_PG_BINDIR to the former"
            )
        file = replace(file, postgresql=found)
    if not Path(file.etcd.path).exists():
        file = replace(file, etcd=find_etcd(machine.private_copy_dir(layout), file.os_user))
    return LocalCluster(layout, file)


@asynccontextmanager
async def temporary_cluster(
    *,
    nodes: int,
    progress: Progress,
    directory: Path | None = None,
    parameters: dict[str, str] | None = None,
    meanwhile: Callable[[], None] | None = None,
) -> AsyncIterator[LocalCluster]:
    """A cluster that serves; afterwards its processes and files are gone, unless `LocalCluster.keep` was called.

    Also when we are killed: its supervisor is tied to us. ``meanwhile``: see `LocalCluster.wait_until_serving`.
    """
    os_user = machine.server_user()
    root = directory or machine.temporary_root(nodes, os_user)
    layout = Layout.at(root)
    try:
        cluster = LocalCluster.create(root, nodes=nodes, temporary=True, parameters=parameters)
    except BaseException:
        if directory is None:
            remove(layout)
        raise
    try:
        announce(cluster, progress)
        cluster.start(remove_unless_kept=True)
        await cluster.wait_until_serving(progress, meanwhile)
        await cluster.wait_until_proxy_answers()
        yield cluster
    finally:
        if not cluster.kept:
            await cluster.stop()
            remove(layout)
        await cluster.close()
