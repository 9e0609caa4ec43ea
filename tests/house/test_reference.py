"""Every setting and every command is documented: the pages are written from the code."""

from __future__ import annotations

import subprocess
import sys

from tests.house.tree import ROOT


def test_pages_say_what_the_code_says() -> None:
    done = subprocess.run(
        [sys.executable, "tools/reference.py", "--check"], cwd=ROOT, capture_output=True, text=True, timeout=380
    )
    assert done.returncode == 0, f"run: python tools/reference.py\n{done.stdout}{done.stderr}"
