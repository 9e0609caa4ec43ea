"""Rows of lost transactions, read back from a real old primary and brought back to the new one."""

from __future__ import annotations

import json
import os
import stat
from pathlib import Path
from typing import Any

import pytest

from holdfast.model.lost import SCRIPT, UNDECIDED, LostLog, Tuples
from holdfast.model.timeouts import Timeouts
from holdfast.postgres import waldump
from holdfast.postgres.salvage import run
from tests.postgres.lab import PARAMETERS, Lab, nothing

pytestmark = pytest.mark.live

SCHEMA = """
CREATE TYPE mood AS ENUM ('fine', 'not so fine');
CREATE TYPE pair AS (a int, b text);
CREATE DOMAIN short AS varchar(20);
CREATE TABLE plain (id int PRIMARY KEY, words text, at timestamptz);
CREATE TABLE "Odd ""Names"" x" ("select" int PRIMARY KEY, "a b" text, "Ü" mood);
CREATE TABLE kinds (id bigint GENERATED ALWAYS AS IDENTITY PRIMARY KEY,
  twice bigint GENERATED ALWAYS AS (id * 2) STORED, n numeric, f float8, tags text[], doc json, docb jsonb, raw bytea,
  p pair, i inet, r int4range, b bool, c char(8), s short, pt point, iv interval, x xml);
CREATE TABLE keyless (word text, n int);
CREATE TABLE parted (id int, region text, note text, PRIMARY KEY (id, region)) PARTITION BY LIST (region);
CREATE TABLE parted_north PARTITION OF parted FOR VALUES IN ('north');
CREATE TABLE parted_rest PARTITION OF parted DEFAULT;
INSERT INTO plain SELECT i, 'as it was ' || i, now() FROM generate_series(1, 20) i;
INSERT INTO "Odd ""Names"" x" VALUES (1, 'x', 'fine'), (2, NULL, NULL);
INSERT INTO kinds (n, doc, pt, tags, p, x)
  SELECT i / 3.0, '{"a":  1}'::json, point(i, i), ARRAY['a', NULL], (i, 'b'::text)::pair, '<a/>'::xml
  FROM generate_series(1, 5) i;
INSERT INTO keyless VALUES ('twice', 1), ('twice', 1), ('once', 2);
INSERT INTO parted VALUES (1, 'north', 'stays'), (2, 'south', 'stays');
"""
TABLES = ("plain", '"Odd ""Names"" x"', "kinds", "keyless", "parted")
TRANSACTIONS = (
    ["INSERT INTO plain SELECT i, 'it''s new \\ ' || i, NULL FROM generate_series(100, 130) i"],
    ["UPDATE plain SET words = 'first' WHERE id = 1", "DELETE FROM plain WHERE id IN (2, 3)"],
    ["UPDATE plain SET words = 'second' WHERE id = 1"],
    ["UPDATE plain SET words = 'third', id = 1000 WHERE id = 1", "INSERT INTO plain VALUES (1, 'another', 'infinity')"],
    [
        "INSERT INTO plain VALUES (200, 'a', NULL)", "SAVEPOINT s", "UPDATE plain SET words = 'b' WHERE id = 200",
        "RELEASE s", "SAVEPOINT t", "DELETE FROM plain", "ROLLBACK TO t", "INSERT INTO plain VALUES (201, 'c', NULL)",
        "DELETE FROM plain WHERE id = 201",
    ],
    [
        "INSERT INTO plain SELECT 300, string_agg(md5(i::text), '') FROM generate_series(1, 3000) i",
        "UPDATE plain SET words = repeat('wide ', 4000) WHERE id = 10",
    ],
    ["UPDATE plain SET at = '2026-01-01 12:00+02' WHERE id = 300"],
    ["DELETE FROM plain WHERE id = 10"],
    [
        """UPDATE "Odd ""Names"" x" SET "a b" = E'tab\\t and ''quotes'' \\\\', "Ü" = 'not so fine'""",
        """INSERT INTO "Odd ""Names"" x" VALUES (3, '', NULL)""",
    ],
    [
        """INSERT INTO kinds (n, f, tags, doc, docb, raw, p, i, r, b, c, s, pt, iv, x) VALUES ('NaN', 0.1,
        '{"a,b",NULL,"\\"q\\"",""}', '{"k": [1,  2]}', '{"k": "ü"}', '\\x00ff27', ROW(NULL, 'x"y,z'), '10.0.0.1',
        '[1,5)', true, 'pad', 'short', '(1,2)', '1 mon -3 days 04:05:06.7', '<a b="c">d</a>')""",
        "UPDATE kinds SET n = 7, tags = '{}', p = NULL WHERE id = 2", "DELETE FROM kinds WHERE id = 3",
    ],
    ["UPDATE keyless SET n = 5 WHERE ctid = (SELECT min(ctid) FROM keyless)", "DELETE FROM keyless WHERE n = 2"],
    ["INSERT INTO keyless SELECT 'many', i FROM generate_series(1, 5) i", "SELECT 1 FROM keyless FOR UPDATE"],
    ["INSERT INTO parted VALUES (3, 'north'), (4, 'west')", "UPDATE parted SET region = 'north' WHERE id = 2"],
    ["UPDATE parted SET note = 'moved' WHERE id = 2", "DELETE FROM parted WHERE id = 1"],
)  # fmt: skip


