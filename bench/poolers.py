"""The processes that `proxy.py` measures: Holdfast's proxy, PgBouncer and HAProxy, each in front of one primary."""

from __future__ import annotations

import os
import secrets
import shutil
import socket
import subprocess
import sys
import time
from dataclasses import dataclass
from pathlib import Path

import psutil
from cells import COMPILED, HAPROXY, PGBOUNCER, PLAIN
from peers import Program

from holdfast.local import machine
from holdfast.local.cluster import LocalCluster
from holdfast.local.configs import proxy_settings, to_toml
from holdfast.local.layout import APP_DATABASE, APP_USER, LOOPBACK
from holdfast.local.ports import free_ports

SOURCES = Path(__file__).resolve().parents[1] / "src"
COMPILE = Path(__file__).resolve().parents[1] / "tools" / "compile.py"
START_S = 20.0
STOP_S = 10.0
_TICKS = os.sysconf("SC_CLK_TCK")


@dataclass(frozen=True, slots=True)
class Place:
    """What all poolers are in front of, and how large they may grow."""

    cluster: LocalCluster
    primary_port: int
    scratch: Path
    certificate: tuple[Path, Path] | None
    """Files of the certificate and of its key."""
    pool_size: int
    sessions_max: int
    clients_max: int


class Pooler:
    """One that runs."""

    def __init__(self, name: str, pooling: str, port: int, process: subprocess.Popen[bytes], log: Path) -> None:
        self.name = name
        self.pooling = pooling
        self.port = port
        self._process = process
        self._seen = psutil.Process(process.pid)
        self._log = log

    def wait_until_open(self) -> None:
        """Until it accepts connections; SystemExit with its last words if it does not."""
        end_s = time.monotonic() + START_S
        while time.monotonic() < end_s and self._process.poll() is None:
            with socket.socket() as probe:
                if probe.connect_ex((LOOPBACK, self.port)) == 0:
                    return
            time.sleep(0.05)
        words = self._log.read_text(errors="replace")[-1500:]
        raise SystemExit(f"{self.name} does not listen; its last words:\n{words}")

    def cpu_s(self) -> float:
        """utime and stime of the process and its children, so far."""
        return sum(_cpu_s(one.pid) for one in self._all())

    def memory_bytes(self) -> int:
        """What is theirs alone."""
        return sum(int(one.memory_full_info().uss) for one in self._all())

    def _all(self) -> list[psutil.Process]:
        return [self._seen, *self._seen.children(recursive=True)]

    def stop(self) -> None:
        """Idempotent."""
        if self._process.poll() is None:
            self._process.terminate()
            try:
                self._process.wait(STOP_S)
            except subprocess.TimeoutExpired:
                self._process.kill()
                self._process.wait()


def _cpu_s(pid: int) -> float:
    """Fields 14 and 15 of ``/proc/PID/stat`` (proc(5)); the name before them may have spaces and brackets in it."""
    fields = Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()
    return (int(fields[11]) + int(fields[12])) / _TICKS


def copied_sources(name: str, scratch: Path) -> Path | None:
    """A copy of Holdfast's sources, compiled if ``name`` says so; None, and said why, if that cannot be."""
    copy = scratch / f"src-{name}"
    shutil.copytree(SOURCES, copy, ignore=shutil.ignore_patterns("*.so", "__pycache__"))
    if name == COMPILED:
        done = subprocess.run([sys.executable, str(COMPILE), "--root", str(copy)], capture_output=True, text=True)
        if done.returncode != 0:
            print(f"without {COMPILED}: {done.stderr.strip()}", file=sys.stderr)
            return None
    return copy


