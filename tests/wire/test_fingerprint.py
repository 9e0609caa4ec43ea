"""Fingerprints: literals, white space, comments and the lengths of lists do not matter; all else does."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from holdfast.wire.fingerprint import READ_BYTES_MAX, TEXT_MAX, does_work, fingerprint

SAME = (
    ("select * from t where id = 1", "SELECT *\n FROM t  WHERE id=42"),
    ("select * from t where id = 1", "select * from t where id = $1"),
    ("select 'a' from t", "select /* a /* nested */ comment */ 'it''s' -- end\n from t"),
    ("select 1", "select -1"),
    ("select * from t where id in (1)", "select * from t where id in (1, 2, 3, -4, null)"),
    ("insert into t values (1, 'a')", "insert into t values (2, 'b'), (3, 'c'), (default, true)"),
    ("select x = any (array[1, 2])", "select x = any (array['a'])"),
    ("select $$body$$", "select $tag$other$tag$"),
    ("select e'\\n'", "select b'101'"),
    ("set a = 1; select 1", "set a = 2 ; select 3"),
    ("select a[1] from t", "select a[-1] from t"),
    ("", "/* nothing */ ;"),
)
DIFFERENT = (
    ("select * from t where id = 1", "select * from u where id = 1"),
    ('select * from "t"', "select * from t"),
    ("select a from t where b is null", "select a from t where b is true"),
    ("select a - 1", "select a + 1"),
    ("select a - 1", "select a"),
    ("select - a", "select + a"),
    ("select 1", "select 1; select 1"),
    ("select * from t where id in (1, 2)", "select * from t where id in (1, a)"),
    ("select 1", "select 'a' where true"),
    ("update t set a = 1", "update t set a = null"),
)


@pytest.mark.parametrize(("one", "other"), SAME)
def test_the_same(one: str, other: str) -> None:
    assert fingerprint(one.encode()) == fingerprint(other.encode())


@pytest.mark.parametrize(("one", "other"), DIFFERENT)
def test_not_the_same(one: str, other: str) -> None:
    assert fingerprint(one.encode()).id != fingerprint(other.encode()).id


def test_the_text_is_for_people() -> None:
    sql = b"INSERT INTO app.t (a, b) VALUES (1, 'x'::text), (2, NULL) RETURNING f(a);"
    assert fingerprint(sql).text == "insert into app.t (a, b) values (?::text), (?) returning f (a)"


@pytest.mark.parametrize(
    "sql", ["begin", "COMMIT", "rollback to a", "set x = 1", "", "commit prepared 'x'", "end; begin"]
)
def test_what_begins_ends_or_sets_does_no_work(sql: str) -> None:
    assert not does_work(sql.encode())
    assert does_work(f"{sql}; select 1".encode())


literals = st.one_of(
    st.integers().map(str),
    st.floats(allow_nan=False, allow_infinity=False).map(repr),
    st.text(st.characters(codec="utf-8", exclude_characters="\0"), max_size=30).map(
        lambda text: "'" + text.replace("'", "''") + "'"
    ),
    st.integers(1, 999).map(lambda number: f"${number}"),
    st.just("$q$ a 'string' $q$"),
)
spaces = st.sampled_from([" ", "\n\t ", " -- a comment\n", "/* x */", " /* ' */ "])


@given(st.lists(literals, min_size=1, max_size=20), st.lists(spaces, min_size=9, max_size=9), st.booleans())
def test_literals_lists_white_space_and_comments_do_not_matter(values: list[str], gaps: list[str], upper: bool) -> None:
    words = ["select", "a", "from", "t", "where", "b", "in", "(" + ", ".join(values) + ")", "and c =", values[0]]
    words = [word.upper() if upper and word.isalpha() else word for word in words]
    sql = "".join(word + gap for word, gap in zip(words, [*gaps, ""], strict=True))
    assert fingerprint(sql.encode()).id == fingerprint(b"select a from t where b in (1) and c = 2").id


@given(st.integers(1, 300), st.integers(0, 100))
def test_rows_of_values_do_not_matter_however_many(rows: int, size: int) -> None:
    row = f"(1, '{'x' * size}', 'a, b (c', null)"
    sql = f"insert into t (a, b, c, d) values {', '.join([row] * rows)}".encode()
    assert fingerprint(sql).id == fingerprint(b"insert into t (a, b, c, d) values (1, 2, 3, 4)").id


@given(st.binary(max_size=6000))
def test_any_bytes_have_a_short_text_and_an_id(sql: bytes) -> None:
    found = fingerprint(sql)
    assert len(found.text) <= TEXT_MAX
    assert len(found.id) == 12


PARTS = ["a", "bb", "'x'", '"q"', "(", ")", ",", "1", ";", "$a$ b $a$", "+", "-", "e", "null", "1e", "::"]


@given(st.lists(st.tuples(st.sampled_from(PARTS), spaces)))
def test_what_is_between_tokens_does_not_matter(parts: list[tuple[str, str]]) -> None:
    sql = "".join(part + gap for part, gap in parts)
    assert fingerprint(sql.encode()) == fingerprint(" ".join(part for part, _ in parts).encode())


def test_only_the_beginning_of_a_long_statement_is_read() -> None:
    begin = b"select " + b"a, " * READ_BYTES_MAX
    assert fingerprint(begin + b"b").id == fingerprint(begin + b"c").id