async def run_script(lab: Lab, node: str, text: str) -> None:
    """As somebody who has read it: without psql's own commands."""
    session = await lab.connect(node)
    await session.execute("\n".join(line for line in text.splitlines() if not line.startswith("\\")).encode())


async def content(lab: Lab, node: str) -> dict[str, list[Any]]:
    return {name: await lab.execute(node, f"SELECT t::text FROM {name} t ORDER BY 1") for name in TABLES}


async def lost_pair(lab: Lab, *, prepared: bool) -> tuple[LostLog, dict[str, list[Any]]]:
    two_phases = {**PARAMETERS, "max_prepared_transactions": "5"}
    lab.settings_of("b", parameters=two_phases)
    old = await lab.primary("a", parameters=two_phases)
    new, _ = await lab.standby("b")
    session = await lab.connect("a")
    await session.execute(SCHEMA.encode())
    await lab.until_equal(old, new)
    await new.detach()
    for statements in TRANSACTIONS:
        async with session.transaction():
            for statement in statements:
                await session.execute(statement.encode())
    if prepared:
        for statement in (
            "BEGIN",
            "INSERT INTO plain VALUES (400, 'prepared')",
            "UPDATE plain SET words = 'prepared' WHERE id = 12",
            "PREPARE TRANSACTION 'it''s two'",
        ):
            await session.execute(statement.encode())
    expected = await content(lab, "a")
    await lab.replace(old, new)
    lost = await old.rewind(lab.upstream("b"), await old.end_of_log(), nothing)
    assert isinstance(lost, LostLog)
    return lost, expected


async def test_every_lost_row_comes_back_by_the_script(lab: Lab) -> None:
    lost, expected = await lost_pair(lab, prepared=True)
    salvage = lost.salvage
    assert salvage is not None
    assert salvage.notes == ()
    assert salvage.is_whole
    assert lost.unread == ""
    assert len(lost.of_clients) == len(TRANSACTIONS) + 1
    text = (Path(lost.evidence_dir) / SCRIPT).read_text()
    await run_script(lab, "b", text)
    assert await content(lab, "b") == expected
    # What was prepared ends with ROLLBACK, until somebody decides otherwise.
    await run_script(lab, "b", text.replace(f"ROLLBACK; {UNDECIDED}", "COMMIT;"))
    assert await lab.execute("b", "SELECT words FROM plain WHERE id IN (12, 400) ORDER BY id") == [
        ("prepared",),
        ("prepared",),
    ]


# -- smaller losses ---------------------------------------------------------------------------------------------------

SMALL = "CREATE TABLE t (id int PRIMARY KEY, words text); INSERT INTO t VALUES (1, 'one'), (2, 'two')"
LOSSES = "INSERT INTO t VALUES (3, 'three'); UPDATE t SET words = 'uno' WHERE id = 1; DELETE FROM t WHERE id = 2"
T = "postgres.public.t"


