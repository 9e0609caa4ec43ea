"""What a moment of a primary in trouble shows, and what is made of it in the report."""

from __future__ import annotations

from typing import Any

import pytest
from pydantic import JsonValue

from holdfast.core.causes import _SIGNS
from holdfast.core.incident import incidents
from holdfast.core.symptoms import Sign, Symptom, symptoms_of
from tests.core.histories import CREATED, SERVING, event, failover


def session(pid: int, query: str = "select 1", **more: Any) -> dict[str, Any]:
    row: dict[str, Any] = {"pid": pid, "backend_type": "client backend", "state": "active", "usename": "app"}
    row |= {"datname": "shop", "application_name": "web", "query": query, "query_s": 0.1, "xact_s": 0.1}
    return {**row, **more}


def waits(pid: int, *blockers: int) -> dict[str, Any]:
    return {"pid": pid, "granted": False, "blocked_by": list(blockers)}


def seen(**server: Any) -> list[Symptom]:
    return list(symptoms_of({"server": server}))


def test_nobody_answered_and_nothing_is_told() -> None:
    silent = {"no answer": "it did not answer"}
    assert symptoms_of({}) == ()
    assert symptoms_of({"server": {"not asked": "it does not run"}, "kernel": {"not read": "?"}}) == ()
    assert seen(activity=silent, locks=silent, tables={"shop": silent}, settings=silent) == []


def test_a_queue_of_locks_names_who_is_at_its_head() -> None:
    holder = session(1, "update t set a = 'secret'", state="idle in transaction", xact_s=312.0)
    queue = [waits(2, 1), waits(3, 2), waits(4, 3, 2), {"pid": 1, "granted": True, "blocked_by": None}]
    (found,) = seen(activity=[holder, session(2), session(3), session(4)], locks=queue)
    assert found == Symptom(
        Sign.LOCKS,
        "3 sessions waited behind session 1 of app (web) in shop, idle in transaction, in a transaction of "
        "5 min 12 s; its last statement was: update t set a = ?",
    )


def test_queues_that_nobody_can_be_named_for() -> None:
    assert seen(activity=[], locks=[waits(1, 2), waits(2, 1)]) == [], "a circle: the deadlock detector's"
    assert seen(activity=[session(1)], locks=[waits(2, 1)]) == [], "one alone is no queue"
    (found,) = seen(activity=[], locks=[waits(2, 0), waits(3, 0)])
    assert "of a prepared transaction or of a session that had ended" in found.says


def test_statements_that_run_for_long_are_named_without_their_values() -> None:
    long = session(1, "select * from orders where name = 'Ada'", query_s=93.2, wait_event="DataFileRead")
    behind = session(2, "select 2", query_s=80.0, wait_event_type="Lock", wait_event="transactionid")
    agents = session(3, "checkpoint", query_s=70.0, application_name="holdfast_agent")
    (found,) = seen(activity=[long, behind, agents, session(4, query_s=4.9)])
    assert found.sign is Sign.LONG
    assert found.says == (
        "a statement of app (web) in shop had run for 1 min 33 s, and waited for DataFileRead: "
        "select * from orders where name = ?"
    )


def test_a_crowd_of_one_statement() -> None:
    crowd = [session(n, f"select * from t where id = {n}") for n in range(8)]
    others = [session(100 + n, f"select {'a' * (n + 1)} from u") for n in range(8)]
    (found,) = seen(activity=[*crowd, *others])
    assert found.says == "8 of the 16 statements under way were alike: select * from t where id = ?"
    assert seen(activity=[*crowd, *others, session(200, "select from v")]) == []
    assert seen(activity=crowd[1:]) == []


@pytest.mark.parametrize(
    ("scans", "rows_read", "live", "is_told"),
    [(10, 1_000_000, 100_000, True), (10, 400_000, 100_000, False), (10, 990_000, 99_000, False), (0, 0, 10**6, False)],
)
def test_large_tables_that_are_read_whole(scans: int, rows_read: int, live: int, is_told: bool) -> None:
    table = {"schemaname": "public", "relname": "orders", "seq_scan": scans, "seq_tup_read": rows_read}
    tables = {"shop": [{**table, "n_live_tup": live, "idx_scan": None}, {**table, "relname": "items"}]}
    found = seen(activity=[session(1, 'select from "orders" o')], tables=tables)
    assert [f.sign for f in found] == [Sign.WHOLE_SCAN] * is_told
    assert seen(activity=[session(1, "select from orders", datname="other")], tables=tables) == []
    if is_told:
        says = "shop.public.orders (100,000 rows) was read from end to end 10 times, by index 0 times"
        assert found[0].says == says


