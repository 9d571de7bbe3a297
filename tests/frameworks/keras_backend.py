"""Run as a script with KERAS_BACKEND set: a run in two is the run in one, and another backend's checkpoint goes on.

python keras_backend.py make URI             trains for two epochs, saves, and writes its weights beside
python keras_backend.py take URI OTHER_URI   the same, and then takes up what another backend saved at OTHER_URI
"""

from __future__ import annotations

import sys
from typing import Any

import keras
import numpy as np

from s3dlio import CheckpointStore
from s3dlio.frameworks.keras import S3dlioCheckpoint, state_of

X = np.random.default_rng(0).normal(size=(12, 3)).astype("float32")
Y = X.sum(axis=1, keepdims=True)


def make() -> Any:
    keras.utils.set_random_seed(1)
    layers = keras.layers
    model = keras.Sequential(
        [keras.Input((3,)), layers.Dense(4, dtype="bfloat16"), layers.BatchNormalization(), layers.Dense(1)]
    )
    model.compile("adam", "mse", jit_compile=False)
    return model


def fit(uri: str, epochs: int, save_freq: int | str = "epoch") -> Any:
    model, checkpoint = make(), S3dlioCheckpoint(uri, save_freq=save_freq)
    first = checkpoint.initial_epoch
    model.fit(X, Y, batch_size=4, shuffle=False, verbose=0, initial_epoch=first, epochs=epochs, callbacks=[checkpoint])
    return model


def values(model: Any) -> list[Any]:
    return [each.numpy() for each in (*model.variables, *model.optimizer.variables)]


def same(one: list[Any], two: list[Any]) -> bool:
    return all(
        np.array_equal(a, b) and (a.dtype == b.dtype or a.dtype.kind == b.dtype.kind == "i")
        for a, b in zip(one, two, strict=True)
    )


def main(task: str, uri: str, *others: str) -> None:
    whole = values(fit(f"{uri}/whole", 2))
    fit(f"{uri}/parts", 1, save_freq=2)
    assert same(values(fit(f"{uri}/parts", 2)), whole), "resumed, it ends elsewhere"
    with CheckpointStore(f"{uri}/whole") as store:
        state = store.load()
    assert {type(each) for part in ("model", "optimizer") for each in state[part].values()} == {np.ndarray}
    if task == "take":
        with CheckpointStore(f"{others[0]}/whole") as store:
            theirs = store.load()
        model = fit(f"{others[0]}/whole", 2)  # two epochs are complete: it restores and trains no further
        ours = state_of(model)
        for part in ("model", "optimizer"):
            assert len(ours[part]) == len(theirs[part])
        restored = values(model)
        assert same(restored, [each for part in ("model", "optimizer") for each in theirs[part].values()])
    print(keras.backend.backend(), "is right")


if __name__ == "__main__":
    main(*sys.argv[1:])
