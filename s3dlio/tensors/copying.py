"""Copies between raw memory and arrays.

Owns how the boxes of a strided array move. Knows addresses and shapes only: what an array is, its ``Boxes`` say. Called
by the leaves and targets.
"""

from __future__ import annotations

import ctypes
import math
import threading
from collections.abc import Iterator, Sequence
from typing import Protocol

from ..engine.source import move

Index = tuple[int | slice, ...]

_BOX = 4 << 20  # bytes of a strided array that one call gathers

# Two calls may each hold a part of one element: reading, patching and writing it back must not interleave.
_patching = threading.Lock()


class Boxes(Protocol):
    """A strided array that can be copied box by box.

    ``get`` writes the box at ``index`` to memory in C order, ``put`` reads it from there; ``nbytes`` is the box's size.
    """

    shape: tuple[int, ...]
    itemsize: int

    def get(self, index: Index, address: int, nbytes: int) -> None: ...
    def put(self, index: Index, address: int, nbytes: int) -> None: ...


class _Act(Protocol):
    def __call__(self, index: Index, address: int, nbytes: int) -> None: ...


def gather(array: Boxes, address: int, start: int, stop: int) -> None:
    """Write bytes [start, stop) of the C-order image of ``array`` to memory at ``address``."""
    size = array.itemsize
    for element, low, high in _cut(start, stop, size):
        target = address + element * size + low - start
        if high - low < size:
            with _Scratch(size) as scratch:
                _each(array, element, element + 1, array.get, scratch.address)
                move(target, scratch.address + low, high - low)
        else:
            _each(array, element, element + (high - low) // size, array.get, target)


def scatter(array: Boxes, address: int, start: int, stop: int) -> None:
    """Read bytes [start, stop) of the C-order image of ``array`` from memory at ``address``."""
    size = array.itemsize
    for element, low, high in _cut(start, stop, size):
        source = address + element * size + low - start
        if high - low < size:
            with _patching, _Scratch(size) as scratch:
                _each(array, element, element + 1, array.get, scratch.address)
                move(scratch.address + low, source, high - low)
                _each(array, element, element + 1, array.put, scratch.address)
        else:
            _each(array, element, element + (high - low) // size, array.put, source)


def boxes(shape: Sequence[int], start: int, stop: int, limit: int) -> Iterator[tuple[Index, int]]:
    """Cut elements [start, stop) of a C-order walk over ``shape`` into boxes, in order.

    Yields an index (leading integers, then at most one slice) and its number of elements, at most ``limit`` unless a
    single element is more. No dimension is 0.
    """
    if not shape:
        if start < stop:
            yield (), 1
        return
    row = math.prod(shape[1:])
    at = start
    while at < stop:
        index, within = divmod(at, row)
        whole = 0 if within or row > limit else (stop - at) // row
        if whole:
            count = min(whole, limit // row)
            yield (slice(index, index + count),), count * row
            at += count * row
        else:
            end = min(stop, (index + 1) * row)
            for inner, elements in boxes(shape[1:], within, end - index * row, limit):
                yield (index, *inner), elements
            at = end


def _cut(start: int, stop: int, size: int) -> Iterator[tuple[int, int, int]]:
    """Cut a byte range at elements: (element, low, high) are bytes [low, high) counted from that element's first.

    Either a part of one element (``high - low < size``) or a run of whole ones (``low`` is 0).
    """
    while start < stop:
        element, low = divmod(start, size)
        whole = (stop - start) // size
        high = whole * size if low == 0 and whole else min(size, low + stop - start)
        yield element, low, high
        start += high - low


def _each(array: Boxes, start: int, stop: int, act: _Act, address: int) -> None:
    limit = max(1, _BOX // array.itemsize)
    for index, elements in boxes(array.shape, start, stop, limit):
        nbytes = elements * array.itemsize
        act(index, address, nbytes)
        address += nbytes


class _Scratch:
    """Memory for one element, aligned for every dtype."""

    def __init__(self, size: int) -> None:
        self._memory = ctypes.create_string_buffer(size + 64)
        self.address = -(-ctypes.addressof(self._memory) // 64) * 64

    def __enter__(self) -> _Scratch:
        return self

    def __exit__(self, *_: object) -> None:
        self._memory = ctypes.create_string_buffer(1)
