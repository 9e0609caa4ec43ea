"""What status says about losses, in words."""

from __future__ import annotations

import pytest

from holdfast.core.quorum import Tolerance
from holdfast.local.status import in_words


@pytest.mark.parametrize(
    ("primary", "standbys", "words"),
    [
        (True, 1, "the primary or one standby may be lost"),
        (True, 2, "the primary or 2 standbys may be lost"),
        (True, 0, "the primary may be lost; no standby may be lost: writes would wait"),
        (False, 1, "the primary may not be lost: nobody could take over without risk; one standby may be lost"),
        (False, 0, "the primary may not be lost: nobody could take over without risk; no standby may be lost"),
    ],
)
def test_in_words(primary: bool, standbys: int, words: str) -> None:
    assert in_words(Tolerance(primary, standbys), serving=True).startswith(words)


def test_in_words_when_something_is_missing() -> None:
    nothing = Tolerance(primary=False, standbys=0)
    assert in_words(nothing, serving=False) == "no primary serves at the moment: writes wait"
    assert in_words(nothing, serving=True, running=False) == "nothing runs"
    assert "nobody can be promoted" in in_words(Tolerance(True, 1), serving=True, store=False)
