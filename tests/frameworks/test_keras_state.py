"""A Keras model as a state, and back: all variables, by path, or one error with everything that does not fit."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import keras
import numpy as np
import pytest

from s3dlio import CheckpointStore, ConfigError
from s3dlio.frameworks.keras import restore, state_of

X = np.ones((4, 3), "float32")


def make(units: int = 2, dtype: str = "float32", optimizer: Any = "adam", first: str | None = None) -> Any:
    model = keras.Sequential(
        [
            keras.Input((3,)),
            keras.layers.Dense(units, name=first, dtype=dtype),
            keras.layers.BatchNormalization(),
            keras.layers.Dropout(0.1),
            keras.layers.Dense(1),
        ]
    )
    if optimizer is not None:
        model.compile(optimizer, "mse", run_eagerly=True)
    return model


def trained(**options: Any) -> Any:
    model = make(**options)
    model.train_on_batch(X, X[:, :1])
    return model


def all_variables(model: Any) -> list[Any]:
    return [each.numpy().tolist() for each in (*model.variables, *model.optimizer.variables)]


@pytest.mark.parametrize("dtype", ["float32", "bfloat16", "float16"])
def test_a_model_is_restored_in_another_of_its_kind(tmp_path: Path, dtype: str) -> None:
    model, other = trained(dtype=dtype), make(dtype=dtype)
    with CheckpointStore(f"file://{tmp_path}") as store:
        store.save(1, state_of(model))
        loaded = store.load()
        restore(other, loaded)
    assert all_variables(other) == all_variables(model)
    assert loaded["model"][model.layers[0].kernel.path].dtype.name == dtype
    assert int(other.optimizer.iterations.numpy()) == 1
    assert set(loaded) == {"model", "optimizer"}
    assert len(loaded["model"]) == len(model.variables) == 9  # two kernels, two biases, four of the norm, one seed


def test_an_optimizer_within_an_optimizer(tmp_path: Path) -> None:
    def scaled() -> Any:
        return keras.optimizers.LossScaleOptimizer(keras.optimizers.SGD(0.1, momentum=0.9))

    model, other = trained(optimizer=scaled()), make(optimizer=scaled())
    with CheckpointStore(f"file://{tmp_path}") as store:
        store.save(1, state_of(model))
        restore(other, store.load())
    assert all_variables(other) == all_variables(model)


def test_a_model_without_an_optimizer_takes_the_models_variables_alone(tmp_path: Path) -> None:
    model, other = trained(), make(optimizer=None)
    with CheckpointStore(f"file://{tmp_path}") as store:
        store.save(1, state_of(model))
        loaded = store.load()
        with pytest.raises(ConfigError, match=r"optimizer/adam.*/iteration: in the checkpoint only"):
            restore(other, loaded)
        restore(other, loaded, optimizer=False)
    assert [each.numpy().tolist() for each in other.variables] == all_variables(model)[: len(other.variables)]
    assert set(state_of(other)) == {"model"}


def test_everything_that_does_not_fit_is_in_one_error(tmp_path: Path) -> None:
    model, other = make(first="one", optimizer=None), make(first="two", units=3, optimizer=None)
    before = [each.numpy().tolist() for each in other.variables]
    with CheckpointStore(f"file://{tmp_path}") as store:
        store.save(1, state_of(model))
        with pytest.raises(ConfigError) as raised:
            restore(other, store.load())
    message = str(raised.value)
    assert f"the checkpoint does not fit model {other.name}; nothing was restored:" in message
    assert f"model/{other.name}/two/kernel: not in the checkpoint" in message
    assert f"model/{model.name}/one/kernel: in the checkpoint only" in message
    assert "name the layers as they were" in message
    assert [each.numpy().tolist() for each in other.variables] == before


def test_other_shapes_and_dtypes_are_listed() -> None:
    model, other = make(optimizer=None), make(units=3, dtype="float16", optimizer=None)
    with pytest.raises(ConfigError) as raised:
        restore(other, {"model": {path: each.numpy() for path, each in state_of(model)["model"].items()}})
    assert "/kernel: stored float32 [3, 2], here float16 [3, 3]" in str(raised.value)
    assert "gamma: stored float32 [2], here float32 [3]" in str(raised.value)


@pytest.mark.parametrize(("value", "fits"), [(7, True), (2**40, True), (-1, True), (2**63, False)])
def test_integers_of_another_width_are_taken_if_they_fit(value: int, fits: bool) -> None:
    model = make()
    model.optimizer.build(model.trainable_variables)
    state = {part: {path: each.numpy() for path, each in found.items()} for part, found in state_of(model).items()}
    name = next(path for path in state["optimizer"] if path.endswith("iteration"))
    state["optimizer"][name] = np.array(value, np.uint64 if value > 0 else np.int8)
    if fits:
        restore(model, state)
        assert int(model.optimizer.iterations.numpy()) == value
    else:
        with pytest.raises(ConfigError, match=r"iteration: stored uint64 \[\], here int64 \[\]"):
            restore(model, state)


def test_a_model_that_is_not_built_is_refused() -> None:
    with pytest.raises(ConfigError, match="has no variables yet: build it"):
        restore(keras.Sequential([keras.layers.Dense(1)]), {"model": {}})


class Twins(keras.Model):
    """Two layers of one name, which a subclass may have."""

    def __init__(self) -> None:
        super().__init__()
        self.one = keras.layers.Dense(1, name="twin")
        self.two = keras.layers.Dense(1, name="twin")
        self.again = self.one

    def call(self, inputs: Any) -> Any:
        return self.one(inputs) + self.two(inputs) + self.again(inputs)


def test_paths_that_occur_twice_get_numbers(tmp_path: Path) -> None:
    model, other = Twins(), Twins()
    for each in (model, other):
        each(X)
    paths = list(state_of(model)["model"])
    assert [path.split("/", 1)[1] for path in paths] == ["twin/kernel", "twin/bias", "twin/kernel~1", "twin/bias~1"]
    with CheckpointStore(f"file://{tmp_path}") as store:
        store.save(1, state_of(model))
        restore(other, store.load())
    np.testing.assert_array_equal(model.two.kernel.numpy(), other.two.kernel.numpy())
