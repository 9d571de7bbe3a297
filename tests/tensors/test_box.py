from __future__ import annotations

import itertools
import math

import hypothesis
import hypothesis.strategies as st
import numpy as np
import pytest

from s3dlio.tensors.box import Box, box_to_image, byte_ranges, extent, image_to_box, tiles

MIB = 1 << 20


def bytes_of(shape: tuple[int, ...], box: Box, itemsize: int) -> list[int]:
    """The image's bytes that a box holds, counted one by one."""
    places = np.arange(math.prod(shape) * itemsize).reshape(*shape, itemsize)
    inside = tuple(slice(at, at + size) for at, size in zip(box.offsets, box.sizes, strict=True))
    return sorted(places[inside].reshape(-1).tolist())


@st.composite
def boxed(draw: st.DrawFn) -> tuple[tuple[int, ...], Box]:
    shape = tuple(draw(st.lists(st.integers(1, 5), max_size=4)))
    offsets = tuple(draw(st.integers(0, side - 1)) for side in shape)
    sizes = tuple(draw(st.integers(1, side - at)) for side, at in zip(shape, offsets, strict=True))
    return shape, Box(offsets, sizes)


@hypothesis.given(boxed(), st.sampled_from([1, 2, 8]), st.integers(0, 40))
def test_ranges_hold_the_box_and_no_gap_that_is_worth_it(
    made: tuple[tuple[int, ...], Box], itemsize: int, gap: int
) -> None:
    shape, box = made
    ranges = byte_ranges(shape, itemsize, box, gap)
    wanted = set(bytes_of(shape, box, itemsize))
    held = [byte for start, stop in ranges for byte in range(start, stop)]
    assert held == sorted(set(held))
    assert wanted <= set(held)
    assert extent(shape, itemsize, box) == (min(wanted), max(wanted) + 1) == (ranges[0][0], ranges[-1][1])
    unwanted, run = set(held) - wanted, 0
    for byte in range(math.prod(shape) * itemsize):
        run = run + 1 if byte in unwanted else 0
        assert run < max(1, gap)


def test_only_what_is_far_apart_is_read_apart() -> None:
    shape = (4, 8, MIB)
    rows = Box((1, 0, 0), (2, 8, MIB))
    assert byte_ranges(shape, 2, rows) == [(16 * MIB, 48 * MIB)]
    halves = Box((0, 4, 0), (4, 4, MIB))
    assert byte_ranges(shape, 2, halves) == [(at * 16 * MIB + 8 * MIB, (at + 1) * 16 * MIB) for at in range(4)]
    narrow = Box((0, 0, 0), (4, 8, 8))
    assert len(byte_ranges(shape, 2, narrow)) == 32
    columns = Box((0, 2), (4096, 2))
    assert byte_ranges((4096, 8), 4, columns) == [(8, 4095 * 32 + 16)]
    assert byte_ranges((3, 0), 4, Box((0, 0), (3, 0))) == []


@hypothesis.given(boxed(), st.sampled_from([1, 2, 8]), st.data())
def test_any_range_goes_either_way(made: tuple[tuple[int, ...], Box], itemsize: int, data: st.DataObject) -> None:
    shape, box = made
    size = math.prod(shape) * itemsize
    start = data.draw(st.integers(0, size - 1))
    stop = data.draw(st.integers(start + 1, size))
    image = (np.arange(size) % 255 + 1).astype(np.uint8)
    inside = tuple(slice(at, at + side) for at, side in zip(box.offsets, box.sizes, strict=True))
    held = np.zeros((*box.sizes, itemsize), np.uint8)
    image_to_box(shape, box, held, image.ctypes.data + start, start, stop)
    wanted = [byte for byte in bytes_of(shape, box, itemsize) if start <= byte < stop]
    cut = np.zeros(size, np.uint8)
    cut[start:stop] = image[start:stop]
    assert (held == cut.reshape(*shape, itemsize)[inside]).all()
    back = np.zeros(size, np.uint8)
    assert box_to_image(shape, box, held, back.ctypes.data + start, start, stop) == len(wanted)
    assert np.flatnonzero(back).tolist() == wanted
    assert (back[wanted] == image[wanted]).all()


def test_boxes_of_slices_and_integers() -> None:
    assert Box.of((4, 6), (slice(None), slice(2, 4))) == Box((0, 2), (4, 2))
    assert Box.of((4, 6), (3, slice(None))) == Box((3, 0), (1, 6))
    assert Box.of((), ()) == Box.whole(())
    assert Box.of((0,), (slice(0, 0),)).count == 0
    with pytest.raises(ValueError, match="no box"):
        Box.of((4,), (slice(None, None, 2),))


@hypothesis.given(st.data())
def test_boxes_tile_an_array_if_each_element_is_in_one(data: st.DataObject) -> None:
    shape = tuple(data.draw(st.lists(st.integers(0, 3), max_size=3)))
    boxes = []
    count = np.zeros(shape, int)
    for _ in range(data.draw(st.integers(0, 4))):
        offsets = tuple(data.draw(st.integers(0, side)) for side in shape)
        sizes = tuple(data.draw(st.integers(0, side - at)) for side, at in zip(shape, offsets, strict=True))
        boxes.append(Box(offsets, sizes))
        count[tuple(slice(at, at + size) for at, size in zip(offsets, sizes, strict=True))] += 1
    assert tiles(shape, boxes) == bool((count == 1).all())


@hypothesis.given(st.lists(st.integers(1, 6), min_size=1, max_size=3), st.data())
def test_a_grid_tiles(shape: list[int], data: st.DataObject) -> None:
    cuts = [sorted({0, side, *data.draw(st.lists(st.integers(0, side), max_size=3))}) for side in shape]
    spans = [list(itertools.pairwise(bounds)) for bounds in cuts]
    boxes = [Box(tuple(a for a, _ in corner), tuple(b - a for a, b in corner)) for corner in itertools.product(*spans)]
    assert tiles(shape, boxes)
    assert not tiles(shape, boxes[1:])
    assert not tiles(shape, [*boxes, boxes[0]])
    assert not tiles(shape, [*boxes[1:], Box(tuple(at + 1 for at in boxes[0].offsets), boxes[0].sizes)])


def test_numbers_beyond_any_array_are_told_apart() -> None:
    huge = (1 << 63) - 1
    assert tiles((huge,), [Box((0,), (5,)), Box((5,), (huge - 5,))])
    assert not tiles((huge,), [Box((0,), (5,)), Box((5,), (huge - 6,))])
    assert not tiles((huge, huge), [Box((0, 0), (1, 1))])