class Starter:
    """Starts them; `stop` ends all."""

    def __init__(self, place: Place, programs: dict[str, Program], sources: dict[str, Path]) -> None:
        self._place = place
        self._programs = programs
        self._sources = sources
        self._ports = free_ports(secrets.randbelow(2**31))
        self._running: list[Pooler] = []

    def start(self, name: str, pooling: str) -> Pooler:
        """One that accepts connections."""
        port = next(self._ports)
        directory = self._place.scratch / f"{name}-{port}"
        directory.mkdir()
        environ = dict(os.environ)
        if name in (COMPILED, PLAIN):
            command = self._holdfast(directory, pooling, port)
            environ["PYTHONPATH"] = str(self._sources[name])
        else:
            make = self._pgbouncer if name == PGBOUNCER else self._haproxy
            command = make(directory, pooling, port)
            environ |= self._programs[name].environment
        owner = machine.owner_ids(machine.server_user()) if name == PGBOUNCER else None
        if owner is not None:
            for path in (directory, *directory.iterdir()):
                os.chown(path, *owner)
        log = directory / "log"
        with log.open("wb") as output:
            # A session of its own: the kernel shares out CPU time by session (sched_autogroup).
            process = subprocess.Popen(command, env=environ, stdout=output, stderr=output, start_new_session=True)
        pooler = Pooler(name, pooling, port, process, log)
        self._running.append(pooler)
        pooler.wait_until_open()
        return pooler

    def stop(self) -> None:
        """All that were started."""
        for pooler in self._running:
            pooler.stop()

    def _size(self, pooling: str) -> int:
        return self._place.pool_size if pooling == "transaction" else self._place.sessions_max

    def _holdfast(self, directory: Path, pooling: str, port: int) -> list[str]:
        place = self._place
        settings = proxy_settings(place.cluster.layout, place.cluster.file)
        changes: dict[str, object] = {
            "write_port": port,
            "read_port": next(self._ports),
            "api_port": next(self._ports),
            "pooling": pooling,
            "pool_size": self._size(pooling),
            "max_clients": place.clients_max,
        }
        if place.certificate is not None:
            changes |= {"tls_cert_file": place.certificate[0], "tls_key_file": place.certificate[1]}
        settings = settings.model_copy(update={"proxy": settings.proxy.model_copy(update=changes)})
        config = directory / "proxy.toml"
        config.write_text(to_toml(settings, "A proxy that is measured"))
        return [sys.executable, "-m", "holdfast.cli", "proxy", "--config", str(config)]

    def _pgbouncer(self, directory: Path, pooling: str, port: int) -> list[str]:
        place = self._place
        users, config = directory / "users.txt", directory / "pgbouncer.ini"
        users.touch(0o600)
        users.write_text(f'"{APP_USER}" "{place.cluster.layout.read_secret("app")}"\n')
        tls = ""
        if place.certificate is not None:
            files = [shutil.copy(path, directory / path.name) for path in place.certificate]
            tls = f"client_tls_sslmode = allow\nclient_tls_cert_file = {files[0]}\nclient_tls_key_file = {files[1]}\n"
        config.write_text(
            f"[databases]\n{APP_DATABASE} = host={LOOPBACK} port={place.primary_port} dbname={APP_DATABASE}\n\n"
            f"[pgbouncer]\nlisten_addr = {LOOPBACK}\nlisten_port = {port}\nunix_socket_dir =\n"
            f"auth_type = scram-sha-256\nauth_file = {users}\n"
            f"pool_mode = {pooling}\ndefault_pool_size = {self._size(pooling)}\nmax_client_conn = {place.clients_max}\n"
            f"log_connections = 0\nlog_disconnections = 0\nserver_tls_sslmode = disable\n{tls}"
        )
        user = machine.server_user()  # it refuses to run as root
        return [str(self._programs[PGBOUNCER].path), *(("-u", user) if user is not None else ()), str(config)]

    def _haproxy(self, directory: Path, pooling: str, port: int) -> list[str]:
        place = self._place
        config = directory / "haproxy.cfg"
        config.write_text(
            f"global\n    nbthread 1\n    maxconn {place.clients_max}\n"
            "defaults\n    mode tcp\n    timeout connect 5s\n    timeout client 1h\n    timeout server 1h\n"
            f"listen primary\n    bind {LOOPBACK}:{port}\n    server primary {LOOPBACK}:{place.primary_port}\n"
        )
        return [str(self._programs[HAPROXY].path), "-db", "-f", str(config)]
