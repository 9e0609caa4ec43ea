"""Last words, as a log has them."""

from __future__ import annotations

from pathlib import Path

import pytest

from holdfast.local.plan import LOOPING_ENDS, ProcessState
from holdfast.local.troubles import last_words

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


def test_no_log_has_no_words(tmp_path: Path) -> None:
    assert last_words(tmp_path / "nowhere") == ""


def test_wrong_input_is_believed_sooner() -> None:
    assert ProcessState(quick_ends=LOOPING_ENDS, last_status=-9).keeps_ending()
    assert not ProcessState(quick_ends=LOOPING_ENDS - 1, last_status=-9).keeps_ending()
    assert ProcessState(quick_ends=LOOPING_ENDS - 1, last_status=2).keeps_ending()
