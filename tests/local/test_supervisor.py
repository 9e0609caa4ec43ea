"""The supervisor keeps what it is told to keep, and leaves nothing behind."""

from __future__ import annotations

import shutil
import signal
import subprocess
import sys
import time
from dataclasses import replace
from pathlib import Path

import pytest

from tests.local.conftest import processes_below
from tests.local.supervision import DEADLINE_S, DEAF, SHORT_LIVED, Supervised, stand_in, until


def test_what_dies_is_started_again(place: Path) -> None:
    supervised = Supervised(place, stand_in(place, "a"), stand_in(place, "b"))
    supervisor = supervised.start()
    first, other = supervised.process("a"), supervised.process("b")
    first.send(signal.SIGKILL)
    until(lambda: supervised.all_run() and supervised.process("a") != first, "a runs again")
    assert supervised.state().processes["a"].restarts == 1
    assert supervised.state().processes["a"].last_status == -signal.SIGKILL
    assert supervised.process("b") == other
    supervisor.terminate()
    assert supervisor.wait(DEADLINE_S) == 0


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT, signal.SIGHUP])
def test_a_signal_stops_all_stage_by_stage(place: Path, number: signal.Signals) -> None:
    supervised = Supervised(
        place, stand_in(place, "store", stage=2), stand_in(place, "agent", stage=1), stand_in(place, "proxy", stage=0)
    )
    supervisor = supervised.start()
    supervisor.send_signal(number)
    assert supervisor.wait(DEADLINE_S) == 0
    assert supervised.ended() == ["proxy", "agent", "store"]
    assert processes_below(place) == []
    assert not supervised.files.state.exists()


def test_the_end_of_standard_input_stops_a_tied_one(place: Path) -> None:
    supervised = Supervised(place, stand_in(place, "a"))
    supervisor = supervised.start("--tied")
    assert supervisor.stdin is not None
    supervisor.stdin.close()
    assert supervisor.wait(DEADLINE_S) == 0
    assert processes_below(place) == []
    assert supervised.root.exists()


def test_an_owner_that_is_killed_leaves_nothing_behind(place: Path) -> None:
    supervised = Supervised(place, stand_in(place, "a"), stand_in(place, "deaf", DEAF))
    code = (
        "import subprocess, sys, signal\n"
        "subprocess.Popen([sys.executable, '-m', 'holdfast.cli', 'supervise', sys.argv[1], '--tied', '--remove'],"
        " stdin=subprocess.PIPE, start_new_session=True)\n"
        "signal.pause()"
    )
    owner = subprocess.Popen([sys.executable, "-c", code, str(supervised.root)])
    until(supervised.all_run, "all run")
    owner.kill()
    owner.wait(DEADLINE_S)
    until(lambda: not supervised.root.exists(), "the directory is removed")
    until(lambda: processes_below(place) == [], "nothing runs")


def test_a_tied_one_that_is_told_to_keep_goes_on_without_its_owner(place: Path) -> None:
    supervised = Supervised(place, stand_in(place, "a"))
    supervisor = supervised.start("--tied", "--remove")
    assert supervisor.stdin is not None
    supervisor.stdin.write(b"keep\n")
    supervisor.stdin.close()
    until(lambda: "supervisor.untied" in supervised.files.log.read_text(), "it has read the word")
    assert supervised.all_run()
    supervisor.terminate()
    assert supervisor.wait(DEADLINE_S) == 0
    assert supervised.root.exists()


def test_a_deaf_process_is_killed(place: Path) -> None:
    supervised = Supervised(place, stand_in(place, "deaf", DEAF, stop_ms=200))
    supervisor = supervised.start()
    supervisor.terminate()
    assert supervisor.wait(DEADLINE_S) == 0
    assert processes_below(place) == []


def test_one_that_comes_after_a_killed_one_picks_up_what_still_runs(place: Path) -> None:
    supervised = Supervised(place, stand_in(place, "a"), stand_in(place, "b"))
    killed = supervised.start()
    a, b = supervised.process("a"), supervised.process("b")
    killed.kill()
    killed.wait(DEADLINE_S)
    b.send(signal.SIGKILL)
    assert b.wait(DEADLINE_S)
    supervisor = supervised.start()
    assert supervised.process("a") == a
    assert supervised.state().processes["a"].adopted
    assert supervised.process("b") != b
    a.send(signal.SIGKILL)
    until(lambda: supervised.all_run() and supervised.process("a") != a, "an adopted process is started again, too")
    supervisor.terminate()
    assert supervisor.wait(DEADLINE_S) == 0
    assert processes_below(place) == []


def test_one_that_was_started_with_more_words_is_picked_up_too(place: Path) -> None:
    spec = replace(stand_in(place, "a"), extra=("--once",))
    supervised = Supervised(place, spec)
    killed = supervised.start()
    a = supervised.process("a")
    killed.kill()
    killed.wait(DEADLINE_S)
    supervised = Supervised(place, replace(spec, extra=()))
    supervisor = supervised.start()
    assert supervised.process("a") == a
    supervisor.terminate()
    assert supervisor.wait(DEADLINE_S) == 0
    assert processes_below(place) == []


def test_one_whose_directory_is_removed_ends_with_all_its_processes(place: Path) -> None:
    supervised = Supervised(place, stand_in(place, "a"), stand_in(place, "b"))
    supervisor = supervised.start()
    a = supervised.process("a")
    shutil.rmtree(supervised.root)
    a.send(signal.SIGKILL)
    assert supervisor.wait(DEADLINE_S) == 0
    assert processes_below(place) == []


def test_a_directory_has_one_supervisor(place: Path) -> None:
    supervised = Supervised(place, stand_in(place, "a"))
    first = supervised.start()
    second = subprocess.run(
        [sys.executable, "-m", "holdfast.cli", "supervise", str(supervised.root)],
        capture_output=True,
        text=True,
        timeout=DEADLINE_S,
        check=False,
    )
    assert second.returncode == 1
    assert "another supervisor already runs the cluster" in second.stderr
    assert supervised.all_run()
    first.terminate()
    assert first.wait(DEADLINE_S) == 0


def test_a_process_that_keeps_ending_is_started_with_pauses(place: Path) -> None:
    supervised = Supervised(place, stand_in(place, "a"))
    spec = stand_in(place, "short", SHORT_LIVED)
    supervised = Supervised(place, stand_in(place, "a"), spec)
    command = [sys.executable, "-m", "holdfast.cli", "supervise", str(supervised.root)]
    began_at = time.monotonic()
    supervisor = subprocess.Popen(command, stderr=subprocess.DEVNULL, start_new_session=True)
    until(lambda: (s := supervised.state().processes.get("short")) is not None and s.restarts >= 5, "five ends")
    assert time.monotonic() - began_at >= (10 + 20 + 40 + 50) / 1000
    assert supervised.state().processes["short"].last_status == 7
    supervisor.terminate()
    assert supervisor.wait(DEADLINE_S) == 0


def test_a_program_that_is_not_there_is_said_in_its_log(place: Path) -> None:
    missing = replace(stand_in(place, "missing"), command=(str(place / "nowhere"),))
    supervised = Supervised(place, missing)
    supervisor = subprocess.Popen(
        [sys.executable, "-m", "holdfast.cli", "supervise", str(supervised.root)],
        stderr=subprocess.DEVNULL,
        start_new_session=True,
    )
    log = Path(missing.log_file)
    until(lambda: log.exists() and "cannot be started" in log.read_text(), "it is said")
    supervisor.terminate()
    assert supervisor.wait(DEADLINE_S) == 0
