"""The callback of HF Trainer: every saved folder becomes a committed checkpoint; training resumes from the store."""

from __future__ import annotations

import os
import shutil
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
import torch
from transformers import TrainerCallback

from s3dlio import CheckpointStore
from s3dlio.engine.errors import CheckpointNotFoundError, ConfigError, CorruptError, S3dlioError
from s3dlio.frameworks.folders import SIDE
from s3dlio.frameworks.hf import S3dlioCallback
from tests.frameworks.trainers import trainer, weights
from tests.servers.s3_server import Bucket
from tests.store.live import SMALL, keeping_pool

Making = Callable[..., S3dlioCallback]


@pytest.fixture(scope="module", autouse=True)
def pool(tmp_path_factory: pytest.TempPathFactory) -> Iterator[CheckpointStore]:
    with keeping_pool(tmp_path_factory.mktemp("pool")) as store:
        yield store


@pytest.fixture
def make(tmp_path: Path) -> Iterator[Making]:
    made: list[S3dlioCallback] = []

    def make_one(uri: str = "", **options: Any) -> S3dlioCallback:
        made.append(S3dlioCallback(uri or f"file://{tmp_path}/store", **{**SMALL, **options}))
        return made[-1]

    yield make_one
    for one in made:
        one.close()


@pytest.fixture
def out(tmp_path: Path) -> Path:
    return tmp_path / "out"


def steps(callback: S3dlioCallback) -> list[int]:
    return [info.step for info in callback._opened().list()]


def files(folder: Path) -> dict[str, bytes]:
    return {path.relative_to(folder).as_posix(): path.read_bytes() for path in folder.rglob("*") if path.is_file()}


def lose_and_resume(tmp_path: Path, callback: S3dlioCallback, again: S3dlioCallback) -> None:
    """Six steps at once, and four and two with the folder lost between: the same weights."""
    out = tmp_path / "out"
    whole = trainer(tmp_path / "whole", [], lr_scheduler_type="constant")
    whole.train()
    first = trainer(out, [callback], steps=4, save_total_limit=1, lr_scheduler_type="constant")
    first.train()
    assert sorted(os.listdir(out)) == ["checkpoint-4"]
    before = files(out / "checkpoint-4")
    shutil.rmtree(out)

    folder = again.restore(str(out))
    assert folder == str(out / "checkpoint-4")
    assert files(out / "checkpoint-4") == before
    assert sorted(os.listdir(out)) == ["checkpoint-4"]
    second = trainer(out, [again], save_total_limit=1, lr_scheduler_type="constant")
    second.train(resume_from_checkpoint=folder)
    found = weights(second)
    expected = weights(whole)
    assert all(torch.equal(found[name], expected[name]) for name in expected)
    assert steps(again) == [4, 6]


@pytest.mark.slow
def test_a_run_that_lost_its_folder_resumes_from_the_store(tmp_path: Path, make: Making) -> None:
    lose_and_resume(tmp_path, make(keep_last=1), make(keep_last=2))


@pytest.mark.slow
def test_a_run_resumes_from_s3(tmp_path: Path, make: Making, s3_bucket: Bucket) -> None:
    uri, options = f"{s3_bucket.uri}/runs/one", s3_bucket.options
    lose_and_resume(tmp_path, make(uri, keep_last=1, options=options), make(uri, keep_last=2, options=options))


def test_a_folder_is_a_checkpoint_for_every_tool(tmp_path: Path, out: Path, make: Making) -> None:
    trainer(out, [make()], steps=2).train()
    with CheckpointStore(f"file://{tmp_path}/store", **SMALL) as store:
        info = store.latest()
        assert info is not None
        saved = files(out / "checkpoint-2")
        assert (info.step, info.framework, info.user_meta["files"]) == (2, "transformers", sorted(saved))
        assert store.verify().bytes == sum(map(len, saved.values()))
        assert [store.read_shard(rank=rank) for rank in range(len(saved))] == [saved[name] for name in sorted(saved)]


def test_nothing_in_the_store_is_a_fresh_start(out: Path, make: Making) -> None:
    callback = make()
    assert callback.latest() is None
    assert callback.restore(str(out)) is None
    with pytest.raises(CheckpointNotFoundError, match="no committed checkpoint of step 3"):
        callback.restore(str(out), step=3)


