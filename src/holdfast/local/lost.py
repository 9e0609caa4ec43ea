"""What a local cluster lost with divergent logs: asked of every agent, with names for the relations."""

from __future__ import annotations

import json
from collections.abc import Iterable, Iterator
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from pydantic import TypeAdapter, ValidationError

from holdfast.core.losses import Proof, covered, is_unacknowledged, opened_under, proof
from holdfast.core.whose import Whose, whose
from holdfast.local.cluster import LocalCluster
from holdfast.local.orders import read_headers
from holdfast.model.errors import ConfigurationError, EnvironmentFault, StoreUnavailable
from holdfast.model.lost import SCRIPT, LostLog

_ACCOUNTS = TypeAdapter(tuple[LostLog, ...])
_DATABASES = "SELECT oid, datname FROM pg_database WHERE datallowconn"
_NAMES = """
SELECT k.key, current_database() || '.' || n.nspname || '.' || c.relname
  FROM unnest(%s::text[]) AS k (key)
  JOIN pg_class c ON c.oid = pg_filenode_relation(split_part(k.key, '/', 1)::oid, split_part(k.key, '/', 3)::oid)
  JOIN pg_namespace n ON n.oid = c.relnamespace
"""


async def read_lost(cluster: LocalCluster) -> tuple[list[LostLog], list[str]]:
    """Every account, oldest epoch first, and the nodes whose agents do not answer."""
    from aiohttp import ClientError

    accounts: list[LostLog] = []
    silent: list[str] = []
    for name in cluster.nodes:
        try:
            async with cluster.http().get(f"{cluster.api_url(name)}/lost", headers=read_headers(cluster)) as answer:
                accounts += _ACCOUNTS.validate_json(await answer.read())
        except (ClientError, TimeoutError, OSError, ValidationError):
            silent.append(name)
    return sorted(await _named(cluster, accounts), key=lambda a: (a.epoch, a.member.node)), silent


def without_doubles(accounts: list[LostLog]) -> list[LostLog]:
    """The accounts that are needed to bring everything back once."""
    doubles = covered(accounts)
    return [account for i, account in enumerate(accounts) if i not in doubles]


async def read_proof(cluster: LocalCluster, accounts: list[LostLog], silent: list[str]) -> tuple[Proof, list[LostLog]]:
    """Whether nothing acknowledged is lost, and the accounts of which nobody was told of any commit."""
    try:
        register, events = await cluster.register(), await cluster.events()
    except StoreUnavailable:
        return proof((), accounts, silent, None), []
    opened = opened_under(events)
    unacknowledged = [a for a in accounts if is_unacknowledged(a, opened)]
    return proof(events, accounts, silent, None if register is None else register.epoch), unacknowledged


async def read_whose(cluster: LocalCluster) -> Whose:
    """The clients of transactions that lost servers took with them, as far as the journal reaches back."""
    try:
        return whose(await cluster.events())
    except StoreUnavailable:
        return Whose()


@dataclass(frozen=True, slots=True)
class SalvagedRow:
    """One row that a lost transaction changed; ``table`` is its full name. Values are as PostgreSQL prints them."""

    table: str
    xid: int
    committed_at: str
    prepared_as: str | None
    change: str
    partition: str | None
    before: dict[str, str | None] | None
    after: dict[str, str | None] | None


def rows_of(account: LostLog, table: str | None = None) -> Iterator[SalvagedRow]:
    """The rows of an account, table by table, each in the order of the commits, from its node's directory.

    Raises EnvironmentFault where they cannot be read, ConfigurationError for a table that is not among them.
    """
    files = {} if account.salvage is None else account.salvage.files
    if table is not None and table not in files:
        raise ConfigurationError(f"no row of {table} was read; there are {', '.join(files) or 'none at all'}")
    for name, file in files.items():
        if table in (None, name):
            for line in _lines_of(account, file):
                yield SalvagedRow(table=name, **json.loads(line))


def script_of(account: LostLog) -> str:
    """The script that brings the rows of an account back; raises EnvironmentFault."""
    return "".join(script_lines(account))


def script_lines(account: LostLog) -> Iterator[str]:
    """The same line by line, with their ends; raises EnvironmentFault."""
    return _lines_of(account, SCRIPT)


def _lines_of(account: LostLog, file: str) -> Iterator[str]:
    path = Path(account.evidence_dir) / file
    try:
        # A carriage return may be part of a value.
        with path.open(encoding="utf-8", errors="surrogateescape", newline="\n") as lines:
            yield from lines
    except OSError as error:
        raise EnvironmentFault(
            f"{path} cannot be read here ({error.strerror}): run the command on the host of {account.member.node}, as "
            "the user of its agent"
        ) from error


async def _named(cluster: LocalCluster, accounts: list[LostLog]) -> list[LostLog]:
    numbers = {key for a in accounts for t in a.transactions for key in t.relations if key[0].isdigit()}
    names = await _names(cluster, numbers) if numbers else {}

    def named(account: LostLog) -> LostLog:
        transactions = tuple(
            replace(t, relations={names.get(key, key): tuples for key, tuples in t.relations.items()})
            for t in account.transactions
        )
        return replace(account, transactions=transactions)

    return [named(a) for a in accounts]


async def _names(cluster: LocalCluster, keys: Iterable[str]) -> dict[str, str]:
    """Of relations that the primary still has; without a primary they keep their numbers."""
    import psycopg

    register = await cluster.register()
    if register is None or register.leader is None:
        return {}
    found: dict[str, str] = {}
    leader = register.leader.node
    try:
        databases = dict(await _ask(cluster.superuser_dsn(leader, "postgres"), _DATABASES))
        for oid, name in databases.items():
            inside = [key for key in keys if key.split("/")[1] == str(oid)]
            if inside:
                found |= dict(await _ask(cluster.superuser_dsn(leader, name), _NAMES, inside))
    except psycopg.Error:
        return found
    return found


async def _ask(dsn: str, query: str, *values: object) -> list[tuple[Any, Any]]:
    import psycopg

    async with await psycopg.AsyncConnection.connect(dsn, autocommit=True) as connection:
        cursor: psycopg.AsyncCursor[Any] = await connection.execute(query.encode(), values or None)
        return await cursor.fetchall()
