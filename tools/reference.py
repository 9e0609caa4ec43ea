"""Write docs/settings.md and docs/commands.md from the code they describe; ``--check`` only compares.

A setting's line comes from its pydantic field, a time's from the docstring below it, a command's from click.
"""

from __future__ import annotations

import ast
import difflib
import importlib
import inspect
import itertools
import re
import sys
import types
from collections.abc import Iterator
from enum import Enum
from pathlib import Path
from typing import Any, Literal, Union, get_args, get_origin

import click
from pydantic import BaseModel
from pydantic.fields import FieldInfo
from pydantic_core import PydanticUndefined

from holdfast.model.policy import NodeTags, Policy
from holdfast.model.settings import NodeSettings, ProxySettings, WitnessSettings
from holdfast.model.timeouts import Timeouts
from holdfast.model.traffic import BUILT_IN, TrafficClass

ROOT = Path(__file__).resolve().parents[1]
NOTICE = "<!-- Written by tools/reference.py; change the code it describes and run that. -->"
ENVIRONMENT = {
    "HOLDFAST_PG_BINDIR": "directory of `postgres` and `initdb`; else the system's newest, else the embedded one",
    "HOLDFAST_ETCD": "the `etcd` to run; else the system's, else the embedded one",
    "HOLDFAST_COMMAND": "the command's name in messages; `./holdfast` sets it to what was typed",
    "HOLDFAST_PORTS": "`first-last`: where a new local cluster takes its ports; else below 32000, and 6432 for writes",
    "HOLDFAST_PYTHON": "`./holdfast` only: the Python to make the environment with, 3.11 or newer",
    "HOLDFAST_INSTALLER": "`./holdfast` only: `uv`, `venv` or `pip` (one from outside); else the first that is there",
    "HOLDFAST_DRILL_WORLD": "set by `holdfast drill` for itself: that it is on a network of its own",
    "HOLDFAST_ENV_DIR": "`./holdfast` only: where environments go; else in the clone, else in the user's cache",
}
_TOLD = "given to `fencing.command`, `isolation.command`, `hooks.on_role_change` and `capture.snapshot_command`:"
ENVIRONMENT |= {
    "HOLDFAST_CLUSTER": f"{_TOLD} the cluster's name",
    "HOLDFAST_NODE": f"{_TOLD} the node whose agent runs them",
    "HOLDFAST_EPOCH": f"{_TOLD} the epoch",
    "HOLDFAST_DATA_DIR": "given to `capture.snapshot_command`: the data directory on the volume",
    "HOLDFAST_LOST_NODE": "given to `fencing.command` and `isolation.command`: the node that led before",
    "HOLDFAST_ISOLATION": "given to `isolation.command`: `begin` (cut the node off) or `lift` (let it in again)",
    "HOLDFAST_ROLE": "given to `hooks.on_role_change`: `primary`, `standby` or `stopped`",
    "HOLDFAST_FORMER_ROLE": "given to `hooks.on_role_change`: what the node was before",
}
TYPE_NAMES = {str: "text", int: "number", float: "number", bool: "true or false", Path: "path"}


# -- settings ---------------------------------------------------------------------------------------------------------


def settings_page() -> str:
    """The text of docs/settings.md."""
    lines = [
        NOTICE,
        "# Settings",
        "",
        "`holdfast node`, `holdfast witness` and `holdfast proxy` read one TOML file each (`--config FILE`). An",
        "unknown setting, a wrong type or a value out of range is an error that names the setting. Passwords stand in",
        "files of their own.",
    ]
    for title, model in (
        ("holdfast node", NodeSettings),
        ("holdfast witness", WitnessSettings),
        ("holdfast proxy", ProxySettings),
    ):
        lines += ["", f"## {title}"]
        for section, field in model.model_fields.items():
            kind = field.annotation
            if not (isinstance(kind, type) and issubclass(kind, BaseModel)):
                raise SystemExit(f"{model.__name__}.{section} is no section: its type is {kind}")
            if kind is not Timeouts:
                lines += section_lines(section, kind)
    lines += ["", "## Times", "", "`[timeouts]` in either file. All processes of a cluster need the same ones.", ""]
    lines += table(("setting", "default", "limits", "why"), timeout_rows())
    lines += ["", "## Policy", "", *policy_lines()]
    lines += ["", "## Environment variables", ""]
    lines += table(("variable", "meaning"), [(f"`{name}`", meaning) for name, meaning in sorted(ENVIRONMENT.items())])
    return "\n".join(lines) + "\n"


