"""Where one server's files are: its data directory, and what the agent keeps beside it."""

from __future__ import annotations

import os
import struct
from dataclasses import dataclass
from pathlib import Path

from holdfast.model.errors import EnvironmentFault
from holdfast.model.register import INCARNATION
from holdfast.postgres.account import OsUser
from holdfast.postgres.files import make_directory, remove_durably, write_durably

_INCARNATION_FILE = "holdfast.incarnation"


@dataclass(frozen=True, slots=True)
class Layout:
    """Paths of one server.

    ``<data_dir>.holdfast`` is a directory beside the data directory, for what neither a base backup nor a rewind may
    copy from another server: logs, the password file, the half-done mark and directories in the making.
    """

    data_dir: Path
    socket_dir: Path
    owner: OsUser | None

    @property
    def side_dir(self) -> Path:
        """The directory beside."""
        return self.data_dir.with_name(f"{self.data_dir.name}.holdfast")

    @property
    def log_dir(self) -> Path:
        """Where the server writes its logs."""
        return self.side_dir / "log"

    @property
    def startup_log(self) -> Path:
        """What the postmaster says before its log collector runs."""
        return self.side_dir / "startup.log"

    @property
    def passfile(self) -> Path:
        """The password file of the walreceiver; absent while the server must not stream."""
        return self.side_dir / "upstream.pass"

    @property
    def tool_passfile(self) -> Path:
        """The password file of pg_basebackup and pg_rewind."""
        return self.side_dir / "source.pass"

    @property
    def staging_dir(self) -> Path:
        """Where a data directory is made before it takes its place."""
        return self.side_dir / "staging"

    @property
    def retired_dir(self) -> Path:
        """Where a replaced data directory waits for its removal."""
        return self.side_dir / "retired"

    @property
    def wal_dir(self) -> Path:
        """The log."""
        return self.data_dir / "pg_wal"

    @property
    def half_done_mark(self) -> Path:
        """Present while the data directory is being changed and must not be started."""
        return self.side_dir / "half-done"

    def prepare(self) -> None:
        """Make the directories that must exist; raises EnvironmentFault."""
        try:
            make_directory(self.side_dir, self.owner)
            make_directory(self.log_dir, self.owner)
            make_directory(self.socket_dir, self.owner, 0o711)
        except OSError as error:
            raise EnvironmentFault(
                f"cannot make {error.filename}: {error.strerror}; the directories above postgres.data_dir and "
                "postgres.socket_dir must be writable"
            ) from error

    def complete(self) -> bool:
        """Whether the data directory is one that could be started."""
        return (
            not self.half_done_mark.exists()
            and (self.data_dir / "PG_VERSION").is_file()
            and (self.data_dir / "global" / "pg_control").is_file()
        )

    def major_version(self) -> int | None:
        """The major version that the data directory was made by; None if there is none."""
        try:
            return int((self.data_dir / "PG_VERSION").read_text().strip())
        except (OSError, ValueError):
            return None

    def system_identifier(self) -> str | None:
        """The first eight bytes of the control file; None if there is none."""
        return system_identifier_of(self.data_dir)

    def incarnation(self) -> str | None:
        """The incarnation of the data directory; None if it has none."""
        try:
            text = (self.data_dir / _INCARNATION_FILE).read_text().strip()
        except (OSError, UnicodeDecodeError):
            return None
        return text if INCARNATION.match(text) else None

    def set_incarnation(self, incarnation: str, directory: Path | None = None) -> None:
        """Write the incarnation of a data directory; raises ValueError for what is none."""
        if not INCARNATION.match(incarnation):
            raise ValueError(f"{incarnation!r} is no incarnation: eight hexadecimal digits are")
        write_durably((directory or self.data_dir) / _INCARNATION_FILE, f"{incarnation}\n", self.owner)

    def forget_incarnation(self) -> None:
        """Remove the incarnation, which a rewind copies from its source."""
        remove_durably(self.data_dir / _INCARNATION_FILE)


def system_identifier_of(data_dir: Path) -> str | None:
    """The system identifier of any data directory, as ``pg_controldata`` prints it."""
    try:
        with (data_dir / "global" / "pg_control").open("rb") as stream:
            raw = stream.read(8)
    except OSError:
        return None
    return str(struct.unpack("=Q", raw)[0]) if len(raw) == 8 and any(raw) else None


def free_bytes(path: Path) -> int:
    """How many bytes can still be written below ``path``."""
    found = os.statvfs(path)
    return found.f_bavail * found.f_frsize
