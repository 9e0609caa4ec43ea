"""Simulated agents say nothing; garbage is collected between tests, not in the middle of a run."""

from __future__ import annotations

import gc
from collections.abc import Iterator

import pytest
import structlog


@pytest.fixture(autouse=True)
def quiet() -> Iterator[None]:
    structlog.configure(wrapper_class=structlog.make_filtering_bound_logger("critical"))
    gc.disable()
    yield
    gc.enable()
    gc.collect()
    structlog.reset_defaults()
