"""The promise on disk."""

from __future__ import annotations

from pathlib import Path

import pytest

from holdfast.model.errors import ConfigurationError
from holdfast.node.promise import Names, Promise, PromiseFile
from holdfast.postgres.disk import Disk

MINE = Promise("main", "id", 3, "0000000a")


def loaded(directory: Path, cluster: str = "main") -> PromiseFile:
    file = PromiseFile(directory, Disk(), 1000)
    file.load(cluster)
    return file


async def test_what_is_promised_is_there_after_a_restart(tmp_path: Path) -> None:
    assert loaded(tmp_path).current is None
    await loaded(tmp_path).save(MINE)
    file = loaded(tmp_path)
    assert file.current == MINE
    await file.raise_to(5)
    await file.speak_for("0000000b")
    assert loaded(tmp_path).current == Promise("main", "id", 5, "0000000b")


async def test_a_promise_is_never_lowered(tmp_path: Path) -> None:
    file = loaded(tmp_path)
    await file.save(MINE)
    await file.raise_to(2)
    assert loaded(tmp_path).current == MINE


async def test_how_new_the_register_was_is_there_after_a_restart_until_the_next_epoch(tmp_path: Path) -> None:
    file = loaded(tmp_path)
    await file.save(MINE)
    await file.remember((3, 7))
    await file.remember((3, 6))
    await file.remember((2, 9))
    assert loaded(tmp_path).current == Promise("main", "id", 3, "0000000a", generation=7)
    await file.raise_to(4)
    assert loaded(tmp_path).current == Promise("main", "id", 4, "0000000a", generation=0)


async def test_a_promise_of_another_cluster_is_refused(tmp_path: Path) -> None:
    await loaded(tmp_path).save(MINE)
    with pytest.raises(ConfigurationError, match=r"node\.state_dir.*belongs to cluster 'main'"):
        loaded(tmp_path, "other")


@pytest.mark.parametrize("text", ["", "{", "{}", '{"cluster": "main"}'])
async def test_a_damaged_promise_is_told_and_not_taken_for_none(tmp_path: Path, text: str) -> None:
    (tmp_path / "promise.json").write_text(text)
    with pytest.raises(ConfigurationError, match=r"node\.state_dir.*is damaged"):
        loaded(tmp_path)


async def test_a_promise_of_a_newer_version_is_refused(tmp_path: Path) -> None:
    await loaded(tmp_path).save(Promise("main", "id", 3, None, format=2))
    with pytest.raises(ConfigurationError, match="newer version"):
        loaded(tmp_path)


async def test_incarnations_differ() -> None:
    names = Names()
    assert len({names.incarnation() for _ in range(1000)}) == 1000
