"""Where raw bytes come from: the interface that staging copies from, and the two plainest sources.

Owns no memory: a source refers to its owner's, and keeps it alive. ``job`` copies from sources; ``s3dlio.content``
makes one of a state.
"""

from __future__ import annotations

import ctypes
from bisect import bisect_right
from collections.abc import Iterable
from itertools import accumulate
from typing import Protocol


class Source(Protocol):
    """Raw bytes of an object, to be copied into slots."""

    @property
    def total(self) -> int:
        """Raw bytes."""

    def fill(self, address: int, start: int, stop: int) -> None:
        """Copy raw bytes [start, stop) to ``address``, with the GIL released; may be called by several threads."""


def buffer_address(data: memoryview) -> int:
    """Address of a contiguous buffer, read-only ones too."""
    import numpy as np

    return int(np.frombuffer(data, dtype=np.uint8).ctypes.data) if len(data) else 0


class BufferSource:
    """A source that is one contiguous buffer."""

    def __init__(self, data: memoryview) -> None:
        self._data = data
        self._address = buffer_address(data)
        self.total = len(data)

    def fill(self, address: int, start: int, stop: int) -> None:
        """Copy a range of the buffer."""
        ctypes.memmove(address, self._address + start, stop - start)


class PiecesSource:
    """A source that is many ``bytes`` in a row, never joined: joining 100 MB holds the interpreter for 30 ms."""

    def __init__(self, pieces: Iterable[bytes]) -> None:
        self.pieces = tuple(pieces)
        self._starts = list(accumulate(map(len, self.pieces), initial=0))
        self.total = self._starts[-1]

    def fill(self, address: int, start: int, stop: int) -> None:
        """Copy a range that may span pieces."""
        number = bisect_right(self._starts, start) - 1
        while start < stop:
            piece, begin = self.pieces[number], self._starts[number]
            end = min(stop, begin + len(piece))
            held = ctypes.cast(ctypes.c_char_p(piece), ctypes.c_void_p).value or 0
            ctypes.memmove(address, held + start - begin, end - start)
            address, start, number = address + end - start, end, number + 1
