"""The bytes of a state's logical shard, any range of them.

Owns nothing but the walk from a range to the header pieces and leaves in it; the copying is each leaf's own. A job
copies from it (by ``s3dlio.content``) to fill slots, from any thread and in any order.
"""

from __future__ import annotations

from bisect import bisect_right

from ..engine.source import PiecesSource
from .cuda_copies import together
from .layout import Layout
from .leaf import Leaves


class ShardImage:
    """The header and the leaves of a layout as one run of ``size`` bytes."""

    def __init__(self, leaves: Leaves, layout: Layout) -> None:
        self.size = layout.total
        self._header = PiecesSource(layout.header)
        self._leaves = leaves
        self._order = layout.order
        self._starts = [layout.offsets[index] for index in layout.order]
        self._data = layout.header_size

    def copy_to(self, address: int, start: int, stop: int) -> None:
        """Write bytes [start, stop) of the shard to memory at ``address``; ``ValueError`` outside of the shard."""
        if not 0 <= start <= stop <= self.size:
            raise ValueError(f"bytes [{start}, {stop}) of a shard of {self.size}")
        if start < self._data:
            middle = min(stop, self._data)
            self._header.fill(address, start, middle)
            address += middle - start
            start = middle
        position = max(0, bisect_right(self._starts, start) - 1)
        with together():
            while start < stop:
                index = self._order[position]
                begin = self._starts[position]
                end = min(stop, begin + self._leaves.specs[index].nbytes)
                if end > start:  # an empty leaf begins where the next one does
                    self._leaves[index].copy_to(address, start - begin, end - begin)
                    address += end - start
                    start = end
                position += 1
