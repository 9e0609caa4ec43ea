"""The operating-system user that PostgreSQL runs as: it refuses to run as root."""

from __future__ import annotations

import os
import pwd
from dataclasses import dataclass

from holdfast.model.errors import ConfigurationError, EnvironmentFault


@dataclass(frozen=True, slots=True)
class OsUser:
    """An entry of passwd."""

    name: str
    uid: int
    gid: int


def run_as(os_user: str | None) -> OsUser | None:
    """Whom to run PostgreSQL as: None (ourselves) unless we are root, then ``os_user``, postgres or nobody.

    Raises ConfigurationError for a named user that does not exist or is root, EnvironmentFault if there is nobody.
    """
    if os.geteuid() != 0:
        return None
    for name in (os_user,) if os_user else ("postgres", "nobody"):
        try:
            entry = pwd.getpwnam(name)
        except KeyError:
            continue
        if entry.pw_uid == 0:
            raise ConfigurationError(f"postgres.os_user = {name!r} is root, and PostgreSQL refuses to run as root")
        return OsUser(entry.pw_name, entry.pw_uid, entry.pw_gid)
    if os_user:
        raise ConfigurationError(f"postgres.os_user = {os_user!r} does not exist: create it, or name another user")
    raise EnvironmentFault(
        "running as root, and there is neither a user postgres nor nobody to run PostgreSQL as: "
        "create one and name it in postgres.os_user"
    )
