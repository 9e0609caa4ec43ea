"""./holdfast: making its environment and becoming the command."""

from __future__ import annotations

import ast
import json
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

from tests.launcher.conftest import REPOSITORY, Clone, write_wheel


def skip_without(installer: str) -> None:
    if installer == "uv" and not shutil.which("uv"):
        pytest.skip("uv is not on PATH")
    module = {"venv": "ensurepip", "pip": "pip"}.get(installer)
    if (
        module
        and subprocess.run([sys.executable, "-c", f"import {module}"], capture_output=True, check=False).returncode
    ):
        pytest.skip(f"this Python has no {module}")


@pytest.mark.parametrize("installer", ["uv", "venv", "pip"])
def test_each_installer_makes_the_environment_once(clone: Clone, installer: str) -> None:
    skip_without(installer)
    first = clone.run("demo", "--seed", "7", HOLDFAST_INSTALLER=installer)
    assert first.said["argv"] == ["demo", "--seed", "7"]
    assert "making the environment" in first.errors
    [environment] = clone.environments
    assert first.said["prefix"] == str(environment)
    facts = json.loads((environment / "holdfast-environment.json").read_text())
    assert (facts["installer"], facts["embedded"]) == (installer, True)
    assert list(environment.glob("lib/*/site-packages/stubservers.py"))

    second = clone.run("status", HOLDFAST_INSTALLER=installer)
    assert second.errors == ""
    assert second.said["prefix"] == str(environment)


def test_the_command_takes_over_the_process_and_its_status(clone: Clone) -> None:
    outcome = clone.run("fail")
    assert outcome.said["pid"] == outcome.pid
    assert outcome.status == 3


def test_the_command_learns_how_it_was_typed(clone: Clone) -> None:
    assert clone.run("status").said["environ"]["HOLDFAST_COMMAND"] == str(clone.root / "holdfast")
    (clone.root / "holdfast").chmod(0o755)
    typed = subprocess.run(["./holdfast", "status"], cwd=clone.root, env=clone.environ, capture_output=True, check=True)
    assert json.loads(typed.stdout)["environ"]["HOLDFAST_COMMAND"] == "./holdfast"


def test_the_word_test_runs_pytest_in_the_root(clone: Clone) -> None:
    outcome = clone.run("test", "-k", "wire")
    assert outcome.said["argv"][-2:] == ["-k", "wire"]
    assert outcome.said["cwd"] == str(clone.root)
    assert clone.run("status").said["prefix"] == outcome.said["prefix"], "it has all that the command needs"
    assert [path.name[:4] for path in clone.environments] == ["dev-"]


def test_another_lock_means_another_environment(clone: Clone) -> None:
    before = clone.run("status").said["prefix"]
    lock = clone.root / "requirements.lock"
    lock.write_text(lock.read_text() + "\n# newer\n")
    assert clone.run("status").said["prefix"] != before


def test_a_half_made_environment_is_made_again(clone: Clone) -> None:
    environment = Path(clone.run("status").said["prefix"])
    (environment / "holdfast-environment.json").unlink()
    for module in environment.glob("lib/*/site-packages/click.py"):
        module.unlink()
    again = clone.run("status")
    assert "making the environment" in again.errors
    assert again.said["prefix"] == str(environment)
    assert list(environment.glob("lib/*/site-packages/click.py"))


def test_two_starts_at_once_make_one_environment(clone: Clone) -> None:
    both = [clone.start("status") for _ in range(2)]
    results = [process.communicate(timeout=380) for process in both]
    assert [process.returncode for process in both] == [0, 0], results
    assert sum("making the environment in" in errors for _, errors in results) == 1
    assert len(clone.environments) == 1


def test_where_the_clone_cannot_be_written_the_users_cache_serves(clone: Clone) -> None:
    (clone.root / ".venv-holdfast").write_text("a file in the way stops root too")
    assert clone.run("status").said["prefix"].startswith(f"{clone.home}/.cache/holdfast/run-")
    cache = clone.home / "elsewhere"
    assert clone.run("status", XDG_CACHE_HOME=str(cache)).said["prefix"].startswith(f"{clone.home}/")
    chosen = clone.home / "chosen"
    assert clone.run("status", HOLDFAST_ENV_DIR=str(chosen)).said["prefix"].startswith(f"{chosen}/run-")


def test_no_writable_place_is_one_clear_error(clone: Clone) -> None:
    outcome = clone.run("status", HOLDFAST_ENV_DIR="/proc/nowhere")
    assert outcome.status == 2
    assert "set HOLDFAST_ENV_DIR to a directory that you can write to" in outcome.errors
    assert "Traceback" not in outcome.errors


