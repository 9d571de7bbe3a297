from __future__ import annotations

import pytest

from s3dlio.frameworks.keras_names import align, made_up

BASES = {"dense", "adam", "sequential", "seed_generator", "layer_normalization"}


def test_names_that_keras_made_up_of_the_class() -> None:
    named = [
        ("dense", "Dense"), ("layer_normalization_12", "LayerNormalization"), ("conv2d_3", "Conv2D"),
        ("encoder_1", "Dense"), ("adam", "Adam"), ("my_dense", "Dense"),
    ]  # fmt: skip
    assert made_up(named) == {"dense", "layer_normalization", "conv2d", "adam"}


def test_equal_names_mean_themselves() -> None:
    names = ["model/dense_2/kernel", "model/dense/kernel"]
    assert align(names, names[::-1], BASES) == {name: name for name in names}


def test_made_up_names_correspond_by_the_order_of_their_numbers() -> None:
    stored = {
        "model/sequential/dense_9/kernel": 0, "model/sequential/dense_10/kernel": 1,
        "optimizer/adam/iteration": 2, "optimizer/adam/sequential_dense_9_kernel_momentum": 3,
        "optimizer/adam/sequential_dense_10_kernel_momentum": 4, "model/seed_generator/state": 5,
    }  # fmt: skip
    present = {
        "model/sequential_1/dense_11/kernel": 0, "model/sequential_1/dense_12/kernel": 1,
        "optimizer/adam_3/iteration": 2, "optimizer/adam_3/sequential_1_dense_11_kernel_momentum": 3,
        "optimizer/adam_3/sequential_1_dense_12_kernel_momentum": 4, "model/seed_generator_7/state": 5,
    }  # fmt: skip
    aligned = align(stored, present, BASES)
    assert aligned is not None
    assert {present[name]: stored[before] for name, before in aligned.items()} == {n: n for n in range(6)}


@pytest.mark.parametrize(
    ("stored", "present"),
    [
        (["model/encoder_1/kernel", "model/encoder_2/kernel"], ["model/encoder_2/kernel", "model/encoder_3/kernel"]),
        (["model/dense/kernel"], ["model/dense_1/kernel", "model/dense_2/kernel"]),
        (["model/dense/kernel", "model/dense_1/kernel"], ["model/dense_5/kernel"]),
        (["model/dense/kernel"], ["model/dense_1/bias"]),
        (["model/dense_1"], ["model/dense_2"]),  # a variable's own name is not made up
        ([], ["model/dense/kernel"]),
    ],
)
def test_all_else_has_to_be_the_same(stored: list[str], present: list[str]) -> None:
    assert align(stored, present, BASES) is None
