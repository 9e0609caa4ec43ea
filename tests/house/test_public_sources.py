"""What is committed names public sources only, no machine, and agrees with itself."""

from __future__ import annotations

import re
import tomllib
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from tests.house.tree import ROOT, project_files, relative

LOCKS = ("requirements.lock", "requirements-dev.lock", "requirements-embedded.lock")
PUBLIC = {"https://pypi.org/simple", "https://files.pythonhosted.org"}
# Spelt with a group each, so that this file does not name what it forbids.
MACHINE_PATH = re.compile(r"(?<![\w.~*/}-])/(?:(?:work)|(?:root)|(?:home)|(?:opt)|(?:Users))/\w")
OTHER_INDEX = re.compile(r"(?:index-url|extra-index|find-links|--index)\b[\s=\"']+(\S+)|file:(?://)/\w")


def text_of(path: Path) -> str:
    """Text of a file; nothing for a picture."""
    try:
        return path.read_text(encoding="utf-8")
    except UnicodeDecodeError:
        return ""


def matches(pattern: re.Pattern[str], *, code: bool = True) -> Iterator[str]:
    for path in project_files():
        if path.suffix == ".py" and not code:
            continue
        for number, line in enumerate(text_of(path).splitlines(), 1):
            if pattern.search(line):
                yield f"{relative(path)}:{number}: {line.strip()[:120]}"


def uv_lock() -> dict[str, Any]:
    return tomllib.loads((ROOT / "uv.lock").read_text())


def pinned(lock: str) -> dict[str, str]:
    """Version of each package in a lock for pip."""
    lines = (ROOT / lock).read_text().splitlines()
    return dict(line.split()[0].split("==") for line in lines if re.match(r"[a-z]", line))


def test_locks_name_the_public_index_only() -> None:
    for name in ("uv.lock", *LOCKS):
        urls = re.findall(r"\w+://[^\"\s]+", (ROOT / name).read_text())
        assert {url for url in urls if not any(url == p or url.startswith(p + "/") for p in PUBLIC)} == set(), name
    sources = [tuple(package["source"].items()) for package in uv_lock()["package"]]
    assert set(sources) == {(("registry", "https://pypi.org/simple"),), (("editable", "."),)}


def test_no_machine_path_is_committed() -> None:
    found = list(matches(MACHINE_PATH))
    assert not found, "\n".join(found)


def test_no_other_index_is_configured() -> None:
    found = list(matches(OTHER_INDEX, code=False))
    assert not found, "\n".join(found)


@pytest.mark.parametrize("lock", LOCKS)
def test_every_locked_package_has_a_hash(lock: str) -> None:
    entries = re.split(r"\n(?=\S)", (ROOT / lock).read_text().strip())
    assert [entry.split()[0] for entry in entries if not re.search(r"--hash=sha256:[0-9a-f]{64}\b", entry)] == []


def test_locks_agree_with_each_other() -> None:
    versions = {package["name"]: package["version"] for package in uv_lock()["package"]}
    for lock in LOCKS:
        assert {n: v for n, v in pinned(lock).items() if versions.get(n) != v} == {}, f"{lock}: run tools/lock"
    assert pinned("requirements.lock").items() <= pinned("requirements-dev.lock").items()


def test_every_dependency_is_locked() -> None:
    project = tomllib.loads((ROOT / "pyproject.toml").read_text())
    groups = project["dependency-groups"]
    wanted = {
        "requirements.lock": project["project"]["dependencies"],
        "requirements-dev.lock": groups["dev"],
        "requirements-embedded.lock": groups["embedded"],
    }
    for lock, requirements in wanted.items():
        names = {re.split(r"[\[<>=!~; ]", requirement)[0] for requirement in requirements}
        assert names - set(pinned(lock)) == set(), f"{lock}: run tools/lock"
    assert groups["embedded"] == project["project"]["optional-dependencies"]["embedded"]
