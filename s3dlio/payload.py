"""The memory of a loaded shard: bytes-like, owned by whoever holds a view of it.

Owns three small classes and their mapping; filled by ``reader`` and ``objects``. The mapping is private: a write
changes this process's copy only, never what a forked child or a later load sees.
"""

from __future__ import annotations

import builtins
import mmap
from collections.abc import Iterator, Sequence
from typing import Any

from .engine.errors import MemoryLimitError
from .engine.pages import lay_over
from .engine.source import buffer_address

_MAP_NORESERVE = 0x4000


class Payload(mmap.mmap):
    """A shard's raw bytes. Compares equal to ``bytes``, supports the buffer protocol, ``len`` and slices, no copy.

    Views (``memoryview``, NumPy and torch arrays) keep it alive. It is writable; writes stay in this process.
    """

    def __new__(cls, files: Sequence[tuple[int, int]]) -> Payload:
        """Map memory files, (descriptor, bytes) each, one behind another; the descriptors may be closed afterwards.

        All but the last are of whole pages. ``MemoryLimitError`` if they cannot be mapped.
        """
        size = sum(nbytes for _, nbytes in files)
        try:
            # Room for all, which a mmap object then owns; it takes no memory, and nothing of what the kernel promises.
            self = super().__new__(cls, -1, size, flags=mmap.MAP_PRIVATE | mmap.MAP_ANONYMOUS | _MAP_NORESERVE)
            address = buffer_address(builtins.memoryview(self))
            for fd, nbytes in files:
                lay_over(address, fd, nbytes)
                address += nbytes
        except OSError as error:
            raise MemoryLimitError(
                f"cannot map {size} loaded bytes: {error}; free memory, or let go of what was loaded before"
            ) from error
        return self

    def __eq__(self, other: object) -> bool:
        if isinstance(other, (bytes, bytearray, memoryview, mmap.mmap)):
            return memoryview(self) == memoryview(other)
        return NotImplemented

    __hash__ = None  # type: ignore[assignment]  # writable, like a bytearray

    def __repr__(self) -> str:
        return f"<Payload of {len(self)} bytes>"

    def __iter__(self) -> Iterator[int]:  # a mmap yields bytes, `bytes` yields int
        return iter(builtins.memoryview(self))

    def memoryview(self) -> builtins.memoryview:
        """A view without a copy."""
        return builtins.memoryview(self)

    def to_bytes(self) -> bytes:
        """A copy as ``bytes``."""
        return bytes(builtins.memoryview(self))

    def decode(self, encoding: str = "utf-8", errors: str = "strict") -> str:
        """The text, as ``bytes.decode``."""
        return str(builtins.memoryview(self), encoding, errors)


class InlinePayload(bytes):
    """A few bytes that came in a message, with the same methods; they cannot be written to."""

    def memoryview(self) -> builtins.memoryview:
        """A view without a copy."""
        return builtins.memoryview(self)

    def to_bytes(self) -> bytes:
        """Plain ``bytes``."""
        return bytes(self)


class EmptyPayload(InlinePayload):
    """A shard of no bytes: no bytes cannot be mapped."""


AnyPayload = Payload | InlinePayload


def as_buffer(data: Any) -> memoryview:
    """A payload of the user as contiguous bytes; raises ``TypeError`` for what has no buffer."""
    view = memoryview(data)
    if view.format == "O":
        raise TypeError("its elements are Python objects")
    if not view.contiguous:
        raise TypeError("not contiguous")
    return view.cast("B") if view.nbytes else memoryview(b"")
