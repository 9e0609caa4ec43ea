"""A cluster whose nodes and proxies each have a host of their own; the store has a member beside every node.

Each host has its own supervisor, as a machine has its own init: it dies, freezes and comes back with its host.
"""

from __future__ import annotations

import asyncio
import contextlib
import fcntl
import json
import os
import secrets
import shutil
import signal
import subprocess
import sys
import tempfile
from collections.abc import AsyncIterator, Mapping
from contextlib import asynccontextmanager
from pathlib import Path
from typing import IO

import aiohttp

from holdfast.drill.hosts import Frozen, Host, make_network, processes_below, remove_network
from holdfast.drill.volumes import Volume, mount, unmount
from holdfast.drill.wire import Wires
from holdfast.local import layout as rooms
from holdfast.local import machine
from holdfast.local.cluster import LocalCluster, Progress
from holdfast.local.configs import write_configs
from holdfast.local.layout import APP_DATABASE, APP_USER, ClusterFile, Layout, NodePorts, Ports
from holdfast.local.plan import ProcessSpec, RunFiles, SupervisorState
from holdfast.local.processes import Process, postmaster_of
from holdfast.local.servers import agent_spec, etcd_spec, find_servers, plan_of, proxy_spec
from holdfast.model.errors import EnvironmentFault
from holdfast.model.timeouts import Timeouts

DIRECTORY_PREFIX = "holdfast-drill-"
LOCK = "drill.lock"
PROXIES = ("p1", "p2")
POSTGRES_PORT, API_PORT = 5432, 8008
ETCD_DEFAULTS = ("--heartbeat-interval=100", "--election-timeout=1000")
"""etcd's own: what a store of three machines has unless somebody tuned it."""


def machine_dir(layout: Layout, name: str) -> Path:
    """What a host has beside the directory of its node: its supervisor's files, its member of the store."""
    return layout.root / f"host-{name}"


