"""Hosts of a drill's own: one network namespace each, joined by a bridge, all inside a namespace that nobody else sees.

The drill's process lives in that outer namespace, is the clients' host, and holds the only reference to the others:
when it and the processes on its hosts are gone, the kernel removes network, addresses and links. Nothing has a name
outside, so that any number of drills can run at once. A host's cables are cut without a reset, as a dead switch does.
"""

from __future__ import annotations

import ctypes
import os
import shutil
import signal
import subprocess
import sys
from collections.abc import Iterable, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from enum import StrEnum
from pathlib import Path

from holdfast.drill.wire import Cable, open_tap
from holdfast.local.processes import Process
from holdfast.model.errors import EnvironmentFault

BRIDGE = "holdfast0"
CLIENTS_ADDRESS = "10.77.0.1"
PREFIX_BITS = 16
_CLONE_NEWNET = 0x40000000
"""setns(2), unshare(2)."""
_INSIDE = "HOLDFAST_DRILL_WORLD"
"""Holds our process number once we are in the outer namespace: exec keeps it, a child's is another."""
_MAC_PREFIX = "02:48:46:00"

NEEDED_PROGRAMS = ("unshare", "nsenter", "ip", "bridge", "tc")
WITHOUT_HOSTS = "primary-crash runs without them: holdfast drill run primary-crash --on loopback"


class Direction(StrEnum):
    """Of frames, as the host sees it."""

    IN = "in"
    OUT = "out"


def is_inside() -> bool:
    """Whether this process is in the outer namespace."""
    return os.environ.get(_INSIDE) == str(os.getpid())


def enter(command: Sequence[str]) -> None:
    """Execute ``command``, which is our own, in a network and a mount namespace of our own; returns if we are there.

    The process stays the same. Without root a user namespace comes first (user_namespaces(7)). Raises EnvironmentFault
    if neither is possible.
    """
    if is_inside():
        return
    missing = [program for program in NEEDED_PROGRAMS if shutil.which(program, path=_path()) is None]
    if missing:
        raise EnvironmentFault(
            f"hosts of their own need {', '.join(missing)} (packages iproute2 and util-linux). {WITHOUT_HOSTS}"
        )
    unshare = [_program("unshare"), "--net", "--mount"]
    if os.geteuid() != 0:
        unshare += ["--user", "--map-current-user", "--keep-caps"]
    # What a drill does there is tried: whether a kernel allows it cannot be told from its settings.
    trial = f"ip link add {BRIDGE} type bridge && ip link add port0 type veth peer name port1 && tc qdisc >/dev/null"
    tried = subprocess.run(
        [*unshare, "sh", "-c", trial], env=_environment(), capture_output=True, text=True, check=False
    )
    if tried.returncode != 0:
        raise EnvironmentFault(
            f"hosts of their own are not possible here ({tried.stderr.strip() or 'unshare failed'}): run as root, or "
            f"allow user namespaces (sysctl kernel.unprivileged_userns_clone=1, user.max_user_namespaces). "
            f"{WITHOUT_HOSTS}"
        )
    sys.stdout.flush()
    sys.stderr.flush()
    os.execve(unshare[0], [*unshare, *command], {**_environment(), _INSIDE: str(os.getpid())})


def _path() -> str:
    return os.pathsep.join((os.environ.get("PATH", os.defpath), "/usr/sbin", "/sbin"))


def _program(name: str) -> str:
    return shutil.which(name, path=_path()) or name


def _environment() -> dict[str, str]:
    return {**os.environ, "PATH": _path()}


@dataclass(frozen=True, slots=True)
class Frozen:
    """Processes that were stopped, to be let go again."""

    processes: tuple[Process, ...]

    def thaw(self) -> None:
        """Let them go on."""
        for process in self.processes:
            process.send(signal.SIGCONT)


