"""Where raw bytes come from: the interface that staging copies from, and the plainest source, one buffer.

Owns no memory: a source refers to the user's, and keeps it alive. ``job`` copies from sources; ``s3dlio.content`` makes
one of a state.
"""

from __future__ import annotations

import ctypes
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