class HostedCluster(LocalCluster):
    """A cluster spread over hosts. Make it with `hosted_cluster`."""

    def __init__(self, layout: Layout, file: ClusterFile, jitter_ms: float = 0.0) -> None:
        super().__init__(layout, file)
        names = (*file.nodes, *file.proxies)
        self.hosts: dict[str, Host] = {}
        for number, name in enumerate(names, 1):
            self.hosts[name] = Host(name, number, file.address(name), wired=jitter_ms > 0)
        cables = [host.cable for host in self.hosts.values() if host.cable is not None]
        self._jitter_ms = jitter_ms
        self._wires = Wires(cables, 0.0, seed=1) if cables else None
        self._supervisors: dict[str, subprocess.Popen[bytes]] = {}
        self.volumes: tuple[str, ...] = ()
        """Nodes whose directory is a file system of its own."""

    @classmethod
    def make(
        cls, root: Path, *, nodes: int, parameters: Mapping[str, str], volumes: Mapping[str, Volume], jitter_ms: float
    ) -> HostedCluster:
        """Make directory, volumes, network and hosts; nothing runs yet. Raises EnvironmentFault, NotInjected."""
        layout = Layout.at(root)
        names = rooms.node_names(nodes)
        machine.check_system()
        os_user = machine.server_user()
        postgresql, etcd = find_servers(machine.private_copy_dir(layout), os_user)
        addresses = {name: f"10.77.1.{number}" for number, name in enumerate(names, 1)}
        addresses |= {name: f"10.77.2.{number}" for number, name in enumerate(PROXIES, 1)}
        node_ports = {name: NodePorts(POSTGRES_PORT, API_PORT) for name in names}
        ports = Ports(0, write=6432, read=6433, proxy_api=6434, etcd_client=2379, etcd_peer=2380, nodes=node_ports)
        file = ClusterFile(
            "main", names, ports, postgresql, etcd, os_user, parameters=dict(parameters), addresses=addresses
        )
        owner = machine.owner_ids(os_user)
        for name in (*names, *PROXIES):
            machine_dir(layout, name).mkdir(mode=0o711)
            (machine_dir(layout, name) / "run").mkdir(mode=0o700)
        for name, volume in volumes.items():
            mount(volume, layout.node(name))
            for part in () if volume.with_agent else ("state", "log", "socket"):
                (machine_dir(layout, name) / part).mkdir()
                (layout.node(name) / part).symlink_to(machine_dir(layout, name) / part)
        file = rooms.make_directories(layout, file, owner)
        for name in PROXIES:
            layout.node(name).mkdir(mode=0o700)
        for name in names:
            store = machine_dir(layout, name) / "etcd"
            store.mkdir(mode=0o700)
            if owner is not None:
                os.chown(store, *owner)
        write_configs(layout, file)
        make_network()
        cluster = cls(layout, file, jitter_ms)
        cluster.volumes = tuple(volumes)
        return cluster

    # -- how clients reach it -------------------------------------------------------------------------------------

    def _through_proxies(self, port: int, first: int) -> str:
        order = self.file.proxies[first:] + self.file.proxies[:first]
        hosts = ",".join(f"{self.file.address(name)}:{port}" for name in order)
        password = self.layout.read_secret("app")
        return f"postgresql://{APP_USER}:{password}@{hosts}/{APP_DATABASE}"

    @property
    def write_dsn(self) -> str:
        """Through the first proxy, or the second if that does not answer."""
        return self._through_proxies(self.file.ports.write, 0)

    @property
    def read_dsn(self) -> str:
        """The same to a standby."""
        return self._through_proxies(self.file.ports.read, 0)

    @property
    def write_dsn_turned(self) -> str:
        """Through the second proxy first: half of the clients use it."""
        return self._through_proxies(self.file.ports.write, 1)

    # -- its processes --------------------------------------------------------------------------------------------

    def _specs(self, name: str) -> tuple[ProcessSpec, ...]:
        if name in self.file.proxies:
            return (proxy_spec(self.layout, self.file, name, self.timeouts),)
        return (self._store_spec(name), agent_spec(self.layout, self.file, name, self.timeouts))

    def _store_spec(self, name: str) -> ProcessSpec:
        address, ports = self.file.address(name), self.file.ports
        client, peer = f"http://{address}:{ports.etcd_client}", f"http://{address}:{ports.etcd_peer}"
        members = ",".join(f"{n}=http://{self.file.address(n)}:{ports.etcd_peer}" for n in self.nodes)
        directory = self.store_dir(name)
        arguments = (
            f"--name={name}",
            f"--listen-client-urls={client}",
            f"--advertise-client-urls={client}",
            f"--listen-peer-urls={peer}",
            f"--initial-advertise-peer-urls={peer}",
            f"--initial-cluster={members}",
            "--initial-cluster-token=holdfast-drill",
            *ETCD_DEFAULTS,
        )
        return etcd_spec(self.file, directory / "data", directory / "etcd.log", f"etcd-{name}", arguments)

    def store_dir(self, name: str) -> Path:
        """Where a node's member of the store has its ``data``: never on the volume of PostgreSQL."""
        return machine_dir(self.layout, name) / "etcd"

    def run_files(self, name: str) -> RunFiles:
        """The supervisor's files of a host."""
        return RunFiles(machine_dir(self.layout, name) / "run")

    def _write_plan(self) -> None:
        for name in self.hosts:
            plan = plan_of(self._specs(name), self.timeouts)
            rooms.write_atomically(self.run_files(name).plan, plan.to_json(), 0o600)

    def start(self, *, remove_unless_kept: bool = False) -> None:
        """Start every host."""
        write_configs(self.layout, self.file)
        self.layout.save(self.file)
        self._write_plan()
        for name in self.hosts:
            self.start_host(name)

    def start_host(self, name: str) -> None:
        """Start what a host runs, as its boot does; its power must be on."""
        self.run_files(name).state.unlink(missing_ok=True)
        command = [sys.executable, "-m", "holdfast.cli", "supervise", str(machine_dir(self.layout, name)), "--tied"]
        with self.run_files(name).log.open("ab") as output:
            self._supervisors[name] = subprocess.Popen(
                self.hosts[name].enter(*command),
                stdin=subprocess.PIPE,
                stdout=output,
                stderr=output,
                cwd="/",
                start_new_session=True,
            )

    def kill_host(self, name: str) -> int:
        """SIGKILL everything on a host; the host itself stays, and refuses connections. Returns how many."""
        killed = self.hosts[name].kill()
        self._reap(name)
        return killed

    def power_off(self, name: str) -> int:
        """Take a host's power away; returns how many processes that ended."""
        killed = self.hosts[name].power_off()
        self._reap(name)
        return killed

    def power_on(self, name: str) -> None:
        """Give a host its power back, and boot it."""
        self.hosts[name].power_on()
        self.start_host(name)

    def worsen_network(self) -> None:
        """From now on every cable delays frames by up to ``jitter_ms``."""
        if self._wires is not None:
            self._wires.set_jitter(self._jitter_ms)

    def freeze(self, name: str) -> Frozen:
        """Stop every process of a host where it is."""
        return self.hosts[name].freeze()

    def _reap(self, name: str) -> None:
        supervisor = self._supervisors.pop(name, None)
        if supervisor is not None:
            supervisor.wait()
            if supervisor.stdin is not None:
                with contextlib.suppress(OSError):
                    supervisor.stdin.close()

    def supervisor(self, name: str) -> Process | None:
        """A host's supervisor; while it is stopped, nothing that dies is started again."""
        state = self.host_state(name)
        return state.supervisor if state.is_alive else None

    def host_state(self, name: str) -> SupervisorState:
        """What a host's supervisor says."""
        return SupervisorState.load(self.run_files(name).state)

    def process(self, host: str, name: str) -> Process | None:
        """A supervised process of a host that runs now."""
        state = self.host_state(host).processes.get(name)
        return state.process if state is not None and state.is_alive else None

    def agent(self, node: str) -> Process | None:
        """A node's agent."""
        return self.process(node, node)

    def store_member(self, node: str) -> Process | None:
        """The member of the store beside a node."""
        return self.process(node, f"etcd-{node}")

    def proxy(self, name: str) -> Process | None:
        """A proxy."""
        return self.process(name, name)

    def postmaster(self, node: str) -> Process | None:
        """A node's postmaster."""
        return postmaster_of(self.layout.data_dir(node))

    def _check_processes(self) -> None:
        for name, supervisor in self._supervisors.items():
            if supervisor.poll() is not None:
                raise EnvironmentFault(f"the supervisor of {name} ended: see {self.run_files(name).log}")

    def _leftovers(self) -> bool:
        return any(host.processes() for host in self.hosts.values())

    async def store_leader(self) -> str | None:
        """The node beside whose store member the store's leader is (etcd's ``/v3/maintenance/status``)."""
        for name in self.nodes:
            url = f"http://{self.file.address(name)}:{self.file.ports.etcd_client}/v3/maintenance/status"
            try:
                limit = aiohttp.ClientTimeout(total=Timeouts().store_request_ms / 1000)
                async with self.http().post(url, json={}, timeout=limit) as answer:
                    body = await answer.json(content_type=None)
            except (aiohttp.ClientError, TimeoutError, OSError, json.JSONDecodeError):
                continue
            if body.get("leader") and body["leader"] == body["header"]["member_id"]:
                return name
        return None

    async def stop(self) -> bool:
        """End everything at once: its directory is about to go."""
        ran = self._leftovers()
        if self._wires is not None:
            self._wires.close()
            self._wires = None
        for host in self.hosts.values():
            await asyncio.to_thread(host.close)
        for name in list(self._supervisors):
            self._reap(name)
        return ran


