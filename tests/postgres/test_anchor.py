"""From where a primary keeps log for its own rewind."""

from __future__ import annotations

from holdfast.model.lsn import Lsn
from holdfast.postgres.anchor import Checkpoints


def anchor(checkpoints: Checkpoints, checkpoint: int, common: int | None) -> int | None:
    """The redo position of each lies five bytes before it."""
    return checkpoints.anchor(Lsn(checkpoint), Lsn(checkpoint - 5), None if common is None else Lsn(common))


def test_it_stays_at_the_last_checkpoint_that_all_have() -> None:
    checkpoints = Checkpoints()
    assert anchor(checkpoints, 100, None) is None
    assert anchor(checkpoints, 100, 100) is None, "its record begins there: nobody has it yet"
    assert anchor(checkpoints, 100, 101) == 95
    assert anchor(checkpoints, 200, 150) == 95
    assert anchor(checkpoints, 300, 150) == 95
    assert anchor(checkpoints, 400, 350) == 295
    assert anchor(checkpoints, 400, 1000) == 395


def test_what_was_not_seen_is_not_guessed() -> None:
    checkpoints = Checkpoints()
    assert anchor(checkpoints, 500, 400) is None
