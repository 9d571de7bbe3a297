"""Several saves of one step: each is a checkpoint of its own and can be had by its id."""

from __future__ import annotations

from pathlib import Path

import pytest

from s3dlio import CheckpointNotFoundError, CheckpointStore, ConfigError, CorruptError
from s3dlio.cli import main

from .live import open_store


@pytest.fixture(autouse=True)
def pool(kept_pool: CheckpointStore) -> CheckpointStore:
    return kept_pool


def test_each_save_of_a_step_is_loaded_by_its_id(folder: Path) -> None:
    with open_store(folder) as store:
        first, second = store.save(5, b"first"), store.save(5, b"second")
        assert store.load(5) == b"second"
        assert store.load(id=first.id) == b"first"
        assert store.load(5, id=second.id) == b"second"
        assert store.read_shard(id=first.id) == b"first"


@pytest.mark.parametrize("wrong", ["", "latest", "ckpt-5", "../ckpt-5-x", "ckpt-6-20260101T000000.000000Z-00000000"])
def test_what_is_no_id_of_the_step_is_refused(folder: Path, wrong: str) -> None:
    with open_store(folder) as store:
        store.save(5, b"x")
        with pytest.raises(ConfigError, match="is not the id of a checkpoint of step 5"):
            store.load(5, id=wrong)


def test_an_id_that_is_not_there_is_not_found(folder: Path) -> None:
    with open_store(folder) as store, pytest.raises(CheckpointNotFoundError, match="holds no committed checkpoint"):
        store.load(id="ckpt-6-20260101T000000.000000Z-00000000")


def test_verify_finds_damage_in_the_older_save_of_a_step(folder: Path, capsys: pytest.CaptureFixture[str]) -> None:
    with open_store(folder) as store:
        first, second = store.save(5, b"first"), store.save(5, b"second")
        (folder / f"shards/{first.id}/rank-0.bin").write_bytes(b"First")
        assert store.verify(id=second.id).ok
        with pytest.raises(CorruptError, match=r"rank-0\.bin"):
            store.verify(id=first.id)
        assert main(["verify", store.uri]) == 1
    assert "do not match" in capsys.readouterr().err
