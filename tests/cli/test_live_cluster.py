"""A whole cluster, driven by the command line as people drive it."""

from __future__ import annotations

import asyncio
import json
import re
import shutil
import signal
import tempfile
import time
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import psycopg
import pytest

from holdfast.local.cluster import LocalCluster
from holdfast.local.machine import who_asks
from holdfast.local.processes import Process, postmaster_of
from holdfast.model.keys import Keys
from holdfast.model.lost import SCRIPT, LostLog, LostTransaction, Salvage, Tuples
from holdfast.model.lsn import Lsn
from holdfast.model.register import Member
from holdfast.model.suspect import Standing, Suspect
from holdfast.wire.fingerprint import fingerprint
from tests.cli.running import DEADLINE_S, assert_refused, holdfast
from tests.local.conftest import processes_below
from tests.local.supervision import until

pytestmark = [pytest.mark.live, pytest.mark.timeout(600)]


def answer(*arguments: object, status: int = 0) -> Any:
    """What a command prints with ``--json``."""
    done = holdfast(*arguments, "--json")
    assert done.returncode == status, f"{done.stdout}\n{done.stderr}"
    return json.loads(done.stdout)


class Running:
    """A cluster that `up` made."""

    def __init__(self, root: Path) -> None:
        self.root = root
        self.cluster = LocalCluster.open(root)

    def status(self) -> dict[str, Any]:
        done = holdfast("status", "--dir", self.root, "--json")
        found: dict[str, Any] = json.loads(done.stdout)
        assert done.returncode == (0 if found["healthy"] else 1)
        return found

    def wait_until_healthy(self) -> dict[str, Any]:
        found: list[dict[str, Any]] = []

        def healthy() -> bool:
            found.append(self.status())
            return bool(found[-1]["healthy"])

        until(healthy, "the cluster is healthy", deadline_s=DEADLINE_S)
        return found[-1]

    def process(self, name: str) -> Process:
        process = self.cluster.state().processes[name].process
        assert process is not None
        return process

    def write(self, text: str) -> None:
        with psycopg.connect(self.cluster.write_dsn, autocommit=True, connect_timeout=30) as connection:
            connection.execute("CREATE TABLE IF NOT EXISTS said (text text)")
            connection.execute("INSERT INTO said VALUES (%s)", (text,))

    def read(self) -> list[str]:
        with psycopg.connect(self.cluster.write_dsn, autocommit=True, connect_timeout=30) as connection:
            return [row[0] for row in connection.execute("SELECT text FROM said")]


@pytest.fixture(scope="module")
def running() -> Iterator[Running]:
    place = Path(tempfile.mkdtemp(prefix="holdfast-test-"))
    place.chmod(0o711)
    root = place / "cluster"
    try:
        done = holdfast("up", "--dir", root)
        assert done.returncode == 0, f"{done.stdout}\n{done.stderr}"
        assert "n1: is primary" in done.stdout
        yield Running(root)
    finally:
        holdfast("down", "--dir", root)
        left = processes_below(place)
        for process in left:
            process.send(signal.SIGKILL)
        shutil.rmtree(place, ignore_errors=True)
    assert left == []


def test_status_says_what_may_be_lost(running: Running) -> None:
    found = running.wait_until_healthy()
    assert found["tolerates"] == "the primary or one standby may be lost"
    assert {node["name"]: node["role"] for node in found["nodes"]}[found["primary"]] == "primary"
    assert all(node["agent_alive"] for node in found["nodes"])
    text = holdfast("status", "--dir", running.root).stdout
    assert "tolerates   the primary or one standby may be lost" in text


def test_up_again_finds_it_running(running: Running) -> None:
    before = running.cluster.state()
    assert answer("up", "--dir", running.root)["started"] is False
    assert running.cluster.state().supervisor == before.supervisor
    assert_refused(holdfast("up", "--dir", running.root, "--port", "1"), "--port 1", "stop it first")


def test_the_application_writes_and_reads(running: Running) -> None:
    running.write("hello")
    assert "hello" in running.read()
    with psycopg.connect(running.cluster.read_dsn, autocommit=True) as connection:
        row = connection.execute("SELECT pg_is_in_recovery()").fetchone()
    assert row == (True,)