async def lose(
    lab: Lab, *, shared: str = SMALL, lost: str = LOSSES, timeouts: Timeouts | None = None, **more: Any
) -> LostLog:
    """What a former primary that is brought back says it lost; statements are separated by semicolons."""
    two_phases = {**PARAMETERS, "max_prepared_transactions": "5"}
    lab.settings_of("b", parameters=two_phases)
    old = await lab.primary("a", parameters=two_phases, timeouts=timeouts, **more)
    new, _ = await lab.standby("b")
    session = await lab.connect("a")
    for statement in shared.split(";"):
        await session.execute(statement.encode())
    await lab.until_equal(old, new)
    await new.detach()
    for statement in lost.split(";"):
        await session.execute(statement.encode())
    await lab.replace(old, new)
    account = await old.rewind(lab.upstream("b"), await old.end_of_log(), nothing)
    assert isinstance(account, LostLog)
    return account


def rows_in(lost: LostLog) -> list[dict[str, Any]]:
    assert lost.salvage is not None
    file = lost.salvage.files.get(T)
    return [json.loads(s) for s in (Path(lost.evidence_dir) / file).read_text().splitlines()] if file else []


def modes_in(evidence: Path) -> tuple[set[int], set[int]]:
    """Of the directory, and of the files with rows."""
    files = [evidence / SCRIPT, *(evidence / "rows").iterdir()]
    return {stat.S_IMODE(evidence.stat().st_mode)}, {stat.S_IMODE(path.stat().st_mode) for path in files}


def notes_of(lost: LostLog) -> str:
    """Why not everything was read."""
    assert lost.salvage is not None
    assert lost.salvage.is_whole is (lost.salvage.notes == ())
    return "; ".join(lost.salvage.notes)


async def test_rows_are_as_they_were_and_for_their_owner_alone(lab: Lab) -> None:
    lost = await lose(lab)
    insert, update, delete = rows_in(lost)
    assert (insert["change"], insert["before"], insert["after"]) == ("insert", None, {"id": "3", "words": "three"})
    assert update["before"] == {"id": "1", "words": "one"}
    assert update["after"] == {"id": "1", "words": "uno"}
    assert (delete["change"], delete["before"], delete["after"]) == ("delete", {"id": "2", "words": "two"}, None)
    assert [r["xid"] for r in (insert, update, delete)] == [t.xid for t in lost.of_clients]
    assert modes_in(Path(lost.evidence_dir)) == ({0o700}, {0o600})
    assert not list(lab.root.rglob("salvage"))  # the copy


@pytest.mark.skipif(os.geteuid() != 0, reason="an ordinary user's copy has no file that is not its own")
async def test_the_copy_never_finds_a_file_of_log_that_it_may_not_read(
    lab: Lab, monkeypatch: pytest.MonkeyPatch
) -> None:
    """It looks for the next one all the while, and ended with a PANIC where it was not its own yet."""
    given = os.chown
    at_once: list[Path] = []

    def chown(path: Path, uid: int, gid: int) -> None:
        if path.parent.name == "pg_wal" and path.suffix != ".history":
            at_once.append(path)
        given(path, uid, gid)

    monkeypatch.setattr(os, "chown", chown)
    many = "; ".join(f"INSERT INTO t SELECT {i}, repeat('x', 4000000); SELECT pg_switch_wal()" for i in range(10, 13))
    lost = await lose(lab, lost=many)
    assert notes_of(lost) == ""
    assert at_once == []


async def test_what_a_checkpoint_made_unreadable_is_told(lab: Lab) -> None:
    lost = await lose(lab, lost=f"{LOSSES}; CHECKPOINT; INSERT INTO t VALUES (4, 'four')")
    afters = [r["after"] for r in rows_in(lost)]
    assert {"id": "3", "words": "three"} in afters
    assert {"id": "4", "words": "four"} in afters
    assert f"{T}: the row before of an update is not known any more, 1 times" in notes_of(lost)
    assert f"{T}: the row before of a delete is not known any more, 1 times" in notes_of(lost)
    script = (Path(lost.evidence_dir) / SCRIPT).read_text()
    assert "-- what this row was before is not known any more: compare before you run it" in script
    await run_script(lab, "b", script)
    assert await lab.execute("b", "SELECT * FROM t ORDER BY id") == [
        (1, "uno"), (2, "two"), (3, "three"), (4, "four")
    ]  # fmt: skip


