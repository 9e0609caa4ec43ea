"""What a local cluster needs of the machine: a user, a place, space, free ports. Each lack is one clear error."""

from __future__ import annotations

import os
import pwd
import shutil
import socket
import subprocess
import tempfile
from pathlib import Path

from holdfast.local.layout import ClusterFile, Layout
from holdfast.local.ports import is_free
from holdfast.model.errors import EnvironmentFault

SPACE_PER_NODE_BYTES = 150 * 2**20
"""A new PostgreSQL takes about 40 MB and its first segments of log 16 MB each."""


def check_system() -> None:
    """Raise EnvironmentFault if the system cannot tell us about processes."""
    try:
        os.close(os.pidfd_open(os.getpid()))
        Path("/proc/self/stat").read_text()
    except (AttributeError, OSError) as error:
        raise EnvironmentFault(
            f"Holdfast needs Linux 5.3 or newer with /proc ({error}): in a chroot, `mount -t proc proc /proc` there"
        ) from error


def server_user() -> str | None:
    """The user for the servers: None (ourselves), or an unprivileged one when we are root, whom PostgreSQL refuses.

    Raises EnvironmentFault when we are root and there is no such user.
    """
    if os.geteuid() != 0:
        return None
    for name in ("postgres", "nobody"):
        try:
            if pwd.getpwnam(name).pw_uid != 0:
                return name
        except KeyError:
            continue
    raise EnvironmentFault(
        "PostgreSQL does not run as root, and there is neither a user `postgres` nor `nobody` to run it as: "
        "run Holdfast as an ordinary user, or create one with `useradd --system postgres`"
    )


def who_asks() -> str:
    """The person at the keyboard, as far as the system knows: ``alice as root on db1``."""
    try:
        user = pwd.getpwuid(os.geteuid()).pw_name
    except KeyError:
        user = f"uid {os.geteuid()}"
    before = os.environ.get("SUDO_USER") or _logged_in() or user
    said = user if before == user else f"{before} as {user}"
    return f"{said} on {socket.gethostname()}".encode("ascii", "replace").decode()


def _logged_in() -> str | None:
    """Who logged in before any `su` or `sudo`, where the kernel keeps that; None: nobody, or a service."""
    try:
        return pwd.getpwuid(int(Path("/proc/self/loginuid").read_text())).pw_name
    except (OSError, ValueError, KeyError, OverflowError):
        return None


def asks_from() -> str | None:
    """Where the person at the keyboard sits: the address that the SSH connection comes from; None: not by SSH."""
    connection = os.environ.get("SSH_CONNECTION", "").split()
    return connection[0].encode("ascii", "replace").decode() if connection else None


def owner_ids(os_user: str | None) -> tuple[int, int] | None:
    """(uid, gid) of the servers' user; None if that is ourselves. Raises EnvironmentFault if it does not exist."""
    if os_user is None or os.geteuid() != 0:
        return None
    try:
        entry = pwd.getpwnam(os_user)
    except KeyError:
        raise EnvironmentFault(f"the user {os_user!r}, whom the cluster's servers run as, does not exist") from None
    return entry.pw_uid, entry.pw_gid


def current_user() -> str:
    """Our own user's name, or its number if it has none."""
    try:
        return pwd.getpwuid(os.geteuid()).pw_name
    except KeyError:
        return str(os.geteuid())


def _nearest_existing(path: Path) -> Path:
    while not path.exists():
        path = path.parent
    return path


def can_enter(directory: Path, os_user: str | None) -> bool:
    """Whether the servers' user can enter a directory; asked of the kernel in that user's place."""
    owner = owner_ids(os_user)
    if owner is None:
        return os.access(directory, os.X_OK)
    attempt = subprocess.run(
        ["/bin/sh", "-c", 'cd "$1"', "sh", str(directory)],
        user=owner[0],
        group=owner[1],
        extra_groups=[],
        cwd="/",
        stdin=subprocess.DEVNULL,
        capture_output=True,
        check=False,
    )
    return attempt.returncode == 0


def check_place(directory: Path, nodes: int, os_user: str | None) -> None:
    """Raise EnvironmentFault unless ``nodes`` servers can live in ``directory``."""
    base = _nearest_existing(directory)
    if not os.access(base, os.W_OK | os.X_OK):
        raise EnvironmentFault(f"--dir {directory}: {base} is not writable for {current_user()}: choose another --dir")
    if not can_enter(base, os_user):
        raise EnvironmentFault(
            f"--dir {directory}: the user {os_user}, whom the servers run as, cannot enter {base}: "
            f"choose a directory that everybody can enter, such as --dir /var/lib/holdfast-data, "
            "or run Holdfast as an ordinary user"
        )
    needed = nodes * SPACE_PER_NODE_BYTES
    free = shutil.disk_usage(base).free
    if free < needed:
        raise EnvironmentFault(
            f"--dir {directory}: {free // 2**20} MB are free there, {nodes} nodes need {needed // 2**20} MB: "
            "free some space, or choose another --dir"
        )


def temporary_root(nodes: int, os_user: str | None) -> Path:
    """A fresh directory for a cluster that lives for a minute, where its servers can live."""
    problem: EnvironmentFault | None = None
    for base in dict.fromkeys((tempfile.gettempdir(), "/var/tmp", "/tmp")):
        try:
            check_place(Path(base), nodes, os_user)
        except EnvironmentFault as fault:
            problem = problem or fault
            continue
        root = Path(tempfile.mkdtemp(prefix="holdfast-demo-", dir=base))
        if os_user is not None:
            root.chmod(0o711)
        return root
    reason = str(problem).removeprefix("--dir ")
    raise EnvironmentFault(f"no place for a temporary cluster: {reason}; TMPDIR or --dir names another place")


def check_ports(layout: Layout, file: ClusterFile) -> None:
    """Raise EnvironmentFault if another program listens on a port of the (stopped) cluster."""
    for label, port in file.ports.labelled():
        if is_free(port):
            continue
        fix = "stop that program, or choose another with --port" if label == "ports.write" else "stop that program"
        raise EnvironmentFault(
            f"port {port} ({label} in {layout.cluster_file}) is in use by another program: {fix}, or edit that file"
        )


def private_copy_dir(layout: Layout) -> Path:
    """Where copies of servers are kept that the servers' user cannot read in their own place (root's virtualenv)."""
    if os.geteuid() == 0:
        cache = Path("/var/cache/holdfast")
        try:
            cache.mkdir(mode=0o755, parents=True, exist_ok=True)
        except OSError:
            return layout.root / "servers"
        return cache
    return layout.root / "servers"