def test_the_wrong_password_is_refused(running: Running) -> None:
    dsn = f"postgresql://app:wrong@127.0.0.1:{running.cluster.file.ports.write}/app"
    with pytest.raises(psycopg.OperationalError, match="password authentication failed"):
        psycopg.connect(dsn)


def test_a_killed_agent_leaves_postgresql_serving_and_comes_back_to_it(running: Running) -> None:
    primary = running.wait_until_healthy()["primary"]
    postmaster = postmaster_of(running.cluster.layout.data_dir(primary))
    agent = running.process(primary)
    agent.send(signal.SIGKILL)
    running.write("while its agent is dead")
    until(lambda: running.cluster.state().processes[primary].process not in (None, agent), "the agent is started again")
    after = running.wait_until_healthy()
    assert postmaster_of(running.cluster.layout.data_dir(primary)) == postmaster
    assert after["primary"] == primary
    assert running.process(primary) != agent


def test_a_killed_proxy_comes_back(running: Running) -> None:
    proxy = running.process("proxy")
    proxy.send(signal.SIGKILL)
    until(lambda: running.cluster.state().processes["proxy"].process not in (None, proxy), "the proxy is started again")

    def writes() -> bool:
        try:
            running.write("after the proxy")
        except psycopg.OperationalError:
            return False
        return True

    until(writes, "the new proxy takes writes")


def test_a_killed_supervisor_takes_nothing_with_it(running: Running) -> None:
    running.wait_until_healthy()
    state = running.cluster.state()
    assert state.supervisor is not None
    state.supervisor.send(signal.SIGKILL)
    assert state.supervisor.wait(DEADLINE_S)
    running.write("without a supervisor")
    found = running.status()
    assert (found["running"], found["supervised"], found["healthy"]) == (True, False, False)
    assert found["primary"] is not None
    text = holdfast("status", "--dir", running.root, environment={"HOLDFAST_COMMAND": "./holdfast"}).stdout
    assert f"its supervisor is gone: what dies stays dead until `./holdfast up --dir {running.root}`" in " ".join(
        text.split()
    )
    assert answer("up", "--dir", running.root)["started"] is True
    after = running.cluster.state()
    assert {n: p.process for n, p in after.processes.items()} == {n: p.process for n, p in state.processes.items()}
    assert running.wait_until_healthy()["running"]


def test_switchover(running: Running) -> None:
    before = running.wait_until_healthy()
    target = next(node["name"] for node in before["nodes"] if node["name"] != before["primary"])
    assert answer("switchover", "--dir", running.root, "--to", target)["ok"] is True
    after = running.wait_until_healthy()
    assert after["primary"] == target
    assert after["epoch"] == before["epoch"] + 1
    assert_refused(holdfast("switchover", "--dir", running.root, "--to", "n9"), "--to n9", "n1, n2, n3")


def test_what_is_let_in_is_decided_and_shown(running: Running) -> None:
    running.wait_until_healthy()
    place = ("--dir", running.root)
    wanted = ("statements_max=50", "classes.background.users=etl, reports", "classes.nightly.share=3")
    assert answer("policy", "set", *wanted, *place)["ok"] is True
    shown = holdfast("policy", "show", *place).stdout
    assert re.search(r'classes.background +share=10 +most_percent=30 .*users=\["etl", "reports"\]', shown)
    until(lambda: answer("ramp", "show", *place)["write"]["limit"] == 50, "the proxy has heard", deadline_s=DEADLINE_S)
    assert set(answer("ramp", "show", *place)["read"]["classes"]) == {"critical", "normal", "background", "nightly"}
    assert "write: at most 50 at once; 0 inside, 0 wait" in holdfast("ramp", "show", *place).stdout
    for order in ("hold", "resume", "faster", "end"):
        assert order in answer("ramp", order, *place)["message"]
    journal = holdfast("incident", "export", "--everything", *place).stdout.splitlines()
    ordered = [e["detail"] for e in map(json.loads, journal) if e["kind"] == "ramp.ordered"]
    assert [detail["order"] for detail in ordered] == ["hold", "resume", "faster", "end"]
    assert {detail["by"] for detail in ordered} == {who_asks()}
    assert {detail["address"] for detail in ordered} == {"127.0.0.1"}
    for wrong, *words in (
        ("classes.background.share=much", "classes.background.share", "'much'"),
        ("classes.background.speed=1", "classes.background.speed is not known"),
        ("classes.Background.share=1", "classes.Background"),
        ("classes.background=10", "classes.background.share=20"),
        ("ramp_start_percent=0", "ramp_start_percent", "not 0"),
    ):
        assert_refused(holdfast("policy", "set", wrong, *place), *words, status=2 if "=10" in wrong else 1)
    again = ("statements_max=", "classes.background=", "classes.nightly=")
    assert answer("policy", "set", *again, *place)["ok"] is True
    assert answer("policy", "show", *place)["classes"] == {}


