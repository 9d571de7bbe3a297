"""Where a load lands: new memory that workers fill, several at once.

Owns the memory files and that the workers know them; never what lands. ``s3dlio.reader`` makes one for each load and
maps it. It is several memory files, the lots, since the kernel lets one writer at a time into each: two processes that
filled one of 2 GiB took 1.1 s and 1.8 s of CPU time, and 0.6 s and 1.1 s with a lot each.
"""

from __future__ import annotations

from bisect import bisect_left, bisect_right
from collections.abc import Sequence
from itertools import pairwise
from mmap import PAGESIZE

from .arena import SharedMemory
from .messages import Span
from .pool import Pool

_LOTS = 8


def cut(starts: Sequence[int], size: int, most: int) -> list[int]:
    """Where the lots of ``size`` bytes begin: at up to ``most`` of ``starts``, which ascend from 0, evenly spread.

    Only where a page begins, since lots are mapped one behind another.
    """
    pages = [start for start in starts if start % PAGESIZE == 0]
    found = [0]
    for number in range(1, most):
        at = max(bisect_left(pages, number * size // most), bisect_right(pages, found[-1]))
        if at < len(pages):
            found.append(pages[at])
    return found


class Landing:
    """New memory of ``size`` bytes for pieces that begin at ``starts``, which ascend from 0; a context manager.

    Its memory stays as long as somebody maps it. ``MemoryLimitError`` if it cannot be made.
    """

    def __init__(self, pool: Pool, starts: Sequence[int], size: int) -> None:
        self._pool = pool
        self._starts = cut(starts, size, _LOTS)
        self._lots: list[tuple[SharedMemory, int]] = []
        try:
            for start, stop in pairwise([*self._starts, size]):
                memory = SharedMemory("s3dlio-load", stop - start)
                try:
                    self._lots.append((memory, pool.attach(memory)))
                except BaseException:
                    memory.close()
                    raise
        except BaseException:
            self.close()
            raise

    def __enter__(self) -> Landing:
        return self

    def __exit__(self, *error: object) -> None:
        self.close()

    def span(self, offset: int, length: int) -> Span:
        """The place of one of the pieces."""
        lot = bisect_right(self._starts, offset) - 1
        return Span(self._lots[lot][1], offset - self._starts[lot], length)

    @property
    def files(self) -> list[tuple[int, int]]:
        """Descriptor and bytes of each lot, in the order of the bytes."""
        return [(memory.fd, memory.size) for memory, _ in self._lots]

    def close(self) -> None:
        """Let go of it here and in the workers, which may not write to it any more."""
        while self._lots:
            memory, number = self._lots.pop()
            self._pool.detach(number, memory)
