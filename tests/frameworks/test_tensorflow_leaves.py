"""Tensors and variables as leaves: what comes back, what is refused, what is loaded in place."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest
import tensorflow as tf

from s3dlio import CheckpointStore, ConfigError, UnsupportedError
from s3dlio.tensors import flatten

FLOAT8 = (tf.dtypes.experimental.float8_e4m3fn, tf.dtypes.experimental.float8_e5m2)
DTYPES = [
    tf.bool, tf.int8, tf.int16, tf.int32, tf.int64, tf.uint8, tf.uint16, tf.uint32, tf.uint64, tf.float16, tf.bfloat16,
    tf.float32, tf.float64, tf.complex64, tf.complex128, *FLOAT8,
]  # fmt: skip


@pytest.mark.parametrize("dtype", DTYPES, ids=lambda dtype: dtype.name)
@pytest.mark.parametrize("wrap", [tf.identity, tf.Variable], ids=["tensor", "variable"])
def test_every_dtype_is_its_bytes(dtype: Any, wrap: Any) -> None:
    tensor = tf.cast(tf.constant([[0.0, 1.0, 2.0], [1.0, 0.0, 2.0]]), dtype)
    (leaf,) = flatten({"a": wrap(tensor)}).leaves
    assert (leaf.name, leaf.dtype, leaf.shape, leaf.framework) == ("a", dtype.name, (2, 3), "numpy")
    image = np.empty(leaf.nbytes, np.uint8)
    leaf.copy_to(image.ctypes.data, 0, leaf.nbytes)
    assert image.tobytes() == tensor.numpy().tobytes()


def test_a_state_comes_back_as_numpy(tmp_path: Path) -> None:
    shared = tf.Variable([1.0, 2.0])
    state = {
        "w": tf.Variable(tf.reshape(tf.range(6.0), (2, 3))),
        "half": tf.cast([1.5, -2.0], tf.bfloat16),
        "scalar": tf.constant(7, tf.int64),
        "empty": tf.zeros((0, 3)),
        "tied": [shared, (shared,)],
        "step": 3,
    }
    with CheckpointStore(f"file://{tmp_path}") as store:
        store.save(1, state)
        loaded = store.load()
    np.testing.assert_array_equal(loaded["w"], [[0, 1, 2], [3, 4, 5]])
    assert (loaded["half"].dtype.name, loaded["half"].tolist()) == ("bfloat16", [1.5, -2.0])
    assert (loaded["scalar"].shape, int(loaded["scalar"]), loaded["scalar"].dtype) == ((), 7, np.int64)
    assert (loaded["empty"].shape, loaded["step"]) == ((0, 3), 3)
    assert loaded["tied"][0] is loaded["tied"][1][0]


def test_variables_of_one_tensor_are_stored_apart(tmp_path: Path) -> None:
    start = tf.constant([1.0, 2.0])
    state = {"a": tf.Variable(start), "b": tf.Variable(start)}
    with CheckpointStore(f"file://{tmp_path}") as store:
        store.save(1, state)
        loaded = store.load()
    loaded["a"][0] = 9
    assert loaded["b"].tolist() == [1, 2]


def test_a_leaf_keeps_the_values_of_its_moment() -> None:
    variable = tf.Variable([1.0, 2.0])
    (leaf,) = flatten(variable).leaves
    variable.assign_add([10.0, 10.0])
    variable.scatter_nd_add([[0]], [100.0])
    image = np.empty(2, np.float32)
    leaf.copy_to(image.ctypes.data, 0, 8)
    assert image.tolist() == [1, 2]


def test_a_leaf_is_the_tensors_own_memory() -> None:
    tensor = tf.range(1000.0)
    (leaf,) = flatten(tensor).leaves
    assert leaf.address() == np.asarray(memoryview(tensor)).ctypes.data


REFUSED = {
    "string": (lambda: tf.constant(["a"]), "a tensor of dtype string has no array of bytes; store .numpy().tolist()"),
    "string variable": (lambda: tf.Variable(["a"]), "a tensor of dtype string has no array of bytes"),
    "variant": (lambda: tf.data.Dataset.range(2)._variant_tensor, "a tensor of dtype variant has no array of bytes"),
    "quantized": (
        lambda: tf.bitcast(tf.constant([1], tf.int8), tf.qint8),
        "quantized tensors (qint8) cannot be stored",
    ),
    "ragged": (lambda: tf.ragged.constant([[1], [2, 3]]), "store their arrays"),
    "sparse": (lambda: tf.sparse.from_dense([[0, 1]]), "store their arrays"),
}


@pytest.mark.parametrize(("make", "reason"), REFUSED.values(), ids=REFUSED)
def test_what_has_no_bytes_is_refused_by_path(make: Any, reason: str) -> None:
    with pytest.raises(UnsupportedError) as raised:
        flatten({"layers": [tf.constant(1), make()]})
    assert str(raised.value).startswith("state['layers'][1]: ")
    assert reason in str(raised.value)


@pytest.mark.slow
def test_a_symbolic_tensor_is_refused() -> None:
    variable = tf.Variable(1.0)
    reasons = []

    @tf.function
    def inside(tensor: Any) -> Any:
        for value in (tensor, variable):
            with pytest.raises(UnsupportedError) as raised:
                flatten([value])
            reasons.append(str(raised.value))
        return tensor

    inside(tf.constant(1.0))
    assert reasons == ["state[0]: a symbolic tensor has no value yet; save outside of tf.function"] * 2


def test_load_into_variables(tmp_path: Path) -> None:
    shared = tf.Variable([3, 4])
    state = {
        "w": tf.Variable([[1.0, 2.0]]),
        "h": tf.Variable(tf.ones(2, tf.bfloat16)),
        "tied": [shared, shared],
        "n": 5,
    }
    target = {"w": tf.Variable([[0.0, 0.0]]), "h": tf.Variable(tf.zeros(2, tf.bfloat16)),
              "tied": [tf.Variable([0, 0]), tf.Variable([0, 0])], "n": 0}  # fmt: skip
    with CheckpointStore(f"file://{tmp_path}") as store:
        store.save(1, state)
        loaded = store.load(into=target)
        once = tf.Variable([0, 0])
        both = store.load(into={**target, "tied": [once, once]})
    assert loaded["w"] is target["w"]
    assert target["w"].numpy().tolist() == [[1, 2]]
    assert target["h"].numpy().tolist() == [1, 1]
    assert [each.numpy().tolist() for each in target["tied"]] == [[3, 4], [3, 4]]
    assert loaded["n"] == 5
    assert both["tied"][0] is both["tied"][1] is once
    assert once.numpy().tolist() == [3, 4]


def test_load_into_what_does_not_fit_lists_all_and_writes_nothing(tmp_path: Path) -> None:
    state = {"a": tf.constant([1.0, 2.0]), "b": tf.constant([1, 2]), "c": tf.constant(1.0), "d": tf.constant(1.0)}
    target = {"a": tf.Variable([0.0, 0.0]), "b": tf.Variable([0, 0, 0]), "c": tf.Variable(0.0, dtype=tf.float64),
              "d": tf.constant(0.0), "e": tf.Variable(1)}  # fmt: skip
    with CheckpointStore(f"file://{tmp_path}") as store:
        store.save(1, state)
        with pytest.raises(ConfigError) as raised:
            store.load(into=target)
    assert str(raised.value).splitlines()[1:] == [
        "  state['b']: stored int32 [2], target int32 [3]",
        "  state['c']: stored float32 [], target float64 []",
        "  state['d']: a tf.Tensor cannot be written to; pass a tf.Variable",
        "  state['e']: not in the checkpoint",
    ]
    assert target["a"].numpy().tolist() == [0, 0]
