"""What the trainer deletes by ``save_total_limit`` is still stored whole, and training does not wait for it."""

from __future__ import annotations

import os
import shutil
import threading
from collections.abc import Iterator
from concurrent.futures import Future
from pathlib import Path
from typing import Any

import pytest
from transformers import TrainerCallback, TrainerControl, TrainerState, TrainingArguments

from s3dlio import CheckpointStore
from s3dlio.frameworks import folders
from s3dlio.frameworks.folders import SIDE
from s3dlio.frameworks.hf import S3dlioCallback
from tests.faults.sabotage import Sabotage
from tests.frameworks.held import Holding, holding
from tests.frameworks.trainers import trainer
from tests.store.live import SMALL


@pytest.fixture
def hold(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Holding]:
    with holding(tmp_path, monkeypatch) as hold:
        yield hold


class Watch(TrainerCallback):
    """Notes what lies in the folder after each save, and which are committed; lets the uploads go on at step 4."""

    def __init__(self, store: Path, held: Sabotage) -> None:
        self._store = store
        self._held = held
        self.seen: list[tuple[list[str], int]] = []

    def on_save(self, args: Any, state: Any, control: Any, **_: Any) -> None:
        self._held.wait()
        folders = sorted(name for name in os.listdir(args.output_dir) if name != SIDE)
        self.seen.append((folders, len(list(self._store.glob("manifests/ckpt-*")))))
        if state.global_step == 4:
            self._held.release()


def folder(out: Path, body: bytes) -> None:
    (out / "checkpoint-2").mkdir(parents=True, exist_ok=True)
    (out / "checkpoint-2/weights").write_bytes(body)


def test_a_folder_saved_again_while_it_waits_is_stored_as_it_is_then(tmp_path: Path, callback: S3dlioCallback) -> None:
    out = tmp_path / "out"
    args, state = TrainingArguments(str(out), use_cpu=True, report_to=[]), TrainerState(global_step=2)
    gate = threading.Event()
    callback._work.submit(gate.wait)  # type: ignore[arg-type]
    for body in (b"old", b"newer"):
        folder(out, body)
        callback.on_save(args, state, TrainerControl())
    gate.set()
    callback.close()
    with CheckpointStore(f"file://{tmp_path}/store", **SMALL) as store:
        assert [info.step for info in store.list()] == [2]
        assert store.read_shard() == b"newer"
    assert os.listdir(out) == ["checkpoint-2"]


class Watched(Future[None]):
    """An upload that ends when it is waited for."""

    waited = False

    def exception(self, timeout: float | None = None) -> None:
        self.waited = True


def test_the_third_folder_waits_for_the_first(tmp_path: Path, callback: S3dlioCallback) -> None:
    args = TrainingArguments(str(tmp_path / "out"), use_cpu=True, report_to=[])
    folder(tmp_path / "out", b"x")
    uploads = [Watched(), Watched()]
    callback._waiting.extend(uploads)
    callback.on_save(args, TrainerState(global_step=2), TrainerControl())
    assert [upload.waited for upload in uploads] == [True, False]
    callback.close()


def test_what_a_killed_process_left_is_told_of(
    tmp_path: Path, callback: S3dlioCallback, caplog: pytest.LogCaptureFixture
) -> None:
    out = tmp_path / "out"
    args = TrainingArguments(str(out), use_cpu=True, report_to=[])
    folder(out, b"x")
    left = folders.snapshot(out / "checkpoint-2")
    shutil.rmtree(out / "checkpoint-2")
    callback.on_train_begin(args, TrainerState(), TrainerControl())
    assert f"{left.path} holds the only copy" in caplog.text
    assert (left.path / "weights").read_bytes() == b"x"


@pytest.fixture
def callback(tmp_path: Path) -> Iterator[S3dlioCallback]:
    callback = S3dlioCallback(f"file://{tmp_path}/store", **SMALL)
    yield callback
    callback.close()


@pytest.mark.slow
def test_a_folder_deleted_while_it_is_stored_is_stored_whole(
    tmp_path: Path, callback: S3dlioCallback, hold: Holding
) -> None:
    held = hold(2)
    out, where = tmp_path / "out", tmp_path / "store"
    watch = Watch(where, held)
    trainer(out, [callback, watch], steps=6, save_total_limit=1).train()
    assert watch.seen[:2] == [(["checkpoint-2"], 0), (["checkpoint-4"], 0)]
    assert os.listdir(out) == ["checkpoint-6"]
    with CheckpointStore(f"file://{where}", **SMALL) as store:
        assert [info.step for info in store.list()] == [2, 4, 6]
    assert callback.restore(str(out), step=2) == str(out / "checkpoint-2")
    assert (out / "checkpoint-2/model.safetensors").stat().st_size > 1000
