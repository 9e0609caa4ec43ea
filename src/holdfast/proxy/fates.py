"""What becomes of a client's messages, and which of them are alike in that."""

from __future__ import annotations

from enum import Enum, auto
from typing import Final

from holdfast.wire import messages as m
from holdfast.wire.owed import OPENS_BATCH

FROM_CLIENT: Final = frozenset((m.COPY_DATA,))
IGNORED_WHEN_IDLE: Final = frozenset((m.FLUSH, m.COPY_DATA, m.COPY_DONE, m.COPY_FAIL))
WHOLE_STATEMENTS: Final = frozenset((m.QUERY, m.FUNCTION_CALL))
BEGINS_WORK: Final = frozenset((*WHOLE_STATEMENTS, *OPENS_BATCH))


class Fate(Enum):
    """What becomes of one message of the client."""

    FORWARD = auto()
    DROP = auto()
    WAIT = auto()
    """For a server."""
    QUEUE = auto()
    """To be let in."""
    END = auto()
    """The session ends before it; what was sent ahead of it still runs."""
