"""What the configuration says, and what it refuses."""

from __future__ import annotations

import re
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from holdfast.model.errors import ConfigurationError
from holdfast.model.register import NODE_NAME
from holdfast.model.server import Upstream
from holdfast.model.settings import PostgresSettings
from holdfast.postgres.config import (
    BARRIER,
    STRIPPED,
    Configuration,
    Runtime,
    read_settings,
    slot_of,
    strip_owned,
    upstream_of,
)
from holdfast.postgres.installation import Installation
from holdfast.postgres.layout import Layout

INSTALLATION = Installation(Path("/nowhere"), (17, 0), "setting")


def configuration(directory: Path, **more: Any) -> Configuration:
    secret = directory / "secret"
    secret.write_text("a:b\\c\n")
    settings = PostgresSettings(
        data_dir=directory / "data",
        port=5432,
        socket_dir=Path("/run/x"),
        superuser_password_file=secret,
        replication_password_file=secret,
        **more,
    )
    layout = Layout(settings.data_dir, settings.socket_dir, None)
    layout.side_dir.mkdir(exist_ok=True)
    layout.data_dir.mkdir(exist_ok=True)
    return Configuration(settings, "a", INSTALLATION, layout)


@pytest.mark.parametrize(
    ("name", "value", "reason"),
    [
        ("synchronous_standby_names", "", "Holdfast owns it"),
        ("Port", "1", "Holdfast owns it"),
        ("restart_after_crash", "on", "Holdfast owns it"),
        ("wal_level", "minimal", "may be logical or replica"),
        ("synchronous_commit", "off", "may be on or remote_apply"),
        ("no such name", "1", "is not the name"),
        ("work_mem", "1MB'\nport = 1", "one line"),
    ],
)
def test_parameters_that_would_break_the_protocol_are_refused(
    tmp_path: Path, name: str, value: str, reason: str
) -> None:
    with pytest.raises(ConfigurationError, match=reason):
        configuration(tmp_path, parameters={name: value})


def test_parameters_come_before_what_is_owned(tmp_path: Path) -> None:
    text = configuration(tmp_path, parameters={"max_connections": "77", "wal_level": "logical"}).render(Runtime())
    assert "max_connections = '77'" in text
    assert "max_connections = '300'" not in text
    assert "wal_level = 'logical'" in text
    assert f"synchronous_standby_names = '{BARRIER}'" in text
    assert "primary_conninfo = ''" in text
    assert "max_standby_streaming_delay = '5s'" in text


def test_what_was_written_is_read_back(tmp_path: Path) -> None:
    made = configuration(tmp_path)
    runtime = Runtime("ANY 1 (b_0000000b)", Upstream("b", "10.0.0.2", 5433), "a_0000000a", quick_replay=True)
    made.write(runtime)
    assert made.read_back() == runtime
    assert (tmp_path / "data.holdfast" / "upstream.pass").read_text() == "*:*:*:holdfast_replication:a\\:b\\\\c\n"
    conf = dict(read_settings(tmp_path / "data" / "holdfast.conf"))
    assert "a:b" not in conf["primary_conninfo"]
    assert upstream_of(conf["primary_conninfo"]) == "10.0.0.2:5433"
    assert conf["primary_slot_name"] == "holdfast_a"
    assert "wal_sender_timeout=5s" in conf["primary_conninfo"]
    made.write(replace(runtime, application_name="holdfast_rewind"))  # nobody's: it waits for no slot
    assert dict(read_settings(tmp_path / "data" / "holdfast.conf"))["primary_slot_name"] == ""
    made.write(replace(runtime, upstream=None))
    assert not (tmp_path / "data.holdfast" / "upstream.pass").exists()
    assert dict(read_settings(tmp_path / "data" / "holdfast.conf"))["primary_slot_name"] == ""


def test_what_streams_through_no_slot_is_written_anew(tmp_path: Path) -> None:
    """An agent of an older version wrote the names, and no slot: its server counts as one without a name."""
    made = configuration(tmp_path)
    runtime = Runtime("ANY 1 (b_0000000b)", Upstream("b", "10.0.0.2", 5433), "a_0000000a")
    made.write(runtime)
    conf = tmp_path / "data" / "holdfast.conf"
    conf.write_text(conf.read_text().replace("primary_slot_name = 'holdfast_a'", "primary_slot_name = ''"))
    assert made.read_back() == replace(runtime, application_name=None)


def test_every_name_of_a_node_makes_a_name_of_a_slot() -> None:
    """PostgreSQL allows lower-case letters, digits and underscores, 63 bytes of them."""
    for name in ("a", "a0", "z" * 16):
        assert NODE_NAME.match(name)
        assert re.fullmatch(r"[a-z0-9_]{1,63}", slot_of(name))
    for name in ("z" * 17, "A", "a-b", "a.b", "ä"):
        assert not NODE_NAME.match(name)


def test_the_include_is_last_and_there_once(tmp_path: Path) -> None:
    made = configuration(tmp_path)
    conf = tmp_path / "data" / "postgresql.conf"
    conf.write_text("include 'holdfast.conf'\nport = 1\n")
    made.write(Runtime())
    made.write(Runtime())
    assert conf.read_text() == "port = 1\ninclude 'holdfast.conf'\n"


def test_alter_system_keeps_what_is_the_users(tmp_path: Path) -> None:
    made = configuration(tmp_path)
    auto = tmp_path / "data" / "postgresql.auto.conf"
    auto.write_text("# note\nwork_mem = '4MB'\nPrimary_Conninfo = 'x'\nmax_standby_streaming_delay = '-1'\n")
    taken = strip_owned(auto, made._layout)
    assert taken == ["primary_conninfo", "max_standby_streaming_delay"]
    assert auto.read_text() == "# note\nwork_mem = '4MB'\n"
    assert "synchronous_commit" in STRIPPED


def test_own_lines_of_hba_come_first(tmp_path: Path) -> None:
    made = configuration(tmp_path, hba=("host all all 10.0.0.0/8 scram-sha-256",))
    made.peer_addresses = ("10.1.2.3", "fd00::1", "db.example", "10.9.0.0/16")
    lines = [line for line in made.render_hba().splitlines() if not line.startswith("#")]
    assert lines[0] == "local all postgres scram-sha-256"
    assert lines[-1] == "host all all 10.0.0.0/8 scram-sha-256"
    for peer in ("samenet", "10.1.2.3/32", "fd00::1/128", "db.example", "10.9.0.0/16"):
        assert f"host replication holdfast_replication {peer} scram-sha-256" in lines
    assert not [line for line in lines if "trust" in line]


def test_a_missing_password_file_is_named(tmp_path: Path) -> None:
    made = configuration(tmp_path)
    (tmp_path / "secret").unlink()
    with pytest.raises(ConfigurationError, match=r"postgres\.replication_password_file"):
        made.write(Runtime("", Upstream("b", "h", 1), "a_0000000a"))