def test_a_person_decides_about_suspects(running: Running) -> None:
    running.wait_until_healthy()
    place = ("--dir", running.root)
    assert answer("quarantine", "list", *place) == []
    assert "no statement is suspected" in holdfast("quarantine", "list", *place).stdout
    assert_refused(
        holdfast("quarantine", "release", "0123456789ab", *place), "0123456789ab", "quarantine list", status=1
    )
    found = fingerprint(b"select 1 from quarantined")
    suspect = Suspect(found.id, found.text, (1,), Standing.ALONE, "suspect.unusual", 3, 1200, time.time() * 1000)

    async def accuse() -> None:
        cluster = LocalCluster.open(running.root)
        try:
            await cluster.store().put(Keys(cluster.name).suspect(suspect.id), suspect.to_json())
        finally:
            await cluster.close()

    asyncio.run(accuse())
    assert [entry["id"] for entry in answer("quarantine", "list", *place)] == [suspect.id]
    until(lambda: "QUARANTINE" in "".join(running.status()["held_back"]), "status shows it", deadline_s=DEADLINE_S)
    assert "kept" in answer("quarantine", "keep", suspect.id, *place)["message"]
    text = holdfast("quarantine", "list", *place).stdout
    assert re.search(rf"{suspect.id}  refused .*select \? from quarantined\n.*a person said so\n.*3 sessions", text)
    assert "released" in holdfast("quarantine", "release", suspect.id, *place).stdout
    until(lambda: not running.status()["held_back"], "nobody is held", deadline_s=DEADLINE_S)
    assert_refused(holdfast("policy", "set", "quarantine=maybe", *place), "policy quarantine", "'maybe'", status=1)


def test_a_drill_on_a_running_cluster(running: Running) -> None:
    running.wait_until_healthy()
    result, report = running.root.parent / "result.json", running.root.parent / "report"
    done = holdfast(
        "drill", "run", "primary-crash", "--dir", running.root, "--seed", 7, "--json", result, "--report", report
    )
    assert done.returncode == 0, f"{done.stdout}\n{done.stderr}"
    found = json.loads(result.read_text())
    assert (found["drill"], found["seed"], found["passed"]) == ("primary-crash", 7, True)
    assert (found["writes"]["lost"], found["writes"]["duplicated"], found["nothing_lost_proved"]) == (0, 0, True)
    assert found["settings"] == running.cluster.settings_hash
    assert Path(found["report"]).is_file()
    assert running.wait_until_healthy()["primary"] == found["new_primary"]


