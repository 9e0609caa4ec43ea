"""The contract that the simulator's PostgreSQL shares with the real one: the same tests for both."""

from __future__ import annotations

import asyncio
from collections.abc import Iterator
from pathlib import Path

import pytest

from holdfast.postgres.installation import Installation
from tests.postgres.contracts import CONTRACTS, Contract
from tests.postgres.lab import Lab
from tests.postgres.model_place import ModelPlace
from tests.postgres.real_place import RealPlace

SEEDS = 25


class Laboratories:
    """Three servers for all contracts; new ones after one that was broken and has left them anyhow."""

    def __init__(self, installation: Installation, template: Path, runner: asyncio.Runner) -> None:
        self._installation = installation
        self._template = template
        self._runner = runner
        self._place: RealPlace | None = None

    def hold_to(self, contract: Contract) -> None:
        if self._place is None:
            self._place = RealPlace(Lab(self._installation, self._template), self._runner)
        place = self._place
        try:
            place.run(contract(place))
        except BaseException:
            self.close()
            raise

    def close(self) -> None:
        place, self._place = self._place, None
        if place is not None:
            self._runner.run(place.close())


@pytest.fixture(scope="module")
def laboratories(installation: Installation, template: Path) -> Iterator[Laboratories]:
    with asyncio.Runner() as runner:
        laboratories = Laboratories(installation, template, runner)
        yield laboratories
        laboratories.close()


@pytest.mark.live
@pytest.mark.parametrize("contract", CONTRACTS, ids=lambda contract: contract.__name__)
def test_the_real_one_keeps_it(laboratories: Laboratories, contract: Contract) -> None:
    laboratories.hold_to(contract)


@pytest.mark.parametrize("contract", CONTRACTS, ids=lambda contract: contract.__name__)
def test_the_model_keeps_it(contract: Contract) -> None:
    for seed in range(SEEDS):
        place = ModelPlace(seed)
        try:
            place.run(contract(place))
        finally:
            place.end()


def test_the_model_keeps_all_of_them_one_after_the_other() -> None:
    for seed in range(SEEDS):
        place = ModelPlace(seed)
        try:
            for contract in CONTRACTS:
                place.run(contract(place))
        finally:
            place.end()
