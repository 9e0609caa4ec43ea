"""Keeps a primary's log back to the last checkpoint that every node has: there a rewind of this primary would begin.

The slots of the nodes keep log from where each of them is. A primary that goes on alone, commits being local, writes
checkpoints and lets go of what lies before; if it is replaced then, `pg_rewind` looks in vain for the checkpoint before
the fork, and a clone of everything is all that is left.
"""

from __future__ import annotations

from collections import deque

from holdfast.model.lsn import Lsn
from holdfast.postgres.config import SLOT_PREFIX

ANCHOR = f"{SLOT_PREFIX}_rewind"
"""A slot that nobody streams through; no node's name begins with an underscore."""
_REMEMBERED = 10_000


class Checkpoints:
    """Those of this primary that some node may not have yet, and the newest that all have."""

    def __init__(self) -> None:
        self._seen: deque[tuple[Lsn, Lsn]] = deque(maxlen=_REMEMBERED)

    def anchor(self, checkpoint: Lsn, redo: Lsn, common: Lsn | None) -> Lsn | None:
        """From where log has to be kept, given the newest checkpoint and what all nodes have; None: not known."""
        if not self._seen or self._seen[-1][0] != checkpoint:
            self._seen.append((checkpoint, redo))
        if common is None:
            return None
        while len(self._seen) > 1 and self._seen[1][0] < common:
            self._seen.popleft()
        first_checkpoint, first_redo = self._seen[0]
        return first_redo if first_checkpoint < common else None