def section_lines(section: str, kind: type[BaseModel]) -> Iterator[str]:
    """One section of a configuration file."""
    about = re.sub(r"\A``\[\w+\]``: ", "", inspect.getdoc(kind) or "").replace("``", "`")
    yield from ("", f"### [{section}]", "", about[:1].upper() + about[1:], "")
    rows = []
    for name, field in kind.model_fields.items():
        if not field.description:
            raise SystemExit(f"{kind.__name__}.{name} has no description: give its Field one")
        rows.append((f"`{name}`", type_name(field.annotation), default_text(field), limits(field), field.description))
    yield from table(("setting", "type", "default", "limits", "meaning"), rows)


def policy_lines() -> Iterator[str]:
    """The policy, which lies in the store and is changed at run time."""
    yield "What people decide about a running cluster: `holdfast policy show`, `holdfast policy set NAME=VALUE...`."
    yield "It lies in the store, is checked against the cluster first, and is in force at every node within a moment."
    for prefix, kind in (("", Policy), ("NODE.", NodeTags), ("classes.CLASS.", TrafficClass)):
        fields = [(name, f) for name, f in kind.model_fields.items() if name not in ("nodes", "classes", "format")]
        rows = [
            (f"`{prefix}{name}`", type_name(f.annotation), default_text(f), limits(f), f.description or "")
            for name, f in fields
        ]
        yield ""
        yield from table(("name", "type", "default", "limits", "meaning"), rows)
    yield ""
    yield from built_in_classes()


def built_in_classes() -> Iterator[str]:
    """The classes that every cluster has."""
    names = [name for name in TrafficClass.model_fields if TrafficClass.model_fields[name].annotation is int]
    rows = [(f"`{name}`", *(str(getattr(c, field)) for field in names)) for name, c in BUILT_IN.items()]
    yield "The built-in classes; a session that no class asks for is `normal`: see [overload.md](overload.md)."
    yield ""
    yield from table(("CLASS", *names), rows)


def timeout_rows() -> list[tuple[str, ...]]:
    """The rows of the table of times; each one's reason is the string below it."""
    body = ast.parse(inspect.getsource(sys.modules[Timeouts.__module__])).body
    inside = next(node for node in body if isinstance(node, ast.ClassDef) and node.name == Timeouts.__name__).body
    reasons = {}
    for node, after in itertools.pairwise(inside):
        if isinstance(node, ast.AnnAssign) and isinstance(node.target, ast.Name) and isinstance(after, ast.Expr):
            reasons[node.target.id] = ast.literal_eval(after.value)
    rows: list[tuple[str, ...]] = []
    for name, field in Timeouts.model_fields.items():
        if name not in reasons:
            raise SystemExit(f"Timeouts.{name} has no reason: write a string below it")
        rows.append((f"`{name}`", default_text(field), limits(field), inspect.cleandoc(reasons[name])))
    return rows


def type_name(annotation: Any) -> str:
    """A type in words."""
    if annotation in TYPE_NAMES:
        return TYPE_NAMES[annotation]
    if isinstance(annotation, type) and issubclass(annotation, Enum):
        return " or ".join(f"`{member.value}`" for member in annotation)
    origin, args = get_origin(annotation), get_args(annotation)
    if origin in (types.UnionType, Union):
        return " or ".join(type_name(a) for a in args if a is not type(None))
    if origin is Literal:
        return " or ".join(f"`{a}`" for a in args)
    if origin is tuple:
        return "list of " + type_name(args[0])
    if origin is dict:
        return f"table of {type_name(args[1])}"
    if origin is not None and args:
        return type_name(args[0])
    if isinstance(annotation, type) and issubclass(annotation, BaseModel):
        return "table of " + ", ".join(annotation.model_fields)
    raise SystemExit(f"tools/reference.py knows no words for the type {annotation}")


def default_text(field: FieldInfo) -> str:
    """A default as it would stand in the file."""
    if field.is_required():
        return "required"
    value = field.get_default(call_default_factory=True)
    if value is None or value is PydanticUndefined:
        return "unset"
    if isinstance(value, Enum):
        return f"`{value.value}`"
    if isinstance(value, tuple):
        return "`[" + ", ".join(f'"{v}"' for v in value) + "]`"
    if isinstance(value, bool):
        return f"`{str(value).lower()}`"
    return "`{}`" if value == {} else f'`"{value}"`' if isinstance(value, str) else f"`{value}`"


