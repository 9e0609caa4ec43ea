"""Write the table of docs/drills.md from the catalogue; ``--check`` compares."""

from __future__ import annotations

import sys
from pathlib import Path

from holdfast.drill.catalogue import CATALOGUE
from holdfast.drill.scenario import Drill

PAGE = Path(__file__).parents[1] / "docs" / "drills.md"
BEGIN, END = "<!-- drills -->\n", "<!-- /drills -->\n"


def row(drill: Drill) -> str:
    """One line of the table."""
    expect = drill.expect
    failover = {True: "yes", False: "no", None: "either"}[expect.failover]
    stall = f"{expect.stall_ms / 1000:g} s / {expect.worst_stall_ms / 1000:g} s"
    faults = "; ".join(step.action.words for step in (*drill.prepare, *drill.steps, *drill.heal))
    quiet = "" if expect.errors else "; no client error, no dropped connection"
    return f"| `{drill.name}` | {faults} | {failover} | {stall} | {drill.proves}{quiet} |\n"


def main() -> int:
    """Returns the exit status."""
    page = PAGE.read_text()
    before, _, rest = page.partition(BEGIN)
    _, _, after = rest.partition(END)
    wanted = before + BEGIN + "".join(map(row, CATALOGUE.values())) + END + after
    if "--check" not in sys.argv[1:]:
        PAGE.write_text(wanted)
    elif page != wanted:
        sys.stdout.write("docs/drills.md: run python tools/drills.py\n")
        return 1
    return 0


if __name__ == "__main__":
    sys.exit(main())
