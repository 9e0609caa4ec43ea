"""The rooms of the house: imports go downward only (contracts in pyproject.toml)."""

from __future__ import annotations

import pytest
from importlinter.cli import lint_imports

from tests.house.tree import ROOT


def test_imports_keep_to_the_layers(capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(ROOT)
    status = lint_imports(config_filename="pyproject.toml", no_cache=True, no_logo=True)
    assert status == 0, capsys.readouterr().out