def limits(field: FieldInfo) -> str:
    """The range or the form of a value."""
    found = {name: getattr(m, name) for m in field.metadata for name in ("ge", "le", "min_length") if hasattr(m, name)}
    parts = []
    if "ge" in found and "le" in found:
        parts.append(f"{found['ge']} to {found['le']}")
    elif "ge" in found:
        parts.append(f"{found['ge']} or more")
    elif "le" in found:
        parts.append(f"at most {found['le']}")
    if "min_length" in found:
        parts.append(f"at least {found['min_length']}")
    parts += [f"`{m.pattern.strip()}`" for m in field.metadata if getattr(m, "pattern", None)]
    return ", ".join(parts)


# -- commands ---------------------------------------------------------------------------------------------------------


def commands_page() -> str:
    """The text of docs/commands.md."""
    found = importlib.import_module("holdfast.cli").main
    group = found if isinstance(found, click.Command) else found.main
    lines = [
        NOTICE,
        "# Commands",
        "",
        "From a clone, `./holdfast` takes these words, and `./holdfast test [pytest arguments]` runs the tests.",
    ]
    for path, command in walk("holdfast", group):
        lines += command_lines(path, command)
    return "\n".join(lines) + "\n"


def walk(path: str, command: click.Command) -> Iterator[tuple[str, click.Command]]:
    """Every command that is not hidden, with the words that lead to it."""
    yield path, command
    if isinstance(command, click.Group):
        context = click.Context(command, info_name=path)
        for name in command.list_commands(context):
            found = command.get_command(context, name)
            if found is not None and not found.hidden:
                yield from walk(f"{path} {name}", found)


def command_lines(path: str, command: click.Command) -> Iterator[str]:
    """One command: what it does, its usage, its arguments and options."""
    if not command.help:
        raise SystemExit(f"`{path}` has no help: give its function a docstring")
    context = click.Context(command, info_name=path)
    usage = " ".join(command.collect_usage_pieces(context))
    yield from ("", f"## {path}", "", f"    {path} {usage}".rstrip(), "")
    yield inspect.cleandoc(command.help).replace("\b\n", "").replace("``", "`")
    rows = []
    for option in command.params:
        if isinstance(option, click.Option) and not option.hidden:
            record = option.get_help_record(context)
            if record is None or not option.help:
                raise SystemExit(f"`{path} {option.opts[0]}` has no help")
            rows.append((f"`{record[0]}`", record[1]))
    if rows:
        yield ""
        yield from table(("option", "meaning"), rows)


# -- both -------------------------------------------------------------------------------------------------------------


def table(head: tuple[str, ...], rows: list[Any]) -> Iterator[str]:
    """A table; columns that are empty throughout are left out."""
    kept = [i for i in range(len(head)) if any(row[i] for row in rows)]
    for row in (head, tuple("---" for _ in head), *rows):
        yield "| " + " | ".join(" ".join(row[i].split()).replace("|", "\\|") for i in kept) + " |"


def variables_in_code() -> set[str]:
    """Environment variables that the package or the launcher names."""
    files = [*(ROOT / "src").rglob("*.py"), ROOT / "holdfast"]
    return {name for path in files for name in re.findall(r"[\"'](HOLDFAST_[A-Z_]+)[\"'=]", path.read_text())}


def main() -> int:
    """Write the pages, or with --check say how they differ (status 1)."""
    unknown = variables_in_code() - set(ENVIRONMENT)
    if unknown:
        raise SystemExit(f"tools/reference.py: describe {', '.join(sorted(unknown))} in ENVIRONMENT")
    different = False
    for name, text in (("docs/settings.md", settings_page()), ("docs/commands.md", commands_page())):
        page = ROOT / name
        committed = page.read_text() if page.exists() else ""
        if "--check" not in sys.argv[1:]:
            page.write_text(text)
        elif text != committed:
            different = True
            sys.stdout.writelines(
                difflib.unified_diff(committed.splitlines(True), text.splitlines(True), name, "what the code says")
            )
    return int(different)


if __name__ == "__main__":
    sys.exit(main())