def test_restoring_replaces_what_is_torn_and_leaves_what_is_whole(out: Path, make: Making) -> None:
    callback = make()
    trainer(out, [callback], steps=4).train()
    folder = out / "checkpoint-2"
    saved = files(folder)
    inode = folder.stat().st_ino
    assert callback.restore(str(out), step=2) == str(folder)
    assert folder.stat().st_ino == inode

    weights_file = folder / "model.safetensors"
    for tear in (
        lambda: os.truncate(weights_file, 100),
        lambda: weights_file.write_bytes(bytes(len(saved["model.safetensors"]))),
        (folder / "added").touch,
        (folder / "trainer_state.json").unlink,
    ):
        tear()
        callback.restore(str(out), step=2)
        assert files(folder) == saved
    assert sorted(os.listdir(out)) == ["checkpoint-2", "checkpoint-4"]


def test_a_damaged_checkpoint_leaves_the_folder_as_it_was(tmp_path: Path, out: Path, make: Making) -> None:
    callback = make()
    trainer(out, [callback], steps=2).train()
    (out / "checkpoint-2/added").touch()
    before = files(out / "checkpoint-2")
    largest = max((tmp_path / "store/shards").rglob("*.bin"), key=lambda path: path.stat().st_size)
    with largest.open("r+b") as file:
        file.seek(50)
        file.write(b"\xff\xff\xff")
    with pytest.raises(CorruptError):
        callback.restore(str(out))
    assert files(out / "checkpoint-2") == before
    assert sorted(os.listdir(out)) == ["checkpoint-2"]


@pytest.mark.parametrize(
    ("names", "text"),
    [(["../out/x"], "'..'"), (["/x"], "relative"), (["a", "b"], "2 names of 1"), ("a", "not a folder"), ([1], "not a")],
)
def test_hostile_names_are_refused(tmp_path: Path, out: Path, make: Making, names: object, text: str) -> None:
    with CheckpointStore(f"file://{tmp_path}/store", **SMALL) as store:
        writer = store.writer(1, 0)
        record = writer.save_distributed_shard(2, 0, "transformers", b"x")
        writer.finalize_distributed_checkpoint(2, 0, "transformers", [record], {"files": names})
    with pytest.raises(S3dlioError, match=text):
        make().restore(str(out))
    assert not out.exists()


def test_a_checkpoint_of_another_kind_is_refused(tmp_path: Path, out: Path, make: Making) -> None:
    with CheckpointStore(f"file://{tmp_path}/store", **SMALL) as store:
        store.save(2, {"a": 1})
    with pytest.raises(ConfigError, match="not a folder of files"):
        make().restore(str(out))


def test_an_upload_that_fails_is_raised_by_the_next_save(tmp_path: Path, out: Path, make: Making) -> None:
    (tmp_path / "store").mkdir()
    (tmp_path / "store/shards").touch()
    callback = make()
    with pytest.raises(S3dlioError, match=r"checkpoint-2 was not stored: StorageError.*its files stay in") as raised:
        trainer(out, [callback, Settled(callback)], save_total_limit=1).train()
    kept = Path(str(raised.value).rpartition(" ")[2])
    assert kept.parent == out / SIDE
    assert "model.safetensors" in files(kept)
    callback.close()  # it was told


def test_an_upload_that_fails_is_raised_at_the_end_of_training(tmp_path: Path, out: Path, make: Making) -> None:
    (tmp_path / "store").mkdir()
    (tmp_path / "store/shards").touch()
    with pytest.raises(S3dlioError, match="checkpoint-2 was not stored"):
        trainer(out, [make()], steps=2).train()


def test_a_callback_serves_several_trainings(out: Path, make: Making) -> None:
    callback = make()
    for count in (2, 4):
        trainer(out, [callback], steps=count).train(resume_from_checkpoint=callback.restore(str(out)))
    assert steps(callback) == [2, 4]
    callback.close()


class Settled(TrainerCallback):
    """Has each save wait for its upload, so that it is certain which save hears of a failure."""

    def __init__(self, callback: S3dlioCallback) -> None:
        self._callback = callback

    def on_save(self, args: Any, state: Any, control: Any, **_: Any) -> None:
        for upload in self._callback._waiting:
            upload.exception()
