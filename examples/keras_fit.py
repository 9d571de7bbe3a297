"""Keras: ``fit`` with checkpoints in the background, interrupted after three epochs and taken up again.

python examples/keras_fit.py [URI]        (without a URI: in a temporary folder)
KERAS_BACKEND=jax (or torch, tensorflow) chooses the backend.
"""

from __future__ import annotations

import sys
import tempfile

import keras
import numpy as np

from s3dlio import CheckpointStore
from s3dlio.frameworks.keras import S3dlioCheckpoint


def make_model() -> keras.Model:
    """A small network; its weights, dropout and optimizer all have state."""
    model = keras.Sequential(
        [keras.Input((16,)), keras.layers.Dense(64, "relu"), keras.layers.Dropout(0.1), keras.layers.Dense(1)]
    )
    model.compile("adam", "mse")
    return model


def train(uri: str, epochs: int) -> keras.Model:
    """Train from the newest checkpoint at ``uri``, or from the start, to ``epochs`` complete epochs."""
    x = np.random.default_rng(0).normal(size=(512, 16)).astype("float32")
    y = x.sum(axis=1, keepdims=True)
    model = make_model()
    checkpoint = S3dlioCheckpoint(uri, keep_last=2)
    first = checkpoint.initial_epoch
    model.fit(x, y, epochs=epochs, initial_epoch=first, callbacks=[checkpoint], verbose=0)
    print(f"trained epochs {first} to {epochs}: loss {model.evaluate(x, y, verbose=0):.4f}")
    return model


def main(uri: str) -> None:
    """Two runs, as if the first had died."""
    train(uri, epochs=3)
    train(uri, epochs=5)
    with CheckpointStore(uri) as store:
        for info in store.list():
            print(f"step {info.step}, {info.epoch} complete epochs, {info.total_size} bytes, {info.user_meta}")


if __name__ == "__main__":
    if len(sys.argv) > 1:
        main(sys.argv[1])
    else:
        with tempfile.TemporaryDirectory() as folder:
            main(f"file://{folder}/run")
