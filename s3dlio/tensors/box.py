"""Boxes of arrays: which bytes of an array's C-order image a box holds, and copies between the two.

Owns that arithmetic, for arrays that lie in pieces (shards on devices, parts on ranks) while an image is one run of
bytes. Knows no framework: a piece is a box and its bytes as a NumPy array. Called by ``jax_leaf`` (pieces to image) and
by ``state_reader`` (image to pieces); ``table`` and the leaves say by a ``Part`` what a rank has of an array.
"""

from __future__ import annotations

import math
import secrets
from collections import defaultdict
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass

import numpy as np

from ..engine.source import view
from .copying import boxes
from .numpy_leaf import Array

_GAP = 1 << 20  # bytes between two runs that are not worth a read of their own
_PRIME = (1 << 61) - 1


@dataclass(frozen=True, slots=True)
class Box:
    """Elements [offset, offset + size) along each dimension of an array; an array of no dimensions has one box."""

    offsets: tuple[int, ...]
    sizes: tuple[int, ...]

    @classmethod
    def whole(cls, shape: Sequence[int]) -> Box:
        """All of an array."""
        return cls((0,) * len(shape), tuple(shape))

    @classmethod
    def of(cls, shape: Sequence[int], index: Sequence[slice | int]) -> Box:
        """The box of slices with step 1 and integers, one for each dimension, as frameworks tell a shard's place."""
        slices = [slice(part, part + 1) if isinstance(part, int) else part for part in index]
        bounds = [part.indices(side) for part, side in zip(slices, shape, strict=True)]
        if any(step != 1 for _, _, step in bounds):
            raise ValueError(f"{index} is no box")
        return cls(tuple(low for low, _, _ in bounds), tuple(max(0, high - low) for low, high, _ in bounds))

    @property
    def count(self) -> int:
        """Elements."""
        return math.prod(self.sizes)

    def lies_in(self, shape: Sequence[int]) -> bool:
        """Whether it is a box of an array of this shape."""
        return len(shape) == len(self.offsets) == len(self.sizes) and all(
            offset >= 0 and size >= 0 and offset + size <= side
            for offset, size, side in zip(self.offsets, self.sizes, shape, strict=True)
        )


@dataclass(frozen=True, slots=True)
class Part:
    """What one rank has of an array of ``shape`` that lies on several ranks: ``boxes``, whose images lie end to end."""

    shape: tuple[int, ...]
    boxes: tuple[Box, ...]

    @property
    def stored_shape(self) -> tuple[int, ...]:
        """The shape of the leaf that holds it: the box's, or all elements in a row where there is not just one."""
        return self.boxes[0].sizes if len(self.boxes) == 1 else (sum(box.count for box in self.boxes),)


def intersection(one: Box, other: Box) -> Box | None:
    """The elements that lie in both; ``None`` where there are none."""
    offsets, sizes = [], []
    for a, m, b, n in zip(one.offsets, one.sizes, other.offsets, other.sizes, strict=True):
        low, high = max(a, b), min(a + m, b + n)
        if low >= high:
            return None
        offsets.append(low)
        sizes.append(high - low)
    return Box(tuple(offsets), tuple(sizes))


def tiles(shape: Sequence[int], boxes: Iterable[Box]) -> bool:
    """Whether ``boxes`` hold each element of an array once.

    Comparing each box with each is quadratic in the ranks. Instead every bound of a side gets a random number: a box is
    the product of its sides' differences, and those of boxes that tile an array add up to the array's own. Of others
    they do with a probability below 2^-54.
    """
    numbers: list[defaultdict[int, int]] = [defaultdict(lambda: secrets.randbelow(_PRIME)) for _ in shape]

    def product(box: Box) -> int:
        made = 1
        for number, offset, size in zip(numbers, box.offsets, box.sizes, strict=True):
            made = made * (number[offset + size] - number[offset]) % _PRIME
        return made

    return sum(map(product, boxes)) % _PRIME == product(Box.whole(shape))


def extent(shape: Sequence[int], itemsize: int, box: Box) -> tuple[int, int]:
    """Bytes [start, stop) of an image from the first to the last of a box that is not empty."""
    first = last = 0
    for side, offset, size in zip(shape, box.offsets, box.sizes, strict=True):
        first, last = first * side + offset, last * side + offset + size - 1
    return first * itemsize, (last + 1) * itemsize


def byte_ranges(shape: Sequence[int], itemsize: int, box: Box, gap: int = _GAP) -> list[tuple[int, int]]:
    """Bytes [start, stop) of an image, in order, that hold a box; runs nearer than ``gap`` bytes are joined."""
    if not box.count:
        return []
    runs = [(0, itemsize)]
    row = itemsize  # bytes of one step along the present dimension
    for side, offset, size in zip(reversed(shape), reversed(box.offsets), reversed(box.sizes), strict=True):
        first, last = runs[0][0], runs[-1][1]
        if len(runs) == 1 and row - (last - first) < gap:
            runs = [(offset * row + first, (offset + size - 1) * row + last)]
        else:
            runs = [(at * row + start, at * row + stop) for at in range(offset, offset + size) for start, stop in runs]
        row *= side
    return runs


def box_to_image(shape: Sequence[int], box: Box, held: Array, address: int, start: int, stop: int) -> int:
    """Write what ``held``, the bytes of ``box``, has of the image's bytes [start, stop) to memory at ``address``.

    ``held`` is of uint8, of the box's sizes and one more dimension, the bytes of an element. Returns bytes written.
    """
    written = 0
    for image, part in _overlaps(shape, box, held, address, start, stop):
        np.copyto(image, part)
        written += part.size
    return written


def image_to_box(shape: Sequence[int], box: Box, held: Array, address: int, start: int, stop: int) -> None:
    """Read what ``held`` takes of the image's bytes [start, stop) from memory at ``address``; as ``box_to_image``."""
    for image, part in _overlaps(shape, box, held, address, start, stop):
        np.copyto(part, image)


def _overlaps(
    shape: Sequence[int], box: Box, held: Array, address: int, start: int, stop: int
) -> Iterator[tuple[Array, Array]]:
    """Views of the same bytes in the image and in ``held``. The dimension of bytes lets a range cut an element."""
    itemsize = held.shape[-1]
    sides = (*shape, itemsize)
    offsets, sizes = (*box.offsets, 0), (*box.sizes, itemsize)
    at = address
    for index, count in boxes(sides, start, stop, stop - start):
        block = [part.indices(side)[:2] if isinstance(part, slice) else (part, part + 1)
                 for part, side in zip(index, sides, strict=False)]  # fmt: skip
        block += [(0, side) for side in sides[len(index) :]]
        common = [
            (max(low, offset), min(high, offset + size))
            for (low, high), offset, size in zip(block, offsets, sizes, strict=True)
        ]
        if all(low < high for low, high in common):
            image = np.frombuffer(view(at, count), np.uint8).reshape([high - low for low, high in block])
            there = tuple(
                slice(low - first, high - first) for (low, high), (first, _) in zip(common, block, strict=True)
            )
            here = tuple(
                slice(low - offset, high - offset) for (low, high), offset in zip(common, offsets, strict=True)
            )
            yield image[there], held[here]
        at += count
