"""A checkpoint is never removed before the one that replaces it is committed, and a failed save is heard of."""

from __future__ import annotations

import threading
from collections.abc import Iterator
from pathlib import Path

import pytest
import torch
from lightning.pytorch.callbacks import ModelCheckpoint

from s3dlio.engine.errors import S3dlioError
from s3dlio.frameworks.lightning import S3dlioCheckpointIO
from tests.frameworks.held import Holding, holding
from tests.frameworks.lightnings import WARNINGS, Model, trainer
from tests.store.live import SMALL

pytestmark = [pytest.mark.filterwarnings(text) for text in WARNINGS]


@pytest.fixture
def hold(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Holding]:
    with holding(tmp_path, monkeypatch) as hold:
        yield hold


@pytest.fixture
def io() -> Iterator[S3dlioCheckpointIO]:
    io = S3dlioCheckpointIO(**SMALL)
    yield io
    io.teardown()


def manifests(path: Path) -> list[str]:
    return [each.name for each in path.glob("manifests/ckpt-*")]


def test_a_removal_waits_for_the_commit(tmp_path: Path, io: S3dlioCheckpointIO, hold: Holding) -> None:
    held = hold(2)
    old, new = tmp_path / "old.ckpt", tmp_path / "new.ckpt"
    io.save_checkpoint({"global_step": 1}, old)
    io.load_checkpoint(old)
    io.save_checkpoint({"global_step": 2}, new)
    io.remove_checkpoint(old)
    held.wait()  # the new one is stored, and about to be committed
    assert manifests(old)
    assert not manifests(new)
    held.release()
    io.teardown()
    assert not old.exists()
    assert manifests(new)


def test_a_path_being_saved_again_keeps_what_it_had_until_the_commit(
    tmp_path: Path, io: S3dlioCheckpointIO, hold: Holding
) -> None:
    held = hold(2)
    path = tmp_path / "last.ckpt"
    io.save_checkpoint({"global_step": 1}, path)
    io.load_checkpoint(path)
    io.save_checkpoint({"global_step": 2}, path)
    held.wait()
    assert [name.split("-")[1] for name in manifests(path)] == ["1"]
    held.release()
    io.teardown()
    assert [name.split("-")[1] for name in manifests(path)] == ["2"]


def test_a_save_that_fails_is_raised_by_the_next_call(tmp_path: Path, io: S3dlioCheckpointIO) -> None:
    good, bad = tmp_path / "good.ckpt", tmp_path / "bad.ckpt"
    obstruct(bad)
    for again in (
        lambda: io.save_checkpoint({}, good),
        lambda: io.remove_checkpoint(good),
        lambda: io.load_checkpoint(good),
        io.teardown,
    ):
        io.save_checkpoint({"w": torch.ones(3)}, bad)
        assert io._newest is not None
        io._newest.exception()
        with pytest.raises(S3dlioError, match=r"bad\.ckpt was not saved: StorageError: .*folder is needed"):
            again()
    io.teardown()  # once


def test_what_a_failed_save_was_to_replace_stays(tmp_path: Path, io: S3dlioCheckpointIO) -> None:
    good, bad = tmp_path / "good.ckpt", tmp_path / "bad.ckpt"
    io.save_checkpoint({"global_step": 1}, good)
    io.load_checkpoint(good)
    obstruct(bad)
    gate = threading.Event()
    io._work.submit(gate.wait)  # type: ignore[arg-type]
    io.save_checkpoint({"global_step": 2}, bad)
    io.remove_checkpoint(good)  # before anybody has heard of the failure
    gate.set()
    with pytest.raises(S3dlioError, match="was not saved"):
        io.teardown()
    assert io.load_checkpoint(good) == {"global_step": 1}


def test_a_run_whose_save_fails_ends_with_its_error(tmp_path: Path, io: S3dlioCheckpointIO) -> None:
    obstruct(tmp_path / "run/last.ckpt")
    callback = ModelCheckpoint(dirpath=tmp_path / "run", save_last=True, enable_version_counter=False)
    with pytest.raises(S3dlioError, match=r"last\.ckpt was not saved"):
        trainer(tmp_path, io, [callback]).fit(Model())


def obstruct(path: Path) -> None:
    """Have whatever is saved there fail."""
    path.mkdir(parents=True)
    (path / "shards").touch()