def test_oddities_of_the_user_do_not_matter(clone: Clone) -> None:
    odd = clone.home / "odd"
    odd.mkdir()
    for name in ("json", "hashlib", "click", "aiohttp", "tools", "subprocess"):
        (odd / f"{name}.py").write_text("raise SystemExit('the wrong module')")
    clone.environ |= {"PYTHONPATH": str(odd), "PYTHONWARNINGS": "error", "VIRTUAL_ENV": str(odd), "PYTHONSAFEPATH": "1"}
    clone.environ |= {"PIP_TARGET": str(odd), "PIP_USER": "1", "PIP_REQUIRE_VIRTUALENV": "1"}
    clone.environ |= {"UV_PYTHON": "2.7", "UV_TARGET": "x", "UV_SYSTEM_PYTHON": "1"}
    outcome = clone.run("status", cwd=odd)
    assert outcome.status == 0, outcome.errors
    assert str(odd) not in outcome.said["path"]
    assert not [name for name in ("PYTHONPATH", "PIP_TARGET", "UV_TARGET") if name in outcome.said["environ"]]


@pytest.mark.parametrize("home", ["", "/nonexistent", "/proc"])
def test_a_home_is_not_needed(clone: Clone, home: str) -> None:
    assert clone.run("status", HOME=home).status == 0


def test_a_wrong_hash_stops_the_start_and_leaves_nothing(clone: Clone) -> None:
    clone.lock("requirements.lock", stubruntime="0" * 64)
    outcome = clone.run("status")
    assert outcome.status == 2
    assert "installing packages failed" in outcome.errors
    assert "hash" in outcome.errors.lower()
    assert "To fix it" in outcome.errors
    assert clone.environments == []


def test_a_wrong_hash_of_the_servers_is_no_missing_platform(clone: Clone) -> None:
    clone.lock("requirements-embedded.lock", stubservers="0" * 64)
    assert clone.run("status").status == 2


def test_without_servers_for_the_platform_those_of_the_system_serve(clone: Clone, tmp_path: Path) -> None:
    for wheel in (tmp_path / "wheels").glob("stubservers-*"):
        wheel.unlink()
    digest = write_wheel(tmp_path / "wheels", "stubservers", ("stubservers",), "py3-none-win_amd64")
    clone.lock("requirements-embedded.lock", stubservers=digest)
    outcome = clone.run("status")
    assert outcome.status == 0, outcome.errors
    assert "HOLDFAST_PG_BINDIR" in outcome.errors
    [environment] = clone.environments
    assert json.loads((environment / "holdfast-environment.json").read_text())["embedded"] is False
    assert clone.run("status").errors == ""


def test_a_silent_index_says_check_the_network(clone: Clone) -> None:
    clone.use_index("http://127.0.0.1:9/simple")
    outcome = clone.run("status")
    assert outcome.status == 2
    assert "check the network" in outcome.errors
    assert clone.environments == []


@pytest.mark.parametrize(
    ("setting", "value"),
    [("HOLDFAST_PYTHON", "false"), ("HOLDFAST_PYTHON", "nowhere"), ("HOLDFAST_INSTALLER", "conda")],
)
def test_a_wrong_setting_is_named(clone: Clone, setting: str, value: str) -> None:
    clone.environ[setting] = value
    outcome = clone.run("status")
    assert outcome.status == 2
    assert f"{setting}={value}" in outcome.errors
    assert "Traceback" not in outcome.errors


def test_an_incomplete_clone_is_said(clone: Clone) -> None:
    (clone.root / "requirements.lock").unlink()
    outcome = clone.run("status")
    assert outcome.status == 2
    assert "requirements.lock" in outcome.errors


def test_an_old_python_can_read_the_launcher() -> None:
    for path in (REPOSITORY / "holdfast", *(REPOSITORY / "tools/launcher").glob("*.py")):
        tree = ast.parse(path.read_text(), feature_version=(3, 6))
        futures = [node for node in ast.walk(tree) if isinstance(node, ast.ImportFrom) and node.module == "__future__"]
        assert futures == [], f"{path.name}: Python 3.6 has no annotations from the future"


def test_the_launcher_needs_the_standard_library_only() -> None:
    for path in (REPOSITORY / "holdfast", *(REPOSITORY / "tools/launcher").glob("*.py")):
        for node in ast.walk(ast.parse(path.read_text())):
            names = [alias.name for alias in node.names] if isinstance(node, ast.Import) else []
            names += [node.module or ""] if isinstance(node, ast.ImportFrom) else []
            foreign = [name for name in names if name.split(".")[0] not in {*sys.stdlib_module_names, "tools"}]
            assert foreign == [], path.name
