"""``fit`` with the callback: what it saves and when, how it goes on, and how a failed save comes to light."""

from __future__ import annotations

import logging
from collections.abc import Callable
from pathlib import Path
from typing import Any

import keras
import numpy as np
import pytest

from s3dlio import CheckpointNotFoundError, CheckpointStore, ConfigError, StorageError
from s3dlio.frameworks.keras import S3dlioCheckpoint

X = np.random.default_rng(0).normal(size=(12, 3)).astype("float32")
Y = X.sum(axis=1, keepdims=True)
BATCHES = 3


def make(units: int = 4) -> Any:
    keras.utils.set_random_seed(1)
    model = keras.Sequential([keras.Input((3,)), keras.layers.Dense(units), keras.layers.Dense(1)])
    model.compile(keras.optimizers.SGD(0.1, momentum=0.9), "mse", run_eagerly=True)
    return model


def fit(model: Any, checkpoint: S3dlioCheckpoint, epochs: int, *more: Any, **options: Any) -> None:
    model.fit(
        X, Y, batch_size=4, epochs=epochs, shuffle=False, verbose=0, callbacks=[checkpoint, *more],
        **{"initial_epoch": checkpoint.initial_epoch, **options},
    )  # fmt: skip


def weights(model: Any) -> list[Any]:
    return [each.numpy().tolist() for each in (*model.variables, *model.optimizer.variables)]


def saved(uri: str) -> list[tuple[int, int, int]]:
    with CheckpointStore(uri) as store:
        return [(info.step, info.epoch, info.user_meta["batch"]) for info in store.list()]


class Each(keras.callbacks.Callback):
    """Calls ``act`` with the number of batches so far after each batch."""

    def __init__(self, act: Callable[[int], object]) -> None:
        super().__init__()
        self.act = act
        self.count = 0

    def on_train_batch_end(self, batch: int, logs: Any = None) -> None:
        self.count += 1
        self.act(self.count)


def die_at(count: int) -> Each:
    def act(now: int) -> None:
        if now == count:
            raise KeyboardInterrupt

    return Each(act)


@pytest.fixture
def uri(tmp_path: Path) -> str:
    return f"file://{tmp_path}/run"


@pytest.mark.slow
def test_a_run_in_two_is_the_run_in_one(uri: str) -> None:
    whole = make()
    fit(whole, S3dlioCheckpoint(f"{uri}-whole"), 3)
    fit(make(), S3dlioCheckpoint(uri), 2)
    second, checkpoint = make(), S3dlioCheckpoint(uri)
    assert checkpoint.initial_epoch == 2
    fit(second, checkpoint, 3)
    assert checkpoint.initial_epoch == 3
    assert weights(second) == weights(whole)
    assert saved(uri) == saved(f"{uri}-whole") == [(3, 1, 0), (6, 2, 0), (9, 3, 0)]


@pytest.mark.parametrize(
    ("freq", "steps"),
    [
        ("epoch", [(3, 1, 0), (6, 2, 0)]),
        (2, [(2, 0, 2), (4, 1, 1), (6, 2, 0)]),
        (3, [(3, 1, 0), (6, 2, 0)]),
        (5, [(5, 1, 2), (6, 2, 0)]),
        (100, [(6, 2, 0)]),
    ],
)
def test_when_it_saves(uri: str, freq: int | str, steps: list[tuple[int, int, int]]) -> None:
    fit(make(), S3dlioCheckpoint(uri, save_freq=freq), 2)
    assert saved(uri) == steps


def test_several_batches_in_one_call_are_counted(uri: str) -> None:
    model = make()
    model.compile("sgd", "mse", steps_per_execution=2)
    fit(model, S3dlioCheckpoint(uri, save_freq=2), 2)
    assert [step for step, _, _ in saved(uri)] == [2, 5, 6]


@pytest.mark.slow
def test_a_run_that_broke_off_goes_on_with_the_epoch_it_was_in(uri: str) -> None:
    first, checkpoint = make(), S3dlioCheckpoint(uri, save_freq=2)
    with pytest.raises(KeyboardInterrupt):
        fit(first, checkpoint, 3, die_at(5))
    checkpoint.close()
    assert saved(uri) == [(2, 0, 2), (4, 1, 1)]
    second, again = make(), S3dlioCheckpoint(uri, save_freq=2)
    assert again.initial_epoch == 1
    fit(second, again, 2)
    assert int(second.optimizer.iterations.numpy()) == 4 + BATCHES
    assert saved(uri)[-1] == (7, 2, 0)


def test_the_state_is_that_of_its_batch(uri: str) -> None:
    model, seen = make(), list[Any]()
    look = Each(lambda _: seen.append(model.layers[0].kernel.numpy().tolist()))
    fit(model, S3dlioCheckpoint(uri, save_freq=1), 1, look)
    with CheckpointStore(uri) as store:
        stored = [store.load(step)["model"][model.layers[0].kernel.path].tolist() for step in (1, 2, 3)]
    assert stored == seen


