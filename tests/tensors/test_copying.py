from __future__ import annotations

import math
import threading
from itertools import pairwise
from typing import Any

import ml_dtypes
import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from s3dlio.engine import source
from s3dlio.tensors import ShardImage, copying, flatten, plan_layout
from s3dlio.tensors.copying import boxes
from s3dlio.tensors.numpy_leaf import NumpyTarget
from s3dlio.tensors.torch_leaf import TorchTarget
from tests.tensors.shards import address_of, filled_numpy, filled_torch, image_of, save

SHAPE = (3, 5, 4)


def arrays() -> list[Any]:
    """Contiguous, strided and lazy arrays of element sizes 1 to 16, odd ones too."""
    found: list[Any] = []
    for dtype in ("u1", "f4", "c16", "S3", "V7", ml_dtypes.bfloat16, np.dtype([("a", "u1"), ("b", "f4")])):
        base = filled_numpy(dtype, SHAPE)
        found += [base, base.transpose(2, 0, 1), base[::2, ::-2, 1]]
    for torch_dtype in (torch.uint8, torch.bfloat16, torch.float64, torch.complex128):
        tensor = filled_torch(torch_dtype, SHAPE)
        found += [tensor, tensor.permute(1, 2, 0), tensor[::2, ::2, 1]]
    lazy = torch.arange(60).to(torch.complex64).reshape(SHAPE).conj()
    return [*found, lazy, lazy.imag]


ARRAYS = arrays()
NAMES = [f"{array.dtype}-{'x'.join(map(str, array.shape))}" for array in ARRAYS]


def splits(size: int) -> st.SearchStrategy[list[int]]:
    cuts = st.lists(st.integers(0, size), max_size=8)
    return cuts.map(lambda inner: sorted({0, size, *inner}))


@pytest.mark.parametrize("array", ARRAYS, ids=NAMES)
def test_any_pieces_of_an_image_are_slices_of_the_whole(array: Any) -> None:
    (leaf,) = flatten([array]).leaves
    whole = image_of(leaf)

    @given(splits(leaf.nbytes), st.integers(0, 9))
    def check(cuts: list[int], shift: int) -> None:
        memory = bytearray(leaf.nbytes + 16)  # shifted: targets of every alignment, and nothing beside them written
        for start, stop in pairwise(cuts):
            leaf.copy_to(address_of(memory) + shift + start, start, stop)
        assert memory[shift : shift + leaf.nbytes] == whole
        assert not any(memory[:shift]) and not any(memory[shift + leaf.nbytes :])  # noqa: PT018

    check()


@pytest.mark.parametrize("array", [a for a in ARRAYS if not (isinstance(a, torch.Tensor) and a.is_neg())])
def test_any_pieces_fill_a_target(array: Any) -> None:
    (leaf,) = flatten([array]).leaves
    whole = bytearray(image_of(leaf))
    target = (TorchTarget if isinstance(array, torch.Tensor) else NumpyTarget)(0, array)

    @given(splits(leaf.nbytes), st.integers(0, 9), st.randoms(use_true_random=False))
    def check(cuts: list[int], shift: int, random: Any) -> None:
        zero = bytearray(leaf.nbytes)
        target.copy_from(address_of(zero), 0, leaf.nbytes)
        source = bytearray(shift) + whole
        pieces = list(pairwise(cuts))
        random.shuffle(pieces)
        for start, stop in pieces:
            target.copy_from(address_of(source) + shift + start, start, stop)
        assert image_of(leaf) == whole

    check()


def test_ranges_outside_of_a_target_are_refused() -> None:
    for target in (NumpyTarget(0, np.zeros(3)), TorchTarget(0, torch.zeros(3))):
        for start, stop in ((-1, 2), (0, target.nbytes + 1), (3, 2)):
            with pytest.raises(ValueError, match="of a target"):
                target.copy_from(0, start, stop)


@given(st.lists(st.integers(1, 5), max_size=4), st.data(), st.integers(1, 20))
def test_boxes_cover_a_range_in_order(shape: list[int], data: st.DataObject, limit: int) -> None:
    size = math.prod(shape)
    numbers = np.arange(size).reshape(shape)
    start = data.draw(st.integers(0, size))
    stop = data.draw(st.integers(start, size))
    seen: list[int] = []
    for index, elements in boxes(tuple(shape), start, stop, limit):
        box = numbers[index]
        assert elements == box.size <= limit
        seen += box.reshape(-1).tolist()
    assert seen == list(range(start, stop))


def test_a_large_strided_array_is_gathered_in_bounded_boxes(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(copying, "_BOX", 1000)
    sizes: list[int] = []

    class Spy:
        shape: tuple[int, ...] = (7, 100, 3)
        itemsize = 4

        def get(self, index: Any, address: int, nbytes: int) -> None:
            sizes.append(nbytes)

        def put(self, index: Any, address: int, nbytes: int) -> None:
            raise AssertionError

    copying.gather(Spy(), 0, 0, 7 * 100 * 3 * 4)
    assert sum(sizes) == 7 * 100 * 3 * 4
    assert max(sizes) <= 1000


@given(st.data())
def test_any_pieces_of_a_shard_are_slices_of_the_whole(data: st.DataObject) -> None:
    state = {"a": np.arange(5), "e": torch.zeros(0, 3), "b": np.arange(12).reshape(3, 4).T, "c": torch.ones(3), "s": 1}
    saved = save(state)
    flat = flatten(state)
    image = ShardImage(flat.leaves, plan_layout(flat))
    cuts = data.draw(splits(image.size))
    memory = bytearray(image.size)
    for start, stop in pairwise(cuts):
        image.copy_to(address_of(memory) + start, start, stop)
    assert memory == saved.data


def test_ranges_outside_of_a_shard_are_refused() -> None:
    flat = flatten([np.zeros(3)])
    image = ShardImage(flat.leaves, plan_layout(flat))
    for start, stop in ((-1, 2), (0, image.size + 1), (3, 2)):
        with pytest.raises(ValueError, match="of a shard"):
            image.copy_to(0, start, stop)


def test_large_copies_release_the_interpreter(monkeypatch: pytest.MonkeyPatch) -> None:
    """Only the function that releases it may move large pieces, only the one that keeps it small ones."""
    moved: list[tuple[str, int]] = []
    monkeypatch.setattr(source, "_move_free", lambda target, source, size: moved.append(("free", size)))
    monkeypatch.setattr(source, "_move_held", lambda target, source, size: moved.append(("held", size)))
    source.move(0, 0, 1000)
    source.move(0, 0, 10 << 20)
    assert moved == [("held", 1000), ("free", 10 << 20)]


def test_parts_of_one_element_may_be_written_by_two_threads() -> None:
    array = np.zeros((64, 2), "V16")[:, 0]
    target = NumpyTarget(0, array)
    wanted = bytearray(filled_numpy("V16", (64,)).tobytes())

    def fill(parity: int) -> None:
        for start in range(parity * 4, len(wanted), 8):
            target.copy_from(address_of(wanted) + start, start, start + 4)

    threads = [threading.Thread(target=fill, args=(parity,)) for parity in (0, 1)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert array.tobytes() == wanted
