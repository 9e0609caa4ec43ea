"""pgbench on a cluster of one's own, for the benchmarks."""

from __future__ import annotations

import os
import re
import subprocess
from pathlib import Path

import psutil

from holdfast.local.cluster import LocalCluster

TPS = re.compile(r"tps = ([\d.]+)")
TRANSACTIONS = re.compile(r"actually processed: (\d+)")


class Pgbench:
    """Runs pgbench as role ``app``; its files go to ``scratch``."""

    def __init__(self, cluster: LocalCluster, scratch: Path | None = None) -> None:
        self._program = str(Path(cluster.file.postgresql.path) / "pgbench")
        self._cluster = cluster
        self._scratch = scratch
        proxy = cluster.state().processes["proxy"].process
        if proxy is None:
            raise SystemExit("the proxy does not run")
        self.proxy = psutil.Process(proxy.pid)

    def command(self, port: int, *arguments: str) -> list[str]:
        """What to run."""
        return [self._program, "-h", "127.0.0.1", "-p", str(port), "-U", "app", *arguments, "app"]

    def environment(self, name: str = "pgbench") -> dict[str, str]:
        """The password goes by the environment of the child only; ``name`` is its application_name."""
        return {**os.environ, "PGPASSWORD": self._cluster.layout.read_secret("app"), "PGAPPNAME": name}

    def run(self, port: int, *arguments: str, name: str = "pgbench", may_fail: bool = False) -> str:
        """What it printed. ``may_fail``: transactions that failed are for the caller to count."""
        done = subprocess.run(
            self.command(port, *arguments),
            capture_output=True,
            text=True,
            env=self.environment(name),
            cwd=self._scratch,
            check=False,
        )
        if done.returncode != 0 and not (may_fail and done.returncode == 2):
            raise SystemExit(f"pgbench failed: {done.stderr.strip()}")
        return done.stdout

    def proxy_cpu_s(self) -> float:
        """What the proxy has used so far."""
        times = self.proxy.cpu_times()
        return float(times.user + times.system)


def number(pattern: re.Pattern[str], text: str, default: float | None = None) -> float:
    """The last figure that a pattern finds; SystemExit if there is none and no default."""
    found = pattern.findall(text)
    if not found and default is None:
        raise SystemExit(f"pgbench did not say what was asked: {text[-300:]}")
    return float(found[-1]) if found else float(default or 0)
