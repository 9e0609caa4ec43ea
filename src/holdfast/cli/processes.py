"""``holdfast node``, ``holdfast proxy``, and the hidden ``supervise``: the processes themselves."""

from __future__ import annotations

import contextlib
from pathlib import Path
from typing import TYPE_CHECKING, TypeVar

import click

from holdfast.cli.failures import Terminated, run

if TYPE_CHECKING:
    from pydantic import BaseModel

    from holdfast.model.settings import NodeSettings, ProxySettings, WitnessSettings

    SettingsT = TypeVar("SettingsT", bound=BaseModel)

_config_option = click.option(
    "--config", "config", required=True, type=click.Path(path_type=Path), help="Configuration file (TOML)."
)


def _load(path: Path, kind: type[SettingsT]) -> SettingsT:
    from holdfast.model.errors import ConfigurationError
    from holdfast.model.settings import parse_settings

    try:
        text = path.read_text()
    except UnicodeDecodeError as error:
        raise ConfigurationError(f"--config {path}: not a text file ({error.reason})") from error
    except OSError as error:
        raise ConfigurationError(f"--config {path}: {error.strerror}") from error
    return parse_settings(text, kind, str(path))


@click.command()
@_config_option
@click.option("--bootstrap", is_flag=True, help="Create the cluster if its store knows none yet.")
def node(config: Path, bootstrap: bool) -> None:
    """Run the agent beside one PostgreSQL server."""
    from holdfast.cli.logs import configure_process_logs
    from holdfast.model.settings import NodeSettings
    from holdfast.node.clock import BootTimeLoop

    settings = _load(config, NodeSettings)
    configure_process_logs(node=settings.node.name)
    with contextlib.suppress(Terminated):
        run(_run_node(settings, bootstrap=bootstrap), BootTimeLoop)


async def _run_node(settings: NodeSettings, *, bootstrap: bool) -> None:
    from holdfast.node.run import run_node
    from holdfast.store.etcd import EtcdStore

    store = EtcdStore(settings.store, settings.cluster.name, settings.timeouts, owner=settings.node.name)
    try:
        await run_node(settings, store, bootstrap=bootstrap)
    finally:
        await store.close()


@click.command()
@_config_option
def witness(config: Path) -> None:
    """Run a voter that has no PostgreSQL: the third vote of a site with two nodes."""
    from holdfast.cli.logs import configure_process_logs
    from holdfast.model.settings import WitnessSettings
    from holdfast.node.clock import BootTimeLoop

    settings = _load(config, WitnessSettings)
    configure_process_logs(witness=settings.witness.name)
    with contextlib.suppress(Terminated):
        run(_run_witness(settings), BootTimeLoop)


async def _run_witness(settings: WitnessSettings) -> None:
    from holdfast.node.run import run_witness
    from holdfast.store.etcd import EtcdStore

    store = EtcdStore(settings.store, settings.cluster.name, settings.timeouts, owner=settings.witness.name)
    try:
        await run_witness(settings, store)
    finally:
        await store.close()


@click.command()
@_config_option
def proxy(config: Path) -> None:
    """Run the endpoint that clients connect to."""
    from holdfast.cli.logs import configure_process_logs
    from holdfast.model.settings import ProxySettings
    from holdfast.proxy.loop import new_event_loop

    settings = _load(config, ProxySettings)
    configure_process_logs(proxy=f"{settings.proxy.host}:{settings.proxy.write_port}")
    with contextlib.suppress(Terminated):
        run(_run_proxy(settings), new_event_loop)


async def _run_proxy(settings: ProxySettings) -> None:
    from holdfast.proxy.run import run_proxy
    from holdfast.store.etcd import EtcdStore

    owner = f"proxy {settings.proxy.host}:{settings.proxy.write_port}"
    store = EtcdStore(settings.store, settings.cluster.name, settings.timeouts, owner=owner)
    try:
        await run_proxy(settings, store)
    finally:
        await store.close()


@click.command(hidden=True)
@click.argument("directory", type=click.Path(path_type=Path))
@click.option("--tied", is_flag=True, help="Stop everything when standard input ends.")
@click.option("--remove", is_flag=True, help="Then remove the directory, unless told to keep it.")
def supervise(directory: Path, tied: bool, remove: bool) -> None:
    """Keep the processes of a local cluster alive."""
    import asyncio

    from holdfast.local.supervisor import AlreadySupervised, Supervisor

    try:
        asyncio.run(Supervisor(directory / "run", tied=tied, remove=directory if remove else None).run())
    except AlreadySupervised:
        raise click.ClickException(f"another supervisor already runs the cluster in {directory}") from None
