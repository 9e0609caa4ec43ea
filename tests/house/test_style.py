"""House rules that a tool or a count can check."""

from __future__ import annotations

import ast
import os
import re
import subprocess
import sys
import tempfile
from collections.abc import Iterator
from pathlib import Path

from tests.house.tree import CODE_DIRS, ROOT, python_files, relative

FILE_LINES_MAX = 500
FUNCTION_LINES_MAX = 60
SOURCES = [top for top in CODE_DIRS if any((ROOT / top).rglob("*.py"))] + ["holdfast"]


def run_tool(*command: str) -> tuple[int, str]:
    done = subprocess.run([sys.executable, "-m", *command], cwd=ROOT, capture_output=True, text=True, timeout=380)
    return done.returncode, done.stdout + done.stderr


def test_ruff_finds_nothing() -> None:
    status, output = run_tool("ruff", "check", "--no-cache", "--output-format=concise", *SOURCES)
    assert status == 0, output


def test_files_are_formatted() -> None:
    status, output = run_tool("ruff", "format", "--no-cache", "--check", *SOURCES)
    assert status == 0, output


def test_types_are_strict() -> None:
    cache = ROOT / ".mypy_cache" if os.access(ROOT, os.W_OK) else Path(tempfile.gettempdir(), "holdfast-mypy-cache")
    status, output = run_tool("mypy", "--no-error-summary", f"--cache-dir={cache}", *SOURCES)
    assert status == 0, output


def test_files_are_short() -> None:
    lengths = {relative(path): len(path.read_text().splitlines()) for path in python_files()}
    assert {name: lines for name, lines in lengths.items() if lines > FILE_LINES_MAX} == {}


def test_functions_are_short() -> None:
    found = [found for path in python_files() for found in long_functions(path)]
    assert not found, "\n".join(found)


def test_every_module_has_a_subject() -> None:
    vague = re.compile(r"\A(utils?|helpers?|common|misc|stuff)\Z")
    assert [
        relative(path) for path in python_files() if any(vague.match(part) for part in path.with_suffix("").parts)
    ] == []


def test_no_handler_hides_an_error() -> None:
    found = [found for path in python_files() for found in blind_handlers(path)]
    assert not found, "\n".join(found)


def long_functions(path: Path) -> Iterator[str]:
    for node in ast.walk(ast.parse(path.read_text())):
        if isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef):
            lines = (node.end_lineno or node.lineno) - node.lineno + 1
            if lines > FUNCTION_LINES_MAX:
                yield f"{relative(path)}:{node.lineno} {node.name}: {lines} lines"


def blind_handlers(path: Path) -> Iterator[str]:
    """Handlers that catch everything and do not raise again, whatever a comment tells the linter."""
    for node in ast.walk(ast.parse(path.read_text())):
        if isinstance(node, ast.ExceptHandler):
            caught = [node.type] if not isinstance(node.type, ast.Tuple) else node.type.elts
            blind = any(
                c is None or (isinstance(c, ast.Name) and c.id in ("Exception", "BaseException")) for c in caught
            )
            if blind and not any(isinstance(inner, ast.Raise) for inner in ast.walk(node)):
                yield f"{relative(path)}:{node.lineno}"