class Host:
    """One machine of the drill: an address, a cable to the switch, and whatever processes are in its namespace."""

    def __init__(self, name: str, number: int, address: str, *, wired: bool = False) -> None:
        """``wired``: with a `Cable` that somebody must carry (`holdfast.drill.wire`), not one of the kernel's."""
        self.name = name
        self.address = address
        self.cable: Cable | None = None
        self._wired = wired
        self._number = number
        self._namespace: int | None = None
        self._plug()

    # -- power ----------------------------------------------------------------------------------------------------

    def _plug(self) -> None:
        self._namespace = _new_network_namespace()
        mac = f"{_MAC_PREFIX}:{self._number >> 8:02x}:{self._number & 255:02x}"
        if self._wired:
            inner = f"inner-{self.name}"
            self.cable = Cable(host=open_tap(inner), switch=open_tap(self._port))
            _run("ip", "link", "set", inner, "netns", self._netns, "name", "eth0")
        else:
            _run("ip", "link", "add", self._port, "type", "veth", "peer", "name", "eth0", "netns", self._netns)
        _run("ip", "link", "set", self._port, "master", BRIDGE, "up")
        self.run("ip", "link", "set", "lo", "up")
        # The same hardware address after a new start, so that neighbours need not ask again.
        self.run("ip", "link", "set", "eth0", "address", mac, "up")
        self.run("ip", "address", "add", f"{self.address}/{PREFIX_BITS}", "dev", "eth0")

    @property
    def is_on(self) -> bool:
        """Whether it has power."""
        return self._namespace is not None

    def power_off(self) -> int:
        """Take the power away: not a packet leaves it any more; returns how many processes that ended."""
        _run("ip", "link", "del", self._port)
        killed = self.kill()
        if self._namespace is not None:
            os.close(self._namespace)
            self._namespace = None
        return killed

    def power_on(self) -> None:
        """Give it power again: a fresh network stack that knows of no connection."""
        if not self.is_on:
            self._plug()

    def close(self) -> None:
        """End everything on it. Its port is gone at once: the kernel removes it some time after the last process."""
        if self._namespace is not None:
            self.kill()
            if not self._wired:
                subprocess.run(["ip", "link", "del", self._port], env=_environment(), capture_output=True, check=False)
            os.close(self._namespace)
            self._namespace = None
        if self.cable is not None:
            os.close(self.cable.host)
            os.close(self.cable.switch)
            self.cable = None

    # -- processes ------------------------------------------------------------------------------------------------

    @property
    def _netns(self) -> str:
        return f"/proc/{os.getpid()}/fd/{self._namespace}"

    def enter(self, *command: str) -> list[str]:
        """The command line that executes ``command`` on this host."""
        return [_program("nsenter"), f"--net={self._netns}", *command]

    def run(self, *command: str) -> None:
        """Execute a command on this host and wait for it; raises EnvironmentFault."""
        _run(*self.enter(*command))

    def processes(self) -> tuple[Process, ...]:
        """Every process on this host, told by its network namespace."""
        if self._namespace is None:
            return ()
        own = os.fstat(self._namespace)
        found = []
        for entry in os.listdir("/proc"):
            if not entry.isdigit():
                continue
            try:
                status = os.stat(f"/proc/{entry}/ns/net")
            except OSError:
                continue
            if (status.st_ino, status.st_dev) == (own.st_ino, own.st_dev) and (process := Process.of(int(entry))):
                found.append(process)
        return tuple(found)

    def kill(self) -> int:
        """SIGKILL every process at once; returns how many there were."""
        killed = 0
        while alive := self.processes():
            # Stopped first, so that none of them sees another die and acts on it.
            _signal(alive, signal.SIGSTOP)
            _signal(alive, signal.SIGKILL)
            killed += len(alive)
            for process in alive:
                process.wait(1.0)
        return killed

    def freeze(self) -> Frozen:
        """SIGSTOP every process; whoever is forked meanwhile is stopped in the next round."""
        frozen: dict[int, Process] = {}
        while new := [p for p in self.processes() if p.pid not in frozen]:
            _signal(new, signal.SIGSTOP)
            frozen |= {process.pid: process for process in new}
        return Frozen(tuple(frozen.values()))

    # -- cables ---------------------------------------------------------------------------------------------------

    @property
    def _port(self) -> str:
        return f"port-{self.name}"

    def cut(self) -> None:
        """Let the switch drop every frame from and to this host; nobody is told."""
        _run("bridge", "link", "set", "dev", self._port, "state", "0")

    def deafen(self, direction: Direction) -> None:
        """Drop every frame of one direction only."""
        shaper = ("root", "tbf", "rate", "100bit", "burst", "20b", "limit", "20b")  # smaller than any frame
        if direction is Direction.IN:
            _run("tc", "qdisc", "replace", "dev", self._port, *shaper)
        else:
            self.run("tc", "qdisc", "replace", "dev", "eth0", *shaper)

    def throttle(self, kbit_per_s: int, queue_ms: int) -> None:
        """Let so much through in each direction, queueing up to so long before frames are dropped (tc-tbf(8))."""
        shaper = ("root", "tbf", "rate", f"{kbit_per_s}kbit", "burst", "4kb", "latency", f"{queue_ms}ms")
        _run("tc", "qdisc", "replace", "dev", self._port, *shaper)
        self.run("tc", "qdisc", "replace", "dev", "eth0", *shaper)

    def mend(self) -> None:
        """Undo every cut, deafness and throttle."""
        if not self.is_on:
            return
        _run("bridge", "link", "set", "dev", self._port, "state", "3")
        for command in (("tc", "qdisc", "del", "dev", self._port, "root"),):
            subprocess.run(command, env=_environment(), capture_output=True, check=False)
        inside = self.enter("tc", "qdisc", "del", "dev", "eth0", "root")
        subprocess.run(inside, env=_environment(), capture_output=True, check=False)


