"""Memory for the bytes that the sink keeps: files without a name, mapped once, given back and used again.

Owns what is free. A body is received straight into a mapping whose pages are there already, and sent by sendfile from
the file. Nothing is ever unmapped, so a sink holds what it held at most. ``sink_store`` holds the pieces.
"""

from __future__ import annotations

import functools
import mmap
import os
from collections.abc import Sequence

from awscrt import checksums  # type: ignore[import-untyped]

PATTERN_SIZE = 16 << 20
SMALL = 64 << 10
"""Up to here a body is kept as bytes: memory of its own costs more."""


class Memory:
    """A file of 2 to the power of ``order`` bytes; its pages come with the first bytes."""

    __slots__ = ("fd", "map", "order")

    def __init__(self, order: int) -> None:
        self.order = order
        self.fd = os.memfd_create("sink")
        os.truncate(self.fd, 1 << order)
        self.map = mmap.mmap(self.fd, 1 << order)


_free: list[list[Memory]] = [[] for _ in range(64)]
"""By order. No lock: append and pop are atomic, and a lock would meet itself when garbage is collected under it."""


class Piece:
    """Bytes of one request: ``body``, or ``memory``, or, with neither, dropped."""

    def __init__(self, size: int, body: bytes | None = None, memory: Memory | None = None) -> None:
        self.size = size
        self.body = body
        self.memory = memory

    @classmethod
    def room(cls, size: int) -> Piece:
        """Memory for ``size`` bytes, with whatever stood in it before."""
        order = max(size - 1, 0).bit_length()
        try:
            return cls(size, memory=_free[order].pop())
        except IndexError:
            return cls(size, memory=Memory(order))

    def source(self, at: int) -> tuple[int, int, int]:
        """A file, a position in it and the bytes from there, for what stands at ``at``; dropped bytes are a pattern."""
        if self.memory is not None:
            return self.memory.fd, at, self.size - at
        at %= PATTERN_SIZE
        return _pattern(), at, PATTERN_SIZE - at

    def __del__(self) -> None:
        if self.memory is not None:  # the last reply made of it was read
            _free[self.memory.order].append(self.memory)


def contradicts(checksum: bytes | None, pieces: Sequence[Piece]) -> bool:
    """Whether a CRC-64/NVME, highest byte first, is not that of these pieces; of small ones only, others pass."""
    bodies = [piece.body for piece in pieces if piece.body is not None]
    if checksum is None or len(bodies) < len(pieces) or sum(map(len, bodies)) > SMALL:
        return False
    found: int = checksums.crc64nvme(b"".join(bodies))
    return checksum != found.to_bytes(8, "big")


@functools.cache
def _pattern() -> int:
    """A file to send in place of dropped bytes, every page of it in memory."""
    fd = os.memfd_create("sink-pattern")
    os.truncate(fd, PATTERN_SIZE)
    with mmap.mmap(fd, PATTERN_SIZE) as memory:
        memory[:] = b"\x5a" * PATTERN_SIZE
    return fd
