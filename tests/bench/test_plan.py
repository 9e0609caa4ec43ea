"""In which order bench/proxy.py measures what."""

from __future__ import annotations

from pathlib import Path

import peers
import pytest
from cells import COMPILED, HAPROXY, PGBOUNCER, Cell
from plan import Plan


def cell(clients: int = 8, tls: bool = False, pooling: str = "transaction") -> Cell:
    return Cell("tpcb", "simple", clients, tls, pooling)


def test_each_round_begins_with_another() -> None:
    plan = Plan([cell()], [PGBOUNCER, COMPILED, HAPROXY], rounds=3, sessions_max=8)
    assert [name for _, _, name in plan.runs()] == [
        *(PGBOUNCER, COMPILED, HAPROXY),
        *(COMPILED, HAPROXY, PGBOUNCER),
        *(HAPROXY, PGBOUNCER, COMPILED),
    ]


@pytest.mark.parametrize(
    ("load", "names"),
    [
        (cell(9), {PGBOUNCER, COMPILED}),
        (cell(8, pooling="session"), {PGBOUNCER, COMPILED, HAPROXY}),
        (cell(9, pooling="session"), set()),
        (cell(8, tls=True), {PGBOUNCER, COMPILED}),
    ],
)
def test_who_cannot_take_a_load_is_left_out(load: Cell, names: set[str]) -> None:
    plan = Plan([load], [PGBOUNCER, COMPILED, HAPROXY], rounds=1, sessions_max=8)
    assert {name for _, _, name in plan.runs()} == names


def test_a_peer_is_found_or_it_is_said_what_to_do(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("PATH", str(tmp_path))
    monkeypatch.setattr(peers, "SYSTEM", tmp_path)
    assert peers.find("pgbouncer", tmp_path) is None
    assert "install the package pgbouncer, or run with --fetch" in peers.missing("pgbouncer")
    fetched = tmp_path / "root" / "usr" / "sbin" / "pgbouncer"
    fetched.parent.mkdir(parents=True)
    fetched.touch(0o755)
    library = tmp_path / "root" / "usr" / "lib" / "here" / "libcares.so.2"
    library.parent.mkdir(parents=True)
    library.touch()
    found = peers.find("pgbouncer", tmp_path)
    assert found == peers.Program(fetched, {"LD_LIBRARY_PATH": str(library.parent)})
