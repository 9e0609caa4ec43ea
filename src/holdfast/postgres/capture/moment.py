"""Volatile evidence: what server, kernel and processes say at one moment. Whatever does not answer is named instead."""

from __future__ import annotations

import asyncio
import base64
import contextlib
import json
import os
import time
from collections import Counter
from collections.abc import Callable, Mapping
from pathlib import Path

import psutil
from pydantic import JsonValue

from holdfast.model.errors import PostgresError
from holdfast.postgres.capture.redaction import redacted_words
from holdfast.postgres.instance import Instance
from holdfast.postgres.session import Session

_ROWS_MAX = 2000
_TEXT_BYTES_MAX = 64 * 1024
_KERNEL_LOG_BYTES_MAX = 256 * 1024
_KERNEL_RECORD_BYTES = 8192
_PROCESSES_MAX = 5000
_COMMAND_CHARACTERS_MAX = 500
_PRESSURE = ("cpu", "io", "memory")
_FILES = ("loadavg", "meminfo", "diskstats", "mounts", "uptime", "vmstat")
_CGROUP_FILES = (
    "memory.current", "memory.max", "memory.high", "memory.events", "memory.stat", "memory.swap.current",
    "pids.current", "pids.max", "cpu.max", "cpu.stat", "io.stat", "cpu.pressure", "io.pressure", "memory.pressure",
)  # fmt: skip
_VIEWS: Mapping[str, str] = {
    "activity": "SELECT *, extract(epoch FROM clock_timestamp() - query_start) AS query_s, "
    "extract(epoch FROM clock_timestamp() - xact_start) AS xact_s FROM pg_stat_activity",
    "locks": "SELECT *, CASE WHEN NOT granted THEN pg_blocking_pids(pid) END AS blocked_by FROM pg_locks "
    "ORDER BY granted",
    "replication": "SELECT * FROM pg_stat_replication",
    "walreceiver": "SELECT * FROM pg_stat_wal_receiver",
    "slots": "SELECT * FROM pg_replication_slots",
    "prepared": "SELECT * FROM pg_prepared_xacts",
    "databases": "SELECT * FROM pg_stat_database",
    "writer": "SELECT * FROM pg_stat_bgwriter",
    "archiver": "SELECT * FROM pg_stat_archiver",
    "progress_vacuum": "SELECT * FROM pg_stat_progress_vacuum",
    "settings": "SELECT name, setting, source, pending_restart FROM pg_settings WHERE source NOT IN ('default', "
    "'override') AND name NOT IN ('primary_conninfo', 'ssl_passphrase_command')",
}
_TABLES = (
    "SELECT schemaname, relname, seq_scan, seq_tup_read, idx_scan, n_live_tup, n_dead_tup, last_analyze, "
    "last_autoanalyze FROM pg_stat_user_tables WHERE seq_tup_read > 0 ORDER BY seq_tup_read DESC LIMIT 50"
)
_LOGIN_SHARE = 0.3
"""Of the time; who is not let in until then is not waited for."""
_HELD = "slots"
"""A session that every primary's agent uses again and again."""
_DATABASES_MAX = 3
"""Those with the most statements under way are asked for their tables."""
_AS_JSON = "SELECT coalesce(json_agg(t), '[]')::text FROM (SELECT * FROM ({query}) v LIMIT {rows}) t"


async def take_moment(instance: Instance, why: str, *, kernel_log: bool, secrets: bool) -> Mapping[str, JsonValue]:
    """Note everything that changes from one moment to the next; takes up to ``moment_ms``, never raises."""
    began_s = time.monotonic()
    deadline_s = instance.timeouts.moment_ms / 1000
    at_ms = round(time.time() * 1000)
    found: dict[str, JsonValue] = {"format": 1, "node": instance.node, "why": why, "at_ms": at_ms}
    looked = asyncio.create_task(_of_machine(instance, deadline_s, kernel_log=kernel_log))
    if instance.running:
        found["server"] = await _of_server(instance, deadline_s, secrets=secrets)
    else:
        found["server"] = {"not asked": "it does not run"}
    found |= await looked
    found["took_ms"] = round((time.monotonic() - began_s) * 1000)
    return found


def as_file(moment: Mapping[str, JsonValue]) -> bytes:
    """As it is kept."""
    return json.dumps(moment, indent=1).encode()


async def _of_server(instance: Instance, deadline_s: float, *, secrets: bool) -> dict[str, JsonValue]:
    """Each view in turn, in a session of its own, until the time is over.

    A server that lets nobody in any more is asked in a session that the agent has had for some time.
    """
    found: dict[str, JsonValue] = {}
    ends_s = time.monotonic() + deadline_s
    session = instance.new_session()
    is_let_in = await _answers(session, deadline_s * 1000 * _LOGIN_SHARE)
    if not is_let_in:
        await session.close()
        session = instance.session(_HELD)
    try:
        for name, query in _VIEWS.items():
            left_ms = (ends_s - time.monotonic()) * 1000
            if left_ms <= 0:
                found[name] = {"not asked": "no time was left"}
                continue
            found[name] = await _view(session, query, left_ms, secrets=secrets)
    finally:
        if is_let_in:
            await session.close()
    found["tables"] = await _tables(instance, found["activity"], ends_s) if is_let_in else {}
    return found


async def _answers(session: Session, deadline_ms: float) -> bool:
    try:
        await session.fetch("SELECT", deadline_ms=deadline_ms)
    except PostgresError:
        return False
    return True


