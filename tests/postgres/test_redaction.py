"""Passwords go; everything else stays as it was."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from holdfast.postgres.capture.redaction import redacted_configuration, redacted_words


@pytest.mark.parametrize(
    "line",
    [
        "primary_conninfo = 'host=h password=sesame user=u'",
        "primary_conninfo = 'host=h password=''se same'' user=u'",
        "primary_conninfo 'postgresql://u:sesame@h/db'",
        "#primary_conninfo = 'password=sesame'",
        "primary_conninfo = 'password=\\'sesame'  # and so on",
        "host all all 0.0.0.0/0 ldap ldapserver=h ldapbindpasswd=sesame",
        'hostssl all all ::/0 radius radiussecrets="sesame,sesame"',
        "ssl_passphrase_command = 'echo sesame'",
        "archive_command = 'AWS_SECRET_ACCESS_KEY=sesame push %p'",
        "restore_command = 'curl https://u:sesame@h/%f'",
        "something that is no setting: password sesame",
    ],
)
def test_a_password_in_a_configuration_file_is_hidden(line: str) -> None:
    text = redacted_configuration(f"work_mem = 4MB\n{line}\nport = 1\n")
    assert "sesame" not in text
    assert "se same" not in text
    assert text.startswith("work_mem = 4MB\n")
    assert text.endswith("\nport = 1\n")
    assert text.count("\n") == 3


@pytest.mark.parametrize(
    "statement",
    [
        "ALTER ROLE a PASSWORD 'sesame'",
        "CREATE USER a WITH ENCRYPTED PASSWORD 'it''s sesame' LOGIN",
        "ALTER ROLE a PASSWORD $x$sesame$x$",
        "SELECT dblink_connect('host=h password=sesame')",
        "CREATE SUBSCRIPTION s CONNECTION 'postgresql://u:sesame@h/db'",
    ],
)
def test_a_password_in_a_statement_is_hidden(statement: str) -> None:
    assert "sesame" not in redacted_words(statement)


def test_what_is_no_password_stays() -> None:
    text = "password_encryption = scram-sha-256\nhost all all 127.0.0.1/32 password\nlisten_addresses = '*'\n"
    assert redacted_configuration(text) == text
    assert redacted_words("SELECT 1 FROM tokens") == "SELECT 1 FROM tokens"


@given(st.text(alphabet="abc =#'\n\t\\$@:/", max_size=200))
def test_lines_without_telling_words_are_left_alone(text: str) -> None:
    if "://" not in text:
        assert redacted_configuration(text) == text


@given(st.text(max_size=200))
def test_any_text_is_taken(text: str) -> None:
    redacted_configuration(text)
    redacted_words(text)
