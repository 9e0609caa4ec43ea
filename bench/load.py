"""The load of `proxy.py`: pgbench through one pooler, watched from its first second on, and idle connections."""

from __future__ import annotations

import os
import subprocess
import time
from contextlib import ExitStack
from pathlib import Path

import psycopg
from cells import Cell, Sample, latencies_ms, percentile
from pgbench import Pgbench
from poolers import Place, Pooler

from holdfast.local.layout import APP_DATABASE, APP_USER, LOOPBACK

SCRIPTS = {"select-only": ("-S",), "tpcb": ()}
"""Names of pgbench's own scripts, and what chooses them."""
_PROGRESS = "progress:"
_WARM_CONNECTIONS = 50


class Load:
    """pgbench on one cluster."""

    def __init__(self, place: Place, seconds: int) -> None:
        self._place = place
        self._seconds = seconds
        self._pgbench = Pgbench(place.cluster, place.scratch)

    def prepare(self, scale: int) -> None:
        """Make pgbench's tables."""
        self._pgbench.run(self._place.primary_port, "-i", "-q", "-s", str(scale))

    def environment(self, tls: bool) -> dict[str, str]:
        """For libpq."""
        return {**self._pgbench.environment(), "PGSSLMODE": "require" if tls else "disable", "PGGSSENCMODE": "disable"}

    def run(self, turn: int, cell: Cell, name: str, pooler: Pooler | None) -> Sample:
        """One load through one pooler; None: straight to the primary. Raises SystemExit if pgbench fails.

        What is measured begins with pgbench's first report, so without logins, and ends with the last one.
        """
        port = pooler.port if pooler is not None else self._place.primary_port
        size = ("-c", str(cell.clients), "-j", "1", "-T", str(self._seconds))
        log = ("-P", "1", "-l", "--log-prefix=latency")
        command = self._pgbench.command(port, "-n", *SCRIPTS[cell.script], "-M", cell.mode, *size, *log)
        marks: list[tuple[float, float]] = []
        words: list[str] = []
        with subprocess.Popen(
            command,
            stdout=subprocess.DEVNULL,
            stderr=subprocess.PIPE,
            text=True,
            env=self.environment(cell.tls),
            cwd=self._place.scratch,
        ) as process:
            for line in process.stderr or ():
                if line.startswith(_PROGRESS):
                    marks.append((time.time(), pooler.cpu_s() if pooler is not None else 0.0))
                else:
                    words.append(line)
        if process.returncode != 0:
            raise SystemExit(f"pgbench through {name} failed: {''.join(words)[-1000:]}")
        if len(marks) < 2:
            raise SystemExit("pgbench did not report twice: raise --seconds")
        (begin_s, before_s), (end_s, after_s) = marks[0], marks[-1]
        taken_ms: list[float] = []
        for path in self._place.scratch.glob("latency.*"):
            with path.open() as lines:
                taken_ms += latencies_ms(lines, begin_s, end_s)
            path.unlink()
        return Sample(
            cell,
            name,
            turn,
            tps=len(taken_ms) / (end_s - begin_s),
            p50_ms=percentile(taken_ms, 0.5),
            p99_ms=percentile(taken_ms, 0.99),
            cpu_us=(after_s - before_s) * 1e6 / len(taken_ms),
        )


def idle_memory(load: Load, pooler: Pooler, count: int, tls: bool) -> float:
    """Bytes that the pooler takes for each of ``count`` connections that have run one statement and are idle."""
    environment = load.environment(tls)
    with ExitStack() as open_connections:

        def connect(number: int) -> None:
            for _ in range(number):
                connection = psycopg.connect(
                    host=LOOPBACK,
                    port=pooler.port,
                    user=APP_USER,
                    dbname=APP_DATABASE,
                    password=environment["PGPASSWORD"],
                    sslmode=environment["PGSSLMODE"],
                    autocommit=True,
                    prepare_threshold=None,
                )
                open_connections.callback(connection.close)
                connection.execute("SELECT 1")

        connect(_WARM_CONNECTIONS)
        before = pooler.memory_bytes()
        connect(count)
        return (pooler.memory_bytes() - before) / count


def make_certificate(directory: Path) -> tuple[Path, Path]:
    """Files of a certificate for this machine and of its key; SystemExit if what makes them is not there."""
    try:
        import trustme
    except ImportError as error:
        raise SystemExit("TLS needs the package trustme (in the group dev); or measure with --tls off") from error
    made = trustme.CA().issue_cert(LOOPBACK)
    files = directory / "certificate.pem", directory / "key.pem"
    made.cert_chain_pems[0].write_to_path(str(files[0]))
    made.private_key_pem.write_to_path(str(files[1]))
    os.chmod(files[1], 0o600)
    return files
