"""Every setting and every command is documented: the pages are written from the code."""

from __future__ import annotations

import re
import subprocess
import sys

from tests.house.tree import ROOT


def test_pages_say_what_the_code_says() -> None:
    done = subprocess.run(
        [sys.executable, "tools/reference.py", "--check"], cwd=ROOT, capture_output=True, text=True, timeout=380
    )
    assert done.returncode == 0, f"run: python tools/reference.py\n{done.stdout}{done.stderr}"


def test_every_trap_of_a_rejoin_names_tests_that_exist() -> None:
    table = [line for line in (ROOT / "docs" / "rejoin.md").read_text().splitlines() if line.startswith("| ")]
    rows = [line.strip("| ").split(" | ") for line in table[2:]]
    assert rows
    defined = {
        name
        for path in (ROOT / "tests").rglob("test_*.py")
        for name in re.findall(r"^(?:async )?def (test_\w+)", path.read_text(), re.MULTILINE)
    }
    for trap, _, tests in rows:
        named = re.findall(r"`(test_\w+)`", tests)
        assert named, trap
        assert set(named) <= defined, trap
