"""Which keys of a ledger were seen before: kept on disk, for it may have more entries than fit into memory."""

from __future__ import annotations

import sqlite3
from hashlib import blake2b
from types import TracebackType

from holdfast.core.match.rules import Key

_MEMORY_KIB = 32 * 1024


class Seen:
    """Digests of keys, in a file that nobody else can open and that is gone when this is closed."""

    def __init__(self) -> None:
        self._file = sqlite3.connect("", isolation_level=None)
        self._file.execute(f"PRAGMA cache_size = -{_MEMORY_KIB}")
        self._file.execute("PRAGMA journal_mode = OFF")
        self._file.execute("CREATE TABLE seen (digest BLOB PRIMARY KEY) WITHOUT ROWID")
        self._file.execute("BEGIN")

    def __enter__(self) -> Seen:
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, at: TracebackType | None) -> None:
        self._file.close()

    def again(self, key: Key) -> bool:
        """Whether it was here before; it is noted."""
        digest = blake2b("\x00".join(key).encode(), digest_size=16).digest()
        return self._file.execute("INSERT OR IGNORE INTO seen VALUES (?)", (digest,)).rowcount == 0
