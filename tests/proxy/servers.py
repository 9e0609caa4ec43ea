"""Real PostgreSQL servers for the proxy's tests: a primary and a standby, promoted by hand."""

from __future__ import annotations

import shutil
import signal
import subprocess
import time
from pathlib import Path
from typing import Any

import psycopg

from holdfast.local.machine import server_user
from holdfast.local.processes import Process, descendants_of
from holdfast.postgres.shared_memory import remove_shared_memory, shared_memory_of
from tests.ports import free_port

USER = "app"
PASSWORD = "app password"


class Server:
    """One PostgreSQL in a directory of its own."""

    def __init__(self, home: Path, name: str, bin_dir: Path) -> None:
        self.name = name
        self.home = home
        self.data = home / name
        self.bin_dir = bin_dir
        self.port = free_port()
        self.process: subprocess.Popen[bytes] | None = None

    def run(self, program: str, *arguments: str) -> None:
        command = [str(self.bin_dir / program), *arguments]
        done = subprocess.run(command, user=server_user(), capture_output=True, cwd=self.home, check=False)
        assert done.returncode == 0, f"{program}: {done.stderr.decode()}"

    def init(self) -> None:
        self.run(
            "initdb",
            "-D",
            str(self.data),
            "-A",
            "trust",
            "-U",
            "postgres",
            "-N",
            "--no-locale",
            "-E",
            "UTF8",
            "--wal-segsize=1",
        )
        (self.data / "pg_hba.conf").write_text(
            "local all all trust\n"
            "host replication all 127.0.0.1/32 trust\n"
            "host all trusted 127.0.0.1/32 trust\n"
            "host all all 127.0.0.1/32 scram-sha-256\n"
        )
        with (self.data / "postgresql.conf").open("a") as settings:
            settings.write(
                "listen_addresses = '127.0.0.1'\nmax_connections = 200\nshared_buffers = '32MB'\nfsync = off\n"
                "wal_keep_size = '32MB'\nmin_wal_size = '2MB'\n"
                "hot_standby = on\nlogging_collector = off\nwal_retrieve_retry_interval = 50\n"
            )

    def copy(self, source: Server) -> None:
        """Become a copy of a stopped server."""
        subprocess.run(["cp", "-a", "--reflink=auto", str(source.data), str(self.data)], check=True)

    def follow(self, primary: Server) -> None:
        (self.data / "standby.signal").touch()
        shutil.chown(self.data / "standby.signal", self.data.owner())
        with (self.data / "postgresql.auto.conf").open("a") as settings:
            settings.write(
                f"primary_conninfo = 'host=127.0.0.1 port={primary.port} user=postgres application_name={self.name}'\n"
            )

    def start(self) -> None:
        command = [str(self.bin_dir / "postgres"), "-D", str(self.data), "-p", str(self.port)]
        command += ["-k", str(self.home)]
        log = (self.home / f"{self.name}.log").open("ab")
        self.process = subprocess.Popen(
            command, user=server_user(), stdout=log, stderr=log, cwd=self.home, start_new_session=True
        )
        log.close()
        self._wait_until_ready()

    def _wait_until_ready(self) -> None:
        deadline = time.monotonic() + 60
        while True:
            try:
                self.query("select 1")
                return
            except psycopg.OperationalError:
                assert time.monotonic() < deadline, (self.home / f"{self.name}.log").read_text()[-2000:]
                assert self.process is not None
                assert self.process.poll() is None, (self.home / f"{self.name}.log").read_text()[-2000:]
                time.sleep(0.02)

    def session(self, database: str) -> psycopg.Connection[tuple[Any, ...]]:
        """As superuser, by the Unix socket."""
        return psycopg.connect(host=str(self.home), port=self.port, user="postgres", dbname=database, autocommit=True)

    def query(self, sql: str, database: str = "postgres") -> list[tuple[Any, ...]]:
        """As superuser, in a session of its own."""
        with self.session(database) as connection:
            cursor = connection.execute(sql.encode())
            return cursor.fetchall() if cursor.description else []

    def promote(self) -> None:
        self.query("select pg_promote()")

    def wait_for(self, sql: str) -> None:
        """Until a query returns true."""
        deadline = time.monotonic() + 60
        while not self.query(sql)[0][0]:
            assert time.monotonic() < deadline, sql
            time.sleep(0.02)

    def set_standby_names(self, names: str | None) -> None:
        """Which standbys confirm commits; returns when every commit that begins asks for them."""
        verb = "reset synchronous_standby_names" if names is None else f"set synchronous_standby_names = '{names}'"
        self.query(f"alter system {verb}")
        self.query("select pg_reload_conf()")
        self.wait_for(f"select current_setting('synchronous_standby_names') = '{names or ''}'")
        # The checkpointer, told before any session is forked with the new names, tells all others; it looks for such
        # news before it takes up a checkpoint, but the first may be under way.
        self.query("checkpoint")
        self.query("checkpoint")

    def stop(self) -> None:
        """A fast shutdown."""
        assert self.process is not None
        self.process.send_signal(signal.SIGINT)
        self.process.wait(60)
        self.process = None

    def kill(self) -> None:
        """Kill the postmaster and every backend, as a crash of the host's memory would."""
        if self.process is None:
            return
        postmaster = Process.of(self.process.pid) if self.process.poll() is None else None
        if postmaster is not None:
            postmaster.send(signal.SIGSTOP)  # it forks nobody meanwhile
            family = [
                p for p in map(Process.of, (self.process.pid, *descendants_of(self.process.pid))) if p is not None
            ]
            shared = shared_memory_of(*(process.pid for process in family))
            for process in family:
                process.send(signal.SIGKILL)
            for process in family:
                process.wait(60)  # the end is enough: whoever adopts the orphans may be slow to reap them
            remove_shared_memory(shared)
        self.process.wait()
        self.process = None