def test_what_happened_so_far_is_told_as_incidents(running: Running, tmp_path: Path) -> None:
    running.wait_until_healthy()
    planned, crash = answer("incident", "list", "--dir", running.root)[-2:]
    assert (planned["switchover"], crash["switchover"]) == (True, False)
    assert (crash["nothing_lost"], crash["old"]) == (True, planned["new"])
    told = answer("incident", "show", crash["number"], "--rto", "30s", "--dir", running.root)
    assert told["causes"][0]["what"].startswith("its PostgreSQL ended")
    assert sum(each["held"] for each in told["impact"]["classes"]) == told["impact"]["held"] > 0
    assert sum(part["ms"] for part in told["parts"]) == pytest.approx(told["story"]["serving_ms"], abs=2)
    assert any("holdfast drill run primary-crash" in g["command"] for g in told["guardrails"])
    assert "kept." in told["against_objectives"][0]
    assert answer("policy", "set", "objective_rpo_ms=0", "--dir", running.root)["ok"]
    told_again = holdfast("incident", "show", crash["number"], "--dir", running.root).stdout
    assert re.search(r"lost, against nothing: kept\.(?s:.*)by class\n  class +held .*\n  normal +\d", told_again)
    assert crash["summary"][0] in holdfast("incident", "show", "--dir", running.root).stdout
    steps = {s["step"]["letter"]: s for s in told["steps"]}
    assert {steps[letter]["state"] for letter in "FAIV"} == {"done"}
    assert (steps["F"]["evidence"]["leader"], steps["V"]["evidence"]["nothing_lost"]) == (crash["new"], True)
    assert steps["R"]["state"] != "done"
    page, text = tmp_path / "incident.html", tmp_path / "incident.md"
    written = answer("incident", "report", "--html", page, "--markdown", text, "--dir", running.root)
    assert written == {"incident": crash["number"], "html": str(page), "markdown": str(text)}
    assert all(crash["summary"][0] in file.read_text() for file in (page, text))
    shown = holdfast("incident", "show", "--dir", running.root).stdout
    assert "✓ R retrospective     " in shown
    assert f"done: written by {who_asks()}: {page}, {text}" in shown
    lines = holdfast("incident", "export", planned["number"], "--dir", running.root).stdout.splitlines()
    assert "handover.begun" in {json.loads(line)["kind"] for line in lines}
    assert_refused(holdfast("incident", "show", 99, "--dir", running.root), "there is no incident 99", "incident list")


def test_what_people_did_is_in_the_journal_with_who_and_from_where(running: Running) -> None:
    running.wait_until_healthy()
    over_ssh = {"SSH_CONNECTION": "192.0.2.7 50123 192.0.2.1 22"}
    for limit in ("51", ""):
        change = ("policy", "set", f"statements_max={limit}", "--dir", running.root)
        assert holdfast(*change, environment=over_ssh).returncode == 0
    mine = {"by": who_asks(), "address": "127.0.0.1", "origin": "192.0.2.7"}
    found = answer("history", "--people", "--last", 2, "--dir", running.root)
    assert [event["detail"] for event in found] == [
        {**mine, "changes": {"statements_max": limit}} for limit in (51, None)
    ]
    told = holdfast("history", "--people", "--kind", "policy.*", "--last", 1, "--dir", running.root).stdout
    assert f"was given another policy by {who_asks()}, from 192.0.2.7 (127.0.0.1)" in told
    everything = answer("history", "--dir", running.root)
    assert [e["stamp"] for e in everything] == sorted((e["stamp"] for e in everything), key=lambda s: tuple(s.values()))
    assert {"n1", "n2", "n3", "commands"} <= {event["source"] for event in everything}
    assert answer("history", "--since", "2026-01-01", "--until", "2026-01-02T00:00Z", "--dir", running.root) == []
    opened = answer("history", "--host", "n*", "--kind", "epoch.opened", "--since", "1d", "--dir", running.root)
    assert {event["kind"] for event in opened} == {"epoch.opened"}
    assert_refused(holdfast("history", "--since", "soon", "--dir", running.root), "--since", "'soon'")


