"""./holdfast stopped while it makes the environment."""

from __future__ import annotations

import signal
import socket

import pytest

from holdfast.local.processes import Process, descendants_of
from tests.launcher.conftest import Clone


@pytest.mark.parametrize(("number", "status"), [(signal.SIGTERM, 143), (signal.SIGHUP, 129)])
def test_a_signal_ends_the_installer_and_leaves_nothing(clone: Clone, number: signal.Signals, status: int) -> None:
    with socket.create_server(("127.0.0.1", 0)) as silent_index:
        clone.use_index(f"http://127.0.0.1:{silent_index.getsockname()[1]}/simple")
        launcher = clone.start("status")
        silent_index.settimeout(120)
        connection, _ = silent_index.accept()  # the installer is at work now
        with connection:
            installers = [p for p in map(Process.of, descendants_of(launcher.pid)) if p is not None]
            assert installers
            launcher.send_signal(number)
            _, errors = launcher.communicate(timeout=120)
    assert launcher.returncode == status, errors
    assert all(installer.wait(120) for installer in installers)  # whoever adopts them may be slow to reap them
    assert clone.environments == []
    assert "Traceback" not in errors
