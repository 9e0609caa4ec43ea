"""Takes passwords out of what people will read: configuration files, statements, command lines."""

from __future__ import annotations

import re

from psycopg import ProgrammingError
from psycopg.conninfo import conninfo_to_dict, make_conninfo

HIDDEN = "***"
_SETTING = re.compile(r"\A(\s*#?\s*)([A-Za-z_][\w.]*)(\s*=\s*|\s+)(.*?)(\s*)\Z", re.DOTALL)
_TELLING = re.compile(r"passw|passphrase|secret|token|access_key|credential", re.IGNORECASE)
_HARMLESS = frozenset({"password_encryption", "krb_server_keyfile", "scram_iterations", "md5_password_warnings"})
_OPTION = re.compile(r"\b(\w*(?:passwd|password|secrets?))=(\"[^\"]*\"|\S+)", re.IGNORECASE)
"""In pg_hba.conf: ``ldapbindpasswd=…``, ``radiussecrets="…"``."""
_USER_INFO = re.compile(r"(\w://[^:/@\s']*:)[^@\s']+@")
_LITERAL = re.compile(
    r"\b(password|passwd|secret|token)(\s*=?\s*)('(?:[^']|'')*'|\$(\w*)\$.*?\$\4\$)", re.I | re.DOTALL
)
_ASSIGNED = re.compile(r"\b(\w*(?:password|passwd|secret|token|access_key)\w*\s*=\s*)[^\s'\"$]+", re.IGNORECASE)


def redacted_configuration(text: str) -> str:
    """A configuration file without its passwords; every other line as it was."""
    return "".join(_line(line) for line in text.splitlines(keepends=True))


def redacted_words(text: str) -> str:
    """A statement or a command line without the passwords in it, as far as they are told by a word before them."""
    text = _LITERAL.sub(lambda m: f"{m[1]}{m[2]}'{HIDDEN}'", text)
    text = _USER_INFO.sub(rf"\1{HIDDEN}@", text)
    return _ASSIGNED.sub(rf"\1{HIDDEN}", text)


def _line(line: str) -> str:
    if not _TELLING.search(line) and "://" not in line:
        return line
    found = _SETTING.match(line)
    if found is not None and found[2].lower() in _HARMLESS:
        return line
    if found is not None and found[2].lower() in ("host", "hostssl", "hostnossl", "hostgssenc", "local"):
        return _OPTION.sub(rf"\1={HIDDEN}", line)
    if found is None:
        return HIDDEN + line[len(line.rstrip("\r\n")) :]
    before, name, between, value, after = found.groups()
    if not _TELLING.search(name + value):
        return _USER_INFO.sub(rf"\1{HIDDEN}@", line)
    hidden = _conninfo(value) if name.lower() == "primary_conninfo" else HIDDEN
    return f"{before}{name}{between}'{hidden}'{after}"


def _conninfo(value: str) -> str:
    """What it says without its password; all of it goes where it cannot be read for certain."""
    quoted = re.match(r"\A'((?:[^'\\]|'')*)'\s*(?:#.*)?\Z", value, re.DOTALL)
    if quoted is None:
        return HIDDEN
    try:
        parts = conninfo_to_dict(quoted[1].replace("''", "'"))
    except ProgrammingError:
        return HIDDEN
    kept = {k: HIDDEN if _TELLING.search(k) else v for k, v in parts.items() if v is not None}
    return make_conninfo("", **kept).replace("'", "''")
