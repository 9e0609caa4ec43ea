"""What people read of the tables is what the tables say."""

from __future__ import annotations

import os
from pathlib import Path

from holdfast.core.explain import comment_of, diagram, rows
from holdfast.core.rules import RULES

PAGE = Path(__file__).parents[2] / "docs" / "protocol.md"
BEGIN, END = "<!-- diagram -->\n", "<!-- /diagram -->"


def test_the_diagram_in_the_docs_is_drawn_from_the_tables() -> None:
    """HOLDFAST_REWRITE=1 draws it anew."""
    text = PAGE.read_text()
    before, rest = text.split(BEGIN)
    _, after = rest.split(END)
    drawn = f"{before}{BEGIN}```mermaid\n{diagram()}```\n{END}{after}"
    if os.environ.get("HOLDFAST_REWRITE") == "1":
        PAGE.write_text(drawn)
    assert PAGE.read_text() == drawn


def test_every_rule_says_what_it_is_for() -> None:
    assert all(comment_of(row.rule) == row.comment != "" for row in rows())
    assert set(RULES) <= {row.rule for row in rows()}
    assert comment_of("no.such.rule") is None
