"""For all tests."""

from __future__ import annotations

import os
import re
import signal
from typing import TYPE_CHECKING, Any

import pytest

import tests.ports as _ports  # the slot of ports is claimed before anything draws one

if TYPE_CHECKING:
    from xdist.scheduler import LoadScopeScheduling

__all__ = ["_ports"]

# A suite that a shell runs in the background is started with SIGINT ignored, and so would be all that it starts.
if signal.getsignal(signal.SIGINT) is signal.SIG_IGN:
    signal.signal(signal.SIGINT, signal.default_int_handler)

_PART = re.compile(r"\[(?:.*-)?(pg\d+\.\d+|seeds\d+)\b")


@pytest.hookimpl(optionalhook=True)
def pytest_xdist_auto_num_workers(config: pytest.Config) -> int:
    """The whole suite runs in two processes, a part of it that was named in this one."""
    whole = config.args_source is not pytest.Config.ArgsSource.ARGS
    return 2 if whole and len(os.sched_getaffinity(0)) > 1 else 0


@pytest.hookimpl(optionalhook=True)
def pytest_xdist_make_scheduler(config: pytest.Config, log: Any) -> LoadScopeScheduling:
    """A file, and a PostgreSQL version in it, goes to one process: its tests share servers. Seeds share nothing."""
    from xdist.scheduler import LoadScopeScheduling

    class ByFileAndPart(LoadScopeScheduling):  # type: ignore[misc]  # xdist has no types
        def _split_scope(self, nodeid: str) -> str:
            part = _PART.search(nodeid)
            return nodeid.split("::", 1)[0] + (part[1] if part else "")

    return ByFileAndPart(config, log)


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """What takes long comes first, so that neither of two processes has much left when the other is done."""
    items.sort(key=lambda item: item.get_closest_marker("live") is None)