def make_network() -> None:
    """Lay the switch that joins the hosts, and give the clients' host (us) its address."""
    if not is_inside():
        raise EnvironmentFault("a drill's network can only be laid in a namespace of its own (holdfast drill run)")
    _run("ip", "link", "set", "lo", "up")
    _run("ip", "link", "add", BRIDGE, "type", "bridge")
    _run("ip", "link", "set", BRIDGE, "up")
    _run("ip", "address", "add", f"{CLIENTS_ADDRESS}/{PREFIX_BITS}", "dev", BRIDGE)


def remove_network() -> None:
    """Take the switch away, if it is there, so that another network can be laid."""
    subprocess.run(["ip", "link", "del", BRIDGE], env=_environment(), capture_output=True, check=False)


def _new_network_namespace() -> int:
    """A descriptor of a fresh namespace; unshare(2) moves only the thread that calls it, which then ends."""
    libc = ctypes.CDLL(None, use_errno=True)

    def make() -> int:
        if libc.unshare(_CLONE_NEWNET) != 0:
            number = ctypes.get_errno()
            raise EnvironmentFault(f"a network namespace cannot be made: {os.strerror(number)}")
        return os.open("/proc/thread-self/ns/net", os.O_RDONLY)

    with ThreadPoolExecutor(1) as thread:
        return thread.submit(make).result()


def _signal(processes: Iterable[Process], number: signal.Signals) -> None:
    for process in processes:
        process.send(number)


def _run(*command: str) -> None:
    done = subprocess.run(command, env=_environment(), capture_output=True, text=True, check=False)
    if done.returncode != 0:
        raise EnvironmentFault(f"`{' '.join(command)}` failed: {done.stderr.strip() or done.returncode}")


def processes_below(root: Path) -> tuple[Process, ...]:
    """Processes of a drill that is gone: those whose command line or working directory is in its directory."""
    found = []
    prefix = str(root) + "/"
    for entry in os.listdir("/proc"):
        if not entry.isdigit() or int(entry) == os.getpid():
            continue
        try:
            words = Path(f"/proc/{entry}/cmdline").read_bytes().split(b"\0")
            place = os.readlink(f"/proc/{entry}/cwd")
        except OSError:
            continue
        named = any(os.fsdecode(word).split("=", 1)[-1].startswith(prefix) for word in words)
        if (named or f"{place}/".startswith(prefix)) and (process := Process.of(int(entry))) is not None:
            found.append(process)
    return tuple(found)
