"""What a moment of a primary in trouble shows: locks, long statements, whole scans, a checkpoint, memory, restarts.

A moment is what `postgres.capture.moment` noted. Statements are told by their fingerprints, without values: what is
read from it goes into the journal, which more people may read than the moment itself.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass
from enum import StrEnum
from itertools import islice

from pydantic import JsonValue

from holdfast.core.words import amount, duration, plural
from holdfast.wire.fingerprint import fingerprint
from holdfast.wire.sql import Kind, split_statements

LONG_S = 5.0
"""A statement that runs for longer is named."""
BLOCKED_MIN = 2
"""So many sessions behind one lock are a queue."""
ALIKE_MIN, ALIKE_PART = 8, 0.5
"""So many statements with one fingerprint are a crowd, if they are this part of all under way."""
LARGE_TABLE_ROWS = 100_000
WHOLE_SCAN_PART = 0.5
"""A scan that reads this part of a table is a whole one, on the average over all of them."""
IO_WAITS_MIN = 3
"""So many statements that wait for the disk, while a checkpoint writes."""
MEMORY_LEFT_PERCENT = 5.0
NAMED_MAX = 3
"""Of one kind no more are told."""

Row = Mapping[str, JsonValue]


class Sign(StrEnum):
    """What kind of symptom it is."""

    LOCKS = "locks"
    LONG = "long"
    ALIKE = "alike"
    WHOLE_SCAN = "whole-scan"
    CHECKPOINT = "checkpoint"
    MEMORY = "memory"
    RESTART = "restart"


@dataclass(frozen=True, slots=True)
class Symptom:
    """One thing that was seen, and in words what."""

    sign: Sign
    says: str

    def to_detail(self) -> dict[str, JsonValue]:
        """For an entry of the journal."""
        return dict(asdict(self))


def signs_of(detail: JsonValue) -> list[tuple[str, str]]:
    """What `Symptom.to_detail` gave, of several: sign and words."""
    found = [row for row in detail if isinstance(row, dict)] if isinstance(detail, list) else []
    return [(str(row.get("sign")), str(row.get("says"))) for row in found]


def symptoms_of(moment: Row) -> tuple[Symptom, ...]:
    """What a moment shows; what it does not have, because nobody answered, shows nothing."""
    server = moment.get("server")
    views = server if isinstance(server, dict) else {}
    activity = _rows(views, "activity")
    under_way = [row for row in activity if _is_clients(row) and row.get("state") == "active"]
    found = (
        *_locks(activity, _rows(views, "locks")),
        *_long(under_way),
        *_alike(under_way),
        *_whole_scans(under_way, views.get("tables")),
        *_checkpoint(activity, under_way),
        *_memory(moment.get("kernel")),
        *_restart(_rows(views, "settings")),
    )
    return tuple(Symptom(sign, says) for sign, says in found)


Told = Iterator[tuple[Sign, str]]


def _rows(views: Row, name: str) -> list[Row]:
    rows = views.get(name)
    return [row for row in rows if isinstance(row, dict)] if isinstance(rows, list) else []


def _is_clients(row: Row) -> bool:
    return row.get("backend_type") == "client backend" and row.get("application_name") != "holdfast_agent"


def _number(row: Row, name: str) -> float:
    value = row.get(name)
    return float(value) if isinstance(value, int | float) else 0.0


def _statement(row: Row) -> str:
    query = row.get("query")
    return fingerprint(query.encode(errors="replace")).text if isinstance(query, str) and query else "?"


def _whose(row: Row) -> str:
    application = f" ({row['application_name']})" if row.get("application_name") else ""
    return f"{row.get('usename') or '?'}{application} in {row.get('datname') or '?'}"


def _for(row: Row, name: str) -> str:
    return duration(_number(row, name) * 1000)


# ---- locks --------------------------------------------------------------------------------------------------------


def _locks(activity: Sequence[Row], locks: Sequence[Row]) -> Told:
    """Who keeps others waiting and waits for nobody himself, with how many are behind him, one behind the other."""
    waits_for: dict[int, list[int]] = {}
    for row in locks:
        blockers = row.get("blocked_by")
        if isinstance(blockers, list) and isinstance(pid := row.get("pid"), int):
            waits_for.setdefault(pid, []).extend(b for b in blockers if isinstance(b, int))
    waits_for = {pid: blockers for pid, blockers in waits_for.items() if blockers}
    behind: Counter[int] = Counter()
    for pid in waits_for:
        behind.update(_roots(pid, waits_for))
    sessions = {row.get("pid"): row for row in activity}
    for root, count in behind.most_common(NAMED_MAX):
        if count >= BLOCKED_MIN:
            yield Sign.LOCKS, f"{plural(count, 'session')} waited behind session {root}{_holder(sessions.get(root))}"


def _roots(pid: int, waits_for: Mapping[int, Sequence[int]]) -> set[int]:
    """Those at the head of the queue that ``pid`` stands in; a circle has none."""
    seen, todo, roots = {pid}, [pid], set()
    while todo:
        for blocker in waits_for.get(todo.pop(), ()):
            if blocker not in waits_for:
                roots.add(blocker)
            elif blocker not in seen:
                seen.add(blocker)
                todo.append(blocker)
    return roots


def _holder(row: Row | None) -> str:
    if row is None:
        return ", of a prepared transaction or of a session that had ended"
    if row.get("state") == "active":
        return f" of {_whose(row)}, which had run for {_for(row, 'query_s')}: {_statement(row)}"
    return (
        f" of {_whose(row)}, {row.get('state') or 'idle'}, in a transaction of {_for(row, 'xact_s')}; "
        f"its last statement was: {_statement(row)}"
    )


# ---- statements ---------------------------------------------------------------------------------------------------


def _long(under_way: Sequence[Row]) -> Told:
    longest = sorted((row for row in under_way if not _waits_for_lock(row)), key=lambda row: -_number(row, "query_s"))
    for row in longest[:NAMED_MAX]:
        if _number(row, "query_s") >= LONG_S:
            waits = f", and waited for {row['wait_event']}" if row.get("wait_event") else ""
            yield (
                Sign.LONG,
                f"a statement of {_whose(row)} had run for {_for(row, 'query_s')}{waits}: {_statement(row)}",
            )


def _waits_for_lock(row: Row) -> bool:
    return row.get("wait_event_type") == "Lock"


def _alike(under_way: Sequence[Row]) -> Told:
    if not under_way:
        return
    (statement, count), *_ = Counter(map(_statement, under_way)).most_common(1)
    if count >= ALIKE_MIN and count >= ALIKE_PART * len(under_way):
        yield Sign.ALIKE, f"{count} of the {plural(len(under_way), 'statement')} under way were alike: {statement}"


def _whole_scans(under_way: Sequence[Row], tables: JsonValue) -> Told:
    """Large tables that are read from end to end, and that a statement under way names."""
    by_database = tables if isinstance(tables, dict) else {}
    words: dict[str, set[str]] = {}
    for row in under_way:
        words.setdefault(str(row.get("datname")), set()).update(_names_in(row.get("query")))
    scanned = (
        (table, database)
        for database, named in words.items()
        for table in _rows(by_database, database)
        if table.get("relname") in named and _is_read_whole(table)
    )
    largest = sorted(scanned, key=lambda found: -_number(found[0], "seq_tup_read"))
    for table, database in islice(largest, NAMED_MAX):
        name = f"{database}.{table.get('schemaname')}.{table.get('relname')}"
        rows, scans = amount(round(_number(table, "n_live_tup"))), amount(round(_number(table, "seq_scan")))
        indexed = amount(round(_number(table, "idx_scan")))
        yield Sign.WHOLE_SCAN, f"{name} ({rows} rows) was read from end to end {scans} times, by index {indexed} times"


def _names_in(query: JsonValue) -> set[str]:
    if not isinstance(query, str):
        return set()
    statements = split_statements(query.encode(errors="replace"))
    return {t.text for s in statements for t in s.tokens if t.kind in (Kind.WORD, Kind.QUOTED)}


def _is_read_whole(table: Row) -> bool:
    rows, scans = _number(table, "n_live_tup"), _number(table, "seq_scan")
    return rows >= LARGE_TABLE_ROWS and scans > 0 and _number(table, "seq_tup_read") / scans >= WHOLE_SCAN_PART * rows


# ---- the server and its machine -----------------------------------------------------------------------------------


def _checkpoint(activity: Sequence[Row], under_way: Sequence[Row]) -> Told:
    at_work = [r for r in activity if r.get("backend_type") == "checkpointer" and r.get("wait_event_type") == "IO"]
    waiting = [row for row in under_way if row.get("wait_event_type") == "IO"]
    if at_work and len(waiting) >= IO_WAITS_MIN:
        said = f"a checkpoint waited for the disk ({at_work[0].get('wait_event')})"
        yield Sign.CHECKPOINT, f"{said}, and {len(waiting)} of the {len(under_way)} statements under way did so, too"


def _memory(kernel: JsonValue) -> Told:
    known = kernel if isinstance(kernel, dict) else {}
    figures = _figures(known.get("meminfo"))
    total, left = figures.get("MemTotal:", 0), figures.get("MemAvailable:", 0)
    if total and left * 100 < MEMORY_LEFT_PERCENT * total:
        yield Sign.MEMORY, f"{left // 1024} MiB of the {total // 1024} MiB of memory were left"
    group = known.get("cgroup")
    killed = _figures(group.get("memory.events")).get("oom_kill", 0) if isinstance(group, dict) else 0
    if killed:
        yield Sign.MEMORY, f"for want of memory the kernel had ended {amount(killed)} of the processes in its group"


def _figures(text: JsonValue) -> dict[str, int]:
    """Of a file of the kernel: names, each with its first number."""
    lines = [line.split() for line in text.splitlines()] if isinstance(text, str) else []
    return {words[0]: int(words[1]) for words in lines if len(words) > 1 and words[1].isdigit()}


def _restart(settings: Sequence[Row]) -> Told:
    names = sorted(str(row.get("name")) for row in settings if row.get("pending_restart") is True)
    if names:
        yield Sign.RESTART, f"these settings had been changed, and wait for a restart: {', '.join(names)}"