def test_a_checkpoint_that_keeps_the_disk_busy() -> None:
    at_work = {"backend_type": "checkpointer", "wait_event_type": "IO", "wait_event": "DataFileSync"}
    waiting = [session(n, f"select from t{n}", wait_event_type="IO", wait_event="WALSync") for n in range(3)]
    (found,) = seen(activity=[at_work, *waiting, session(9, "select from u")])
    assert found.says == (
        "a checkpoint waited for the disk (DataFileSync), and 3 of the 4 statements under way did so, too"
    )
    resting = {**at_work, "wait_event_type": "Timeout", "wait_event": "CheckpointWriteDelay"}
    assert seen(activity=[resting, *waiting]) == []
    assert seen(activity=[at_work, *waiting[1:]]) == []


def test_memory_that_ran_out_and_settings_that_wait() -> None:
    kernel: JsonValue = {
        "meminfo": "MemTotal: 8388608 kB\nMemFree: 1 kB\nMemAvailable: 131072 kB\n",
        "cgroup": {"group": "0::/a", "memory.events": "low 0\noom 3\noom_kill 2\n"},
    }
    found = symptoms_of({"kernel": kernel})
    assert [f.says for f in found] == [
        "128 MiB of the 8192 MiB of memory were left",
        "for want of memory the kernel had ended 2 of the processes in its group",
    ]
    rows = [{"name": "max_connections", "pending_restart": True}, {"name": "work_mem", "pending_restart": False}]
    (found_one,) = seen(settings=rows)
    assert found_one.says == "these settings had been changed, and wait for a restart: max_connections"


def test_the_report_takes_the_symptoms_of_the_old_primary_as_candidates() -> None:
    detail: JsonValue = [
        Symptom(Sign.LONG, "a statement had run for 9 s").to_detail(),
        {"sign": "unheard", "says": "of"},
    ]
    history = [
        CREATED,
        SERVING,
        event(-20_000, "n1", "primary.troubled", 1, None, why="it is hung", symptoms=detail),
        event(-30_000, "n2", "primary.troubled", 1, None, why="not the one", symptoms=detail),
        *failover(0, "n1", "n2", 2),
    ]
    (incident,) = incidents(history)
    (found,) = [c for c in incident.causes if c.what == "statements ran for long"]
    assert found.evidence == ("n1, 20.00 s before: a statement had run for 9 s",)
    assert "on n2" in found.look_at
    assert "holdfast policy set statements_adaptive=true" in [g.command for g in incident.guardrails]


def test_what_is_old_or_about_another_one_proposes_nothing() -> None:
    detail: JsonValue = [Symptom(Sign.LOCKS, "2 sessions waited").to_detail()]
    old = event(-20 * 60_000, "n1", "primary.troubled", 1, None, why="it was hung", symptoms=detail)
    for noted, is_told in ((old, False), (event(-1, "n1", "primary.troubled", 1, None, symptoms=detail), True)):
        (incident,) = incidents([CREATED, SERVING, noted, *failover(0, "n1", "n2", 2)])
        assert any("lock_timeout" in g.what for g in incident.guardrails) is is_told
        assert not any("statements_adaptive" in g.command for g in incident.guardrails)


def test_unknown_outcomes_propose_the_guard_of_commits() -> None:
    figures = {"held": 1, "longest_ms": 300, "refused": 0, "unknown": 2, "undone": 0}
    told = event(230, "p1", "clients.held", 2, None, **figures)
    (incident,) = incidents([CREATED, SERVING, *failover(0, "n1", "n2", 2), told])
    assert "holdfast policy set commit_guard=true" in [g.command for g in incident.guardrails]


def test_every_sign_has_its_words() -> None:
    assert list(_SIGNS) == [sign.value for sign in Sign]
