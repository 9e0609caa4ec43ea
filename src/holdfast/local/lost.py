"""What a local cluster lost with divergent logs: asked of every agent, with names for the relations."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import replace
from typing import Any

from pydantic import TypeAdapter, ValidationError

from holdfast.local.cluster import LocalCluster
from holdfast.model.lost import LostLog

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
        url = f"http://127.0.0.1:{cluster.file.ports.nodes[name].api}/lost"
        try:
            async with cluster.http().get(url) as answer:
                accounts += _ACCOUNTS.validate_json(await answer.read())
        except (ClientError, TimeoutError, OSError, ValidationError):
            silent.append(name)
    return sorted(await _named(cluster, accounts), key=lambda a: (a.epoch, a.member.node)), silent


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
    port = cluster.file.ports.nodes[register.leader.node].postgres
    try:
        databases = dict(await _ask(cluster.dsn(port, "postgres", "superuser", "postgres"), _DATABASES))
        for oid, name in databases.items():
            inside = [key for key in keys if key.split("/")[1] == str(oid)]
            if inside:
                found |= dict(await _ask(cluster.dsn(port, "postgres", "superuser", name), _NAMES, inside))
    except psycopg.Error:
        return found
    return found


async def _ask(dsn: str, query: str, *values: object) -> list[tuple[Any, Any]]:
    import psycopg

    async with await psycopg.AsyncConnection.connect(dsn, autocommit=True) as connection:
        cursor: psycopg.AsyncCursor[Any] = await connection.execute(query.encode(), values or None)
        return await cursor.fetchall()
