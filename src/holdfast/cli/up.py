"""``holdfast up`` and ``holdfast down``: a cluster in the background, in a directory."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from holdfast.cli.failures import run
from holdfast.cli.output import Steps, as_typed, directory_option, json_option, print_json

if TYPE_CHECKING:
    from holdfast.local.cluster import LocalCluster


@click.command()
@directory_option
@click.option("--nodes", type=int, default=None, help="Nodes of a new cluster: 3 to 9.  [default: 3, 2 with --witness]")
@click.option("--witness", is_flag=True, help="Add a voter without PostgreSQL to a new cluster; then two nodes do.")
@click.option("--port", type=click.IntRange(1, 65534), default=None, help="Port of the proxy for writes.")
@json_option
def up(directory: Path, nodes: int | None, witness: bool, port: int | None, as_json: bool) -> None:
    """Start the cluster of a directory in the background; make a new one if there is none."""
    from holdfast.cli.logs import configure_quiet_logs
    from holdfast.local.bringup import bring_up
    from holdfast.local.orders import note_deed

    configure_quiet_logs()
    steps = Steps(quiet=as_json)

    async def work() -> tuple[dict[str, Any], bool]:
        cluster, started = await bring_up(directory, nodes=nodes, port=port, progress=steps, witness=witness)
        try:
            if started:
                await note_deed(cluster, "cluster.started")
            return describe(cluster), started
        finally:
            await cluster.close()

    found, started = run(work())
    if as_json:
        print_json({**found, "started": started})
        return
    click.echo("" if started else "It runs already.\n")
    click.echo(f"write  {found['write_dsn_hint']}\nread   {found['read_dsn_hint']}")
    click.echo(f"\nThe password of role app is in {found['app_password_file']}.")
    click.echo(as_typed(f"Look with `holdfast status --dir {directory}`, stop with `holdfast down --dir {directory}`."))


def describe(cluster: LocalCluster) -> dict[str, Any]:
    """How to reach a cluster, without its passwords."""
    ports = cluster.file.ports
    return {
        "directory": str(cluster.layout.root),
        "nodes": list(cluster.nodes),
        "postgresql": {"version": cluster.file.postgresql.version, "source": cluster.file.postgresql.source},
        "etcd": {"version": cluster.file.etcd.version, "source": cluster.file.etcd.source},
        "write_port": ports.write,
        "read_port": ports.read,
        "write_dsn_hint": f"postgresql://app@127.0.0.1:{ports.write}/app",
        "read_dsn_hint": f"postgresql://app@127.0.0.1:{ports.read}/app",
        "app_password_file": str(cluster.layout.secret_file("app")),
    }


@click.command()
@directory_option
@json_option
def down(directory: Path, as_json: bool) -> None:
    """Stop the cluster of a directory; its data stay."""
    from holdfast.cli.logs import configure_quiet_logs
    from holdfast.local.cluster import LocalCluster

    configure_quiet_logs()
    cluster = LocalCluster.open(directory)
    steps = Steps(quiet=as_json)
    steps("stopping the proxy, the nodes and the store")
    ran = run(_stop(cluster))
    if as_json:
        print_json({"directory": str(cluster.layout.root), "stopped": ran})
    else:
        steps("everything has stopped" if ran else "nothing ran")


async def _stop(cluster: LocalCluster) -> bool:
    from holdfast.local.orders import note_deed

    try:
        if cluster.state().supervisor is not None:
            await note_deed(cluster, "cluster.stopped")
        return await cluster.stop()
    finally:
        await cluster.close()
