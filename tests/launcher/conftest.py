"""A small clone: the real launcher over a stub of the package, with wheels of its own instead of an index."""

from __future__ import annotations

import base64
import hashlib
import json
import os
import shutil
import subprocess
import sys
import zipfile
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import pytest

REPOSITORY = Path(__file__).resolve().parents[2]
STUB_COMMAND = """
import json, os, sys
print(json.dumps({"argv": sys.argv[1:], "pid": os.getpid(), "prefix": sys.prefix, "cwd": os.getcwd(),
                  "path": sys.path, "environ": dict(os.environ)}), flush=True)
sys.exit(3 if "fail" in sys.argv else 0)
"""
LOCKED: dict[str, dict[str, tuple[str, ...]]] = {  # per lock: what it locks, as modules of a wheel
    "requirements.lock": {"stubruntime": ("aiohttp", "click", "psycopg", "pydantic")},
    "requirements-dev.lock": {
        "stubruntime": ("aiohttp", "click", "psycopg", "pydantic"),
        "stubdev": ("pytest",),
    },
    "requirements-embedded.lock": {"stubservers": ("stubservers",)},
}


def write_wheel(directory: Path, name: str, modules: tuple[str, ...], tag: str = "py3-none-any") -> str:
    """Make a wheel; returns the hash for a lock."""
    files = {f"{module}.py": STUB_COMMAND if module == "pytest" else "" for module in modules}
    info = f"{name}-1.0.dist-info"
    files[f"{info}/METADATA"] = f"Metadata-Version: 2.1\nName: {name}\nVersion: 1.0\n"
    files[f"{info}/WHEEL"] = f"Wheel-Version: 1.0\nGenerator: tests\nRoot-Is-Purelib: true\nTag: {tag}\n"
    record = ""
    for path, text in files.items():
        digest = base64.urlsafe_b64encode(hashlib.sha256(text.encode()).digest()).rstrip(b"=").decode()
        record += f"{path},sha256={digest},{len(text.encode())}\n"
    files[f"{info}/RECORD"] = record + f"{info}/RECORD,,\n"
    wheel = directory / f"{name}-1.0-{tag}.whl"
    with zipfile.ZipFile(wheel, "w") as archive:
        for path, text in files.items():
            archive.writestr(zipfile.ZipInfo(path), text)  # without the time: the same bytes, and so hash, each time
    return hashlib.sha256(wheel.read_bytes()).hexdigest()


def fastest_installer() -> str:
    """The quickest way of making an environment that this machine has."""
    if shutil.which("uv"):
        return "uv"
    has_pip = subprocess.run([sys.executable, "-m", "pip", "--version"], capture_output=True, check=False)
    return "pip" if has_pip.returncode == 0 else "venv"


@dataclass
class Clone:
    """A clone in a directory, and the environment variables that it is started with."""

    root: Path
    home: Path
    environ: dict[str, str] = field(default_factory=dict)

    @property
    def environments(self) -> list[Path]:
        """What stands in the clone's own place for environments."""
        return sorted(path for path in (self.root / ".venv-holdfast").glob("*") if path.is_dir())

    def lock(self, lock: str, **hashes: str) -> None:
        """Write a lock of these packages and hashes."""
        lines = [f"{name}==1.0 \\\n    --hash=sha256:{digest}\n" for name, digest in hashes.items()]
        (self.root / lock).write_text("".join(lines))

    def use_index(self, url: str) -> None:
        """Take packages from an index instead of the wheels."""
        for name in ("PIP_NO_INDEX", "PIP_FIND_LINKS", "UV_CONFIG_FILE"):
            del self.environ[name]
        self.environ |= {"PIP_INDEX_URL": url, "UV_DEFAULT_INDEX": url, "UV_NO_CONFIG": "1"}
        self.environ |= {"PIP_RETRIES": "1", "UV_HTTP_RETRIES": "0"}

    def start(self, *words: str, cwd: Path | None = None, **environ: str) -> subprocess.Popen[str]:
        """Start ./holdfast with these words."""
        return subprocess.Popen(
            [sys.executable, str(self.root / "holdfast"), *words],
            cwd=cwd or self.home,
            env={**self.environ, **environ},
            stdin=subprocess.DEVNULL,
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            text=True,
        )

    def run(self, *words: str, cwd: Path | None = None, **environ: str) -> Outcome:
        """Run ./holdfast with these words to its end."""
        process = self.start(*words, cwd=cwd, **environ)
        output, errors = process.communicate(timeout=380)
        return Outcome(process.pid, process.returncode, output, errors)


@dataclass(frozen=True)
class Outcome:
    """How a start ended."""

    pid: int
    status: int
    output: str
    errors: str

    @property
    def said(self) -> dict[str, Any]:
        """What the stub of the command saw."""
        assert self.output, self.errors
        seen: dict[str, Any] = json.loads(self.output)
        return seen


@pytest.fixture
def clone(tmp_path: Path) -> Clone:
    root, wheels, home = tmp_path / "clone", tmp_path / "wheels", tmp_path / "home"
    for directory in (root / "tools", root / "src/holdfast/cli", wheels, home):
        directory.mkdir(parents=True)
    shutil.copy(REPOSITORY / "holdfast", root)
    shutil.copy(REPOSITORY / "tools/__init__.py", root / "tools")
    shutil.copytree(
        REPOSITORY / "tools/launcher", root / "tools/launcher", ignore=shutil.ignore_patterns("__pycache__")
    )
    (root / "src/holdfast/__init__.py").touch()
    (root / "src/holdfast/cli/__init__.py").touch()
    (root / "src/holdfast/cli/__main__.py").write_text(STUB_COMMAND)
    made = Clone(root, home)
    for lock, packages in LOCKED.items():
        made.lock(lock, **{name: write_wheel(wheels, name, modules) for name, modules in packages.items()})
    made.environ = {
        "PATH": os.environ["PATH"],
        "HOME": str(home),
        "HOLDFAST_INSTALLER": fastest_installer(),
        "PIP_CONFIG_FILE": os.devnull,
        "PIP_NO_INDEX": "1",
        "PIP_FIND_LINKS": str(wheels),
        "UV_CONFIG_FILE": str(tmp_path / "uv.toml"),
        "UV_CACHE_DIR": str(tmp_path / "uv-cache"),
    }
    (tmp_path / "uv.toml").write_text(f'no-index = true\nfind-links = ["{wheels}"]\n')
    return made
