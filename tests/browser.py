"""A headless browser, where there is one (Debian and Ubuntu: the package chromium)."""

from __future__ import annotations

import shutil
import subprocess
from pathlib import Path

import pytest

_NAMES = ("chromium", "chromium-browser", "google-chrome", "google-chrome-stable")


def find_browser() -> str | None:
    """Its program; None where there is none."""
    return next((found for name in _NAMES if (found := shutil.which(name)) is not None), None)


def the_browser() -> str:
    """Its program; skips the test where there is none."""
    return find_browser() or pytest.skip("no browser to open the page with: install chromium")


def shown(browser: str, page: Path, scratch: Path) -> str:
    """The document as the browser has it when the page is loaded."""
    return _run(browser, page, scratch, "--dump-dom")


def picture(browser: str, page: Path, scratch: Path) -> Path:
    """What one would see, as a PNG."""
    file = scratch / f"{page.stem}.png"
    _run(browser, page, scratch, "--window-size=1100,3200", f"--screenshot={file}")
    return file


def _run(browser: str, page: Path, scratch: Path, *what: str) -> str:
    profile = f"--user-data-dir={scratch / 'profile'}"
    return subprocess.run(
        [browser, "--headless", "--no-sandbox", "--disable-gpu", profile, *what, page.as_uri()],
        capture_output=True, text=True, timeout=120, check=True,
    ).stdout  # fmt: skip