def test_a_given_store_stays_open_and_a_step_may_be_chosen(uri: str) -> None:
    with CheckpointStore(uri, keep_last=2) as store:
        fit(make(), S3dlioCheckpoint(store), 3)
        assert [info.step for info in store.list()] == [6, 9]
        chosen = S3dlioCheckpoint(store, restore=6)
        assert chosen.initial_epoch == 2
        assert S3dlioCheckpoint(store, restore=None).initial_epoch == 0
        with pytest.raises(CheckpointNotFoundError):
            _ = S3dlioCheckpoint(store, restore=3).initial_epoch


def test_only_the_first_fit_restores(uri: str) -> None:
    model, checkpoint = make(), S3dlioCheckpoint(uri)
    fit(model, checkpoint, 1)
    model.layers[0].kernel.assign(np.zeros((3, 4)))
    fit(model, checkpoint, 1, initial_epoch=0)
    assert saved(uri) == [(3, 1, 0), (6, 1, 0)]


def test_keep_last_and_what_is_recorded(uri: str) -> None:
    model = make()
    fit(model, S3dlioCheckpoint(uri, keep_last=1), 2)
    with CheckpointStore(uri) as store:
        (info,) = store.list()
    assert (info.framework, info.epoch, info.step) == ("keras", 2, 6)
    assert info.user_meta["logs"]["loss"] == pytest.approx(model.history.history["loss"][-1])


def test_metrics_that_json_lacks_are_null(uri: str) -> None:
    model = make()
    model.compile("sgd", lambda y, out: keras.ops.mean(out) * float("nan"), run_eagerly=True)
    fit(model, S3dlioCheckpoint(uri), 1)
    with CheckpointStore(uri) as store:
        assert store.list()[0].user_meta["logs"] == {"loss": None}


@pytest.mark.slow
def test_another_initial_epoch_is_told(uri: str, caplog: pytest.LogCaptureFixture) -> None:
    fit(make(), S3dlioCheckpoint(uri), 1)
    with caplog.at_level(logging.WARNING, "s3dlio"):
        fit(make(), S3dlioCheckpoint(uri), 1, initial_epoch=0)
    assert "has 1 complete epochs, and fit begins with epoch 0: pass initial_epoch=" in caplog.text


@pytest.mark.slow
def test_a_model_that_does_not_fit_is_refused(uri: str) -> None:
    fit(make(), S3dlioCheckpoint(uri), 1)
    checkpoint = S3dlioCheckpoint(uri)
    with pytest.raises(ConfigError, match=r"kernel: stored float32 \[3, 4\], here float32 \[3, 5\]"):
        fit(make(units=5), checkpoint, 2)
    checkpoint.close()


def test_a_checkpoint_of_somebody_else_is_refused(uri: str) -> None:
    with CheckpointStore(uri) as store:
        store.save(1, {"weights": X})
        with pytest.raises(ConfigError, match="was not saved by this callback"):
            fit(make(), S3dlioCheckpoint(store), 1)


@pytest.mark.parametrize(("freq", "steps"), [("epoch", 2 * BATCHES), (1, 2)])
def test_a_failed_save_ends_the_training_at_the_next_call(tmp_path: Path, freq: int | str, steps: int) -> None:
    (tmp_path / "manifests").write_bytes(b"")  # a file where the folder of commits should be
    model, checkpoint = make(), S3dlioCheckpoint(f"file://{tmp_path}", save_freq=freq, restore=None)
    wait = Each(lambda _: [handle.exception() for handle in checkpoint._handles])
    with pytest.raises(StorageError):
        fit(model, checkpoint, 3, wait)
    assert int(model.optimizer.iterations.numpy()) == steps
    checkpoint.close()


@pytest.mark.slow
def test_a_failed_fit_may_be_taken_up_by_the_same_callback(uri: str) -> None:
    model, checkpoint = make(), S3dlioCheckpoint(uri, save_freq=2)
    with pytest.raises(KeyboardInterrupt):
        fit(model, checkpoint, 1, die_at(2))
    fit(model, checkpoint, 1)
    assert saved(uri) == [(2, 0, 2), (4, 0, 2), (5, 1, 0)]


def test_a_failed_save_is_raised_at_the_end(tmp_path: Path) -> None:
    (tmp_path / "manifests").write_bytes(b"")
    with pytest.raises(StorageError):
        fit(make(), S3dlioCheckpoint(f"file://{tmp_path}", save_freq=100, restore=None), 1)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"save_freq": 0}, "save_freq must be 'epoch' or a number of batches, not 0"),
        ({"save_freq": "batch"}, "not 'batch'"),
        ({"restore": "newest"}, "restore must be 'latest', a step or None, not 'newest'"),
    ],
)
def test_options_are_checked(options: dict[str, Any], message: str) -> None:
    with pytest.raises(ConfigError, match=message):
        S3dlioCheckpoint("file:///nowhere", **options)


def test_keep_last_belongs_to_the_store(uri: str) -> None:
    with CheckpointStore(uri) as store, pytest.raises(ConfigError, match="keep_last belongs to the store"):
        S3dlioCheckpoint(store, keep_last=2)
