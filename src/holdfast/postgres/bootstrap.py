"""Makes a new cluster: initdb, the roles and Holdfast's own schema."""

from __future__ import annotations

import asyncio
import os
import shutil
from pathlib import Path

import psutil
import structlog

from holdfast.model.errors import ConfigurationError, EnvironmentFault, HoldfastError, PostgresError
from holdfast.postgres.config import REPLICATION_ROLE, read_secret
from holdfast.postgres.faults import explain
from holdfast.postgres.files import sync_directory
from holdfast.postgres.instance import Instance
from holdfast.postgres.layout import Layout
from holdfast.postgres.programs import Outcome, run_program
from holdfast.postgres.shared_memory import remove_shared_memory, shared_memory_left_in

_log = structlog.get_logger(__name__)

_SQL = """
SET password_encryption = 'scram-sha-256';
ALTER ROLE postgres PASSWORD {superuser_password};
CREATE ROLE {role} LOGIN REPLICATION PASSWORD {replication_password};
GRANT EXECUTE ON FUNCTION pg_catalog.pg_ls_dir(text, boolean, boolean) TO {role};
GRANT EXECUTE ON FUNCTION pg_catalog.pg_stat_file(text, boolean) TO {role};
GRANT EXECUTE ON FUNCTION pg_catalog.pg_read_binary_file(text) TO {role};
GRANT EXECUTE ON FUNCTION pg_catalog.pg_read_binary_file(text, bigint, bigint, boolean) TO {role};
CREATE SCHEMA holdfast;
CREATE TABLE holdfast.epochs
  (epoch bigint PRIMARY KEY, fork_lsn pg_lsn NOT NULL, next_xid text NOT NULL, at timestamptz NOT NULL);
CREATE TABLE holdfast.heartbeat (id int PRIMARY KEY, epoch bigint NOT NULL, at timestamptz NOT NULL);
CREATE FUNCTION holdfast.request_checkpoint() RETURNS void LANGUAGE plpgsql SECURITY DEFINER
  SET search_path = pg_catalog AS 'BEGIN CHECKPOINT; END';
REVOKE ALL ON FUNCTION holdfast.request_checkpoint() FROM PUBLIC;
GRANT USAGE ON SCHEMA holdfast TO {role};
GRANT EXECUTE ON FUNCTION holdfast.request_checkpoint() TO {role};
"""
_LOCALES = ("C.UTF-8", "C")
_INITDB_OPTIONS = (
    *("--username=postgres", "--auth=trust", "--data-checksums", "--encoding=UTF8", "--lc-collate=C"),
    *("--lc-messages=C", "--lc-monetary=C", "--lc-numeric=C", "--lc-time=C"),
)
"""pg_hba.conf is written before the first start. Collation C: an index must not depend on the machine's C library."""


async def initialize(instance: Instance) -> None:
    """Make a new cluster in the data directory; complete, or not there at all.

    Raises ConfigurationError if the directory is not empty, and EnvironmentFault or PostgresError from the programs.
    """
    layout = instance.layout
    superuser = read_secret(instance.settings.superuser_password_file, "postgres.superuser_password_file")
    replication = read_secret(instance.settings.replication_password_file, "postgres.replication_password_file")
    _require_empty(layout)
    await prepare_staging(layout)
    try:
        await _initdb(instance)
        sql = _SQL.format(
            role=REPLICATION_ROLE, superuser_password=_quoted(superuser), replication_password=_quoted(replication)
        )
        outcome = await run_program(
            instance.installation,
            ["postgres", "--single", "-j", "-c", "exit_on_error=on", "-D", str(layout.staging_dir), "postgres"],
            instance.user,
            stdin=";\n\n".join(statement.strip() for statement in sql.split(";\n")),
            working_dir=layout.side_dir,
        )
        if outcome.status != 0 or "ERROR:" in outcome.said:
            raise _failure("cannot make Holdfast's roles and schema", outcome)
        await asyncio.to_thread(swap_in, layout)
    except BaseException:
        await asyncio.shield(asyncio.to_thread(shutil.rmtree, layout.staging_dir, ignore_errors=True))
        raise
    _log.info("initialized", node=instance.node, system_identifier=layout.system_identifier())


async def _initdb(instance: Instance) -> None:
    directory = ("-D", str(instance.layout.staging_dir))
    options = (*_INITDB_OPTIONS, f"--wal-segsize={instance.settings.wal_segment_mib}")
    for locale in _LOCALES:
        outcome = await run_program(
            instance.installation,
            ["initdb", *directory, *options, f"--lc-ctype={locale}"],
            instance.user,
            working_dir=instance.layout.side_dir,
        )
        if outcome.status == 0:
            return
        if "locale" not in outcome.errors:
            break
    raise _failure("initdb fails", outcome)


async def prepare_staging(layout: Layout) -> None:
    """An empty place beside the data directory, and nobody left from an earlier attempt who still writes there."""
    layout.prepare()
    await asyncio.to_thread(_end_programs_in, layout.side_dir)
    for leftover in (layout.staging_dir, layout.retired_dir):
        await asyncio.to_thread(shutil.rmtree, leftover, ignore_errors=True)


def swap_in(layout: Layout) -> None:
    """Put the staged directory into the data directory's place, and remove the old one.

    Raises EnvironmentFault if it cannot be moved there.
    """
    data_dir = layout.data_dir
    if data_dir.is_mount():
        raise EnvironmentFault(
            f"postgres.data_dir = {str(data_dir)!r} is a mount point, which cannot be replaced: "
            "set postgres.data_dir to a directory below it"
        )
    try:
        if data_dir.exists():
            data_dir.rename(layout.retired_dir)
        layout.staging_dir.rename(data_dir)
        sync_directory(data_dir.parent)
        sync_directory(layout.side_dir)
    except OSError as error:
        raise EnvironmentFault(
            f"cannot move a new data directory to postgres.data_dir = {str(data_dir)!r}: {error.strerror}; "
            "the directory above it must be on the same file system and writable"
        ) from error
    layout.half_done_mark.unlink(missing_ok=True)
    sync_directory(layout.side_dir)
    remove_shared_memory(shared_memory_left_in(layout.retired_dir))
    shutil.rmtree(layout.retired_dir, ignore_errors=True)


def _require_empty(layout: Layout) -> None:
    try:
        there = os.listdir(layout.data_dir)
    except FileNotFoundError:
        return
    if there:
        raise ConfigurationError(
            f"postgres.data_dir = {str(layout.data_dir)!r} is not empty: a new cluster is made only in an empty "
            "directory; name another one, or move its content away"
        )


def _end_programs_in(directory: Path) -> None:
    """End the initdb or pg_basebackup that a killed agent left behind."""
    found = []
    for process in psutil.process_iter():
        try:
            if process.cwd() == str(directory) and process.name().startswith(("initdb", "pg_", "postgres")):
                process.kill()
                found.append(process)
        except (psutil.NoSuchProcess, psutil.AccessDenied):
            continue
    psutil.wait_procs(found, timeout=5)


def _failure(what: str, outcome: Outcome) -> HoldfastError:
    fault = explain(outcome.said)
    if fault is not None and not isinstance(fault, PostgresError):
        return type(fault)(f"{what}: {fault}")
    return PostgresError(f"{what}: {outcome.last_words}")


def _quoted(text: str) -> str:
    escaped = text.replace("'", "''")
    return f"'{escaped}'" if "\\" not in text else "E'" + escaped.replace("\\", "\\\\") + "'"