@asynccontextmanager
async def hosted_cluster(
    *,
    progress: Progress,
    nodes: int = 3,
    parameters: Mapping[str, str] | None = None,
    volumes: Mapping[str, Volume] | None = None,
    jitter_ms: float = 0.0,
) -> AsyncIterator[HostedCluster]:
    """A cluster on hosts of its own that serves; afterwards processes, hosts and files are gone.

    ``jitter_ms``: what every cable delays frames by, now more, now less, after `HostedCluster.worsen_network`.
    We must be inside (`hosts.enter`). If we are killed, what is left goes with the next one (`remove_leftovers`).
    """
    remove_leftovers(progress)
    root, lock = _claim_directory(nodes)
    cluster: HostedCluster | None = None
    try:
        cluster = HostedCluster.make(
            root, nodes=nodes, parameters=parameters or {}, volumes=volumes or {}, jitter_ms=jitter_ms
        )
        progress(f"{nodes} nodes, {len(PROXIES)} proxies and the clients, each on a host of its own, in {root}")
        cluster.start()
        await cluster.wait_until_serving(progress)
        await cluster.wait_until_proxy_answers()
        yield cluster
    finally:
        if cluster is not None:
            await cluster.stop()
            await cluster.close()
        remove_network()
        for name in volumes or {}:
            unmount(Layout.at(root).node(name))
        rooms.remove(Layout.at(root))
        shutil.rmtree(root, ignore_errors=True)
        lock.close()


def _claim_directory(nodes: int) -> tuple[Path, IO[str]]:
    """A fresh directory that is ours for as long as the lock is open."""
    os_user = machine.server_user()
    base = Path(tempfile.gettempdir())
    machine.check_place(base, nodes, os_user)
    root = base / f"{DIRECTORY_PREFIX}{os.getpid()}-{secrets.token_hex(4)}"
    root.mkdir(mode=0o711 if os_user else 0o700)
    lock = (root / LOCK).open("w")
    fcntl.flock(lock, fcntl.LOCK_EX)
    return root, lock


def remove_leftovers(progress: Progress) -> None:
    """Remove what drills left that were killed: directories of ours whose lock nobody holds, and their processes."""
    for root in sorted(Path(tempfile.gettempdir()).glob(f"{DIRECTORY_PREFIX}*")):
        try:
            if root.lstat().st_uid != os.geteuid():
                continue
            lock = (root / LOCK).open()
        except OSError:
            continue
        with lock:
            try:
                fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
            except OSError:
                continue
            left = processes_below(root)
            for process in left:
                process.send(signal.SIGKILL)
            for process in left:
                process.wait(5.0)
            rooms.remove(Layout.at(root))
            shutil.rmtree(root, ignore_errors=True)
            progress(f"removed {root} and {len(left)} processes of a drill that was killed")
