"""What a standby may answer. Most of it is told by what must not pass."""

from __future__ import annotations

import pytest

from holdfast.wire.readonly import is_read_only

READS = """
select 1
SELECT a, b FROM t WHERE a = $1 AND b IN (1, 2) ORDER BY 1 LIMIT 3
values (1), (2)
table t
with recent as (select * from t) select * from recent
with recursive n(i) as (select 1 union all select i + 1 from n where i < 5) select sum(i) from n
select count(*) filter (where a > 1) over (partition by b) from t
select pg_catalog.lower(name) from t
select "lower"(name) from t
select x.a from (values (1), (2)) as x(a)
select t.price::numeric(10, 2) from t
select * from a join b using (id) where exists (select 1 from c where c.id = a.id)
select 'nextval(''s'') for update into'
select $$ nextval('s'); drop table t $$
select /* for update */ coalesce(max(a), 0) from t
select a from t where b = any(array[1, 2]) and (c) > (d)
select now(), current_timestamp, extract(epoch from ts) from t
select a from t;
select * from a left join (select 1 as a) b using (a) cross join (values (1)) c
select a, count(*) from t group by rollup (a), (b)
select a, count(*) from t group by grouping sets ((a), (b)) order by (a)
with a as not materialized (select 1), b as materialized (select 2) select * from a, b
select rank() over (order by a), percentile_cont(0.5) within group (order by a) from t
select last_value(a) over w from t window w as (order by b)
""".strip().splitlines()

WRITES = """
insert into t values (1)
update t set a = 1
delete from t
with gone as (delete from t returning *) select * from gone
select * into u from t
select * from t for update
select * from t for no key update
select * from t for share
select nextval('s')
select s.nextval from s
select currval('s')
select lastval()
select setval('s', 1)
select pg_advisory_lock(1)
select pg_catalog.pg_advisory_xact_lock(1)
select pg_try_advisory_lock(1)
select set_config('a.b', '1', false)
select pg_catalog.set_config('a.b', '1', false)
select pg_notify('a', 'b')
select own(1)
select app.own(1)
select app.lower('A')
select "Lower"('A')
select db.pg_catalog.lower('A')
select random()
select clock_timestamp()
select pg_sleep(1)
select pg_backend_pid()
select * from pg_stat_activity
select * from pg_catalog.pg_locks
select * from "pg_locks"
select pg_is_in_recovery()
select 1 operator(app.+) 2
select * from own(1)
select query_to_xml('delete from t', true, true, '')
select lo_unlink(1)
select 1; select 2
select 1; delete from t
begin
begin; select 1
explain select 1
explain analyze delete from t
show all
execute p
fetch c
call p()
do $$ begin end $$
copy t to stdout
lock t
listen c
declare c cursor for select 1
(select 1)
select last_value from s
select s."last_value" from s
select log_cnt, is_called from s
select U&"set!005fconfig" uescape '!' ('search_path', 'other', false)
select * from u&"\\0070g_stat_activity"
select 'a' uescape '!' (1)
select double(3)
select varying(3), zone(1)
select bpchar('a'), varbit('1')
""".strip().splitlines()


@pytest.mark.parametrize("sql", [*READS, "-- a word before\nselect 1"])
def test_reads(sql: str) -> None:
    assert is_read_only(sql.encode())


@pytest.mark.parametrize("sql", [*WRITES, "", ";", "select '" + "x" * 20_000 + "'"])
def test_all_else(sql: str) -> None:
    assert not is_read_only(sql.encode())


_OWN = "by cube rollup sets recursive materialized filter over within rows range groups like ilike is join similar zone"


@pytest.mark.parametrize("word", _OWN.split())
def test_a_function_that_has_the_name_of_a_word_of_the_grammar(word: str) -> None:
    assert not is_read_only(f"select {word}(1)".encode())
    assert not is_read_only(f"select 1, {word} (1)".encode())


@pytest.mark.parametrize("sql", ["select 1 -- a\r + pg_is_in_recovery()::int", "select 1 --\r; delete from t"])
def test_a_comment_ends_where_postgres_ends_it(sql: str) -> None:
    assert not is_read_only(sql.encode())
