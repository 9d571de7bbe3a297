"""Which bytes of a stored tensor a load needs, and where they go in memory.

Pure but for copying. A region is a box of a C-order array: whole rows of it lie end to end, a narrower one in runs of
equal length and distance. Called by ``reader`` for every item of a load plan.
"""

from __future__ import annotations

import itertools
import math
from collections.abc import Iterator, Sequence

import numpy as np

from ...engine.source import move, view
from ...reader import Wanted


def wanted(
    sizes: Sequence[int], offsets: Sequence[int], lengths: Sequence[int], width: int, start: int, target: int
) -> Iterator[Wanted]:
    """What to read of the box ``offsets``, ``lengths`` of an array of ``sizes``, elements of ``width`` bytes.

    The array begins at byte ``start`` of its shard; the box lands end to end at address ``target``. ``ValueError`` for
    a box outside of the array.
    """
    if not len(sizes) == len(offsets) == len(lengths) or any(
        at < 0 or length < 0 or at + length > size for size, at, length in zip(sizes, offsets, lengths, strict=True)
    ):
        raise ValueError(f"no box at {tuple(offsets)} of {tuple(lengths)} lies in {tuple(sizes)}")
    if 0 in lengths:
        return
    inner = len(sizes)  # the dimensions from here on are whole
    while inner and lengths[inner - 1] == sizes[inner - 1]:
        inner -= 1
    strides = [math.prod(sizes[dim + 1 :]) * width for dim in range(len(sizes))]
    if inner <= 1:  # one run
        first = start + sum(at * stride for at, stride in zip(offsets, strides, strict=True))
        yield Wanted(first, first + math.prod(lengths) * width, _Run(target))
        return
    run = math.prod(lengths[inner - 1 :]) * width
    rows, pitch = lengths[inner - 2], strides[inner - 2]
    for outer in itertools.product(*(range(length) for length in lengths[: inner - 2])):
        at = (*(o + i for o, i in zip(offsets, outer, strict=False)), *offsets[inner - 2 :])
        first = start + sum(place * stride for place, stride in zip(at, strides, strict=True))
        yield Wanted(first, first + (rows - 1) * pitch + run, _Rows(target, rows, pitch, run))
        target += rows * run


class _Run:
    """Takes bytes that land as they lie."""

    def __init__(self, target: int) -> None:
        self._target = target

    def __call__(self, address: int, start: int, stop: int) -> None:
        move(self._target + start, address, stop - start)


class _Rows:
    """Takes the first ``run`` bytes of each ``pitch``; they land end to end."""

    def __init__(self, target: int, rows: int, pitch: int, run: int) -> None:
        self._target = target
        self._rows, self._pitch, self._run = rows, pitch, run

    def __call__(self, address: int, start: int, stop: int) -> None:
        pitch, run = self._pitch, self._run
        first = -(-start // pitch)  # the first row that begins here
        last = max(first, (stop - run) // pitch + 1) if stop >= run else first  # behind the last that ends here
        if first * pitch > start:
            self._part(first - 1, address, start, stop)
        if last > first:
            count = last - first
            source = np.frombuffer(view(address + first * pitch - start, (count - 1) * pitch + run), np.uint8)
            rows = np.lib.stride_tricks.as_strided(source, (count, run), (pitch, 1))
            target = np.frombuffer(view(self._target + first * run, count * run), np.uint8)
            np.copyto(target.reshape(count, run), rows)
        if last < self._rows and last * pitch < stop:
            self._part(last, address, start, stop)

    def _part(self, row: int, address: int, start: int, stop: int) -> None:
        """What of one row lies in [start, stop)."""
        begin = row * self._pitch
        low, high = max(start, begin), min(stop, begin + self._run)
        if high > low:
            move(self._target + row * self._run + low - begin, address + low - start, high - low)
