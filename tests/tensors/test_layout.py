from __future__ import annotations

import json
import logging
from typing import Any

import numpy as np
import pytest
import safetensors.numpy
import safetensors.torch
import torch

from s3dlio.tensors import flatten, plan_layout, restore
from s3dlio.tensors.dtypes import PLAIN
from tests.tensors.shards import filled_numpy, filled_torch, raw, same, save
from tests.tensors.test_arrays import TORCH_DTYPES


def header_of(data: bytearray) -> dict[str, Any]:
    length = int.from_bytes(data[:8], "little")
    header: dict[str, Any] = json.loads(data[8 : 8 + length])
    return header


def test_the_safetensors_package_reads_a_numpy_shard() -> None:
    state = {name: filled_numpy(name, (3, 4)) for name in "? i1 i2 i4 i8 u1 u2 u4 u8 f2 f4 f8 c8".split()}
    state |= {"zero": np.full((), 3, "f4"), "empty": np.zeros((0, 3)), 'odd "é\n\\name': np.arange(3)}
    loaded = safetensors.numpy.load(bytes(save(state).data))
    assert set(loaded) == set(state)
    for name, array in state.items():
        assert (loaded[name].dtype, loaded[name].shape, raw(loaded[name])) == (array.dtype, array.shape, raw(array))


@pytest.mark.filterwarnings("ignore:ComplexHalf support is experimental")
def test_the_safetensors_package_reads_a_torch_shard() -> None:
    state = {str(dtype): filled_torch(dtype, (3, 4)) for dtype in TORCH_DTYPES}
    loaded = safetensors.torch.load(bytes(save(state).data))
    assert set(loaded) == set(state)
    for name, tensor in state.items():
        if PLAIN[name.removeprefix("torch.")].code is None:  # there as its bytes
            assert (loaded[name].dtype, loaded[name].shape) == (torch.uint8, (raw(tensor).__len__(),))
        else:
            assert (loaded[name].dtype, loaded[name].shape) == (tensor.dtype, tensor.shape)
        assert raw(loaded[name]) == raw(tensor)


def test_dtypes_that_safetensors_lacks_stand_as_bytes() -> None:
    state = {"c": np.ones((2, 3), "c16"), "d": np.zeros(2, "M8[s]"), "u": np.array(["ab"]), "b": np.ones(3, ">f4")}
    saved = save(state)
    header = header_of(saved.data)
    assert [(header[name]["dtype"], header[name]["shape"]) for name in "cdub"] == [
        ("U8", [96]), ("U8", [16]), ("U8", [8]), ("U8", [12]),
    ]  # fmt: skip
    assert set(safetensors.numpy.load(bytes(saved.data))) == set(state)
    same(state, restore(saved.tree, saved.table, saved.data))


@pytest.mark.parametrize("state", [{}, [1, 2], {"a": np.zeros(0)}, {"a": np.zeros((), "u1")}])
def test_small_states_are_files_too(state: Any) -> None:
    saved = save(state)
    loaded = safetensors.numpy.load(bytes(saved.data))
    assert len(loaded) == len(saved.leaves)


def test_leaves_lie_by_falling_width_at_multiples_of_it() -> None:
    state = {
        "u1": np.ones(3, "u1"), "f4": np.ones(3, "f4"), "f8": np.ones(3), "u1b": np.ones(5, "u1"),
        "c8": np.ones(1, "c8"), "g": np.ones(1, "g"), "S": np.array([b"abc"]), "U": np.array(["ab"]),
        "f2": np.ones(3, "f2"),
    }  # fmt: skip
    saved = save(state)
    names = [saved.leaves[index].name for index in saved.layout.order]
    assert names == ["g", "f8", "f4", "c8", "U", "f2", "u1", "u1b", "S"]
    assert saved.layout.header_size % 64 == 0
    for leaf, offset in zip(saved.leaves, saved.layout.offsets, strict=True):
        assert offset % leaf.spec.width == 0
    begin = saved.layout.header_size
    assert saved.layout.width_runs == (
        (0, begin, 1), (begin, begin + 40, 8), (begin + 40, begin + 68, 4), (begin + 68, begin + 74, 2),
        (begin + 74, begin + 85, 1),
    )  # fmt: skip
    assert saved.layout.total == begin + 85


def test_width_runs_have_no_gaps_around_empty_leaves() -> None:
    layout = plan_layout(flatten([np.zeros(0), np.zeros(2, "f4"), np.zeros((3, 0), "f2"), np.zeros(1, "u1")]))
    ends = [run[1] for run in layout.width_runs]
    assert [run[0] for run in layout.width_runs] == [0, *ends[:-1]]
    assert ends[-1] == layout.total
    assert [run[2] for run in layout.width_runs] == [1, 4, 1]


def test_the_header_says_whose_tensors_they_are() -> None:
    assert header_of(save([np.zeros(1)]).data)["__metadata__"] == {"format": "np"}
    assert header_of(save([np.zeros(1), torch.zeros(1)]).data)["__metadata__"] == {"format": "pt"}


def test_too_many_names_stand_in_the_index_only(caplog: pytest.LogCaptureFixture) -> None:
    state = {f"name{index}": np.full(3, index) for index in range(40)}
    with caplog.at_level(logging.WARNING, logger="s3dlio"):
        saved = save(state, header_limit=1000)
    assert "the names of 40 arrays exceed the 1000 bytes" in caplog.text
    assert not saved.layout.named
    loaded = safetensors.numpy.load(bytes(saved.data))
    assert {name: array.nbytes for name, array in loaded.items()} == {"data": 40 * 24}
    assert saved.layout.header_size <= 1000
    same(state, restore(saved.tree, saved.table, saved.data))


def test_a_named_header_stays_within_the_limit(caplog: pytest.LogCaptureFixture) -> None:
    flat = flatten({f"name{index}": np.zeros(1) for index in range(40)})
    size = plan_layout(flat).header_size
    for limit in range(size - 140, size + 140, 4):
        layout = plan_layout(flat, header_limit=limit)
        assert layout.header_size - 8 <= limit
        assert layout.named or limit < size + 64
    assert plan_layout(flat, header_limit=size + 64).named


def test_header_pieces_are_bounded() -> None:
    layout = plan_layout(flatten([np.zeros(1) for _ in range(20_000)]))
    assert max(map(len, layout.header)) < 1 << 20
    assert sum(map(len, layout.header)) == layout.header_size


def test_the_table_names_a_spec_once() -> None:
    layout = plan_layout(flatten({str(index): np.zeros(3, "f4") for index in range(1000)}))
    assert layout.table["specs"] == [["numpy", "float32", [3]]]
    assert layout.table["spec"] == [0] * 1000