async def _tables(instance: Instance, activity: JsonValue, ends_s: float) -> dict[str, JsonValue]:
    """How tables are read, in the databases where most is under way."""
    rows = [row for row in activity if isinstance(row, dict)] if isinstance(activity, list) else []
    busy = Counter(str(row["datname"]) for row in rows if row.get("state") == "active" and row.get("datname"))
    found: dict[str, JsonValue] = {}
    for database, _ in busy.most_common(_DATABASES_MAX):
        left_ms = (ends_s - time.monotonic()) * 1000
        if left_ms <= 0:
            found[database] = {"not asked": "no time was left"}
            continue
        session = instance.new_session(database=database)
        try:
            found[database] = await _view(session, _TABLES, left_ms, secrets=True)
        finally:
            await session.close()
    return found


async def _view(session: Session, query: str, deadline_ms: float, *, secrets: bool) -> JsonValue:
    try:
        ((text,),) = await session.fetch(_AS_JSON.format(query=query, rows=_ROWS_MAX), deadline_ms=deadline_ms)
    except PostgresError as error:
        return {"no answer": str(error)}
    rows: JsonValue = json.loads(text)
    if not secrets and isinstance(rows, list):
        for row in rows:
            if isinstance(row, dict) and isinstance(row.get("query"), str):
                row["query"] = redacted_words(str(row["query"]))
            if isinstance(row, dict) and isinstance(row.get("setting"), str):
                row["setting"] = redacted_words(str(row["setting"]))
    return rows


async def _of_machine(instance: Instance, deadline_s: float, *, kernel_log: bool) -> dict[str, JsonValue]:
    """Read on a thread: a file system that hangs hangs its files in /proc as well."""
    pid = instance.postmaster_pid
    control = instance.layout.data_dir / "global" / "pg_control"
    parts: dict[str, Callable[[], JsonValue]] = {
        "kernel": _kernel,
        "processes": lambda: _processes(pid),
        "control": lambda: _control(control),
    }
    if kernel_log:
        parts["kernel_log"] = _kernel_log
    found: dict[str, JsonValue] = {}
    for name, read in parts.items():
        try:
            found[name] = await instance.disk.call(f"moment {name}", read, round(deadline_s * 1000))
        except (PostgresError, OSError, psutil.Error) as error:
            found[name] = {"not read": str(error)}
    return found


def _control(path: Path) -> JsonValue:
    return {"pg_control_base64": base64.b64encode(path.read_bytes()).decode()}


def _kernel() -> JsonValue:
    found: dict[str, JsonValue] = {
        "release": os.uname().release,
        "boot_id": _text(Path("/proc/sys/kernel/random/boot_id")),
    }
    found["pressure"] = {what: _text(Path("/proc/pressure", what)) for what in _PRESSURE}
    found |= {name: _text(Path("/proc", name)) for name in _FILES}
    found["cgroup"] = _cgroup()
    return found


def _cgroup() -> JsonValue:
    """The limits and the pressure of the agent's own group, which is the server's unless somebody moved it."""
    own = _text(Path("/proc/self/cgroup"))
    line = next((line for line in (own or "").splitlines() if line.startswith("0::")), None)
    if line is None:
        return {"groups": own}
    directory = Path("/sys/fs/cgroup") / line.removeprefix("0::").lstrip("/")
    return {"group": line, **{name: text for name in _CGROUP_FILES if (text := _text(directory / name)) is not None}}


def _text(path: Path) -> str | None:
    try:
        with path.open("rb") as file:
            return file.read(_TEXT_BYTES_MAX).decode(errors="replace")
    except OSError:
        return None


def _processes(postmaster_pid: int | None) -> JsonValue:
    """All by name; of PostgreSQL's own with their titles. Command lines of others may hold secrets."""
    found: list[JsonValue] = []
    attributes = ["pid", "ppid", "name", "status", "username", "num_threads", "cpu_times", "memory_info", "create_time"]
    for process in psutil.process_iter(attributes):
        if len(found) >= _PROCESSES_MAX:
            break
        info = process.info
        entry: dict[str, JsonValue] = {name: info[name] for name in attributes[:6]}
        if info["cpu_times"] is not None and info["memory_info"] is not None:
            entry |= {"cpu_user_s": info["cpu_times"].user, "cpu_system_s": info["cpu_times"].system}
            entry |= {"resident_bytes": info["memory_info"].rss, "since_s": info["create_time"]}
        if postmaster_pid is not None and postmaster_pid in (info["pid"], info["ppid"]):
            with contextlib.suppress(psutil.Error):
                entry["title"] = redacted_words(" ".join(process.cmdline()))[:_COMMAND_CHARACTERS_MAX]
            entry["waits_in"] = _text(Path(f"/proc/{info['pid']}/wchan"))
        found.append(entry)
    return found


def _kernel_log() -> JsonValue:
    """The end of what `dmesg` prints (Documentation/ABI/testing/dev-kmsg); a record at each read."""
    kept: list[str] = []
    size_bytes = 0
    descriptor = os.open("/dev/kmsg", os.O_RDONLY | os.O_NONBLOCK | os.O_CLOEXEC)
    try:
        while True:
            try:
                raw = os.read(descriptor, _KERNEL_RECORD_BYTES)
            except BlockingIOError:
                break
            except BrokenPipeError:
                continue  # it was overwritten while we read: the next one is there
            kept.append(raw.decode(errors="replace").rstrip())
            size_bytes += len(raw)
            while size_bytes > _KERNEL_LOG_BYTES_MAX and kept:
                size_bytes -= len(kept.pop(0).encode()) + 1
    finally:
        os.close(descriptor)
    return list(kept)
