"""The shared memories that a worker process has attached, by number.

Owns their descriptors and mappings here; never knows what they hold, nor talks to the parent. ``worker`` attaches and
detaches them, ``tasks`` reads and writes them, in several threads at once.
"""

from __future__ import annotations

import os
import threading

from . import pages
from .backends import answers, pace
from .messages import PACE, Span
from .source import view

_WARM_UP_PATIENCE = 0.05
"""Seconds of CPU time for a huge page of the arena: the training process waits for a warm-up only if it wants to."""


class Memories:
    """The memories of one worker. ``KeyError`` for a span of one that is not attached."""

    def __init__(self) -> None:
        self._attached: dict[int, _Memory] = {}
        self._huge = pages.HugePages()

    def attach(self, number: int, fd: int, size: int) -> None:
        """Take over the descriptor of a memory."""
        self._attached[number] = _Memory(fd, size)
        if number == PACE:
            answers.share(self.pace()[pace.SIZE :])

    def detach(self, number: int) -> None:
        """Forget a memory of which no view is used any more."""
        self._attached.pop(number).close()

    def fd(self, number: int) -> int:
        return self._attached[number].fd

    def view(self, span: Span) -> memoryview:
        """The bytes of a span, writable."""
        return self._attached[span.memory].mapped()[1][span.offset : span.offset + span.length]

    def pace(self) -> memoryview:
        """What the workers of the pool share of their pace; this process's own where the pool gave none."""
        return self._attached[PACE].mapped()[1] if PACE in self._attached else pace.private()

    def write(self, span: Span, data: memoryview) -> None:
        """Put ``data`` into a span through the memory's descriptor."""
        done = 0
        while done < span.length:
            done += os.pwrite(self.fd(span.memory), data[done:], span.offset + done)

    def allocate(self, span: Span) -> None:
        """Make the pages of a span that has none; ``OSError`` where there is no memory for them."""
        self._huge.make(self._attached[span.memory].mapped()[0] + span.offset, span.length, _WARM_UP_PATIENCE)
        os.posix_fallocate(self.fd(span.memory), span.offset, span.length)


class _Memory:
    """One of them; mapped when it is first looked at, for what is only written through its descriptor need not be."""

    def __init__(self, fd: int, size: int) -> None:
        self.fd = fd
        self._size = size
        self._mapped: tuple[int, memoryview] | None = None
        self._lock = threading.Lock()

    def mapped(self) -> tuple[int, memoryview]:
        """Its address and its bytes."""
        with self._lock:
            if self._mapped is None:
                address = pages.map_shared(self.fd, self._size)
                self._mapped = address, view(address, self._size)
            return self._mapped

    def close(self) -> None:
        os.close(self.fd)
        if self._mapped is not None:
            pages.unmap(self._mapped[0], self._size)
