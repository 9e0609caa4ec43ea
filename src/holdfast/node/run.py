"""Compose one agent, or one witness, and let it live until SIGTERM or SIGINT."""

from __future__ import annotations

import asyncio
import signal
from functools import partial
from pathlib import Path

import structlog

from holdfast.model.errors import ConfigurationError, EnvironmentFault, HoldfastError
from holdfast.model.keys import Keys
from holdfast.model.settings import ApiSettings, NodeSettings, WitnessSettings
from holdfast.node.agent import Agent
from holdfast.node.api import Api
from holdfast.node.outcome import Outcomes
from holdfast.node.parts import Parts
from holdfast.node.promise import Names, PromiseFile
from holdfast.node.reach import HttpReach, SqlReach
from holdfast.node.witness import Witness
from holdfast.postgres.accounting import read_accounts
from holdfast.postgres.capture.keep import read_captures
from holdfast.postgres.installation import find_installation
from holdfast.postgres.server import Server
from holdfast.store.contract import Store
from holdfast.store.journal import Journal

log = structlog.get_logger(__name__)


async def run_node(settings: NodeSettings, store: Store, *, bootstrap: bool) -> None:
    """Run the agent of one node. Raises ConfigurationError and EnvironmentFault with a message for people.

    ``bootstrap`` lets this node create the cluster if there is none; it never creates a second one.
    """
    token = _read_token(settings.api.token_file)
    try:
        settings.node.state_dir.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise ConfigurationError(
            f"node.state_dir: {settings.node.state_dir} cannot be made ({error.strerror}): choose another directory"
        ) from error
    installation = find_installation(settings.postgres.bin_dir, settings.node.state_dir / "postgresql")
    name, state_dir = settings.node.name, settings.node.state_dir
    server = Server(settings.postgres, name, installation, settings.timeouts, state_dir, settings.capture)
    parts = Parts(
        server=server,
        store=store,
        peers=HttpReach(settings.timeouts, token, store.clock.saw),
        sessions=SqlReach(settings.postgres.replication_password_file),
        promise=PromiseFile(settings.node.state_dir, server.disk, settings.timeouts.statement_ms),
        journal=Journal(store, settings.node.name, settings.timeouts),
        names=Names(),
        gate=server,
    )
    agent = Agent(settings, parts, bootstrap=bootstrap)
    await agent.prepare()
    log.info("agent.started", node=settings.node.name, postgresql=".".join(map(str, installation.version)))
    accounts = partial(read_accounts, settings.node.state_dir)
    keys = Keys(settings.cluster.name)
    captures = partial(read_captures, server.captures_dir, name)
    outcomes = Outcomes(settings.node.name, server, store, keys, settings.timeouts, accounts, token)
    try:
        told = accounts, outcomes, captures, store.clock.stamp
        await _live(agent, Api(settings.api, token, agent, *told, _read_other_token(settings.api)))
    finally:
        await outcomes.close()


async def run_witness(settings: WitnessSettings, store: Store) -> None:
    """Run a witness. Raises ConfigurationError and EnvironmentFault with a message for people."""
    token = _read_token(settings.api.token_file)
    journal = Journal(store, settings.witness.name, settings.timeouts)
    reach = HttpReach(settings.timeouts, token, store.clock.saw)
    sessions = SqlReach(settings.witness.replication_password_file)
    witness = Witness(settings, store, reach, sessions, journal)
    log.info("witness.started", name=settings.witness.name)
    await _live(
        witness, Api(settings.api, token, witness, moment=store.clock.stamp, read_token=_read_other_token(settings.api))
    )


async def _live(voter: Agent | Witness, api: Api) -> None:
    await api.start()
    loop = asyncio.get_running_loop()
    for number in (signal.SIGTERM, signal.SIGINT):
        loop.add_signal_handler(number, voter.stop)
    try:
        await voter.run()
    except ExceptionGroup as group:
        told = _told(group)
        if told is None:
            raise
        raise told from group
    finally:
        await api.stop()


def _told(group: BaseExceptionGroup[BaseException]) -> HoldfastError | None:
    """What can be said to a person of a group of errors: the first one raised on purpose."""
    for error in group.exceptions:
        found = _told(error) if isinstance(error, BaseExceptionGroup) else error
        if isinstance(found, HoldfastError):
            return found
    return None


def _read_other_token(api: ApiSettings) -> str | None:
    return None if api.read_token_file is None else _read_token(api.read_token_file, "read_token_file")


def _read_token(path: Path, setting: str = "token_file") -> str:
    try:
        token = path.read_text().strip()
    except OSError as error:
        raise ConfigurationError(f"api.{setting}: cannot read {path} ({error.strerror})") from error
    if not token:
        raise EnvironmentFault(f"api.{setting}: {path} is empty: put a token there")
    return token