def test_whoever_changes_the_journal_is_found_out(running: Running, tmp_path: Path) -> None:
    running.wait_until_healthy()
    place = ("--dir", running.root)
    found = answer("incident", "verify", *place)
    assert found["intact"] is True
    assert {"n1", "n2", "n3"} <= {chain["source"] for chain in found["chains"]}
    file = tmp_path / "journal.jsonl"
    for what in (("--everything",), ()):
        file.write_text(holdfast("incident", "export", *what, *place).stdout)
        assert answer("incident", "verify", "--file", file)["intact"] is True
    lines = holdfast("incident", "export", "--everything", *place).stdout.splitlines()
    (tmp_path / "list.json").write_text(holdfast("incident", "export", "--everything", "--json", *place).stdout)
    assert answer("incident", "verify", "--file", tmp_path / "list.json")["intact"] is True
    at, opened = [(n, e) for n, e in enumerate(map(json.loads, lines)) if e["kind"] == "epoch.opened"][-1]
    number, source = opened["link"]["number"], opened["source"]
    forged = json.dumps({**opened, "detail": {**opened["detail"], "reason": "nobody knows"}})
    file.write_text("\n".join([*lines[:at], forged, *lines[at + 1 :]]))
    done = holdfast("incident", "verify", "--file", file)
    assert done.returncode == 1
    assert f"{source}: " in done.stdout
    assert f"  changed: entry {number} (epoch.opened, " in done.stdout
    file.write_text("\n".join(lines[:at] + lines[at + 1 :]))
    assert f"  removed: entry {number} is missing" in holdfast("incident", "verify", "--file", file).stdout
    assert_refused(holdfast("incident", "verify", "--file", tmp_path / "none"), "--file", "does not exist")

    async def forge(value: bytes | None) -> bytes:
        cluster = LocalCluster.open(running.root)
        try:
            store, keys = cluster.store(), Keys(cluster.name)
            entries = (await store.list(keys.journal)).entries
            key = next((e.key for e in entries if json.loads(e.value)["link"] == opened["link"]), None)
            assert key is not None
            before = await store.get(key)
            assert before is not None
            await (store.delete(key) if value is None else store.put(key, value))
            return before.value
        finally:
            await cluster.close()

    before = asyncio.run(forge(forged.encode()))
    try:
        chain = next(c for c in answer("incident", "verify", *place, status=1)["chains"] if c["source"] == source)
        (harm,) = chain["breaks"]
        assert (harm["harm"], harm["number"]) == ("changed", number)
        assert "detail.reason was " in harm["says"]
    finally:
        asyncio.run(forge(before))
    assert answer("incident", "verify", *place)["intact"] is True


def test_a_quorum_proves_that_nothing_is_lost(running: Running) -> None:
    assert running.wait_until_healthy()["epoch"] > 1
    found = answer("lost", "show", "--dir", running.root)
    assert (found["nothing_lost"], found["doubts"], found["silent"]) == (True, [], [])
    assert all(account["proved_unacknowledged"] for account in found["accounts"])
    assert "Nothing that was acknowledged is lost" in holdfast("lost", "show", "--dir", running.root).stdout


SALVAGED = Salvage(True, 1, {"app.public.t": "rows/app.public.t.jsonl"}, (), 5)
LOST = LostTransaction(7, Lsn(0x5000110), "2026-11-26 01:02:03.0 UTC", relations={"app.public.t": Tuples(updated=1)})
ROW = {
    "xid": 7, "committed_at": LOST.committed_at, "prepared_as": None, "change": "update", "partition": None,
    "before": {"id": "1", "note": None}, "after": {"id": "1", "note": "it's new"},
}  # fmt: skip


def test_rows_of_lost_transactions_and_their_script_are_shown(running: Running) -> None:
    """As an agent finds them on its disk: of a time that the journal does not cover."""
    running.wait_until_healthy()
    evidence = running.cluster.layout.node("n2") / "state" / "evidence" / "epoch-901-0000000c"
    (evidence / "rows").mkdir(parents=True)
    try:
        member, salvaged = Member("n2", "0000000c"), replace(SALVAGED, notes=("one row is missing",), is_whole=False)
        account = LostLog(member, 901, 900, Lsn(0x5000100), Lsn(0x5000200), str(evidence), (LOST,), salvage=salvaged)
        (evidence / "lost.json").write_bytes(account.to_json())
        (evidence / SCRIPT).write_text("BEGIN;\n-- as it was written\nCOMMIT;\n")
        (evidence / "rows" / "app.public.t.jsonl").write_text(json.dumps(ROW) + "\n")
        where = ("--dir", running.root, "--node", "n2", "--epoch", "901")
        shown = answer("lost", "show", "--dir", running.root)
        assert shown["nothing_lost"] is False
        assert "n2 may have acknowledged 1 transactions that are not in epoch 901" in shown["doubts"]
        listed = shown["accounts"][-1]
        assert (listed["node"], listed["proved_unacknowledged"], listed["rows"]["rows"]) == ("n2", False, 1)
        said = holdfast("lost", "show", "--dir", running.root).stdout
        assert "rows: 1 changes of 1 tables were read in 0.0 s\n  not whole: one row is missing\n" in said
        found = answer("lost", "rows", *where)
        assert (found["is_whole"], found["rows"]) == (False, [{"table": "app.public.t", **ROW}])
        told = holdfast("lost", "rows", *where, "--table", "app.public.t").stdout
        assert told == """app.public.t  xid 7  update  (id '1', note NULL) -> (id '1', note "it's new")\n"""
        assert_refused(holdfast("lost", "rows", *where, "--table", "app.public.u"), "app.public.u", "app.public.t")
        assert_refused(holdfast("lost", "sql", "--dir", running.root, "--epoch", "7"), "--node n2 --epoch 901")
        script = holdfast("lost", "sql", *where)
        assert (script.stdout, script.stderr) == ((evidence / SCRIPT).read_text(), "not whole: one row is missing\n")
        assert answer("lost", "sql", *where)["sql"] == script.stdout
        (evidence / SCRIPT).unlink()
        assert_refused(holdfast("lost", "sql", *where), "cannot be read here", "the host of n2")
    finally:
        shutil.rmtree(evidence)


