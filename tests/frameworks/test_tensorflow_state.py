"""``state_of`` and ``restore``: the names, what is taken, and everything that does not fit in one error."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import keras
import numpy as np
import pytest
import tensorflow as tf

from s3dlio import CheckpointStore, ConfigError, UnsupportedError
from s3dlio.frameworks.tensorflow import restore, state_of

SUFFIX = "/.ATTRIBUTES/VARIABLE_VALUE"


class Block(tf.Module):
    def __init__(self, scale: float = 1.0) -> None:
        super().__init__()
        self.w = tf.Variable(tf.fill((2, 3), scale))
        self.list = [tf.Variable(scale), {"a/b.c": tf.Variable([2.0 * scale])}]
        self.alias = self.w


def trackables(scale: float = 1.0) -> Any:
    return tf.train.Checkpoint(
        block=Block(scale), step=tf.Variable(int(scale), dtype=tf.int64), seed=tf.random.Generator.from_seed(int(scale))
    )


def values(obj: Any) -> dict[str, Any]:
    return {name: each.numpy().tolist() for name, each in state_of(obj).items()}


def test_names_are_those_of_tensorflows_own_checkpoints(tmp_path: Path) -> None:
    checkpoint = trackables()
    names = {name.removesuffix(SUFFIX) for name, _ in tf.train.list_variables(checkpoint.save(str(tmp_path / "own")))}
    assert set(state_of(checkpoint)) == names - {"_CHECKPOINTABLE_OBJECT_GRAPH", "save_counter"}
    assert "block/list/1/a.Sb..c" in names


def test_names_of_a_checkpoint_with_a_root(tmp_path: Path) -> None:
    checkpoint = tf.train.Checkpoint(Block(), extra=tf.Variable(1.0))
    names = {name.removesuffix(SUFFIX) for name, _ in tf.train.list_variables(checkpoint.save(str(tmp_path / "own")))}
    assert set(state_of(checkpoint)) == names - {"_CHECKPOINTABLE_OBJECT_GRAPH", "save_counter"} >= {"w", "extra"}


def test_a_state_saved_and_loaded_is_restored(tmp_path: Path) -> None:
    trained, fresh, inplace = trackables(3.0), trackables(), trackables()
    with CheckpointStore(f"file://{tmp_path}") as store:
        store.save(1, state_of(trained))
        restore(fresh, store.load())
        store.load(into=state_of(inplace))
    assert values(fresh) == values(inplace) == values(trained) != values(trackables())
    assert fresh.block.alias is fresh.block.w


def test_a_state_that_was_not_loaded_is_restored_too() -> None:
    fresh = trackables()
    restore(fresh, state_of(trackables(3.0)))
    assert values(fresh) == values(trackables(3.0))


def test_a_lone_variable_has_a_name() -> None:
    variable = tf.Variable([1.0])
    assert list(state_of(variable)) == ["variable"]
    restore(variable, {"variable": np.array([5], np.float32)})
    assert variable.numpy().tolist() == [5]


def test_everything_that_does_not_fit_is_in_one_error() -> None:
    block = Block()
    state = {
        "w": np.zeros((3, 2), np.float32),
        "list/0": np.zeros((), np.float64),
        "extra": np.zeros(1),
    }
    with pytest.raises(ConfigError) as raised:
        restore(block, state)
    lines = str(raised.value).splitlines()
    assert lines[0] == "the checkpoint does not fit this Block; nothing was restored:"
    assert sorted(lines[1:-1]) == [
        "  extra: in the checkpoint only",
        "  list/0: stored float64 [], here float32 []",
        "  list/1/a.Sb..c: not in the checkpoint",
        "  w: stored float32 [3, 2], here float32 [2, 3]",
    ]
    assert "build it first" in lines[-1]
    assert values(block) == values(Block())


def test_state_outside_of_variables_is_refused_by_name() -> None:
    table = tf.lookup.experimental.MutableHashTable(tf.string, tf.int64, -1)
    checkpoint = tf.train.Checkpoint(words=table, data=iter(tf.data.Dataset.range(3)), w=tf.Variable(1.0))
    with pytest.raises(UnsupportedError) as raised:
        state_of(checkpoint)
    assert sorted(str(raised.value).splitlines()[1:]) == [
        "  data: a OwnedIterator keeps its state elsewhere",
        "  words: a MutableHashTable keeps its state elsewhere",
    ]


def test_slots_are_refused() -> None:
    optimizer = tf.compat.v1.train.MomentumOptimizer(0.1, 0.9)
    variable = tf.Variable(1.0)
    optimizer.apply_gradients([(tf.constant(1.0), variable)])
    with pytest.raises(UnsupportedError, match="optimizer: a MomentumOptimizer keeps slots"):
        state_of(tf.train.Checkpoint(optimizer=optimizer, variable=variable))


def test_what_is_not_trackable_is_refused() -> None:
    with pytest.raises(ConfigError, match=r"dict is not tracked by TensorFlow: pass tf\.train\.Checkpoint"):
        state_of({"w": tf.Variable(1.0)})


def model_of() -> Any:
    keras.utils.clear_session()  # as in a new process: within a graph, names are taken as they are
    model = keras.Sequential([keras.Input((3,)), keras.layers.Dense(2), keras.layers.Dropout(0.1)])
    model.compile("adam", "mse")
    model.optimizer.build(model.trainable_variables)
    return model


def test_a_keras_model_in_a_checkpoint_gives_all_its_variables_by_path(tmp_path: Path) -> None:
    model, other = model_of(), model_of()
    state = state_of(tf.train.Checkpoint(net=model, optimizer=model.optimizer, step=tf.Variable(1)))
    assert set(state) == {
        "step",
        *(f"net/{each.path}" for each in model.variables),
        *(f"optimizer/{each.path}" for each in model.optimizer.variables),
    }
    with CheckpointStore(f"file://{tmp_path}") as store:
        store.save(1, state)
        restore(tf.train.Checkpoint(net=other, optimizer=other.optimizer, step=tf.Variable(0)), store.load())
    for one, two in zip(model.variables, other.variables, strict=True):
        np.testing.assert_array_equal(one.numpy(), two.numpy())


def test_the_optimizer_of_a_model_comes_along() -> None:
    model = model_of()
    names = set(state_of(tf.train.Checkpoint(net=model)))
    assert names == {f"net/{each.path}" for each in model.variables} | {
        f"net/optimizer/{each.path}" for each in model.optimizer.variables
    }


def test_a_keras_model_alone_is_what_keras_state_of_gives() -> None:
    model, other = model_of(), model_of()
    state = {part: {path: each.numpy() for path, each in found.items()} for part, found in state_of(model).items()}
    assert set(state) == {"model", "optimizer"}
    restore(other, state)
    np.testing.assert_array_equal(model.layers[0].kernel.numpy(), other.layers[0].kernel.numpy())
