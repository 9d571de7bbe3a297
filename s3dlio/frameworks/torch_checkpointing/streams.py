"""Files as torch_checkpointing reads and writes them: streams over the pool.

Owns positions and the small read-ahead; ``object_stream`` stores, ``engine.fetch`` fetches. A stream that is left by an
exception, or lost, publishes nothing.
"""

from __future__ import annotations

import io
from collections.abc import Callable
from types import TracebackType
from typing import Any

from ...engine.fetch import fetch_through_slots
from ...engine.messages import Fetch
from ...engine.plan import MIB
from ...engine.pool import Pool
from ...engine.source import buffer_address, move
from ...object_stream import ObjectStream
from ...object_uri import Place

AHEAD = 1 * MIB
"""Bytes fetched for a smaller read: torch's archives are read by a few dozen bytes here and there."""


class ReadStream(io.RawIOBase):
    """A file of ``size`` bytes; a large read is as many requests at once as the pool has."""

    def __init__(self, pool: Pool, place: Place, size: int) -> None:
        super().__init__()
        self._pool = pool
        self._place = place
        self._size = size
        self._position = 0
        self._ahead = b""
        self._ahead_start = 0

    def readable(self) -> bool:
        """Yes."""
        return True

    def seekable(self) -> bool:
        """Yes."""
        return True

    def tell(self) -> int:
        """Where the next read begins."""
        return self._position

    def seek(self, offset: int, whence: int = io.SEEK_SET) -> int:
        """Read on from elsewhere, also from behind the end; the position."""
        base = {io.SEEK_SET: 0, io.SEEK_CUR: self._position, io.SEEK_END: self._size}[whence]
        if base + offset < 0:
            raise ValueError(f"cannot seek to {base + offset}")
        self._position = base + offset
        return self._position

    def readinto(self, buffer: Any) -> int:
        """Fill a buffer, unless the file ends before."""
        view = memoryview(buffer).cast("B")
        count = max(0, min(len(view), self._size - self._position))
        if count >= AHEAD:
            self._fetch(self._position, view[:count])
        elif count:
            self._serve(view[:count])
        self._position += count
        return count

    def readall(self) -> bytes:
        """The rest of the file."""
        rest = bytearray(max(0, self._size - self._position))
        self.readinto(rest)
        return bytes(rest)

    def _serve(self, view: memoryview) -> None:
        """A small read, from what was fetched ahead."""
        start = self._position - self._ahead_start
        if not 0 <= start <= len(self._ahead) - len(view):
            # Near the end the last bytes are fetched: an archive is read from its end on.
            first = max(0, min(self._position, self._size - AHEAD))
            ahead = bytearray(min(AHEAD, self._size - first))
            self._fetch(first, memoryview(ahead))
            self._ahead, self._ahead_start, start = bytes(ahead), first, self._position - first
        view[:] = self._ahead[start : start + len(view)]

    def _fetch(self, start: int, view: memoryview) -> None:
        address = buffer_address(view)
        step = self._pool.arena.slot_size
        items = []
        for at in range(0, len(view), step):
            size = min(step, len(view) - at)
            task = Fetch(self._place.location, self._place.key, start + at, size, "none", size, None, None)
            items.append((task, _copy_to(address + at, size)))
        fetch_through_slots(self._pool, items)


def _copy_to(address: int, size: int) -> Callable[[int], None]:
    return lambda slot: move(address, slot, size)


class WriteStream(io.RawIOBase):
    """A file being written; it is published, durable, by ``close``, unless an exception leaves the ``with`` before."""

    def __init__(self, pool: Pool, place: Place) -> None:
        super().__init__()
        self._stream = ObjectStream(pool, place)

    def writable(self) -> bool:
        """Yes."""
        return True

    def write(self, data: Any, /) -> int:
        """Copy the bytes of a buffer; their number."""
        return self._stream.write(data)

    def close(self) -> None:
        """Publish the file; nothing happens if that was done, or given up."""
        if not self.closed:
            try:
                if self._stream.state != self._stream.CANCELLED:
                    self._stream.finish()
            finally:
                super().close()

    def abort(self) -> None:
        """Give up: what was there before stays."""
        self._stream.cancel()
        super().close()

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        if error is None:
            self.close()
        else:
            self.abort()

    def __del__(self) -> None:
        """Unlike any other file, one that is lost is not closed: nobody said that it is complete."""