def test_down_stops_everything_and_up_brings_it_back(running: Running) -> None:
    running.write("before down")
    before = running.wait_until_healthy()
    done = holdfast("down", "--dir", running.root)
    assert done.returncode == 0
    assert processes_below(running.root) == []
    assert "stopped" in holdfast("status", "--dir", running.root).stdout
    assert answer("up", "--dir", running.root)["started"] is True
    assert "before down" in running.read()
    after = running.wait_until_healthy()
    # Standbys stop first, so that nobody fails over on the way down.
    assert (after["primary"], after["epoch"]) == (before["primary"], before["epoch"])


def test_a_wrong_replication_password_is_told(running: Running) -> None:
    """Nobody can stream, so nobody serves; `up` says why long before its patience ends."""
    running.wait_until_healthy()
    assert holdfast("down", "--dir", running.root).returncode == 0
    secret = running.cluster.layout.secret_file("replication")
    right = secret.read_text()
    secret.write_text("wrong\n")
    try:
        done = holdfast("up", "--dir", running.root)
        assert_refused(done, 'password authentication failed for user "holdfast_replication"', "its log is ")
        assert processes_below(running.root) == []
    finally:
        secret.write_text(right)
    assert answer("up", "--dir", running.root)["started"] is True
    running.wait_until_healthy()


def test_a_node_that_keeps_dying_is_told_and_the_others_serve(running: Running) -> None:
    before = running.wait_until_healthy()
    broken = next(node["name"] for node in before["nodes"] if node["name"] != before["primary"])
    assert holdfast("down", "--dir", running.root).returncode == 0
    settings = running.cluster.layout.data_dir(broken) / "postgresql.conf"
    right = settings.read_text()
    settings.write_text(f"{right}\nno_such_setting = on\n")
    words = f"{broken}: does not stay up (exit status 2): ", "no_such_setting", "its log is "
    try:
        assert_refused(holdfast("up", "--dir", running.root), "the cluster serves without ", *words)
        running.write("without one node")
        (trouble,) = running.status()["troubles"]
        assert all(word in trouble for word in words)
        assert broken in holdfast("status", "--dir", running.root).stdout
    finally:
        settings.write_text(right)
    running.wait_until_healthy()
    until(
        lambda: running.status()["troubles"] == [],
        "no trouble is told once it has run for a while",
        deadline_s=DEADLINE_S,
    )


async def test_a_handle_stops_the_supervisor_that_came_after_its_own(running: Running) -> None:
    running.wait_until_healthy()
    handle = LocalCluster.open(running.root)
    try:
        assert await handle.stop()
        handle.start()
        own = handle.state
        until(lambda: own().is_alive, "its supervisor runs")
        assert holdfast("down", "--dir", running.root).returncode == 0
        assert holdfast("up", "--dir", running.root).returncode == 0
        assert await handle.stop()
        assert processes_below(running.root) == []
    finally:
        await handle.close()
    assert answer("up", "--dir", running.root)["started"] is True
    running.wait_until_healthy()


def test_everything_killed_at_once_is_whole_after_up(running: Running) -> None:
    running.write("before the crash")
    running.wait_until_healthy()
    # etcd is spared: some versions lose their data when they are killed.
    spared = running.process("etcd")
    victims = [process for process in processes_below(running.root) if process != spared]
    for process in victims:
        process.send(signal.SIGKILL)
    assert all(process.wait(DEADLINE_S) for process in victims)
    assert answer("up", "--dir", running.root)["started"] is True
    running.wait_until_healthy()
    assert "before the crash" in running.read()
    assert running.process("etcd") == spared
