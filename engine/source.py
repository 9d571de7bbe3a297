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

# A copy that gives up the interpreter may wait 5 ms to get it back from a busy thread, so small copies keep it: 128 KiB
# take 10 us into warm pages and 90 us into cold ones.
_HELD = 128 << 10

_move_held = ctypes.PyDLL(None).memmove
_move_free = ctypes.CDLL(None).memmove
for _move in (_move_held, _move_free):
    _move.argtypes = (ctypes.c_void_p, ctypes.c_void_p, ctypes.c_size_t)
    _move.restype = None


def move(target: int, source: int, size: int) -> None:
    """Copy ``size`` bytes from address ``source`` to address ``target``; large copies release the interpreter."""
    if size <= _HELD:
        _move_held(target, source, size)
    else:
        _move_free(target, source, size)


_view = ctypes.pythonapi.PyMemoryView_FromMemory
_view.argtypes = (ctypes.c_void_p, ctypes.c_ssize_t, ctypes.c_int)
_view.restype = ctypes.py_object
_PYBUF_WRITE = 0x200


def view(address: int, size: int) -> memoryview:
    """Writable view of memory, which the caller keeps alive for as long as the view is used."""
    made: memoryview = _view(address, size, _PYBUF_WRITE)
    return made


class Source(Protocol):
    """Raw bytes of an object, to be copied into slots.

    ``threads``: how many ranges it fills at once, where filling waits for a store rather than for memory; else 1.
    """

    @property
    def total(self) -> int:
        """Raw bytes."""

    @property
    def threads(self) -> int: ...

    def fill(self, address: int, start: int, stop: int) -> None:
        """Copy raw bytes [start, stop) to ``address``; several threads may call it, and large copies free the GIL."""


def buffer_address(data: memoryview) -> int:
    """Address of a contiguous buffer, read-only ones too."""
    import numpy as np

    return int(np.frombuffer(data, dtype=np.uint8).ctypes.data) if len(data) else 0


class BufferSource:
    """A source that is one contiguous buffer."""

    threads = 1

    def __init__(self, data: memoryview) -> None:
        self._data = data
        self._address = buffer_address(data)
        self.total = len(data)

    def fill(self, address: int, start: int, stop: int) -> None:
        """Copy a range of the buffer."""
        move(address, self._address + start, stop - start)


class PiecesSource:
    """A source that is many ``bytes`` in a row, never joined: joining 100 MB holds the interpreter for 30 ms."""

    threads = 1

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
            move(address, held + start - begin, end - start)
            address, start, number = address + end - start, end, number + 1
