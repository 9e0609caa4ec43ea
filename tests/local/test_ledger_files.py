"""A ledger in a file: what it says, and what is said of one that cannot be read."""

from __future__ import annotations

from pathlib import Path

import pytest

from holdfast.local.match.files import FileLedger
from holdfast.local.match.query import QueryLedger, is_dsn
from holdfast.local.match.seen import Seen
from holdfast.model.errors import ConfigurationError

Read = list[tuple[str, dict[str, str | None]]]


def read(path: Path, *, delimiter: str | None = None, null: str = "") -> Read:
    ledger = FileLedger(str(path), None, delimiter, null)
    shares: list[float | None] = []
    found = [(e.position, dict(e.values)) for e in ledger.entries(["id"], ["amount"], shares.append)]
    assert shares[-1] == 1.0
    return found


def test_csv(tmp_path: Path) -> None:
    path = tmp_path / "l.csv"
    path.write_bytes('\ufeffid,more,amount\r\n7,"a\r\nb, ""c""",1.50\r\n\r\n8,,\r\n'.encode())
    assert read(path) == [("line 2", {"id": "7", "amount": "1.50"}), ("line 5", {"id": "8", "amount": None})]
    path.write_text("amount;id\n;7\nNULL;8\n")
    assert read(path, delimiter=";", null="NULL") == [
        ("line 2", {"id": "7", "amount": ""}),
        ("line 3", {"id": "8", "amount": None}),
    ]
    path = tmp_path / "l.tsv"
    path.write_text("id\tamount\n7\t1,5\n")
    assert read(path) == [("line 2", {"id": "7", "amount": "1,5"})]


def test_json_lines_keep_numbers_as_they_stand(tmp_path: Path) -> None:
    path = tmp_path / "l.jsonl"
    path.write_text('{"id": 12345678901234567890, "amount": 1.10}\n\n{"id": "x"}\n{"id": null, "amount": true}\n')
    assert read(path) == [
        ("line 1", {"id": "12345678901234567890", "amount": "1.10"}),
        ("line 3", {"id": "x", "amount": None}),
        ("line 4", {"id": None, "amount": "true"}),
    ]


@pytest.mark.parametrize(
    ("name", "content", "words"),
    [
        ("l.csv", b"", ("line 1", "must name the columns")),
        ("l.csv", b"number,amount\n7,1\n", ("line 1", "no column 'id'", "'number', 'amount'")),
        ("l.csv", b"id;amount\n7;1\n", ("no column 'id'", "delimiter ','")),
        ("l.csv", b"id,id,amount\n", ("more than one column is named 'id'",)),
        ("l.csv", b"id,amount\n7,1\n8\n", ("line 3", "1 fields", "names 2")),
        ("l.csv", b'id,amount\n7,1\n8,"2\n9,3\n', ("line 3", "no CSV", "up to line 4")),
        ("l.csv", b"id,amount\n7,1\n8,\xe9\n", ("line 3", "0xe9", "UTF-8")),
        ("l.csv", "id,amount\n".encode("utf-16"), ("line 1", "UTF-16")),
        ("l.jsonl", b'{"id": 7}\n{"id": \n', ("line 2", "no JSON")),
        ("l.jsonl", b'[\n{"id": 7}]\n', ("line 1", "one JSON text")),
        ("l.jsonl", b'{"id": 7}\n[8]\n', ("line 2", "no JSON object")),
        ("l.jsonl", b'{"id": 7}\n{"number": 8, "b": 1}\n', ("line 2", "no 'id'", "'number', 'b'")),
        ("l.txt", b"id\n", ("--format csv or --format jsonl",)),
    ],
)
def test_what_cannot_be_read_is_told_with_its_line(
    tmp_path: Path, name: str, content: bytes, words: tuple[str, ...]
) -> None:
    path = tmp_path / name
    path.write_bytes(content)
    with pytest.raises(ConfigurationError) as error:
        read(path)
    for word in ("--ledger", *words):
        assert word in str(error.value)


def test_a_file_that_is_not_there(tmp_path: Path) -> None:
    with pytest.raises(ConfigurationError, match=r"none\.csv: it cannot be read: No such file"):
        read(tmp_path / "none.csv")
    with pytest.raises(ConfigurationError, match="--delimiter"):
        FileLedger("l.csv", None, ";;", "")


def test_a_connection_string_is_told_from_a_file(tmp_path: Path) -> None:
    odd = tmp_path / "a=b.csv"
    odd.touch()
    assert not is_dsn(str(odd))
    assert not is_dsn("l.csv")
    assert is_dsn("service=ledger")
    assert is_dsn("postgres://somewhere/else")


@pytest.mark.parametrize(
    "dsn", ["postgresql://u:hidden@h/d", "host=h password=hidden", "postgresql://h/?password=hidden"]
)
def test_a_password_on_the_command_line_is_refused_and_not_repeated(dsn: str) -> None:
    with pytest.raises(ConfigurationError, match="PGPASSFILE") as error:
        QueryLedger(dsn, "SELECT 1")
    assert "hidden" not in str(error.value)
    with pytest.raises(ConfigurationError, match="neither a file") as error:
        QueryLedger("hidden=1", "SELECT 1")
    assert "hidden" not in str(error.value)


def test_a_key_is_seen_again() -> None:
    with Seen() as seen:
        assert [seen.again(key) for key in (("1", "2"), ("12", ""), ("1", "2"), ("1", "2"))] == [
            False,
            False,
            True,
            True,
        ]
