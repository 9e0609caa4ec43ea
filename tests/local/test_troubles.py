"""Last words, as a log has them."""

from __future__ import annotations

import os
import time
from pathlib import Path

import pytest

from holdfast.local.cluster import LocalCluster
from holdfast.local.plan import LOOPING_ENDS, ProcessState, RunFiles, SupervisorState
from holdfast.local.processes import Process
from holdfast.local.troubles import last_words, troubles_of
from holdfast.model.register import Member
from holdfast.postgres.layout import Layout as ServerLayout
from tests.core.builders import report
from tests.local.test_layout import made

RULE = '{"event": "rule", "level": "info"}'


@pytest.mark.parametrize(
    ("lines", "words"),
    [
        ([], ""),
        ([RULE, "Error: no such setting"], "no such setting"),
        (["Error: no such setting", RULE, RULE], "no such setting"),  # the next one has begun
        (["Error: long ago", *[RULE] * 60], "rule"),
        (['{"error": "etcdserver: no space"}'], "etcdserver: no space"),
        (["Killed"], "Killed"),
    ],
)
def test_last_words(tmp_path: Path, lines: list[str], words: str) -> None:
    log = tmp_path / "agent.log"
    log.write_text("\n".join(lines))
    assert last_words(log) == words


async def test_words_from_before_the_last_start_are_not_of_now(tmp_path: Path) -> None:
    layout, file = made(tmp_path / "c")
    cluster = LocalCluster(layout, file)
    log_dir = ServerLayout(layout.data_dir("n2"), layout.socket_dir(file, "n2"), None).log_dir
    log_dir.mkdir(parents=True)
    log = log_dir / "postgresql-20261126-002945.log"
    log.write_text("2026-11-26 00:29:50 UTC [7] FATAL:  password authentication failed\n")
    reports = {"n2": report(Member("n2", "00000002"), streaming=False)}
    try:
        (found,) = await troubles_of(cluster, reports)
        assert (found.who, found.words) == ("n2", "PostgreSQL: password authentication failed")
        me = Process.of(os.getpid())
        assert me is not None
        RunFiles(layout.run).state.write_text(SupervisorState(me).to_json())
        (found,) = await troubles_of(cluster, reports)
        before = time.time() - me.age_s() - 1
        os.utime(log, (before, before))
        assert await troubles_of(cluster, reports) == ()
    finally:
        await cluster.close()


def test_no_log_has_no_words(tmp_path: Path) -> None:
    assert last_words(tmp_path / "nowhere") == ""


def test_wrong_input_is_believed_sooner() -> None:
    assert ProcessState(quick_ends=LOOPING_ENDS, last_status=-9).keeps_ending()
    assert not ProcessState(quick_ends=LOOPING_ENDS - 1, last_status=-9).keeps_ending()
    assert ProcessState(quick_ends=LOOPING_ENDS - 1, last_status=2).keeps_ending()