async def test_what_was_prepared_before_the_fork_is_rather_decided_on_the_new_primary(lab: Lab) -> None:
    prepared = f"{SMALL}; BEGIN; UPDATE t SET words = 'decided' WHERE id = 1; PREPARE TRANSACTION 'it''s'"
    lost = await lose(lab, shared=prepared, lost="COMMIT PREPARED 'it''s'")
    (transaction,) = lost.of_clients
    assert (transaction.open_as, transaction.prepared_as, notes_of(lost)) == ("it's", None, "")
    assert [(r["before"], r["after"]) for r in rows_in(lost)] == [
        ({"id": "1", "words": "one"}, {"id": "1", "words": "decided"})
    ]
    script = (Path(lost.evidence_dir) / SCRIPT).read_text()
    (wanted,) = [line for line in script.splitlines() if "COMMIT PREPARED" in line]
    await lab.execute("b", wanted.removeprefix("-- "))
    await run_script(lab, "b", script)
    assert await lab.execute("b", "SELECT words FROM t WHERE id = 1") == [("decided",)]


async def test_rows_are_read_as_their_table_was_at_that_moment(lab: Lab) -> None:
    """And a transaction that changed the catalog is not committed by the script: its DDL is not in it."""
    ddl = (
        "ALTER TABLE t ADD more int; UPDATE t SET more = 5 WHERE id = 3; TRUNCATE t; INSERT INTO t VALUES (9, 'new', 9)"
    )
    lost = await lose(lab, lost=f"INSERT INTO t VALUES (3, 'three'); {ddl}")
    assert notes_of(lost) == ""
    assert [(r["before"], r["after"]) for r in rows_in(lost)] == [
        (None, {"id": "3", "words": "three"}),
        ({"id": "3", "words": "three", "more": None}, {"id": "3", "words": "three", "more": "5"}),
        (None, {"id": "9", "words": "new", "more": "9"}),
    ]
    script = (Path(lost.evidence_dir) / SCRIPT).read_text()
    assert script.count("ROLLBACK; -- COMMIT when you have done what it did to the catalog") == 2
    assert script.count("-- it also changed pg_catalog.pg_") == 2


async def test_the_salvage_is_bounded_in_time_and_the_node_comes_back_all_the_same(lab: Lab) -> None:
    lost = await lose(lab, timeouts=Timeouts().model_copy(update={"salvage_ms": 1}))
    assert "it took longer than timeouts.salvage_ms = 1" in notes_of(lost)
    assert len(lost.of_clients) == 3
    assert not list(lab.root.rglob("salvage"))


async def test_the_salvage_is_bounded_in_size(lab: Lab, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(run, "ROWS_BYTES_MAX", 600)
    lost = await lose(lab)
    assert "the rest was not written" in notes_of(lost)
    assert 0 < len(rows_in(lost)) < 3


async def test_too_many_rows_are_counted_and_not_read(lab: Lab, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(waldump, "WRITES_MAX", 50)
    lost = await lose(lab, lost="INSERT INTO t SELECT i, 'many' FROM generate_series(3, 100) i")
    assert "too many to be read one by one" in notes_of(lost)
    assert [t.relations for t in lost.of_clients] == [{T: Tuples(inserted=98)}]


async def test_a_place_that_cannot_be_used_is_told_and_hinders_nobody(lab: Lab) -> None:
    file = lab.root / "no-directory"
    file.write_bytes(b"")
    lost = await lose(lab, salvage_dir=file)
    assert str(file) in notes_of(lost)
    assert len(lost.of_clients) == 3


async def test_nothing_is_read_where_the_setting_says_so(lab: Lab) -> None:
    lost = await lose(lab, salvage=False)
    assert (lost.salvage, len(lost.of_clients)) == (None, 3)
    assert not (Path(lost.evidence_dir) / SCRIPT).exists()


async def test_what_a_killed_agent_left_of_a_copy_is_gone_at_the_next_start(lab: Lab) -> None:
    chosen = lab.root / "elsewhere"
    left = chosen / "holdfast-salvage-a" / "data"
    left.mkdir(parents=True)
    await lab.primary("a", salvage_dir=chosen)
    assert list(chosen.iterdir()) == []
