"""``holdfast policy``, ``pause``, ``resume`` and ``approve``: what people decide about a running cluster."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import click

from holdfast.cli.clusters import with_cluster
from holdfast.cli.output import as_typed, directory_option, json_option, print_json
from holdfast.model.errors import ConfigurationError


@click.group()
def policy() -> None:
    """Show or change what the cluster is to do: durability, who may be promoted, and when."""


@policy.command("show")
@directory_option
@json_option
def show(directory: Path, as_json: bool) -> None:
    """Show the policy in force, each setting with its meaning."""
    from holdfast.model.policy import Policy

    now = with_cluster(directory, lambda cluster: cluster.policy())
    if as_json:
        print_json(now.model_dump(mode="json"))
        return
    for name, field in Policy.model_fields.items():
        if name not in ("nodes", "classes", "format"):
            click.echo(f"{name:30} {_text(getattr(now, name)):14} {field.description}")
    for node, tags in sorted(now.nodes.items()):
        for name, field in type(tags).model_fields.items():
            click.echo(f"{node + '.' + name:30} {_text(getattr(tags, name)):14} {field.description}")
    for name, traffic_class in now.traffic_classes().items():
        values = traffic_class.model_dump(mode="json")
        said = "  ".join(f"{key}={json.dumps(value)}" for key, value in values.items() if value != [])
        click.echo(f"classes.{name:22} {said}".rstrip())


@policy.command("set")
@click.argument("changes", nargs=-1, required=True, metavar="NAME=VALUE...")
@directory_option
@json_option
def set_policy(changes: tuple[str, ...], directory: Path, as_json: bool) -> None:
    """Change the policy: validated first, then in force at every node within a moment.

    NAME is a setting of `holdfast policy show`, NODE.TAG, or classes.CLASS.SETTING: `durability=degrading`,
    `confirmations=2` (`confirmations=` for the default, of any setting), `n3.promotable=false`, `n2.priority=10`,
    `classes.background.users=etl,reports` (`classes.background=` for a class as it was).
    """
    _give(directory, "/policy", parse_changes(changes), as_json)


@click.command()
@directory_option
@json_option
def pause(directory: Path, as_json: bool) -> None:
    """Agents look on and touch nothing until `holdfast resume`: for work on the servers by hand."""
    _give(directory, "/policy", {"paused": True}, as_json)


@click.command()
@directory_option
@json_option
def resume(directory: Path, as_json: bool) -> None:
    """Agents act again."""
    _give(directory, "/policy", {"paused": False}, as_json)


@click.command()
@directory_option
@json_option
def approve(directory: Path, as_json: bool) -> None:
    """Approve the failover that waits for a person (policy promotion=approved)."""
    _give(directory, "/approve", {}, as_json)


def parse_changes(words: tuple[str, ...]) -> dict[str, Any]:
    """``NAME=VALUE`` words as changes of a policy; raises ConfigurationError for a word that is none."""
    changes: dict[str, Any] = {}
    for word in words:
        name, equals, text = word.partition("=")
        if not equals or not name:
            raise ConfigurationError(f"{word!r} is not NAME=VALUE, such as durability=degrading or n2.priority=10")
        node, dot, tag = name.partition(".")
        if dot and node == "classes":
            _change_class(changes.setdefault("classes", {}), word, tag, text)
        elif dot:
            changes.setdefault("nodes", {}).setdefault(node, {})[tag] = _value(text)
        else:
            changes[name] = _value(text)
    return changes


def _change_class(changes: dict[str, Any], word: str, name: str, text: str) -> None:
    """``CLASS.SETTING=VALUE``, or ``CLASS=`` for all of one."""
    traffic_class, dot, setting = name.partition(".")
    if not dot:
        if text:
            example = f"`classes.{name}.share=20`, or `classes.{name}=` for the class as it was"
            raise ConfigurationError(f"{word!r} does not say which setting of the class: {example}")
        changes[traffic_class] = None
        return
    value = _value(text)
    if setting in _LISTS and value is not None and not isinstance(value, list):
        value = [part.strip() for part in text.split(",")]
    fields = changes.get(traffic_class)
    changes[traffic_class] = {**(fields or {}), setting: value}


_LISTS = ("users", "databases", "application_names")


def _value(text: str) -> object:
    if text == "":
        return None
    try:
        return json.loads(text)
    except json.JSONDecodeError:
        return text


def _text(value: object) -> str:
    return "-" if value is None or value == "" else str(value).lower() if isinstance(value, bool) else str(value)


def _give(directory: Path, path: str, body: dict[str, Any], as_json: bool) -> None:
    from holdfast.local.orders import order

    message = with_cluster(directory, lambda cluster: order(cluster, path, body))
    if as_json:
        print_json({"ok": True, "message": message})
    else:
        click.echo(as_typed(message))
